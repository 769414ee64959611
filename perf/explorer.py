"""The explorer in a real browser on a store of generated rows: time to the first paint, and to the answer to a filter.

Rows, bricks and manifests are stored as the stages write them. The bricks of all volumes are hard links to one file, because
1.6 million patches of three planes need 24 GB of voxels. Times are those the page itself measures: from opening its address,
or from the key or click, until the rows are drawn. The goal is 2 s for each.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.patches.tables import DROPPED_SCHEMA, FILTERED_SCHEMA, SCORES_SCHEMA, patch_table
from cem_assets.cem.volumes.bricks import ALL_PLANES, PatchRows, brick_boxes
from cem_assets.cem.volumes.ome_zarr import VolumeRecord, brick_name, encode_brick, metadata_objects
from cem_assets.imaging.intensity import IntensityMapping
from cem_assets.store.assets import CODE_VERSIONS, FILTERED, SCORES, VOLUMES
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs, ManifestObject
from cem_assets.store.parquet import parquet_bytes, part_name
from cem_assets.store.store import Store, open_store
from perf.timing import Measured

SIDE = 224
SHAPE, NUM_DATASETS = (6 * SIDE, 6 * SIDE, 11 * SIDE), 6
QUICK_SHAPE, NUM_QUICK = (4 * SIDE, 6 * SIDE, 6 * SIDE), 1
GOAL_SECONDS = 2.0
THRESHOLD = 0.5
_SCORED_PER_PART = 1 << 14
_SHOWN = "[...document.querySelectorAll('.cell img')].slice(0, 12).every(i => i.complete && i.naturalWidth)"


def _put_volume(store: Store, dataset: str, shape: tuple[int, int, int], seed: int) -> tuple[str, dict[str, Any]]:
    description = DatasetDescription(
        name=dataset, kind="volume", voxel_size_nm=(8.0, 8.0, 8.0), licence="CC0-1.0", citation="Generated rows, 2026"
    ).model_dump(mode="json")
    record = VolumeRecord(
        "cells", "cells.ome.zarr", shape, (8.0, 8.0, 8.0), ALL_PLANES, IntensityMapping("identity", "uint8", 0, 255),
        ("cells.nrrd",), 0, (0,) * 256, None, (),
    )  # fmt: skip
    commit = Commit(store, Inputs(VOLUMES, dataset, CODE_VERSIONS[VOLUMES], {}, {"generated": str(seed)}))
    for name, data in metadata_objects(record).items():
        commit.write(f"{record.folder}/{name}", data)
    boxes = brick_boxes(shape, ALL_PLANES)
    z, y, x = np.meshgrid(*[np.linspace(0, 25, SIDE)] * 3, indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 12, (SIDE,) * 3)
    voxels = np.clip(128 + 60 * np.sin(x + np.sin(y)) * np.cos(z + y / 3) + noise, 0, 255).astype(np.uint8)
    names = [f"{record.folder}/{brick_name(shape, ALL_PLANES, box)}" for box in boxes]
    first = commit.write(names[0], encode_brick(shape, ALL_PLANES, boxes[0], voxels))
    source = Path(store.url_of(f"{commit.content.folder}/{names[0]}"))
    for name in names[1:]:
        target = Path(store.url_of(f"{commit.content.folder}/{name}"))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
        commit.add(ManifestObject(name, first.num_bytes, first.sha256))
    details = {"description": description, "volumes": [record.to_json()]}
    return commit.finish({"voxels": int(np.prod(shape))}, details).digest, description


def _places(shape: tuple[int, int, int]) -> NDArray[np.int32]:
    """Return every patch of a volume of whole bricks, in brick order: int32 (n, 6)."""
    rows = []
    for box in brick_boxes(shape, ALL_PLANES):
        for axis in ALL_PLANES:
            first, second = (box[number] for number in ALL_PLANES if number != axis)
            found = np.empty((SIDE, 6), np.int32)
            found[:] = (axis, 0, first.start, first.stop, second.start, second.stop)
            found[:, 1] = np.arange(box[axis].start, box[axis].stop)
            rows.append(found)
    return np.concatenate(rows)


def put_rows(store: Store, dataset: str, shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """Commit a dataset of generated scores, of which those up to the threshold were dropped; return them."""
    generator = np.random.default_rng(seed)
    volumes_digest, description = _put_volume(store, dataset, shape, seed)
    place = _places(shape)
    num = len(place)
    hashes = generator.integers(0, 2**64, num, dtype=np.uint64)
    table = patch_table(dataset, "cells", shape, PatchRows(place, hashes, np.zeros(num, np.int32)))
    logits = generator.normal(1, 3, num).astype(np.float32)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    table = table.replace_schema_metadata(None).append_column("num_duplicates", pa.array(generator.poisson(3, num)))
    table = table.append_column("logit", pa.array(logits)).append_column("informative", pa.array(scores))
    commit = Commit(store, Inputs(SCORES, dataset, CODE_VERSIONS[SCORES], {}, {"generated": str(seed)}))
    for number, start in enumerate(range(0, num, _SCORED_PER_PART)):
        commit.write(part_name(number), parquet_bytes([table.slice(start, _SCORED_PER_PART)], SCORES_SCHEMA))
    details = {"description": description, "volumes_digest": volumes_digest, "lineage": {"raw_patches": num}}
    digest = commit.finish({"patches": num}, details).digest
    is_out = pa.array(scores <= THRESHOLD)
    out = table.filter(is_out)
    reasons = pa.array(["uninformative"] * len(out), pa.string())
    dropped = pa.table([out["name"], out["informative"], reasons], schema=DROPPED_SCHEMA)
    upstream = {f"{SCORES}/{dataset}": digest}
    commit = Commit(store, Inputs(FILTERED, dataset, CODE_VERSIONS[FILTERED], {"threshold": THRESHOLD}, upstream))
    commit.write(part_name(0), parquet_bytes([], FILTERED_SCHEMA))
    commit.write("_dropped/part-00000.parquet", parquet_bytes([dropped], DROPPED_SCHEMA))
    commit.finish({"patches": 0, "dropped": len(out), "shards": 0}, details)
    return scores


class _Page:
    """The page in the browser, with methods that time it."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def wait(self, script: str) -> None:
        deadline = time.monotonic() + 120
        while not self._page.evaluate(script):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the page does not come to: {script}; it says {self._page.inner_text('#alarm')}")
            time.sleep(0.01)

    def total(self) -> int:
        """Wait for the number of rows to be counted; return it."""
        self.wait("!document.body.classList.contains('busy') && document.querySelector('#total b')?.textContent !== '…'")
        return int(self._page.inner_text("#total b").replace(",", ""))

    def open(self, address: str) -> tuple[float, float]:
        """Return the seconds from opening an address to the rows, and to their first pictures."""
        self._page.goto(address)
        self.wait("performance.getEntriesByName('gallery').length > 0")
        rows = self._page.evaluate("performance.getEntriesByName('gallery')[0].startTime")
        self.wait(f"document.querySelectorAll('.cell').length > 12 && {_SHOWN}")
        return rows / 1000, self._page.evaluate("performance.now()") / 1000

    def act(self, action: Any) -> float:
        """Return the seconds from an action to the rows that answer it."""
        started = self._page.evaluate("performance.now()")
        action()
        self.wait(f"performance.getEntriesByName('gallery').some((mark) => mark.startTime > {started})")
        drawn = self._page.evaluate("performance.getEntriesByName('gallery').at(-1).startTime")
        return (drawn - started) / 1000


