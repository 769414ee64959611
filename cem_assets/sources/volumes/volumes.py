"""Huge volumes on foreign servers, read by boxes, with what is not there told apart from what is zero.

Libraries hand out fill values for chunks that are missing or refused. Here every chunk is fetched by us, so its
status is known; only chunks that really arrived are decoded (by tensorstore, from memory, with missing chunks being
errors). 404 is legal absence; 403 too, as long as other chunks of the same array can be read; trouble (5xx,
timeouts) is retried and then an error. Choosing cubes is `cem_assets.imaging.cube_choice`.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.sources.volumes.inflation import check_inflation, inflate
from cem_assets.sources.volumes.layouts import read_scales
from cem_assets.sources.volumes.objects import (
    S3_SIGNED_VARIABLE,
    RemoteObjects,
    Status,
    TransferCounts,
    TransferLimits,
    http_address,
)
from cem_assets.sources.volumes.scales import ScaleLayout
from cem_assets.sources.volumes.shards import ChunkPlaces

_MAX_BOX_BYTES = 2 << 30
_MAX_BYTES_IN_FLIGHT = 512 << 20
_NUM_PROBES = 24
_DRIVERS = {"zarr2": ("zarr", ".zarray"), "zarr3": ("zarr3", "zarr.json"), "n5": ("n5", "attributes.json")}


@dataclass(frozen=True)
class BoxContents:
    """A box of a remote volume.

    Attributes:
        voxels: (z, y, x), native byte order; 0 where missing, which only `is_missing` can tell from a real 0.
        is_missing: bool like `voxels`; None where every chunk is there.
        num_chunks: Chunks the box touches.
        num_absent, num_forbidden: Of these, those not there (404, or empty in a shard's index), and those refused (403).
    """

    voxels: NDArray[Any]
    is_missing: NDArray[np.bool_] | None
    num_chunks: int
    num_absent: int
    num_forbidden: int


class _Decoder:
    """Decodes single chunks of one scale, by tensorstore, from memory."""

    def __init__(self, layout: ScaleLayout, num_threads: int) -> None:
        self._layout = layout
        self._context = ts.Context({"data_copy_concurrency": {"limit": num_threads}})
        memory = {"driver": "memory", "path": "v/"}
        self._memory = ts.KvStore.open(memory, context=self._context).result()
        driver, name = _DRIVERS.get(layout.kind, ("neuroglancer_precomputed", "info"))
        self._memory.write(name, json.dumps(layout.decoding).encode()).result()
        spec: dict[str, Any] = {"driver": driver, "kvstore": memory, "fill_missing_data_reads": False}
        try:
            self._array = ts.open(spec, context=self._context, open=True, read=True).result()
        except ValueError as error:
            raise DataError(f"its metadata cannot be used: {str(error)[:400]}. Check the source.") from error
        if self._array.dtype.name != layout.dtype or tuple(self._array.shape) != layout.stored_shape:
            raise DataError(
                f"its metadata say {layout.dtype} {layout.stored_shape}, its decoder {self._array.dtype.name} "
                f"{self._array.shape}; expected the same."
            )

    def decode(self, index: tuple[int, ...], data: bytes, part: tuple[slice, ...]) -> NDArray[Any]:
        """Decode a chunk and return a part of it.

        Args:
            index: The chunk's number along each stored axis.
            part: In stored order of axes, from 0.
        """
        layout = self._layout
        name = "/".join(map(str, index))
        if layout.kind == "zarr3":
            name = f"c/{name}"
        elif layout.kind == "precomputed":
            sides = zip(index[:3], layout.chunk_shape, layout.stored_shape, layout.origin, strict=False)
            name = "s/" + "_".join(f"{o + i * n}-{o + min((i + 1) * n, size)}" for i, n, size, o in sides)
        self._memory.write(name, data).result()
        try:
            shifted = tuple(slice(s.start + o, s.stop + o) for s, o in zip(part, layout.origin, strict=True))
            return np.asarray(self._array[shifted].read().result())
        finally:
            self._memory.write(name, None).result()


class RemoteVolume:
    """One scale of a volume on a foreign server.

    Attributes:
        url: As it was given.
        kind: "zarr2", "zarr3", "n5" or "precomputed", as found.
        scales: All scales, finest first.
        scale: The number of this one.
        shape: (z, y, x) in voxels.
        dtype: Of the voxels.
        voxel_size_nm: (z, y, x), or None where the metadata do not say it.
        chunk_shape: (z, y, x): the smallest piece that can be read.
    """

    def __init__(self, url: str, objects: RemoteObjects, scales: list[ScaleLayout], scale: int) -> None:
        if not -len(scales) <= scale < len(scales):
            raise DataError(f"{url} has {len(scales)} scale(s); expected a number below that, found {scale}.")
        self.url, self.scales, self.scale = url, tuple(scales), scale % len(scales)
        self.layout = self.scales[self.scale]
        self.kind, self.shape, self.voxel_size_nm = self.layout.kind, self.layout.shape, self.layout.voxel_size_nm
        self.dtype = np.dtype(self.layout.dtype)
        z, y, x = (self.layout.chunk_shape[axis] for axis in self.layout.axes)
        self.chunk_shape = (z, y, x)
        self._objects = objects
        self._chunk_bytes = math.prod(self.layout.chunk_shape) * self.dtype.itemsize
        self._num_threads = max(1, min(objects.limits.num_threads, _MAX_BYTES_IN_FLIGHT // (3 * self._chunk_bytes)))
        try:
            self._places = ChunkPlaces(objects, self.layout)
            self._decoder = _Decoder(self.layout, self._num_threads)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{url}: {error}") from error
        self._has_readable_chunk = False

    @property
    def counts(self) -> TransferCounts:
        """What was transferred so far, for all scales of the volume together."""
        return self._objects.counts

    def set_aside(self, num_bytes: int) -> None:
        """Take bytes from the budget that an earlier run spent."""
        if self._objects.budget_bytes is not None:
            self._objects.budget_bytes -= num_bytes

    def at_scale(self, scale: int) -> "RemoteVolume":
        """Return another scale of the same volume; -1 is the coarsest."""
        return RemoteVolume(self.url, self._objects, list(self.scales), scale)

    def read(self, box: Box) -> BoxContents:
        """Read a box.

        Args:
            box: (z, y, x) inside the volume.

        Returns:
            The voxels, and which of them the source does not have.

        Raises:
            DataError: The box is outside or too large, or a chunk is damaged.
            PermissionError: Every chunk is refused, here and elsewhere in the array.
            ConnectionError: A chunk could not be fetched for trouble, after all retries.
            BudgetSpentError: The byte budget does not suffice.
        """
        region = self._region(box)
        stored = tuple(s.stop - s.start for s in region)
        out = np.zeros(stored, self.dtype)
        chunks = list(self._chunks(region))
        statuses: dict[tuple[int, ...], Status] = {}
        self._objects.resume()
        with ThreadPoolExecutor(min(self._num_threads, len(chunks)), "remote-chunk") as pool:
            futures = {pool.submit(self._fill, out, region, index): index for index in chunks}
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if failed := [future for future in futures if future in done and future.exception() is not None]:
                self._objects.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                failed[0].result()
            statuses = {index: future.result() for future, index in futures.items()}
        refused = [index for index, status in statuses.items() if status == "forbidden"]
        if "present" in statuses.values():
            self._has_readable_chunk = True
        if refused and not self._has_readable_chunk:
            self._look_for_a_readable_chunk()
        lacking = [index for index, status in statuses.items() if status != "present"]
        is_missing = None
        if lacking:
            mask = np.zeros(stored, np.bool_)
            for index in lacking:
                part = self._overlap(region, index)
                mask[tuple(slice(s.start - r.start, s.stop - r.start) for s, r in zip(part, region, strict=True))] = True
            is_missing = self._turned(mask)
        return BoxContents(self._turned(out), is_missing, len(chunks), len(lacking) - len(refused), len(refused))

    def _region(self, box: Box) -> tuple[slice, ...]:
        if len(box) != 3 or not all(0 <= s.start < s.stop <= size for s, size in zip(box, self.shape, strict=True)):
            raise DataError(f"box {box} is not inside the volume {self.shape} of {self.url}.")
        if math.prod(s.stop - s.start for s in box) * self.dtype.itemsize > _MAX_BOX_BYTES:
            raise DataError(f"box {box} is larger than {_MAX_BOX_BYTES} bytes; read it in pieces.")
        region = [slice(0, 1)] * len(self.layout.stored_shape)
        for axis, span in zip(self.layout.axes, box, strict=True):
            region[axis] = span
        return tuple(region)

    def _chunks(self, region: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        sides = zip(region, self.layout.chunk_shape, strict=True)
        return itertools.product(*(range(s.start // n, -(-s.stop // n)) for s, n in sides))

    def _overlap(self, region: tuple[slice, ...], index: tuple[int, ...]) -> tuple[slice, ...]:
        sides = zip(region, index, self.layout.chunk_shape, strict=True)
        return tuple(slice(max(s.start, i * n), min(s.stop, (i + 1) * n)) for s, i, n in sides)

    def _turned(self, stored: NDArray[Any]) -> NDArray[Any]:
        others = [axis for axis in range(stored.ndim) if axis not in self.layout.axes]
        turned = stored.transpose([*others, *self.layout.axes])
        return np.ascontiguousarray(turned.reshape(turned.shape[len(others) :]))

    def _fill(self, out: NDArray[Any], region: tuple[slice, ...], index: tuple[int, ...]) -> Status:
        """Fetch and decode one chunk into its part of the box; parts of different chunks never overlap."""
        status, data = self._chunk(index)
        if status == "present":
            part = self._overlap(region, index)
            target = tuple(slice(s.start - r.start, s.stop - r.start) for s, r in zip(part, region, strict=True))
            try:
                out[target] = self._decoder.decode(index, data, part)
            except ValueError as error:
                raise DataError(f"{self.url}: chunk {index} of scale {self.scale} is damaged: {str(error)[:300]}") from error
        return status

    def _chunk(self, index: tuple[int, ...]) -> tuple[Status, bytes]:
        place = self._places.place(index)
        if place.status != "present":
            return place.status, b""
        # Compressed noise is a little larger than its voxels, never much; JPEG and PNG of noise less than twice.
        most = 2 * self._chunk_bytes + (1 << 16)
        if place.span is not None and place.span[1] - place.span[0] > most:
            raise DataError(f"{place.key} lists chunk {index} with {place.span} bytes; expected at most {most}. It is damaged.")
        fetched = self._objects.get(place.key, most, span=place.span)
        if fetched.status != "present":
            return fetched.status, b""
        return "present", self._unpacked(fetched.data, place.span, index, most)

    def _unpacked(self, data: bytes, span: tuple[int, int] | None, index: tuple[int, ...], most: int) -> bytes:
        """Undo what the decoder does not know, and refuse what would unpack to more than the chunk's voxels."""
        what = f"{self.url}: chunk {index} of scale {self.scale}"
        if span is not None and len(data) != span[1] - span[0]:
            raise DataError(f"{what} has {len(data)} bytes; expected {span[1] - span[0]}, as its shard's index says.")
        layout = self.layout
        if layout.kind == "precomputed" and layout.sharding is not None:
            data = inflate(str(layout.sharding.get("data_encoding", "raw")), data, most, what)
        compressor, _, checksum = layout.compressor.partition("+")
        if compressor not in ("raw", "image"):
            packed = data[:-4] if checksum else data
            if layout.kind == "n5":
                mode = int.from_bytes(data[:2], "big")
                packed = data[(4 if mode == 0 else 8) + 4 * len(layout.stored_shape) :]
                is_zlib = bool(layout.decoding["compression"].get("useZlib"))
                compressor = "zlib" if compressor == "gzip" and is_zlib else compressor
            check_inflation(compressor, packed, self._chunk_bytes, what)
        return data

    def _look_for_a_readable_chunk(self) -> None:
        """Where all chunks of a box are refused, ask for others: absence looks like refusal on some servers.

        Raises:
            PermissionError: None can be read.
        """
        layout = self.layout
        grid = [-(-size // side) for size, side in zip(layout.stored_shape, layout.chunk_shape, strict=True)]
        for number in range(_NUM_PROBES):
            digest = hashlib.blake2b(number.to_bytes(8, "big"), key=b"probe").digest()
            fractions = [int.from_bytes(digest[8 * axis : 8 * axis + 8], "big") for axis in range(len(grid))]
            # The first ones near the middle, where something is most likely.
            spread = 4 if number < _NUM_PROBES // 2 else 1
            index = tuple(
                n // 2 + f % max(1, n // spread) - max(1, n // spread) // 2 for n, f in zip(grid, fractions, strict=True)
            )
            clipped = tuple(min(max(i, 0), n - 1) for i, n in zip(index, grid, strict=True))
            clipped = tuple(i if axis in layout.axes else 0 for axis, i in enumerate(clipped))
            if self._chunk(clipped)[0] == "present":
                self._has_readable_chunk = True
                return
        raise PermissionError(
            f"{self.url}: every chunk asked for at scale {self.scale} is refused (403); expected a public volume. For a "
            f"private S3 bucket set {S3_SIGNED_VARIABLE}=yes and the AWS_* variables; else ask its owner for access."
        )


def open_remote_volume(
    url: str,
    kind: str = "auto",
    scale: int = 0,
    limits: TransferLimits | None = None,
    budget_bytes: int | None = None,
) -> RemoteVolume:
    """Open a volume on a foreign server.

    Args:
        url: As `remote_objects.http_address` takes it.
        kind: "zarr2", "zarr3", "ome-zarr", "n5", "precomputed" or "auto".
        scale: 0 is the finest, -1 the coarsest.
        limits: Rates, retries and timeouts.
        budget_bytes: Bytes that may be downloaded in all, metadata included.

    Returns:
        The volume; its metadata were read, no voxels yet.

    Raises:
        FileNotFoundError: There is no such volume.
        PermissionError: Access is refused.
        ConnectionError: The server is in trouble.
        DataError: The address or the metadata break rules, or the format has a feature that is not supported.
    """
    address, is_own_endpoint = http_address(url)
    is_signed = os.environ.get(S3_SIGNED_VARIABLE, "") == "yes" and (is_own_endpoint or url.startswith("s3://"))
    objects = RemoteObjects(address, limits or TransferLimits(), is_signed, budget_bytes)
    return RemoteVolume(url, objects, read_scales(objects, kind), scale)
