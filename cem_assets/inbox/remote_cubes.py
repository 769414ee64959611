"""Draws cubes of a remote volume of the catalogue, and puts them into the inbox as a dataset, within a byte budget.

Every cube is a file in the inbox. A ledger beside the cubes (`sampling.json`) says which cubes were drawn, which were left out
and why, and lets a run that was interrupted go on. `dataset.toml` is written last, so that the inbox takes finished samples
only. A cube is left out if the source lacks any of its chunks, and the next cube of the draw takes its place. So no patch
touches missing data, and nothing is filled in for it.
"""

import copy
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.catalog import EmDataset, RemoteSource
from cem_assets.errors import DataError
from cem_assets.imaging.boxes import Box
from cem_assets.imaging.cube_choice import (
    SamplingParams,
    candidate_cubes,
    cube_bytes,
    cube_grid,
    draw_cubes,
    invert_values,
    order_cubes,
    roi_name,
)
from cem_assets.inbox.datasets import DESCRIPTION, dataset_key
from cem_assets.sources.volumes.objects import BudgetSpentError, RequestLimits
from cem_assets.sources.volumes.volumes import BoxContents, RemoteVolume, open_remote_volume
from cem_assets.store.manifests import canonical_json
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

LEDGER = "sampling.json"

Progress = Callable[[int, int], None]

_MAX_REFERENCE_BYTES = 512 << 20
"""Largest coarse scale that is read as a whole to judge cubes by."""
_SLAB_BYTES = 64 << 20
_MAX_LEDGER_BYTES = 64 << 20
_NEW_LEDGER: dict[str, Any] = {
    "is_complete": False, "gigabytes": 0.0, "cubes": [], "left_out": [], "reference_bytes": 0, "downloaded_bytes": 0,
    "cube_bytes": 0, "ended_because": "",
}  # fmt: skip
_NO_BYTES_LEFT = "the next cube's chunks exceed what is left of the budget for downloads"
_MIN_LEFT_OUT = 64
_LEFT_OUT_PER_CUBE = 4
"""When this many cubes were left out for every cube wanted, and at least `_MIN_LEFT_OUT`, the source counts as broken."""


def sampling_params(remote: RemoteSource) -> SamplingParams:
    """Return the sampling parameters that a catalogue row gives."""
    return SamplingParams(
        cube_px=remote.cube_px,
        gigabytes=remote.gigabytes,
        invert=remote.is_inverted,
        padding_values=(remote.padding_value,),
    )


def sample_dataset(
    store: Store,
    row: EmDataset,
    scratch: Path,
    progress: Progress | None = None,
    limits: RequestLimits | None = None,
) -> dict[str, Any]:
    """Sample a remote volume into the inbox.

    Args:
        row: A row of the catalogue with a remote source.
        scratch: A local folder that holds one cube at a time.
        progress: Called after each cube with the bytes of the cubes so far and the budget in bytes.
        limits: None for the default rates, retries and timeouts.

    Returns:
        The ledger: the plan, `cubes`, `left_out` with reasons, `downloaded_bytes`, `cube_bytes` and why the draw ended.

    Raises:
        DataError: The volume cannot be read, or not a single cube could be taken.
        FileNotFoundError: There is no such volume.
        PermissionError: The server refuses access.
        ConnectionError: The server is in trouble. The next run goes on with what was done.
        FileExistsError: The inbox has another dataset, or another sample, under that name.
    """
    if row.remote is None:
        raise ValueError(f"catalogue row {row.name!r} has no remote volume; expected one. Its files are fetched whole.")
    params = sampling_params(row.remote)
    ledger = _earlier_ledger(store, row, _plan(row.remote, params))
    if ledger["is_complete"] and ledger["gigabytes"] >= params.gigabytes and _is_whole(store, row.name):
        return ledger
    try:
        volume = open_remote_volume(row.remote.url, row.remote.format, row.remote.scale, limits, params.budget_bytes)
        voxel_size = _voxel_size(row, volume)
        store.delete([dataset_key(row.name, DESCRIPTION)])  # it is written last, and without it the sample counts as incomplete
        run = _Run(store, row, params, volume, scratch, ledger, progress or (lambda done, total: None))
        run.draw()
    except BudgetSpentError as error:
        raise DataError(
            f"{row.name}: the budget of {params.gigabytes} GB does not suffice for metadata and reference image: {error} Raise "
            "gigabytes in the catalogue row."
        ) from error
    ledger |= {"is_complete": True, "gigabytes": params.gigabytes, "voxel_size_nm": list(voxel_size)}
    run.write_ledger()
    _delete_strays(store, row.name, {cube["file"] for cube in ledger["cubes"]})
    store.put(dataset_key(row.name, DESCRIPTION), row.description_toml(voxel_size).encode())
    logger.info("%s: %d cubes, %d left out", row.name, len(ledger["cubes"]), len(ledger["left_out"]))
    return ledger


