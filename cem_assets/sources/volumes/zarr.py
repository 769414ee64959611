"""Metadata of foreign Zarr volumes, v2 and v3, with or without OME multiscales: see `remote_layouts`.

Zarr stores in the inbox are `cem_assets.formats.zarr.stores`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cem_assets.errors import DataError
from cem_assets.sources.volumes.objects import RemoteObjects, check_object_key
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

_ARRAY_TO_BYTES = ("bytes", "sharding_indexed", "transpose")
_COMPRESSORS = {"gzip": "gzip", "zlib": "zlib", "zstd": "zstd", "blosc": "blosc", "bz2": "bzip2"}


@dataclass(frozen=True)
class _Level:
    """What multiscales metadata say of one scale, in stored order of axes."""

    path: str
    names: tuple[str, ...] | None = None
    scale: tuple[float | None, ...] | None = None
    units_nm: tuple[float | None, ...] | None = None


def zarr_scales(objects: RemoteObjects, versions: tuple[int, ...]) -> list[ScaleLayout] | None:
    """Read an array, or the scales of a group with multiscales metadata; None where there is neither.

    Args:
        objects: The volume's address.
        versions: Zarr formats to look for, in order.
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
    where = f"{objects.address}/{level.path}"
    shape = whole_numbers(node["shape"], f"{where}: shape")
    axes = _axes(level.names, shape, where)
    sizes = None
    if level.scale is not None and len(level.scale) == len(shape):
        sizes = positive_triple([level.scale[axis] for axis in axes])
    voxel: Triple | None = None
    if sizes is not None and level.units_nm is not None:
        units = [level.units_nm[axis] for axis in axes]
        if units[0] is not None and units[1] is not None and units[2] is not None:
            voxel = (sizes[0] * units[0], sizes[1] * units[1], sizes[2] * units[2])
    stored = _version2(node, where) if version == 2 else _version3(node, where)
    chunk = whole_numbers(stored.pop("chunk"), f"{where}: chunk shape", length=len(shape))
    layout = ScaleLayout(
        kind=f"zarr{version}",
        path=level.path,
        stored_shape=shape,
        chunk_shape=chunk,
        origin=(0,) * len(shape),
        axes=axes,
        factor=(1.0, 1.0, 1.0),
        voxel_size_nm=voxel,
        **stored,
    )
    if finest:
        first = finest[0]
        factor = shape_ratio(first.shape, layout.shape)
        if voxel is not None and first.voxel_size_nm is not None:
            z, y, x = (a / b for a, b in zip(voxel, first.voxel_size_nm, strict=True))
            factor = (z, y, x)
        layout = replace(layout, factor=factor)
    return checked_layout(layout, where)


def _axes(names: tuple[str, ...] | None, shape: tuple[int, ...], where: str) -> tuple[int, int, int]:
    if names is not None:
        if len(names) != len(shape) or any(names.count(axis) != 1 for axis in "zyx"):
            raise DataError(f"{where} has axes {names} of sizes {shape}; expected z, y and x among them.")
        return (names.index("z"), names.index("y"), names.index("x"))
    if len(shape) < 3 or any(size != 1 for size in shape[:-3]):
        raise DataError(f"{where} has unnamed axes of sizes {shape}; expected z, y, x, and only sizes of 1 before them.")
    return (len(shape) - 3, len(shape) - 2, len(shape) - 1)


def _version2(node: dict[str, Any], where: str) -> dict[str, Any]:
    compressor = node.get("compressor")
    kind = "raw" if compressor is None else _COMPRESSORS.get(str(compressor["id"]))
    if kind is None or node.get("filters"):
        found = str([compressor, node.get("filters")])[:120]
        raise DataError(f"{where} is encoded as {found}; expected no filters and one of {', '.join(_COMPRESSORS)}.")
    try:
        dtype = np.dtype(str(node["dtype"])).newbyteorder("=").name
    except TypeError as error:
        raise DataError(f"{where} has a type {str(node['dtype'])[:40]!r}; expected numbers.") from error
    separator = str(node.get("dimension_separator", "."))
    if separator not in (".", "/"):
        raise DataError(f"{where} joins chunk names with {separator[:10]!r}; expected '.' or '/'.")
    kept = {name: node[name] for name in ("shape", "chunks", "dtype", "compressor", "order")}
    decoding = {**kept, "zarr_format": 2, "filters": None, "fill_value": None, "dimension_separator": "/"}
    return {"chunk": node["chunks"], "dtype": dtype, "decoding": decoding, "compressor": kind, "separator": separator}


def _version3(node: dict[str, Any], where: str) -> dict[str, Any]:
    grid, encoding = node["chunk_grid"], node["chunk_key_encoding"]
    if grid["name"] != "regular" or node.get("storage_transformers"):
        raise DataError(f"{where} has a chunk grid {str(grid['name'])[:40]!r} or transformers; expected a regular grid.")
    if encoding["name"] not in ("default", "v2"):
        raise DataError(f"{where} names chunks by {str(encoding['name'])[:40]!r}; expected 'default' or 'v2'.")
    is_default = encoding["name"] == "default"
    separator = str(encoding.get("configuration", {}).get("separator", "/" if is_default else "."))
    if separator not in (".", "/"):
        raise DataError(f"{where} joins chunk names with {separator[:10]!r}; expected '.' or '/'.")
    outer, codecs = grid["configuration"]["chunk_shape"], node["codecs"]
    chunk, sharding = outer, None
    if any(codec["name"] == "sharding_indexed" for codec in codecs):
        if len(codecs) != 1:
            raise DataError(f"{where} has codecs around its shards; expected the sharding codec alone.")
        sharding = {**codecs[0]["configuration"], "shard_shape": outer}
        chunk, codecs = sharding["chunk_shape"], sharding["codecs"]
        sides = list(zip(whole_numbers(outer, f"{where}: shards"), whole_numbers(chunk, f"{where}: chunks"), strict=False))
        if len(outer) != len(chunk) or any(a % b for a, b in sides):
            raise DataError(f"{where} has shards {outer} of chunks {chunk}; expected whole chunks.")
    decoding = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": node["shape"],
        "data_type": node["data_type"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
    }
    return {
        "chunk": chunk,
        "dtype": str(node["data_type"]),
        "decoding": decoding,
        "compressor": _compressor3(codecs, where),
        "separator": separator,
        "prefix": f"c{separator}" if is_default else "",
        "sharding": sharding,
    }


def _compressor3(codecs: list[dict[str, Any]], where: str) -> str:
    """Return the one compressor of a chain; "+crc32c" where a checksum follows it."""
    names = [str(codec["name"]) for codec in codecs]
    packers = [name for name in names if name not in _ARRAY_TO_BYTES and name != "crc32c"]
    is_last_crc = bool(names) and names[-1] == "crc32c"
    if (
        "sharding_indexed" in names
        or len(packers) > 1
        or any(name not in _COMPRESSORS for name in packers)
        or names.count("crc32c") > int(is_last_crc)
    ):
        raise DataError(f"{where} has codecs {str(names)[:120]}; expected one of {', '.join(_COMPRESSORS)}, then crc32c.")
    return (_COMPRESSORS[packers[0]] if packers else "raw") + ("+crc32c" if is_last_crc else "")
