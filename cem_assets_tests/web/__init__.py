"""Tests of the local web pages."""
