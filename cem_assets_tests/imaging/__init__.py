"""Tests of `cem_assets.imaging`."""