def measure(is_quick: bool = False) -> list[Measured]:
    from cem_assets_tests.services import browser

    if reason := browser.install():
        raise RuntimeError(f"the explorer is measured in Chromium: {reason}")
    shape, num = (QUICK_SHAPE, NUM_QUICK) if is_quick else (SHAPE, NUM_DATASETS)
    with tempfile.TemporaryDirectory(prefix="perf-explorer-") as name:
        folder = Path(name)
        store = open_store(str(folder / "store"))
        scores = np.concatenate([put_rows(store, f"d{number}", shape, number) for number in range(num)])
        command = [sys.executable, "-m", "cem_assets.cli", "--root", store.url, "explore", "--no-browser"]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(line.strip() for line in server.stdout if line.startswith("http"))
            with browser.open_page(1600, 950) as page:
                return _measured(_Page(page), page, address, scores)
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=30)


def _measured(shown: _Page, page: Any, address: str, scores: NDArray[np.float32]) -> list[Measured]:
    address = f"{address}?stage=scores"
    cold = shown.open(address)
    assert shown.total() == len(scores)
    warm = shown.open(address)
    shown.total()
    found: dict[str, float] = {
        "first paint, new server": cold[0],
        "first paint and 12 pictures, new server": cold[1],
        "first paint": warm[0],
        "first paint and 12 pictures": warm[1],
    }

    def clear() -> None:
        page.evaluate("document.activeElement.blur()")  # a key pressed while a field has the focus would be typed into it
        page.keyboard.press("c")

    def score_filled() -> None:
        page.locator("#f-score_from").fill("0.9")

    def shuffle() -> None:
        page.keyboard.press("r")

    cases = [
        ("filter by score", score_filled, int((scores >= np.float32(0.9)).sum())),
        ("filter by plane besides", page.locator("[data-name=axis] .choice").first.click, None),
        ("filters cleared", clear, len(scores)),
        ("search in names", lambda: page.locator("#f-text").fill("loc-1_0"), None),
        ("order by score besides", lambda: page.locator("#sort").select_option("score_down"), None),
        ("filters cleared again", clear, len(scores)),
        ("a random order", shuffle, len(scores)),
        ("kept alone, a join", lambda: page.locator("button.fate.kept").click(), int((scores > THRESHOLD).sum())),
    ]
    for what, action, expected in cases:
        found[what] = shown.act(action)
        total = shown.total()
        assert expected is None or total == expected, (what, total, expected)
    note = f"{len(scores):,} rows"
    return [
        Measured(what, "answers/s", 1 / seconds, 1 / GOAL_SECONDS, "2 s", 1.0, f"{seconds:.2f} s, {note}")
        for what, seconds in found.items()
    ]
