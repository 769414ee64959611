"""Zarr stores of other people, on local disks and in buckets."""
