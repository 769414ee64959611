"""Tests of the model of scale: its counts are those of real chains, its sums add up, its limits are where it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr

pytest.importorskip("perf", reason="the benchmarks are in the repository, not in its packages")

from cem_assets.cem.filter import stage as cem_filter
from cem_assets.cem.patches import pixels as patches
from cem_assets.cem.patches import stage as cem_patches
from cem_assets.cem.patches.pixels import open_pixels
from cem_assets.cem.patches.stage import PatchifyParams, cut_and_hash
from cem_assets.cem.volumes.stage import standardize_dataset
from cem_assets.store import manifests
from cem_assets.store.assets import DEDUPLICATED, FILTERED, RAW, SCORES, VOLUMES
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store
from cem_assets_tests.cem.chain import import_classifier, run_chain
from cem_assets_tests.datasets import cells, nrrd_bytes, put_in_inbox, toml
from perf import scale_model
from perf.measured_figures import dedup_seconds, figure
from perf.scale_limits import RELEASE_BYTES_PER_PATCH, RUN_MEMORY, limits_of
from perf.scale_model import Assumptions, compute, datasets_for
from perf.scale_objects import Chain, chain_of_cube, count_objects, num_bricks, num_raw_parts, stages_of


def _counted(store: Store, dataset: str) -> dict[str, int]:
    return {asset: sum(1 for _ in store.walk(f"{asset}/{dataset}")) for asset in (VOLUMES, RAW, DEDUPLICATED, SCORES, FILTERED)}


def _chain_of(store: Store, dataset: str) -> Chain:
    """Describe what was committed, as the model would."""
    volumes = [(volume.shape, volume.planes) for volume in open_pixels(store, dataset).volumes]
    exemplars = require_manifest(store, DEDUPLICATED, dataset).counts["exemplars"]
    return Chain(volumes, exemplars, require_manifest(store, FILTERED, dataset).counts["patches"])


def test_a_real_chain_writes_as_many_objects_as_the_model_counts(curated: Store) -> None:
    for dataset in ("cells", "twin"):
        assert count_objects(_chain_of(curated, dataset)) == _counted(curated, dataset)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_so_does_one_that_fills_several_files_of_each_kind(
    local_store: Store, weights: Path, monkeypatch: pytest.MonkeyPatch, threshold: float
) -> None:
    monkeypatch.setattr(patches, "ROWS_PER_PART", 7)
    monkeypatch.setattr(cem_patches, "_ROWS_PER_PART", 5)
    monkeypatch.setattr(cem_filter, "_SCORED_PER_PART", 4)
    monkeypatch.setattr(cem_filter, "PATCHES_PER_SHARD", 3)
    monkeypatch.setattr(manifests, "INLINE_OBJECTS", 1)
    import_classifier(local_store, weights)
    files = {f"{name}.nrrd": nrrd_bytes(cells(shape, 3)) for name, shape in (("a", (3, 300, 470)), ("b", (4, 130, 980)))}
    put_in_inbox(local_store, "flat", files, toml("flat", voxel_size_nm="[40.0, 8.0, 8.0]"))
    run_chain(local_store, "flat", until="filtered", threshold=threshold)
    chain = _chain_of(local_store, "flat")
    assert chain.exemplars > 5
    assert (chain.kept == 0) == (threshold == 1.0)
    found = _counted(local_store, "flat")
    assert count_objects(chain) == found
    assert min(found.values()) > 3  # several parts, a manifest, and the table of its objects


def test_masks_and_rejected_patches_count(local_store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "v.zarr"
    zarr.create_array(str(folder), data=cells((70, 130, 450)) // 2 + 60, chunks=(70, 130, 50), fill_value=0)
    (folder / "c/0/0/1").unlink()
    files = {f"v.zarr/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    put_in_inbox(local_store, "holes", files)
    standardize_dataset(local_store, "holes")
    rejected = cut_and_hash(local_store, "holes", PatchifyParams()).manifest.counts["rejected_patches"]
    (volume,) = open_pixels(local_store, "holes").volumes
    chain = Chain([(volume.shape, volume.planes)], 0, 0, rejected=rejected, rejected_parts=1, bricks_missing=1)
    found, counted = _counted(local_store, "holes"), count_objects(chain)
    assert rejected > 0
    assert (counted[VOLUMES], counted[RAW]) == (found[VOLUMES], found[RAW])
    assert count_objects(replace(chain, bricks_missing=0))[VOLUMES] == found[VOLUMES] - 2


def test_large_volumes_are_counted_by_arithmetic() -> None:
    cube = chain_of_cube(1e12, 0.2, 0.5)
    side = cube.volumes[0][0][0]
    assert cube.bricks == num_bricks((side,) * 3, (0, 1, 2)) == (-(-side // 224)) ** 3
    assert cube.raw == 3 * side * round(side / 224) ** 2
    huge = chain_of_cube(3e12, 0.2, 0.5)
    assert huge.bricks > 200_000
    assert num_raw_parts(huge) == pytest.approx(huge.raw / (1 << 20), rel=0.01)


def test_a_model_is_the_sum_of_its_datasets() -> None:
    given = Assumptions(dataset_gb=20.0)
    one, many = (compute(num, given, 16, 2) for num in (1.0, 500.0))
    assert many.hours == pytest.approx(500 * one.hours)
    assert {what: cost / 500 for what, cost in many.costs.items()} == pytest.approx(one.costs)
    assert many.scale.gets == pytest.approx(one.scale.gets)
    for asset, made in stages_of(chain_of_cube(20e9, 0.2, 0.5)).items():
        assert many.stages[asset].made.objects == 500 * made.objects
    few, fewer = (compute(500.0, given, cores, 1000) for cores in (16, 8))  # GPUs enough, so cores decide
    assert fewer.hours == pytest.approx(2 * few.hours)
    slow = compute(500.0, given, 16, 0)  # the cores score: more core hours, no GPU hours
    assert slow.costs["GPUs"] == 0
    assert slow.costs["cores"] > 2 * many.costs["cores"]


def test_a_workload_holds_what_was_asked_for() -> None:
    given = Assumptions(dataset_gb=50.0)
    by_size, by_patches = datasets_for(2.0, 1e9, given)
    assert (model := compute(by_size, given, 8, 1)).total(model.scale.chain.voxels) == pytest.approx(2e15)
    assert compute(by_patches, given, 8, 1).scale.filtered == pytest.approx(1e9)


def test_limits_are_in_order_and_where_they_say() -> None:
    model = compute(1000.0, Assumptions(), 64, 2)
    limits = limits_of(model.scale)
    assert [limit.load for limit in limits] == sorted((limit.load for limit in limits), reverse=True)
    memory = next(limit for limit in limits if limit.what.startswith("memory of a release"))
    at_limit = replace(model.scale, filtered=RUN_MEMORY / RELEASE_BYTES_PER_PATCH)
    again = next(limit for limit in limits_of(at_limit) if limit.what == memory.what)
    assert again.load == pytest.approx(1)
    assert memory.load == pytest.approx(model.scale.filtered / at_limit.filtered)


def test_names_may_be_more_than_32_bit_offsets_can_tell() -> None:
    """Why names are joined as `large_string`. The gigabyte of characters is never written, so it takes no memory."""
    num, length = 2**15, 2**15
    offsets = np.arange(num + 1, dtype=np.int32) * np.int32(length)
    names = pa.StringArray.from_buffers(num, pa.py_buffer(offsets), pa.py_buffer(np.zeros(2**30, np.uint8)))
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        pa.concat_arrays([names, names])
    assert pa.concat_arrays([names.cast(pa.large_string())] * 2).nbytes > 2**31


def test_deduplication_takes_the_measured_time_at_the_measured_sizes() -> None:
    assert dedup_seconds(1e6) == pytest.approx(figure("dedup 1 M"))
    assert dedup_seconds(1e7) == pytest.approx(figure("dedup 10 M"))


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        ("volumes", "chain, source to volumes", lambda ours: ours * 1e9 / 3600 / 2),
        ("raw", "chain, volumes to raw patches", lambda ours: ours * 1e9 / 3600 / 2),
        ("dedup tables", "chain, raw to deduplicated patches", lambda ours: ours * 1e9 / 3600 / 2),
        ("dedup 1 M", "dedup of 1,000,000 hashes, two threads", lambda ours: 1e6 / ours),
        ("dedup 10 M", "dedup of 10,000,000 hashes, two threads", lambda ours: 1e7 / ours),
        ("scores cpu", "scores, float32 (default), CPU, 2 threads", lambda ours: ours / 2),
        ("near pairs 10 M", "near pairs of 10,000,000 hashes in 20 datasets, two threads", lambda ours: 1e7 / ours),
        ("run start", "one run in a process of its own", lambda ours: ours),
        ("list page", "S3: listing 10,000 keys", lambda ours: 1000 / ours),
    ],
)
def test_a_figure_is_that_of_the_table_of_measurements(name: str, row: str, value) -> None:
    lines = (Path(__file__).parents[1] / "docs/performance.md").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"| {row} |"))
    assert figure(name) == pytest.approx(value(float(found.split("|")[2].split()[0].replace(",", ""))), rel=0.02)


def test_the_program_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    scale_model.main(["--petabytes", "0.1", "--patches", "1e7", "--cores", "16", "--gpus", "0"])
    printed = capsys.readouterr().out
    assert "| partitions of an asset |" in printed
    assert "**0.1 PB of volumes**: what breaks first" in printed
    assert printed.count("| cem/filtered_patches |") == 2


def test_the_tables_of_the_documentation_are_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    scale_model.main([])
    summary, by_stage, _, limits, _, figures = [
        part.splitlines() for part in capsys.readouterr().out.split("\n\n") if part.startswith("|")
    ]
    documented = (Path(__file__).parents[1] / "docs/scale.md").read_text().splitlines()
    assert [line for line in (*summary, *by_stage, *limits, *figures) if line.rstrip() not in documented] == []
