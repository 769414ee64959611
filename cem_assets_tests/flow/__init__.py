"""Tests of the whole flow from the inbox to releases and weights, as users run it."""
