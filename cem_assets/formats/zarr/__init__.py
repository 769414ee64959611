"""Zarr stores, on local disks and in buckets."""
