"""Seeded phantom screens, for demos and tests."""
