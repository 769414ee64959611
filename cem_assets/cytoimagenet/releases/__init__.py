"""Releases of CytoImageNet: versions that never change, and their export."""
