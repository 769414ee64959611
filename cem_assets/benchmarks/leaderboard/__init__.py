"""All scores beside published ones, and the gate that weights must pass to become champion."""
