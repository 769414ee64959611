"""Metadata of neuroglancer precomputed volumes: one file, `info`, describes all scales.

Source: the format's specification in google/neuroglancer (`src/datasource/precomputed`).
"""

from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects, check_object_key
from cem_assets.sources.volumes.scales import (
    MAX_SCALES,
    ChunkDecoder,
    ScaleLayout,
    Triple,
    checked_layout,
    positive_triple,
    read_json,
    size_ratio,
)

_ENCODINGS = ("raw", "jpeg", "png")


def precomputed_scales(objects: RemoteObjects) -> list[ScaleLayout] | None:
    """Read the scales of `info`; None where there is no such file."""
    info = read_json(objects, "info")
    if info is None:
        return None
    what = f"{objects.address}/info"
    scales = info["scales"]
    if not isinstance(scales, list) or not 1 <= len(scales) <= MAX_SCALES:
        raise DataError(f"{what} has no list of 1 to {MAX_SCALES} scales; expected one.")
    if info.get("type", "image") != "image":
        raise DataError(f"{what} is a {str(info.get('type'))[:40]!r}; expected an image.")
    finest = _resolution(scales[0], what)
    return [_layout(info, scale, finest, f"{what}: scale {number}") for number, scale in enumerate(scales)]


def _resolution(scale: dict[str, Any], what: str) -> Triple:
    """Read the size of a voxel, which is in nanometres along x, y, z, and return it as (z, y, x)."""
    found = positive_triple(list(scale["resolution"])[::-1])
    if found is None:
        raise DataError(f"{what} has a resolution {str(scale['resolution'])[:60]}; expected three positive numbers.")
    return found


def _layout(info: dict[str, Any], scale: dict[str, Any], finest: Triple, what: str) -> ScaleLayout:
    voxel_size = _resolution(scale, what)
    encoding = str(scale["encoding"])
    if encoding not in _ENCODINGS:
        raise DataError(f"{what} is encoded as {encoding[:40]!r}; expected {', '.join(_ENCODINGS)}.")
    path = check_object_key(str(scale["key"]))
    kept: dict[str, Any] = {
        name: scale[name] for name in ("resolution", "size", "encoding", "jpeg_quality", "voxel_offset") if name in scale
    }
    single = {**kept, "key": "s", "chunk_sizes": scale["chunk_sizes"][:1]}  # chunks are stored once for each of the sizes
    sharding = scale.get("sharding")
    if sharding is not None:  # an array that is opened with its shards is only checked
        ChunkDecoder("precomputed", _single_scale(info, {**single, "sharding": sharding}), what)
    decoder = ChunkDecoder("precomputed", _single_scale(info, single), what)
    layout = ScaleLayout(path, decoder, (2, 1, 0), size_ratio(voxel_size, finest), voxel_size, False, sharding)
    return checked_layout(layout, what)


def _single_scale(info: dict[str, Any], scale: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": info["data_type"],
        "num_channels": info["num_channels"], "scales": [scale],
    }  # fmt: skip