def _plan(remote: RemoteSource, params: SamplingParams) -> dict[str, Any]:
    """Return what must be equal for two samples to come from the same draw. With a smaller budget a sample is a part of it."""
    return {
        "url": remote.url, "format": remote.format, "scale": remote.scale, "is_cropped": remote.is_cropped,
        **params.model_dump(mode="json", exclude={"gigabytes"}),
    }  # fmt: skip


def _earlier_ledger(store: Store, row: EmDataset, plan: dict[str, Any]) -> dict[str, Any]:
    key = dataset_key(row.name, LEDGER)
    size = store.size(key)
    if size is None:
        if _is_whole(store, row.name):
            raise FileExistsError(
                f"the inbox has a dataset {row.name!r} that is no sample of {plan['url']}; expected none. Remove "
                f"inbox/{row.name}/ or rename it."
            )
        return {"plan": plan, **copy.deepcopy(_NEW_LEDGER)}
    if size > _MAX_LEDGER_BYTES:
        raise DataError(f"{key} has {size} bytes; expected at most {_MAX_LEDGER_BYTES}. Remove inbox/{row.name}/.")
    try:
        ledger: dict[str, Any] = json.loads(store.read(key))
        known = dict(ledger["plan"])
        if lacking := set(_NEW_LEDGER) - set(ledger):
            raise DataError(f"it lacks {', '.join(sorted(lacking))}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{key} is damaged: {type(error).__name__}: {error}. Remove inbox/{row.name}/.") from error
    if known != plan:
        differing = sorted(name for name in plan if known.get(name) != plan[name])
        raise FileExistsError(
            f"the inbox has another sample of {row.name!r}: {', '.join(differing)} differ(s). Remove inbox/{row.name}/, or "
            "restore the catalogue row."
        )
    return ledger


def _is_whole(store: Store, name: str) -> bool:
    return store.size(dataset_key(name, DESCRIPTION)) is not None


def _voxel_size(row: EmDataset, volume: RemoteVolume) -> tuple[float, float, float]:
    """Return (z, y, x) in nm at the sampled scale. The catalogue gives the size at the finest scale."""
    if row.voxel_size_nm is not None:
        z, y, x = (size * factor for size, factor in zip(row.voxel_size_nm, volume.layout.factor, strict=True))
        return (z, y, x)
    if volume.voxel_size_nm is None:
        raise DataError(f"neither the catalogue nor the metadata of {row.name!r} give its voxel size. Add it to the row.")
    return volume.voxel_size_nm


