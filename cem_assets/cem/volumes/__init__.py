"""From volumes and images of any format to standardized 8-bit ones: OME-Zarr in bricks, and tables of 2D images."""
