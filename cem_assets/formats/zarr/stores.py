"""Reads boxes of Zarr v2 and v3 stores of other people, OME-Zarr among them.

The zarr library silently returns fill values where a chunk is absent. Here the voxels of an absent chunk are marked as
missing. A chunk counts as absent where its object does not exist, or where access to it is refused while other chunks can be
read; every other trouble is an error. Codecs that could run code from the store (pickle) are refused before an array is
opened. Our own volumes are read by `cem_assets.cem.volumes.ome_zarr`.
"""

import dataclasses
import gzip
import json
import lzma
import threading
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from cem_assets.errors import DataError
from cem_assets.formats.arrays import Opened, Shape, check_whole_in_memory
from cem_assets.formats.hdf5 import place_axes
from cem_assets.formats.zarr.bucket import read_bucket
from cem_assets.formats.zarr.local import read_local
from cem_assets.imaging.boxes import Box
from cem_assets.store.store import Store, check_key

SAFE_CODECS = frozenset(
    {
        "blosc", "zlib", "gzip", "bz2", "lzma", "lz4", "zstd", "shuffle", "delta", "bitround", "quantize", "astype",
        "fixedscaleoffset", "packbits", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3",
        "bytes", "transpose", "sharding_indexed", "default", "v2",
    }
)  # fmt: skip
"""Codecs that only transform numbers. `pickle` and the codecs for objects are left out on purpose."""

