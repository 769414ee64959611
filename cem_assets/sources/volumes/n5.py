"""Metadata of N5 volumes: see `remote_layouts`. Axes are stored x, y, z, as N5 writers do.

A pyramid is a group with `s0`, `s1`, ...: COSEM's (with `pixelResolution`) and BigDataViewer's (with
`downsamplingFactors`) are both read. Source: the N5 specification (saalfeldlab/n5).
"""

from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects
from cem_assets.sources.volumes.scales import (
    MAX_SCALES,
    NM_PER_UNIT,
    ScaleLayout,
    Triple,
    checked_layout,
    positive_triple,
    read_json,
    shape_ratio,
    whole_numbers,
)

_COMPRESSORS = {"raw": "raw", "gzip": "gzip", "bzip2": "bzip2", "xz": "xz", "zstd": "zstd", "blosc": "blosc"}


def n5_scales(objects: RemoteObjects) -> list[ScaleLayout] | None:
    """Read an array's or a pyramid's `attributes.json`; None where there is none."""
    own = read_json(objects, "attributes.json")
    if own is not None and "dimensions" in own:
        return [_layout(own, "", (1.0, 1.0, 1.0), f"{objects.address}/attributes.json")]
    found: list[ScaleLayout] = []
    for number in range(MAX_SCALES):
        path = f"s{number}"
        attributes = read_json(objects, f"{path}/attributes.json")
        if attributes is None or "dimensions" not in attributes:
            break
        layout = _layout(attributes, path, None, f"{objects.address}/{path}")
        if found and attributes.get("downsamplingFactors") is None:
            finest, own_size = found[0].voxel_size_nm, layout.voxel_size_nm
            factor = shape_ratio(found[0].shape, layout.shape)
            if finest is not None and own_size is not None and own_size != finest:
                z, y, x = (a / b for a, b in zip(own_size, finest, strict=True))
                factor = (z, y, x)
            layout = _layout(attributes, path, factor, f"{objects.address}/{path}")
        found.append(layout)
    return found or None


def _layout(attributes: dict[str, Any], path: str, factor: Triple | None, where: str) -> ScaleLayout:
    shape = whole_numbers(attributes["dimensions"], f"{where}: dimensions")
    chunk = whole_numbers(attributes["blockSize"], f"{where}: blockSize", length=len(shape))
    if len(shape) < 3:
        raise DataError(f"{where} has {len(shape)} axes; expected x, y, z.")
    stated = attributes.get("downsamplingFactors")
    if factor is None:
        factor = (1.0, 1.0, 1.0)
        if stated is not None:
            factor = positive_triple(list(stated)[::-1]) or factor
    compression = attributes.get("compression", {"type": attributes.get("compressionType", "raw")})
    kind = str(compression["type"])
    if kind not in _COMPRESSORS:
        raise DataError(f"{where} is compressed with {kind[:40]!r}; expected one of {', '.join(_COMPRESSORS)}.")
    decoding = {
        "dimensions": list(shape),
        "blockSize": list(chunk),
        "dataType": attributes["dataType"],
        "compression": compression,
    }
    return checked_layout(
        ScaleLayout(
            kind="n5",
            path=path,
            stored_shape=shape,
            chunk_shape=chunk,
            origin=(0,) * len(shape),
            axes=(2, 1, 0),
            dtype=str(attributes["dataType"]),
            factor=factor,
            voxel_size_nm=_voxel_size(attributes),
            decoding=decoding,
            compressor=_COMPRESSORS[kind],
        ),
        where,
    )


def _voxel_size(attributes: dict[str, Any]) -> Triple | None:
    """Read `pixelResolution`, or COSEM's `transform`; sizes without a known unit are no sizes."""
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
