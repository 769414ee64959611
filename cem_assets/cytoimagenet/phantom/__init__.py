"""Phantom screens: sources that are drawn from a seed, for demos and tests."""
