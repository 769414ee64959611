"""Volumes on foreign servers in Zarr, N5 and neuroglancer precomputed, read chunk by chunk."""