class _Run:
    """One run of a sample. The ledger is the only state that outlives it."""

    def __init__(
        self,
        store: Store,
        row: EmDataset,
        params: SamplingParams,
        volume: RemoteVolume,
        scratch: Path,
        ledger: dict[str, Any],
        progress: Progress,
    ) -> None:
        self._store, self._row, self._params, self._volume = store, row, params, volume
        self._scratch, self._ledger, self._progress = scratch, ledger, progress
        self._has_reference = False

    def write_ledger(self) -> None:
        self._store.put(dataset_key(self._row.name, LEDGER), canonical_json(self._ledger))

    def draw(self) -> None:
        """Take cubes in the order of the draw until the budget or the volume is used up.

        Raises:
            BudgetSpentError: The budget does not suffice for the reference image.
            DataError: Not a single cube could be taken.
        """
        ledger, params, itemsize = self._ledger, self._params, self._volume.dtype.itemsize
        order = self._order()
        ledger["reference_bytes"] = self._volume.counts.num_bytes
        done = {cube["name"]: cube for cube in ledger["cubes"]}
        left_out = {item["name"]: item for item in ledger["left_out"]}
        ledger |= {
            "cubes": [],
            "left_out": [],
            "cube_bytes": 0,
            "downloaded_bytes": ledger["reference_bytes"],
            "is_complete": False,
        }
        costliest = 0.0
        ended = f"all {len(order)} candidates were looked at"
        most_left_out = max(_MIN_LEFT_OUT, _LEFT_OUT_PER_CUBE * len(draw_cubes(order, params, itemsize)))
        for box in order:
            num_bytes = cube_bytes(box, itemsize)
            if ledger["cube_bytes"] + num_bytes > params.budget_bytes:
                ended = "the next cube's voxels exceed the budget"
                break
            if len(ledger["left_out"]) >= most_left_out:
                ended = f"{most_left_out} cubes were left out"
                break
            name = self._name(box)
            cube = self._kept(done.get(name)) or left_out.get(name)
            is_new = cube is None
            # The most bytes that a cube has taken so far, relative to its size, decide whether another one is started.
            expected = math.ceil(costliest * num_bytes) if cube is None else cube["downloaded_bytes"]
            if ledger["downloaded_bytes"] + expected > params.budget_bytes:
                ended = _NO_BYTES_LEFT
                break
            if cube is not None:
                self._volume.set_aside(cube["downloaded_bytes"])
            else:
                try:
                    cube = self._take(name, box)
                except BudgetSpentError:
                    ended = _NO_BYTES_LEFT
                    break
            if "reason" not in cube:
                costliest = max(costliest, cube["downloaded_bytes"] / num_bytes)
            ledger["downloaded_bytes"] += cube["downloaded_bytes"]
            ledger["left_out" if "reason" in cube else "cubes"].append(cube)
            ledger["cube_bytes"] += 0 if "reason" in cube else num_bytes
            if is_new:  # all cubes of an earlier run come before the first new one, so none of them is lost
                self.write_ledger()
            self._progress(ledger["cube_bytes"], params.budget_bytes)
        ledger["ended_because"] = ended
        if not ledger["cubes"]:
            self.write_ledger()
            reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in ledger["left_out"][:5])
            raise DataError(
                f"{self._row.name}: no cube could be taken within {params.gigabytes} GB: {ended}. "
                f"{reasons or 'None was tried'}. Check the source, its padding value and the budget."
            )

    def _name(self, box: Box) -> str:
        is_all = all(span.stop - span.start == size for span, size in zip(box, self._volume.shape, strict=True))
        return self._row.name if is_all and not self._is_cropped() else roi_name(self._row.name, box)

    def _is_cropped(self) -> bool:
        return self._row.remote is None or self._row.remote.is_cropped

    def _order(self) -> list[Box]:
        """Return the candidates in the order of the draw.

        The coarsest scale, the reference, tells which cubes are mostly padding. Where it is missing or too large, that is
        decided for each cube after it was read.
        """
        volume, params = self._volume, self._params
        z, y, x = (slice(0, size) for size in volume.shape)
        if not self._is_cropped() and cube_bytes((z, y, x), volume.dtype.itemsize) <= params.budget_bytes:
            self._has_reference = True  # the whole volume is wanted, with its padding
            return [(z, y, x)]
        reference = volume.at_scale(-1)
        num_bytes = math.prod(reference.shape) * reference.dtype.itemsize
        self._has_reference = reference.scale != volume.scale and num_bytes <= _MAX_REFERENCE_BYTES
        if not self._has_reference:
            rows = cube_grid(volume.shape, params)
            return order_cubes([(slice(*a), slice(*b), slice(*c)) for a in rows[0] for b in rows[1] for c in rows[2]], params)
        seen = reference.read((slice(0, reference.shape[0]), slice(0, reference.shape[1]), slice(0, reference.shape[2])))
        a, b, c = (coarse / fine for coarse, fine in zip(reference.layout.factor, volume.layout.factor, strict=True))
        found = candidate_cubes(seen.voxels, (a, b, c), volume.shape, params, seen.is_missing)
        if not found:
            raise DataError(
                f"{self._row.name}: none of its cubes of {params.cube_px} voxels is at least {params.min_content:.0%} content "
                f"(padding values {params.padding_values}). Check the padding value in the catalogue row."
            )
        return order_cubes(found, params)

    def _kept(self, cube: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return a cube of an earlier run, or None if its file is gone or has changed."""
        if cube is None:
            return None
        key = dataset_key(self._row.name, cube["file"])
        is_there = self._store.size(key) is not None and self._store.sha256(key) == cube["sha256"]
        return cube if is_there else None

    def _take(self, name: str, box: Box) -> dict[str, Any]:
        """Download a cube into the inbox and return its entry for the ledger, with a `reason` if it is left out."""
        before = self._volume.counts.num_bytes
        file = f"{name}.nrrd"
        shape = tuple(span.stop - span.start for span in box)
        path = self._scratch / "cube.nrrd"
        num_content = 0
        with open(path, "wb") as handle:
            handle.write(_nrrd_header(shape, self._volume.dtype))
            for slab in self._slabs(box):
                contents = self._volume.read(slab)
                if contents.is_missing is not None:
                    return self._left_out(name, before, _missing_reason(contents))
                num_content += int(np.count_nonzero(~np.isin(contents.voxels, self._params.padding_values)))
                handle.write(_little_endian(invert_values(contents.voxels) if self._params.invert else contents.voxels))
        if not self._has_reference and num_content < self._params.min_content * math.prod(shape):
            share = num_content / math.prod(shape)
            return self._left_out(
                name, before, f"{share:.0%} of it is content; expected at least {self._params.min_content:.0%}"
            )
        self._store.put(dataset_key(self._row.name, file), path)
        return {
            "name": name,
            "file": file,
            "sha256": self._store.sha256(dataset_key(self._row.name, file)),
            "downloaded_bytes": self._volume.counts.num_bytes - before,
        }

    def _left_out(self, name: str, before: int, reason: str) -> dict[str, Any]:
        return {"name": name, "reason": reason, "downloaded_bytes": self._volume.counts.num_bytes - before}

    def _slabs(self, box: Box) -> Iterator[Box]:
        """Cut a box into slabs of whole layers of chunks that fit into memory. A cube of usual size is one slab."""
        z, y, x = box
        layer = self._volume.chunk_shape[0]
        row_bytes = (y.stop - y.start) * (x.stop - x.start) * self._volume.dtype.itemsize
        step = max(1, _SLAB_BYTES // (row_bytes * layer)) * layer
        stops = range((z.start // step + 1) * step, z.stop, step)
        for start, stop in zip([z.start, *stops], [*stops, z.stop], strict=True):
            yield (slice(start, stop), y, x)


def _missing_reason(contents: BoxContents) -> str:
    parts = []
    if contents.num_absent:
        parts.append(f"{contents.num_absent} absent (404)")
    if contents.num_forbidden:
        parts.append(f"{contents.num_forbidden} refused (403) while others can be read")
    return f"chunk absent at source: of {contents.num_chunks} chunks {' and '.join(parts)}; nothing stands in for them"


def _little_endian(voxels: NDArray[Any]) -> bytes:
    return voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tobytes()


def _nrrd_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return an NRRD header. Equal voxels must give equal bytes, but libraries write the time into the header."""
    z, y, x = shape
    endian = "endian: little\n" if dtype.itemsize > 1 else ""
    return f"NRRD0004\ntype: {dtype.name}\ndimension: 3\nsizes: {x} {y} {z}\n{endian}encoding: raw\n\n".encode()


def _delete_strays(store: Store, name: str, wanted: set[str]) -> None:
    """Delete cubes that an interrupted run wrote but did not enter into the ledger."""
    base = dataset_key(name, "x").removesuffix("x")
    files = [item.key for item in store.walk(base.rstrip("/"))]
    store.delete(key for key in files if key.startswith(f"{base}{name}-ROI-") and key[len(base) :] not in wanted)
