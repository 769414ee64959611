"""Writes volumes with a pyramid in every format that can be read, with tensorstore."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

FORMATS = (
    "zarr2", "zarr2-blosc-slash", "zarr3", "zarr3-sharded", "zarr3-sharded-start", "ome-zarr", "ome-zarr-v3-5d", "n5",
    "n5-blosc", "precomputed", "precomputed-jpeg", "precomputed-sharded", "precomputed-murmur",
)  # fmt: skip
"""The variants that the tests write. A name begins with the kind."""

VOXEL_NM = (10.0, 4.0, 4.0)


def kind_of_format(name: str) -> str:
    return "ome-zarr" if name.startswith("ome-zarr") else name.partition("-")[0]


def textured(shape: tuple[int, int, int], dtype: str = "uint8", seed: int = 0, low: int = 8) -> NDArray[Any]:
    """Noise that is nowhere 0, so that a zero in a result was never stored."""
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(low, high, shape, dtype=dtype)


def halved(voxels: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(voxels[::2, ::2, ::2])


def write_volume(folder: Path, name: str, voxels: NDArray[Any], chunk: int = 32, num_scales: int = 3) -> str:
    """Write a volume (z, y, x) and its smaller scales, each of half the size; return its path below the folder."""
    levels = [voxels]
    for _ in range(num_scales - 1):
        levels.append(halved(levels[-1]))
    target = folder / name
    if name.startswith("precomputed"):
        _precomputed(target, name, levels, chunk)
        return name
    for number, level in enumerate(levels):
        _array(target / f"s{number}", name, level, chunk, number)
    if name.startswith(("zarr", "ome-zarr")):
        _multiscales(target, name, len(levels))
    return name


def _write(spec: dict[str, Any], values: NDArray[Any]) -> None:
    array = ts.open({**spec, "create": True, "store_data_equal_to_fill_value": True}).result()
    origin = tuple(array.domain.inclusive_min)
    array[tuple(slice(o, o + n) for o, n in zip(origin, values.shape, strict=True))].write(values).result()


def _array(path: Path, name: str, level: NDArray[Any], chunk: int, number: int) -> None:
    store = {"driver": "file", "path": f"{path}/"}
    if name.startswith("n5"):
        compression = {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1} if "blosc" in name else {"type": "gzip"}
        metadata: dict[str, Any] = {
            "dimensions": list(level.shape[::-1]), "blockSize": [chunk] * 3, "dataType": level.dtype.name,
            "compression": compression,
        }  # fmt: skip
        _write({"driver": "n5", "kvstore": store, "metadata": metadata}, level.transpose())
        attributes = json.loads((path / "attributes.json").read_text())
        size = [v * 2**number for v in VOXEL_NM[::-1]]
        attributes |= {"pixelResolution": {"dimensions": size, "unit": "nm"}, "downsamplingFactors": [2**number] * 3}
        (path / "attributes.json").write_text(json.dumps(attributes))
    elif name in ("zarr2", "zarr2-blosc-slash", "ome-zarr"):
        compressor = (
            {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1} if "blosc" in name else {"id": "zlib", "level": 1}
        )
        metadata = {
            "shape": list(level.shape), "chunks": [chunk] * 3, "dtype": ">u2" if level.dtype == np.uint16 else "|u1",
            "compressor": compressor, "dimension_separator": "." if name == "zarr2" else "/",
        }  # fmt: skip
        _write({"driver": "zarr", "kvstore": store, "metadata": metadata}, level)
    else:
        values = level[None, None] if name.endswith("5d") else level
        lead = values.ndim - 3
        inner: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
        if level.dtype == np.uint8:
            inner[0] = {"name": "bytes"}
        outer, codecs = [1] * lead + [chunk] * 3, [*inner, {"name": "crc32c"}]
        if "sharded" in name:
            place = "start" if name.endswith("start") else "end"
            sharding = {"chunk_shape": outer, "codecs": inner, "index_location": place}
            outer, codecs = [side * 2 for side in outer], [{"name": "sharding_indexed", "configuration": sharding}]
        metadata = {
            "shape": list(values.shape), "data_type": level.dtype.name, "codecs": codecs,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": outer}},
        }  # fmt: skip
        _write({"driver": "zarr3", "kvstore": store, "metadata": metadata}, values)


def _multiscales(target: Path, name: str, num_scales: int) -> None:
    is_5d = name.endswith("5d")
    axes = [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"]
    axes = [{"name": "t"}, {"name": "c"}, *axes] if is_5d else axes
    datasets = []
    for number in range(num_scales):
        scale = [1.0, 1.0] * int(is_5d) + [v * 2**number for v in VOXEL_NM]
        datasets.append({"path": f"s{number}", "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    multiscales = [{"axes": axes, "datasets": datasets}]
    if name in ("zarr2", "zarr2-blosc-slash", "ome-zarr"):
        (target / ".zattrs").write_text(json.dumps({"multiscales": multiscales}))
        (target / ".zgroup").write_text('{"zarr_format": 2}')
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "multiscales": multiscales}}}
        (target / "zarr.json").write_text(json.dumps(group))


def _precomputed(target: Path, name: str, levels: list[NDArray[Any]], chunk: int) -> None:
    for number, level in enumerate(levels):
        scale: dict[str, Any] = {
            "size": list(level.shape[::-1]), "resolution": [v * 2**number for v in VOXEL_NM[::-1]], "chunk_size": [chunk] * 3,
            "encoding": "jpeg" if "jpeg" in name else "raw", "voxel_offset": [7, 0, 64 // 2**number],
        }  # fmt: skip
        if "jpeg" in name:
            scale["jpeg_quality"] = 100
        if "sharded" in name or "murmur" in name:
            scale["sharding"] = {
                "@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3,
                "hash": "murmurhash3_x86_128" if "murmur" in name else "identity",
                "minishard_index_encoding": "gzip" if "sharded" in name else "raw",
                "data_encoding": "gzip" if "murmur" in name else "raw",
            }  # fmt: skip
        spec = {
            "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{target}/"}, "scale_metadata": scale,
            "multiscale_metadata": {"type": "image", "data_type": level.dtype.name, "num_channels": 1},
        }  # fmt: skip
        _write(spec, level.transpose()[..., None])
