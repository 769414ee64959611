"""Patches: their places, hashes and tables, and the exemplars among them."""
