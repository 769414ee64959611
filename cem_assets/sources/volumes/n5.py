"""Metadata of N5 volumes. Writers of N5 store the axes in the order x, y, z.

A pyramid is a group with the arrays `s0`, `s1` and so on. Two kinds of writers are understood: COSEM, which give the voxel
size as `pixelResolution`, and BigDataViewer, which gives `downsamplingFactors`. Source: the N5 specification (saalfeldlab/n5).
"""

from dataclasses import replace
from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects
from cem_assets.sources.volumes.scales import (
    MAX_SCALES,
    NM_PER_UNIT,
    ChunkDecoder,
    ScaleLayout,
    Triple,
    checked_layout,
    positive_triple,
    read_json,
    shape_ratio,
    size_ratio,
)


def n5_scales(objects: RemoteObjects) -> list[ScaleLayout] | None:
    """Read the `attributes.json` of an array or of the scales of a pyramid; None where there is neither."""
    own = read_json(objects, "attributes.json")
    if own is not None and "dimensions" in own:
        return [replace(_layout(own, "", f"{objects.address}/attributes.json"), factor=(1.0, 1.0, 1.0))]
    found: list[ScaleLayout] = []
    for number in range(MAX_SCALES):
        path = f"s{number}"
        attributes = read_json(objects, f"{path}/attributes.json")
        if attributes is None or "dimensions" not in attributes:
            break
        layout = _layout(attributes, path, f"{objects.address}/{path}")
        if found and attributes.get("downsamplingFactors") is None:
            finest, size = found[0].voxel_size_nm, layout.voxel_size_nm
            factor = shape_ratio(found[0].shape, layout.shape)
            if finest is not None and size is not None and size != finest:
                factor = size_ratio(size, finest)
            layout = replace(layout, factor=factor)
        found.append(layout)
    return found or None


def _layout(attributes: dict[str, Any], path: str, what: str) -> ScaleLayout:
    # Older writers name the compression alone, as `compressionType`.
    compression = attributes.get("compression", {"type": attributes.get("compressionType", "raw")})
    # tensorstore also interprets attributes such as `units`, in which writers disagree, so it is given what it needs.
    metadata = {name: attributes[name] for name in ("dimensions", "blockSize", "dataType")} | {"compression": compression}
    decoder = ChunkDecoder("n5", metadata, what)
    if len(decoder.shape) < 3:
        raise DataError(f"{what} has {len(decoder.shape)} axes; expected x, y, z.")
    factor = positive_triple(list(attributes.get("downsamplingFactors") or [])[::-1]) or (1.0, 1.0, 1.0)
    layout = ScaleLayout(path, decoder, (2, 1, 0), factor, _voxel_size(attributes), compression["type"] == "blosc")
    return checked_layout(layout, what)


def _voxel_size(attributes: dict[str, Any]) -> Triple | None:
    """Read `pixelResolution`, or COSEM's `transform`; None where the unit is not known."""
    pixel = attributes.get("pixelResolution")
    if isinstance(pixel, dict):
        unit = NM_PER_UNIT.get(str(pixel.get("unit")))
        size = positive_triple(list(pixel.get("dimensions", []))[:3][::-1])
        if unit is not None and size is not None:
            return (size[0] * unit, size[1] * unit, size[2] * unit)
    transform = attributes.get("transform")
    if isinstance(transform, dict):
        by_axis = dict(zip(transform.get("axes", []), transform.get("scale", []), strict=False))
        units = dict(zip(transform.get("axes", []), transform.get("units", []), strict=False))
        size = positive_triple([by_axis.get(axis) for axis in "zyx"])
        scale = [NM_PER_UNIT.get(str(units.get(axis))) for axis in "zyx"]
        if size is not None and scale[0] is not None and scale[1] is not None and scale[2] is not None:
            return (size[0] * scale[0], size[1] * scale[1], size[2] * scale[2])
    return None
