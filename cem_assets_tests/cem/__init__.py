"""Tests of `cem_assets.cem`."""
