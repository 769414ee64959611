"""Patches cut from volumes and images: their hashes, their tables, and the choice of exemplars among them."""
