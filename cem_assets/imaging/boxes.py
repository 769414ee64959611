"""A region of a volume."""

Box = tuple[slice, slice, slice]
"""Spans along z, y and x, in voxels."""
