"""Releases of CEM: versions that never change, their cards, and what changed between two."""
