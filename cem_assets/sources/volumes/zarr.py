"""Metadata of remote Zarr volumes, v2 and v3: single arrays, and groups with OME multiscales metadata.

Zarr stores in the inbox are read by `cem_assets.formats.zarr`.
"""

from dataclasses import dataclass, replace
from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects, check_object_key
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

_COMPRESSORS = ("gzip", "zlib", "zstd", "blosc", "bz2")
_ARRAY_TO_BYTES = ("bytes", "transpose")


@dataclass(frozen=True)
class _Level:
    """What multiscales metadata say of one scale, in the stored order of axes."""

    path: str
    names: tuple[str, ...] | None = None
    scale: tuple[float | None, ...] | None = None
    units_nm: tuple[float | None, ...] | None = None


def zarr_scales(objects: RemoteObjects, versions: tuple[int, ...]) -> list[ScaleLayout] | None:
    """Read an array, or the scales of a group with multiscales metadata; None where there is neither.

    Args:
        versions: The versions of the Zarr format to look for, in this order.
    """
    for version in versions:
        node = read_json(objects, "zarr.json" if version == 3 else ".zarray")
        if version == 3 and node is not None and node.get("node_type") == "group":
            attributes = node.get("attributes", {})
            return _multiscale(objects, 3, attributes.get("ome", attributes))
        if node is not None:
            return [_layout(objects, version, _Level(""), node)]
        attributes = read_json(objects, ".zattrs") if version == 2 else None
        if attributes is not None:
            return _multiscale(objects, 2, attributes)
    return None


def _multiscale(objects: RemoteObjects, version: int, ome: dict[str, Any]) -> list[ScaleLayout]:
    if not ome.get("multiscales"):
        raise DataError(
            f"{objects.address} is a Zarr group without multiscales metadata; expected an array or an OME-Zarr image. Give the "
            "address of the array itself."
        )
    multiscale = ome["multiscales"][0]
    datasets = multiscale["datasets"]
    if not isinstance(datasets, list) or not 1 <= len(datasets) <= MAX_SCALES:
        raise DataError(f"{objects.address} has no list of 1 to {MAX_SCALES} scales; expected one.")
    axes = multiscale.get("axes")
    names = None if axes is None else tuple(str(a["name"] if isinstance(a, dict) else a).lower() for a in axes)
    units = None if axes is None else tuple(NM_PER_UNIT.get(str(a.get("unit"))) if isinstance(a, dict) else None for a in axes)
    layouts: list[ScaleLayout] = []
    for entry in datasets:
        path = check_object_key(str(entry["path"]).strip("/"))
        transforms = entry.get("coordinateTransformations", [])
        scales = [tuple(t["scale"]) for t in transforms if t.get("type") == "scale"]
        node = read_json(objects, f"{path}/{'zarr.json' if version == 3 else '.zarray'}")
        if node is None:
            raise FileNotFoundError(f"{objects.address}/{path} is named as a scale, but is no array. Check the source.")
        layouts.append(_layout(objects, version, _Level(path, names, scales[0] if scales else None, units), node, layouts[:1]))
    return layouts


def _layout(
    objects: RemoteObjects, version: int, level: _Level, node: dict[str, Any], finest: list[ScaleLayout] | None = None
) -> ScaleLayout:
    what = f"{objects.address}/{level.path}"
    decoder, is_blosc, sharding = _version2(node, what) if version == 2 else _version3(node, what)
    axes = _axes(level.names, decoder.shape, what)
    sizes = None
    if level.scale is not None and len(level.scale) == len(decoder.shape):
        sizes = positive_triple([level.scale[axis] for axis in axes])
    voxel_size: Triple | None = None
    if sizes is not None and level.units_nm is not None:
        units = [level.units_nm[axis] for axis in axes]
        if units[0] is not None and units[1] is not None and units[2] is not None:
            voxel_size = (sizes[0] * units[0], sizes[1] * units[1], sizes[2] * units[2])
    layout = ScaleLayout(level.path, decoder, axes, (1.0, 1.0, 1.0), voxel_size, is_blosc, sharding)
    checked_layout(layout, what)  # refuses sizes of 0, by which a factor cannot be computed
    if finest:
        factor = shape_ratio(finest[0].shape, layout.shape)
        if voxel_size is not None and finest[0].voxel_size_nm is not None:
            factor = size_ratio(voxel_size, finest[0].voxel_size_nm)
        layout = replace(layout, factor=factor)
    return layout


