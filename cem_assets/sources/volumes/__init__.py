"""Remote volumes: Zarr, N5 and precomputed, read chunk by chunk."""
