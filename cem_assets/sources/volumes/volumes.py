"""Reads boxes of huge volumes on foreign servers, and tells voxels that are missing apart from voxels that are zero.

Libraries fill in values for chunks that are missing or refused. Here we fetch every chunk ourselves, so that its status is
known, and decode only chunks that arrived. A chunk counts as absent where the server answers 404, and also where it answers
403 as long as other chunks of the same array can be read. Trouble (5xx, timeouts) is retried and then raised. Which cubes are
read is decided in `cem_assets.imaging.cube_choice`.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets import environment
from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.sources.volumes.inflation import check_blosc, inflate
from cem_assets.sources.volumes.metadata import read_scales
from cem_assets.sources.volumes.objects import ObjectStatus, RemoteObjects, RequestCounts, RequestLimits, http_address
from cem_assets.sources.volumes.scales import ScaleLayout
from cem_assets.sources.volumes.shards import ChunkFinder

_MAX_BOX_BYTES = 2 << 30
_MAX_BYTES_IN_FLIGHT = 512 << 20
_NUM_PROBES = 24


@dataclass(frozen=True)
class BoxContents:
    """The voxels of a box of a remote volume.

    Attributes:
        voxels: (z, y, x) in native byte order. Missing voxels are 0 here; only `is_missing` tells them apart from a real 0.
        is_missing: Which voxels are missing, a bool array like `voxels`; None where no chunk is missing.
        num_chunks: How many chunks the box touches.
        num_absent: How many of them do not exist (404, or not listed in the index of a shard).
        num_forbidden: How many of them the server refuses (403).
    """

    voxels: NDArray[Any]
    is_missing: NDArray[np.bool_] | None
    num_chunks: int
    num_absent: int
    num_forbidden: int


class RemoteVolume:
    """One scale of a volume on a foreign server.

    Attributes:
        url: The address as it was given.
        kind: The format that was found: "zarr2", "zarr3", "n5" or "precomputed".
        scales: All scales of the volume, finest first.
        scale: The number of this scale; 0 is the finest.
        shape: (z, y, x) in voxels.
        voxel_size_nm: (z, y, x), or None where the metadata do not say it.
        chunk_shape: (z, y, x), the smallest piece that can be read.
    """

    def __init__(self, url: str, objects: RemoteObjects, scales: list[ScaleLayout], scale: int) -> None:
        if not -len(scales) <= scale < len(scales):
            raise DataError(f"{url} has {len(scales)} scale(s); expected a number below that, found {scale}.")
        self.url, self.scales, self.scale = url, tuple(scales), scale % len(scales)
        self.layout = self.scales[self.scale]
        self.kind, self.shape, self.voxel_size_nm = self.layout.kind, self.layout.shape, self.layout.voxel_size_nm
        self._objects, self._decoder = objects, self.layout.decoder
        self.dtype = self._decoder.dtype
        z, y, x = (self._decoder.chunk_shape[axis] for axis in self.layout.axes)
        self.chunk_shape = (z, y, x)
        self._chunk_bytes = self._decoder.chunk_bytes
        self._num_threads = max(1, min(objects.limits.num_threads, _MAX_BYTES_IN_FLIGHT // (3 * self._chunk_bytes)))
        try:
            self._finder = ChunkFinder(objects, self.layout)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{url}: {error}") from error
        self._has_readable_chunk = False

    @property
    def counts(self) -> RequestCounts:
        """What was requested and received so far, for all scales of the volume together."""
        return self._objects.counts

    def set_aside(self, num_bytes: int) -> None:
        """Lower the budget by the bytes that an earlier run received."""
        if self._objects.budget_bytes is not None:
            self._objects.budget_bytes -= num_bytes

    def at_scale(self, scale: int) -> "RemoteVolume":
        """Return another scale of the same volume; -1 is the coarsest."""
        return RemoteVolume(self.url, self._objects, list(self.scales), scale)

    def read(self, box: Box) -> BoxContents:
        """Read a box.

        Args:
            box: (z, y, x) in voxels, inside of the volume.

        Raises:
            ValueError: The box is outside of the volume or too large.
            DataError: A chunk is damaged.
            PermissionError: The server refuses every chunk, in this box and elsewhere in the array.
            ConnectionError: The server was still in trouble at the last try for a chunk.
            BudgetSpentError: The byte budget does not suffice.
        """
        region = self._region(box)
        stored = tuple(s.stop - s.start for s in region)
        out = np.zeros(stored, self.dtype)
        chunks = list(self._chunks(region))
        statuses: dict[tuple[int, ...], ObjectStatus] = {}
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
            raise ValueError(f"box {box} is not inside the volume {self.shape} of {self.url}.")
        if math.prod(s.stop - s.start for s in box) * self.dtype.itemsize > _MAX_BOX_BYTES:
            raise ValueError(f"box {box} is larger than {_MAX_BOX_BYTES} bytes; read it in pieces.")
        region = [slice(0, 1)] * len(self._decoder.shape)
        for axis, span in zip(self.layout.axes, box, strict=True):
            region[axis] = span
        return tuple(region)

    def _chunks(self, region: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        sides = zip(region, self._decoder.chunk_shape, strict=True)
        return itertools.product(*(range(s.start // n, -(-s.stop // n)) for s, n in sides))

    def _overlap(self, region: tuple[slice, ...], index: tuple[int, ...]) -> tuple[slice, ...]:
        sides = zip(region, index, self._decoder.chunk_shape, strict=True)
        return tuple(slice(max(s.start, i * n), min(s.stop, (i + 1) * n)) for s, i, n in sides)

    def _turned(self, stored: NDArray[Any]) -> NDArray[Any]:
        others = [axis for axis in range(stored.ndim) if axis not in self.layout.axes]
        turned = stored.transpose([*others, *self.layout.axes])
        return np.ascontiguousarray(turned.reshape(turned.shape[len(others) :]))

    def _fill(self, out: NDArray[Any], region: tuple[slice, ...], index: tuple[int, ...]) -> ObjectStatus:
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

    def _chunk(self, index: tuple[int, ...]) -> tuple[ObjectStatus, bytes]:
        """Fetch a chunk, and check its size before it is fetched and before it is decoded."""
        location = self._finder.find(index)
        if location.status != "present":
            return location.status, b""
        # Compression makes noise a little larger than its voxels, but never much; JPEG and PNG of noise stay below twice.
        most = 2 * self._chunk_bytes + (1 << 16)
        span, what = location.span, f"{self.url}: chunk {index} of scale {self.scale}"
        if span is not None and span[1] - span[0] > most:
            raise DataError(f"{location.key} lists chunk {index} with {span} bytes; expected at most {most}. It is damaged.")
        answer = self._objects.get(location.key, most, span=span)
        if answer.status != "present":
            return answer.status, b""
        data = answer.data
        if span is not None and len(data) != span[1] - span[0]:
            raise DataError(f"{what} has {len(data)} bytes; expected {span[1] - span[0]}, as the index of its shard says.")
        if self.kind == "precomputed" and self.layout.sharding is not None:
            data = inflate(str(self.layout.sharding.get("data_encoding", "raw")), data, most, what)
        if self.layout.is_blosc:
            start = 0
            if self.kind == "n5":  # a header stands before: mode, number of axes, shape, and in mode 1 a number of elements
                start = (4 if int.from_bytes(data[:2], "big") == 0 else 8) + 4 * len(self._decoder.shape)
            check_blosc(data[start:], self._chunk_bytes, what)
        return "present", data

    def _look_for_a_readable_chunk(self) -> None:
        """Ask for other chunks where all chunks of a box are refused, because some servers refuse what does not exist.

        Raises:
            PermissionError: None of them can be read.
        """
        grid = [-(-size // side) for size, side in zip(self._decoder.shape, self._decoder.chunk_shape, strict=True)]
        for number in range(_NUM_PROBES):
            digest = hashlib.blake2b(number.to_bytes(8, "big"), key=b"probe").digest()
            fractions = [int.from_bytes(digest[8 * axis : 8 * axis + 8], "big") for axis in range(len(grid))]
            # The first half of them lie near the middle, where the specimen most likely is.
            spread = 4 if number < _NUM_PROBES // 2 else 1
            index = tuple(
                n // 2 + f % max(1, n // spread) - max(1, n // spread) // 2 for n, f in zip(grid, fractions, strict=True)
            )
            clipped = tuple(min(max(i, 0), n - 1) for i, n in zip(index, grid, strict=True))
            clipped = tuple(i if axis in self.layout.axes else 0 for axis, i in enumerate(clipped))
            if self._chunk(clipped)[0] == "present":
                self._has_readable_chunk = True
                return
        raise PermissionError(
            f"{self.url}: every chunk asked for at scale {self.scale} is refused (403); expected a public volume. For a "
            f"private S3 bucket set {environment.REMOTE_S3_SIGNED}=yes and the AWS_* variables; else ask its owner for access."
        )


def open_remote_volume(
    url: str,
    kind: str = "auto",
    scale: int = 0,
    limits: RequestLimits | None = None,
    budget_bytes: int | None = None,
) -> RemoteVolume:
    """Open a volume on a foreign server. This reads its metadata, but no voxels.

    Args:
        url: An address as `cem_assets.sources.volumes.objects.http_address` takes it.
        kind: "zarr2", "zarr3", "ome-zarr", "n5", "precomputed", or "auto" to look for each format in turn.
        scale: 0 is the finest, -1 the coarsest.
        budget_bytes: How many bytes may be downloaded in all, metadata included; None for no limit.

    Raises:
        FileNotFoundError: There is no such volume.
        PermissionError: The server refuses access.
        ConnectionError: The server is in trouble.
        DataError: The address is not allowed, the metadata break the rules of their format, or the volume needs a feature that
            is not supported.
    """
    address, is_own_endpoint = http_address(url)
    is_signed = environment.is_yes(environment.REMOTE_S3_SIGNED) and (is_own_endpoint or url.startswith("s3://"))
    objects = RemoteObjects(address, limits or RequestLimits(), is_signed, budget_bytes)
    return RemoteVolume(url, objects, read_scales(objects, kind), scale)
