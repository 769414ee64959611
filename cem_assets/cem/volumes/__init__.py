"""Volumes and images as they arrive, brought to one form: bricks, intensities, OME-Zarr."""