_METADATA_FILES = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_MAX_METADATA_BYTES = 16 << 20
_MAX_GROWTH = 8
"""A stored chunk has at most this many times its decoded size: filters such as `astype` make 64 bits of a byte at most, and
compressors add only a few bytes to what they cannot shrink."""
_MAX_SMALL_CHUNK_BYTES = 64 << 10
"""Stored chunks up to this size are accepted, whatever their decoded size."""
_OF_DAMAGED_CHUNKS = (
    ValueError, RuntimeError, TypeError, KeyError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
)  # fmt: skip
"""What zarr and its codecs raise for damaged chunks."""
_BZ2_DAMAGE = "Invalid data stream"
"""The text of the plain OSError that bz2 raises for damaged chunks."""
_NM_PER_UNIT = {"nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6, "angstrom": 0.1}


class _Watched(WrapperStore[Any]):
    """Records which objects were asked for and are absent."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.absent: set[str] = set()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            found = await super().get(key, prototype, byte_range)
        except PermissionError:
            found = None
        if found is None:
            self.absent.add(key)
        return found


@dataclass(frozen=True)
class ZarrArray:
    """An array in a Zarr store, presented with three axes.

    Attributes:
        key: The array's folder in the store.
        full_shape, axes, fixed: As in `Hdf5Array`.
        opening: A text of its own for every `open_zarr`. A process caches parts of an array under it, because a dataset can be
            replaced by another one with the same name.
    """

    store: Store
    key: str
    full_shape: tuple[int, ...]
    axes: tuple[int, int, int]
    fixed: tuple[tuple[int, int], ...]
    dtype_name: str
    opening: str

    @property
    def shape(self) -> Shape:
        z, y, x = (1 if axis < 0 else self.full_shape[axis] for axis in self.axes)
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype_name)

    def read(self, box: Box) -> NDArray[Any]:
        return _load(self, tuple((s.start, s.stop) for s in box))[0]

    def missing(self, box: Box) -> NDArray[np.bool_] | None:
        return _load(self, tuple((s.start, s.stop) for s in box))[1]

    def _stored_box(self, box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
        spans = [slice(0, 1)] * len(self.full_shape)
        for axis, index in self.fixed:
            spans[axis] = slice(index, index + 1)
        for axis, (start, stop) in zip(self.axes, box, strict=True):
            if axis >= 0:
                spans[axis] = slice(start, stop)
        return tuple(spans)

    def _to_box(self, values: NDArray[Any]) -> NDArray[Any]:
        order = [axis for axis, _ in self.fixed] + [axis for axis in self.axes if axis >= 0]
        turned = values.transpose(order)
        turned = turned.reshape(turned.shape[len(self.fixed) :])
        return turned[None] if self.axes[0] < 0 else turned


def _opened(store: Store, key: str, opening: str) -> tuple[Any, _Watched]:
    """Open an array for the calling thread alone, so that absent objects which other threads ask for are not mixed in."""
    return _opened_in(store, key, opening, threading.get_ident())


@lru_cache(maxsize=32)
def _opened_in(store: Store, key: str, opening: str, thread: int) -> tuple[Any, _Watched]:
    del opening, thread
    if store.is_local:
        inner: Any = LocalStore(store.url_of(key), read_only=True)
    else:
        inner = FsspecStore.from_url(store.url_of(key), read_only=True)
    watched = _Watched(inner)
    return zarr.open_array(watched, mode="r"), watched


class _LastBox(threading.local):
    """The box that a thread has read last, its voxels and its missing voxels."""

    place: tuple[ZarrArray, tuple[tuple[int, int], ...]] | None = None
    found: tuple[NDArray[Any], NDArray[np.bool_] | None]


_last = _LastBox()


def _load(source: ZarrArray, box: tuple[tuple[int, int], ...]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read a box. Each thread keeps its last box, because `missing` usually follows `read`."""
    if _last.place != (source, box):
        _last.place = None
        _last.found = _read(source, box)
        _last.place = (source, box)
    return _last.found


def _read(source: ZarrArray, box: tuple[tuple[int, int], ...]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read a box, and find out which of its voxels are stored."""
    spans = source._stored_box(box)
    if source.store.is_local:
        whole = read_local(source.store.url_of(source.key), spans, source.opening)
    else:
        whole = read_bucket(source.store, source.key, spans, source.opening)
    if whole is not None:
        return source._to_box(whole.astype(source.dtype, copy=False)), None
    array, watched = _opened(source.store, source.key, source.opening)
    watched.absent.clear()
    try:
        values = np.asarray(array[spans])
        absent = set(watched.absent)
        mask: NDArray[np.bool_] | None = None
        if absent or array.shards is not None:
            # A chunk inside a shard is no object, so no absent object shows that it is absent. But two readings with different
            # fill values differ exactly where nothing is stored.
            mask = np.asarray(_refilled(array, 0)[spans] != _refilled(array, 1)[spans])
            mask = source._to_box(mask) if mask.any() else None
    except (*_OF_DAMAGED_CHUNKS, OSError) as error:
        if not isinstance(error, _OF_DAMAGED_CHUNKS) and str(error) != _BZ2_DAMAGE:
            raise  # trouble with the store
        raise DataError(
            f"Zarr array {source.key} cannot be decoded: {type(error).__name__}: {error}. Copy it again from its source."
        ) from error
    return source._to_box(values.astype(source.dtype, copy=False)), mask


def _refilled(array: Any, fill: int) -> Any:
    inner = array.async_array
    metadata = dataclasses.replace(inner.metadata, fill_value=inner.dtype.type(fill))
    return zarr.Array(type(inner)(metadata=metadata, store_path=inner.store_path, config=inner.config))


def open_zarr(
    store: Store,
    key: str,
    array_path: str | None,
    channel: int | None = None,
    sizes: Sequence[tuple[str, int]] = (),
) -> Opened:
    """Open the array of a Zarr store, or the finest scale of an OME-Zarr.

    Args:
        key: The folder of the Zarr store.
        array_path: The path of the array in the Zarr store, needed where there are several arrays and no OME metadata.
        channel: The channel to take, where the channel axis is longer than 1.
        sizes: The key and the size in bytes of every object in the folder, as listed. Chunks are fetched into memory whole, so
            their sizes are checked here.

    Raises:
        DataError: There is no such array, its codecs are not allowed, a chunk is larger than a chunk can be, or the array is
            not one volume.
    """
    what = key.rsplit("/", 1)[-1]
    attributes, kind = _metadata(store, key, what)
    names: list[str] | None = None
    scale: tuple[float, ...] | None = None
    if kind == "group" and array_path is None:
        ome = attributes.get("ome", attributes)
        if "bioformats2raw.layout" in ome:
            return open_zarr(store, f"{key}/0", None, channel, sizes)
        array_path, names, scale = _multiscale(ome, store, key, what)
    place = f"{key}/{check_key(array_path.strip('/'))}" if array_path else key
    _, kind = _metadata(store, place, what)
    if kind != "array":
        raise DataError(f"{what}: {array_path!r} is no array. Set zarr_array in dataset.toml to the array to take.")
    try:
        opening = uuid.uuid4().hex
        array, _ = _opened(store, place, opening)
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataError(f"{what} cannot be opened as Zarr: {error}. Copy it again from its source.") from error
    dtype, shape = np.dtype(array.dtype), tuple(int(size) for size in array.shape)
    if dtype.kind not in "iuf":
        raise DataError(f"{what} holds {dtype}; expected integers or floats.")
    check_whole_in_memory(f"a chunk of {what}", int(np.prod(array.chunks, dtype=object)) * dtype.itemsize)
    _refuse_swollen_chunks(place, int(np.prod(array.shards or array.chunks, dtype=object)) * dtype.itemsize, sizes, what)
    if names is not None and len(names) == len(shape) and set("yx") <= set(names):
        axes, fixed = _named_axes(names, shape, channel, what)
    else:
        axes, fixed = place_axes(shape, channel, what)
    source = ZarrArray(store, place, shape, axes, fixed, dtype.newbyteorder("=").name, opening)
    voxel = None
    if scale is not None and len(scale) == len(shape):
        y, x = scale[axes[1]], scale[axes[2]]
        voxel = (scale[axes[0]] if axes[0] >= 0 else y, y, x)
    return Opened(source, axes[0] < 0, voxel)


def _refuse_swollen_chunks(place: str, decoded_bytes: int, sizes: Sequence[tuple[str, int]], what: str) -> None:
    most = max(_MAX_SMALL_CHUNK_BYTES, _MAX_GROWTH * decoded_bytes)
    large = [(key, size) for key, size in sizes if size > most and key.startswith(f"{place}/")]
    swollen = [(key, size) for key, size in large if key.rsplit("/", 1)[1] not in _METADATA_FILES]
    if swollen:
        key, size = swollen[0]
        raise DataError(
            f"{what}: {key.removeprefix(place)[1:]} has {size} bytes, for a chunk that decodes to {decoded_bytes}; expected "
            f"at most {most}. Copy it again from its source ({len(swollen)} such files)."
        )


def _metadata(store: Store, key: str, what: str) -> tuple[dict[str, Any], str]:
    """Read the metadata of an array or a group as plain JSON, check its codecs, and return its attributes and its kind."""
    for name, kind in (("zarr.json", ""), (".zarray", "array"), (".zgroup", "group")):
        path = f"{key}/{name}"
        size = store.size(path)
        if size is None:
            continue
        if size > _MAX_METADATA_BYTES:
            raise DataError(f"{what}: {name} has {size} bytes; expected at most {_MAX_METADATA_BYTES}.")
        node = _json(store, path, what)
        if name == "zarr.json":
            _refuse_codecs(node.get("codecs", []), what)
            return dict(node.get("attributes", {})), str(node.get("node_type"))
        _refuse_codecs([node.get("compressor"), *(node.get("filters") or [])], what)
        attributes = _json(store, f"{key}/.zattrs", what) if store.size(f"{key}/.zattrs") else {}
        return attributes, kind
    raise DataError(f"{what} is no Zarr store: it has no zarr.json, .zarray or .zgroup. Copy it again from its source.")


def _json(store: Store, key: str, what: str) -> dict[str, Any]:
    try:
        node = json.loads(store.read(key))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what}: {key.rsplit('/', 1)[-1]} is not valid JSON: {error}. Copy it again.") from error
    if not isinstance(node, dict):
        raise DataError(f"{what}: {key.rsplit('/', 1)[-1]} is not a JSON object. Copy it again from its source.")
    return node


def _refuse_codecs(codecs: Any, what: str) -> None:
    for codec in codecs if isinstance(codecs, list) else [codecs]:
        if codec is None:
            continue
        if not isinstance(codec, dict):
            raise DataError(f"{what} has a codec that is no JSON object. Copy it again from its source.")
        name = str(codec.get("id", codec.get("name", ""))).removeprefix("numcodecs.")
        if name not in SAFE_CODECS:
            raise DataError(f"{what} uses codec {name!r}; expected one of {', '.join(sorted(SAFE_CODECS))}. Rewrite it.")
        inner = codec.get("configuration")
        if isinstance(inner, dict):
            for nested in ("codecs", "index_codecs"):
                _refuse_codecs(inner.get(nested, []), what)


def _multiscale(
    ome: dict[str, Any], store: Store, key: str, what: str
) -> tuple[str, list[str] | None, tuple[float, ...] | None]:
    """Find the finest array of a group by its OME metadata, or take the only array where there are none.

    Returns:
        The path of the array; the names of its axes; and the size of a voxel along each axis, in nm along z, y and x. The last
        two are None where the metadata do not say them.
    """
    try:
        multiscale = ome["multiscales"][0]
        first = multiscale["datasets"][0]
        path = str(first["path"])
        axes = multiscale.get("axes")
        if axes is None:
            return path, None, None
        names = [str(axis["name"] if isinstance(axis, dict) else axis).lower() for axis in axes]
        factors = [_NM_PER_UNIT.get(str(a.get("unit")) if isinstance(a, dict) else "") for a in axes]
        scales = [t["scale"] for t in first.get("coordinateTransformations", []) if t.get("type") == "scale"]
        scale = None
        if scales and all(f is not None for f, n in zip(factors, names, strict=True) if n in "zyx"):
            scale = tuple(float(s) * (f or 1.0) for s, f in zip(scales[0], factors, strict=True))
        return path, names, scale
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass  # there are no OME metadata, or none that can be used
    arrays = []
    for name in store.children(key):
        if any(store.size(f"{key}/{name}/{file}") for file in ("zarr.json", ".zarray")):
            try:
                if _metadata(store, f"{key}/{name}", what)[1] == "array":
                    arrays.append(name)
            except ValueError:
                continue
    if len(arrays) == 1:
        return arrays[0], None, None
    raise DataError(
        f"{what} holds {len(arrays)} arrays ({', '.join(arrays[:20]) or 'none'}) and no OME multiscales metadata. Set "
        "zarr_array in dataset.toml to the path of the array to take."
    )


def _named_axes(
    names: list[str], shape: tuple[int, ...], channel: int | None, what: str
) -> tuple[tuple[int, int, int], tuple[tuple[int, int], ...]]:
    others = [axis for axis, name in enumerate(names) if name not in "zyx"]
    long = [axis for axis in others if shape[axis] > 1]
    if long and (channel is None or len(long) > 1 or channel >= shape[long[0]]):
        raise DataError(
            f"{what} has axes {names} of sizes {shape}; expected one gray volume. Give channel = N in dataset.toml (found "
            f"{channel}) to take one of several channels; save one time point."
        )
    fixed = tuple((axis, channel if axis in long and channel is not None else 0) for axis in others)
    z = names.index("z") if "z" in names else -1
    return (z, names.index("y"), names.index("x")), fixed


def list_zarr_stores(files: list[str]) -> dict[str, list[str]]:
    """Find the Zarr stores among the files of a dataset.

    Args:
        files: Paths relative to the dataset's folder.

    Returns:
        The files of each store by the store's outermost folder. Files outside of stores are left out.
    """
    markers = {"zarr.json", ".zarray", ".zgroup"}
    roots: list[str] = []
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        folder, _, name = path.rpartition("/")
        if name in markers and folder and not any(folder == r or folder.startswith(f"{r}/") for r in roots):
            roots.append(folder)
    return {root: [path for path in files if path.startswith(f"{root}/")] for root in roots}