def _axes(names: tuple[str, ...] | None, shape: tuple[int, ...], what: str) -> tuple[int, int, int]:
    if names is not None:
        if len(names) != len(shape) or any(names.count(axis) != 1 for axis in "zyx"):
            raise DataError(f"{what} has axes {names} of sizes {shape}; expected z, y and x among them.")
        return (names.index("z"), names.index("y"), names.index("x"))
    if len(shape) < 3 or any(size != 1 for size in shape[:-3]):
        raise DataError(f"{what} has unnamed axes of sizes {shape}; expected z, y, x, and only sizes of 1 before them.")
    return (len(shape) - 3, len(shape) - 2, len(shape) - 1)


def _version2(node: dict[str, Any], what: str) -> tuple[ChunkDecoder, bool, None]:
    compressor = node.get("compressor")
    if node.get("filters") or (compressor is not None and compressor["id"] not in _COMPRESSORS):
        found = str([compressor, node.get("filters")])[:120]
        raise DataError(f"{what} is encoded as {found}; expected no filters and one of {', '.join(_COMPRESSORS)}.")
    separator = str(node.get("dimension_separator", "."))
    kept = {name: node[name] for name in ("shape", "chunks", "dtype", "compressor", "order")}
    # A fill value is not needed, because absent chunks are errors, and some writers store one that tensorstore does not accept.
    metadata = {**kept, "zarr_format": 2, "filters": None, "fill_value": None, "dimension_separator": separator}
    return ChunkDecoder("zarr2", metadata, what, separator), compressor is not None and compressor["id"] == "blosc", None


def _version3(node: dict[str, Any], what: str) -> tuple[ChunkDecoder, bool, dict[str, Any] | None]:
    encoding, codecs, sharding = node["chunk_key_encoding"], node["codecs"], None
    is_default = encoding["name"] == "default"
    separator = str(encoding.get("configuration", {}).get("separator", "/" if is_default else "."))
    kept = {name: node[name] for name in ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding")}
    metadata = {**kept, "codecs": codecs, "storage_transformers": node.get("storage_transformers", []), "fill_value": 0}
    if any(codec["name"] == "sharding_indexed" for codec in codecs):
        if len(codecs) != 1:
            raise DataError(f"{what} has codecs around its shards; expected the sharding codec alone.")
        ChunkDecoder("zarr3", metadata, what)  # an array that is opened with its shards is only checked
        sharding = {**codecs[0]["configuration"], "shard_shape": node["chunk_grid"]["configuration"]["chunk_shape"]}
        codecs = sharding["codecs"]
        grid = {"name": "regular", "configuration": {"chunk_shape": sharding["chunk_shape"]}}
        metadata |= {"chunk_grid": grid, "codecs": codecs}
    compressor = _compressor(codecs, what)
    decoder = ChunkDecoder("zarr3", metadata, what, separator, f"c{separator}" if is_default else "")
    return decoder, compressor == "blosc", sharding


def _compressor(codecs: list[dict[str, Any]], what: str) -> str | None:
    """Return the only compressor of a chain of codecs, or None.

    Nothing but a checksum may follow the compressor, so that a chunk begins with the header that blosc is checked by.
    """
    names = [str(codec["name"]) for codec in codecs]
    compressors = [name for name in names if name not in _ARRAY_TO_BYTES and name != "crc32c"]
    if len(compressors) > 1 or not set(compressors) <= set(_COMPRESSORS) or "crc32c" in names[:-1]:
        raise DataError(f"{what} has codecs {str(names)[:120]}; expected one of {', '.join(_COMPRESSORS)}, then crc32c.")
    return compressors[0] if compressors else None
