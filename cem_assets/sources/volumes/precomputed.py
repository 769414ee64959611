"""Metadata of neuroglancer precomputed volumes: see `remote_layouts`.

Source: the format's specification in google/neuroglancer (`src/datasource/precomputed`).
"""

from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects, check_object_key
from cem_assets.sources.volumes.scales import (
    MAX_SCALES,
    ScaleLayout,
    Triple,
    checked_layout,
    positive_triple,
    read_json,
    whole_numbers,
)

_COMPRESSORS = {"raw": "raw", "jpeg": "image", "png": "image"}


def precomputed_scales(objects: RemoteObjects) -> list[ScaleLayout] | None:
    """Read the scales of `info`; None where there is none."""
    info = read_json(objects, "info")
    if info is None:
        return None
    where = f"{objects.address}/info"
    scales = info["scales"]
    if not isinstance(scales, list) or not 1 <= len(scales) <= MAX_SCALES:
        raise DataError(f"{where} has no list of 1 to {MAX_SCALES} scales; expected one.")
    if info.get("type", "image") != "image":
        raise DataError(f"{where} is a {str(info.get('type'))[:40]!r}; expected an image.")
    (channels,) = whole_numbers([info["num_channels"]], f"{where}: num_channels")
    finest = _resolution(scales[0], where)
    return [_layout(info, scale, channels, finest, f"{where}: scale {number}") for number, scale in enumerate(scales)]


def _resolution(scale: dict[str, Any], where: str) -> Triple:
    found = positive_triple(list(scale["resolution"])[::-1])
    if found is None:
        raise DataError(f"{where} has a resolution {str(scale['resolution'])[:60]}; expected three positive numbers.")
    return found


def _layout(info: dict[str, Any], scale: dict[str, Any], channels: int, finest: Triple, where: str) -> ScaleLayout:
    size = whole_numbers(scale["size"], f"{where}: size", length=3)
    chunk = whole_numbers(scale["chunk_sizes"][0], f"{where}: chunk_sizes", length=3)
    offset = whole_numbers(scale.get("voxel_offset", [0, 0, 0]), f"{where}: voxel_offset", low=-(1 << 26), length=3)
    voxel = _resolution(scale, where)
    encoding = str(scale["encoding"])
    if encoding not in _COMPRESSORS:
        raise DataError(f"{where} is encoded as {encoding[:40]!r}; expected {', '.join(_COMPRESSORS)}.")
    key = check_object_key(str(scale["key"]))
    kept: dict[str, Any] = {name: scale[name] for name in ("resolution", "size", "encoding", "jpeg_quality") if name in scale}
    single: dict[str, Any] = {**kept, "key": "s", "chunk_sizes": [list(chunk)], "voxel_offset": list(offset)}
    decoding = {
        "@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": info["data_type"],
        "num_channels": channels, "scales": [single],
    }  # fmt: skip
    sharding = scale.get("sharding")
    if sharding is not None and not isinstance(sharding, dict):
        raise DataError(f"{where} has sharding that is no JSON object; expected one.")
    z, y, x = (a / b for a, b in zip(voxel, finest, strict=True))
    return checked_layout(
        ScaleLayout(
            kind="precomputed",
            path=key,
            stored_shape=(*size, channels),
            chunk_shape=(*chunk, channels),  # a chunk holds all channels
            origin=(*offset, 0),
            axes=(2, 1, 0),
            dtype=str(info["data_type"]).lower(),
            factor=(z, y, x),
            voxel_size_nm=voxel,
            decoding=decoding,
            compressor=_COMPRESSORS[encoding],
            sharding=sharding,
        ),
        where,
    )
