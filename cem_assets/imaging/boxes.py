"""A box of voxels."""

Box = tuple[slice, slice, slice]
