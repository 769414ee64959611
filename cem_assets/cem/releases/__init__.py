"""Releases of CEM patches, which never change: making them, their dataset cards, and the differences between two."""
