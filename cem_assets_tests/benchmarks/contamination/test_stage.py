"""Contamination of releases: planted test images are found and left out, unrelated sets give none, no work is repeated."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cem_assets import readers
from cem_assets.benchmarks.contamination import pictures as compared_pictures
from cem_assets.benchmarks.contamination import stage as contamination
from cem_assets.benchmarks.contamination.card import CARD
from cem_assets.benchmarks.contamination.checks import is_uncontaminated
from cem_assets.benchmarks.contamination.fingerprints import TURNS, turned
from cem_assets.benchmarks.contamination.stage import check_contamination
from cem_assets.benchmarks.data.segmentation_sets import ItemWriter
from cem_assets.benchmarks.data.steps import Item
from cem_assets.benchmarks.data.transfer_sets import TransferWriter
from cem_assets.catalog.benchmarks import SETTINGS
from cem_assets.cem.checks import release_is_complete
from cem_assets.cem.reconciliation import is_release_due
from cem_assets.cem.releases.changes import compare_releases
from cem_assets.cem.releases.contamination_reports import PAIRS
from cem_assets.cem.releases.stage import EXCLUDED, list_releases, make_release
from cem_assets.cytoimagenet.channels import merge_channels
from cem_assets.execution.local import LocalEngine
from cem_assets.pretraining.data.release_data import open_training_data
from cem_assets.pretraining.methods.params import params_for
from cem_assets.pretraining.plan import TrainingPlan
from cem_assets.store.assets import BENCHMARK_DATA, CONTAMINATION, CYTO_RELEASES, FILTERED
from cem_assets.store.commits import Commit, ContentFolder
from cem_assets.store.images import decode_image, image_column
from cem_assets.store.manifests import Inputs, Manifest, current_manifest, require_manifest
from cem_assets.store.parquet import parquet_bytes, schema_of
from cem_assets.store.store import Store
from cem_assets_tests.pretraining.training_sets import put_filtered

HERE = LocalEngine(1)


def clutter(seed: int, shape: tuple[int, ...] = (224, 224)) -> np.ndarray:
    """Cell-like clutter: noise smoothed at two scales."""
    noise = np.random.default_rng(seed).normal(size=shape)
    mixed = gaussian_filter(noise, 3.0) * 3 + gaussian_filter(noise[::-1], 12.0) * 12
    return np.clip(mixed / mixed.std() * 45 + 120, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return np.asarray(Image.open(sink))


def put_benchmark(
    store: Store, name: str, tests: dict[str, np.ndarray], train: dict[str, np.ndarray] | None = None
) -> Manifest:
    """Commit a prepared segmentation benchmark of these images, as its stage does; masks are empty."""
    digest = str(sum(int(image.astype(np.int64).sum()) for image in tests.values()))
    commit = Commit(store, Inputs(BENCHMARK_DATA, name, "1", {}, {"files": digest}))
    writer = ItemWriter(commit, 2)
    train = train or {"training image": clutter(9999)}
    for split, images in (("train", train), ("test", tests)):
        for item, image in images.items():
            writer.add(Item(item, split, image, (np.zeros(image.shape, np.uint8),)))
    return commit.finish(writer.finish(name, ("background", "thing")), {"task": "segmentation", "rules": {}})


def pairs_of(store: Store, report: Manifest) -> pd.DataFrame:
    with store.open(f"{report.folder}/{PAIRS}") as handle:
        return pq.ParquetFile(handle).read().to_pandas()


def names_of(dataset: str, places: list[int]) -> list[str]:
    """List the names that `put_filtered` gives patches."""
    return [f"{dataset}-LOC-2d-0-224_{place}-{place + 224}" for place in places]


def planted(images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of parts of test images, by what was done to them."""
    return {
        "exact": images[0][:224, :224],
        "mirrored": turned(images[0][112:336, 224:448], 4),
        "upside down": images[1][112:336, 112:336][::-1],
        "turned": turned(images[1][224:448, 0:224], 1),
        "turned and encoded anew": jpeg(turned(images[2][0:224, 112:336], 3), 60),
        "encoded anew": jpeg(images[2][224:448, 224:448], 50),
        "half outside": np.concatenate([images[3][112:224], clutter(77, (112, 224))]),
        "a quarter inside, turned": turned(
            np.block([[images[3][112:, 112:], clutter(78, (112, 112))], [clutter(79, (112, 224))]]), 6
        ),
    }


@pytest.fixture
def contaminated(local_store: Store) -> Store:
    """A store with benchmark "cells" and release v1 of two datasets; "dirty" holds the planted patches among its own."""
    images = [*(clutter(seed, (448, 448)) for seed in range(3)), clutter(3)]
    put_benchmark(local_store, "cells", {f"image {number}": image for number, image in enumerate(images)})
    own = [clutter(seed) for seed in range(100, 112)]
    put_filtered(local_store, "clean", [clutter(seed) for seed in range(200, 206)])
    put_filtered(local_store, "dirty", [*own[:5], *planted(images).values(), *own[5:]])
    make_release(local_store)
    return local_store


PLANTED = names_of("dirty", list(range(5, 13)))


def test_planted_copies_flips_turns_encodings_and_half_crops_are_found_and_told(contaminated: Store):
    result = check_contamination(contaminated, "cem", engine=HERE)
    report = result.manifest
    assert result.is_new and report.inputs.partition == "cem-v1"
    frame = pairs_of(contaminated, report)
    assert sorted(set(frame["name"])) == sorted(PLANTED) and set(frame["dataset"]) == {"dirty"}
    best = frame.set_index("name").loc[PLANTED]
    assert best["item"].tolist() == [f"image {n}" for n in (0, 0, 1, 1, 2, 2, 3, 3)]
    turns = (TURNS[0], TURNS[4], TURNS[6], TURNS[1], TURNS[3], TURNS[0], TURNS[0], TURNS[6])
    assert best["turn"].tolist() == list(turns)
    assert best["is_exact"].tolist() == [True] * 4 + [False] * 2 + [True] * 2
    assert best["release_row"].tolist() == list(range(11, 19)) and best["row"].tolist() == list(range(5, 13))
    shard = require_manifest(contaminated, FILTERED, "dirty")
    assert set(frame["shard"]) == {f"{shard.folder}/part-00000.parquet"} and set(frame["benchmark"]) == {"cells"}
    assert best[["top", "left", "height", "width"]].iloc[1].tolist() == [112, 224, 224, 224]
    assert best[["top", "left", "height", "width"]].iloc[6].tolist() == [112, 0, 112, 112]
    assert report.counts == {
        "patches": 26, "test_images": 4, "pairs": 8, "contaminated_patches": 8, "benchmarks": 1,
    }  # fmt: skip
    assert report.details["num_pairs"] == 8
    assert report.details["benchmarks"] == {"cells": require_manifest(contaminated, BENCHMARK_DATA, "cells").digest}
    assert report.details["release"] == list_releases(contaminated)[0].digest
    card = contaminated.read(f"{report.folder}/{CARD}").decode()
    assert "| cells | 4 | 8 | 8 |" in card and "| dirty | 8 |" in card and "exclude_contaminated = true" in card
    picture = Image.open(io.BytesIO(contaminated.read(f"{report.folder}/pairs-cells.png")))
    assert min(picture.size) > 300 and len(np.unique(np.asarray(picture))) > 50


def test_a_release_without_the_patches_is_clean_complete_and_counted_right(contaminated: Store):
    store = contaminated
    check_contamination(store, "cem", engine=HERE)
    outcome = is_uncontaminated(store, "cem")
    assert not outcome.passed and outcome.facts["pairs"] == 8
    assert "8 of 26 patches of cem v1 show test images of cells (8). Materialize cem/releases" in outcome.description

    manifest = make_release(store, exclude_contaminated=True).manifest
    assert manifest.inputs.partition == "v2" and not is_uncontaminated(store, "cem").passed
    check_contamination(store, "cem", engine=HERE)
    assert is_uncontaminated(store, "cem").passed
    assert "none of 18 patches of cem v2 shows what one of 4 test images shows" in is_uncontaminated(store, "cem").description
    assert not is_uncontaminated(store, "cem", "v1").passed

    first, second = readers.read_release("v1", store.url), readers.read_release("v2", store.url)
    names, left = first.patches(["name"])["name"].tolist(), second.patches(["name"])["name"].tolist()
    assert left == [name for name in names if name not in PLANTED] and second.num_patches == len(left) == 18
    assert second.datasets["num_patches"].tolist() == [6, 12]
    pixels = np.concatenate([image.reshape(-1) for _, image in second.iter_images()]) / 255
    assert second.pixel_mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert second.pixel_std == pytest.approx(pixels.std(), abs=1e-12)
    before = dict(first.iter_images())
    assert all(np.array_equal(image, before[name]) for name, image in second.iter_images())
    assert "Left out: 8 patch(es) that show test images of the benchmarks cells (8)" in second.card
    assert "Left out" not in first.card
    table = pd.read_parquet(f"{store.url_of(manifest.folder)}/{EXCLUDED}")
    assert sorted(table["name"]) == sorted(PLANTED) and set(table["reason"]) == {"shows test images of cells"}
    assert manifest.counts["excluded"] == 8 and manifest.counts["patches"] == 18

    # Checks, changes and training rely on the form of release.json and of the manifest.
    assert release_is_complete(store, manifest).passed
    clean, dirty = manifest.details["contents"]
    assert clean["folder"] == require_manifest(store, FILTERED, "clean").folder and dirty["folder"] == manifest.folder
    assert dirty["digest"] == require_manifest(store, FILTERED, "dirty").digest
    assert dirty["counts"]["excluded_patches"] == 8 and "excluded_patches" not in clean["counts"]
    (change,) = compare_releases(store, "v1", "v2")
    assert (change.dataset, change.kind, sorted(change.removed)) == ("dirty", "changed", sorted(PLANTED))
    assert change.reasons == ("releases: patches left out because they show test images of benchmarks, 0 became 8",)
    plan = TrainingPlan("own", "resnet50", "cem", "v2", manifest.digest, "", params_for("moco", "smoke"))
    data = open_training_data(store, plan)
    assert data.source.num_rows == 18 and [source["num_images"] for source in data.sources] == [6, 12]


def test_a_clean_release_is_not_made_again_and_its_successors_stay_clean(contaminated: Store):
    store = contaminated
    check_contamination(store, "cem", engine=HERE)
    second = make_release(store, exclude_contaminated=True)
    assert second.is_new and not is_release_due(store)
    for choice in (None, True):  # by the schedule, and once more by hand
        again = make_release(store, exclude_contaminated=choice)
        assert not again.is_new and again.manifest.digest == second.manifest.digest
    check_contamination(store, "cem", engine=HERE)  # the report says that v2 is clean, and no longer names the patches

    put_filtered(store, "late", [clutter(seed) for seed in range(300, 303)])
    assert is_release_due(store)
    third = make_release(store).manifest
    assert third.inputs.partition == "v3" and third.counts["excluded"] == 8 and third.counts["patches"] == 21
    assert not is_release_due(store) and not make_release(store).is_new
    check_contamination(store, "cem", engine=HERE)
    assert is_uncontaminated(store, "cem").passed

    dirty = make_release(store, exclude_contaminated=False)
    assert dirty.is_new and dirty.manifest.counts["patches"] == 29 and not make_release(store).is_new


def test_a_patch_cut_from_other_data_under_the_same_name_stays(contaminated: Store):
    store = contaminated
    check_contamination(store, "cem", engine=HERE)
    manifest = require_manifest(store, FILTERED, "dirty")
    with store.open(f"{manifest.folder}/part-00000.parquet") as handle:
        table = pq.ParquetFile(handle).read()
    hashes = table["dhash"].to_pylist()
    hashes[5] ^= 1
    place = table.schema.get_field_index("dhash")
    table = table.set_column(place, table.schema.field(place), pa.array(hashes, pa.uint64()))
    commit = Commit(store, Inputs(FILTERED, "dirty", "1", {"threshold": 0.25}))
    commit.write("part-00000.parquet", parquet_bytes([table], table.schema))
    commit.finish(manifest.counts, manifest.details)
    release = make_release(store, exclude_contaminated=True).manifest
    excluded = pd.read_parquet(f"{store.url_of(release.folder)}/{EXCLUDED}")
    assert sorted(excluded["name"]) == sorted(PLANTED[1:])


def test_nothing_to_leave_out_gives_the_same_release_as_ever(local_store: Store):
    put_benchmark(local_store, "cells", {"image": clutter(1)})
    put_filtered(local_store, "clean", [clutter(seed) for seed in range(200, 203)])
    with pytest.raises(
        ValueError, match="no release was compared with the test images .* Materialize benchmarks/contamination"
    ):
        make_release(local_store, exclude_contaminated=True)
    first = make_release(local_store)
    assert dict(first.manifest.inputs.parameters) == {"distance": 4} and "excluded" not in first.manifest.counts
    assert set(first.manifest.details) == {"sequence", "pixel_mean", "pixel_std", "contents"}
    assert [item.name for item in first.manifest.objects] == ["README.md", "cross_dataset_duplicates.parquet", "release.json"]
    report = check_contamination(local_store, "cem", engine=HERE).manifest
    assert report.counts["pairs"] == 0 and not [item for item in report.objects if item.name.endswith(".png")]
    assert b"No patch shows what a test image shows" in local_store.read(f"{report.folder}/{CARD}")
    assert not make_release(local_store, exclude_contaminated=True).is_new


def test_a_dataset_that_loses_everything_is_still_read(local_store: Store):
    image = clutter(1)
    put_benchmark(local_store, "cells", {"image": image})
    put_filtered(local_store, "copies", [image, turned(image, 5)])
    put_filtered(local_store, "own", [clutter(seed) for seed in range(200, 203)])
    make_release(local_store)
    check_contamination(local_store, "cem", engine=HERE)
    manifest = make_release(local_store, exclude_contaminated=True).manifest
    release = readers.read_release(root=local_store.url)
    assert release.num_patches == 3 == len(release.patches()) == len(list(release.iter_images()))
    assert release.datasets["num_patches"].tolist() == [0, 3] and release_is_complete(local_store, manifest).passed


def test_pairs_are_the_same_in_pieces_of_any_size_and_in_any_process(contaminated: Store, monkeypatch):
    whole = pairs_of(contaminated, check_contamination(contaminated, "cem", engine=HERE).manifest)
    contaminated.delete(item.key for item in list(contaminated.walk(CONTAMINATION)))
    monkeypatch.setattr(contamination, "_SEARCHED_TOGETHER", 1)
    monkeypatch.setattr(compared_pictures, "_BATCH_PX", 1)
    pieces = check_contamination(contaminated, "cem", engine=LocalEngine(2)).manifest
    assert len([item for item in pieces.objects if item.name.startswith("_test/")]) == 4
    pd.testing.assert_frame_equal(pairs_of(contaminated, pieces), whole)


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_run_goes_on_where_it_was(contaminated: Store, monkeypatch, killed_at: int):
    monkeypatch.setattr(compared_pictures, "_BATCH_PX", 448 * 448)
    real, written = ContentFolder.write, []

    def write(folder: ContentFolder, name: str, data: bytes):
        if len(written) == killed_at:
            raise KeyboardInterrupt
        written.append(name)
        return real(folder, name, data)

    monkeypatch.setattr(ContentFolder, "write", write)
    with pytest.raises(KeyboardInterrupt):
        check_contamination(contaminated, "cem", engine=HERE)
    assert current_manifest(contaminated, CONTAMINATION, "cem-v1") is None
    before = list(written)
    monkeypatch.setattr(ContentFolder, "write", lambda folder, name, data: (written.append(name), real(folder, name, data))[1])
    report = check_contamination(contaminated, "cem", engine=HERE).manifest
    tables = [name for name in written if "/" in name]
    assert len(tables) == len(set(tables)) == 6 and len(before) in (1, 2, 4) and report.counts["pairs"] == 8


def test_a_report_is_made_once_and_only_what_is_new_is_fingerprinted(contaminated: Store, monkeypatch):
    store, jobs = contaminated, []
    real = compared_pictures.FingerprintJob.__call__
    monkeypatch.setattr(
        compared_pictures.FingerprintJob, "__call__", lambda job, batch: (jobs.append(batch.name), real(job, batch))[1]
    )
    first = check_contamination(store, "cem", engine=HERE)
    assert first.is_new and len(jobs) == 3  # two shards, one batch of test images
    again = check_contamination(store, "cem", engine=HERE)
    assert not again.is_new and again.manifest.digest == first.manifest.digest and len(jobs) == 3

    put_benchmark(store, "more", {"image": clutter(31), "copy": clutter(203)})
    assert "was compared with other test images than there are now" in is_uncontaminated(store, "cem").description
    report = check_contamination(store, "cem", engine=HERE).manifest
    assert len(jobs) == 4 and jobs[-1].startswith("_test/more-") and report.counts["pairs"] == 9
    assert "8 of" not in is_uncontaminated(store, "cem").description
    assert "cells (8), more (1)" in is_uncontaminated(store, "cem").description

    make_release(store, exclude_contaminated=True)  # both datasets lose patches, so their shards are new
    check_contamination(store, "cem", engine=HERE)
    assert len(jobs) == 6 and all(name.startswith("_release/") for name in jobs[4:])
    assert is_uncontaminated(store, "cem").passed

    # A damaged table of an older report is not taken over.
    damaged = next(item.name for item in report.objects if item.name.startswith("_test/cells"))
    for partition in ("cem-v1", "cem-v2"):
        folder = require_manifest(store, CONTAMINATION, partition).folder
        store.put(f"{folder}/{damaged}", store.read(f"{folder}/{damaged}")[:-1])
    put_filtered(store, "late", [clutter(301)])
    make_release(store)
    check_contamination(store, "cem", engine=HERE)
    assert (
        jobs[6:] == [next(n for n in jobs[6:] if n.startswith("_release/")), damaged] and is_uncontaminated(store, "cem").passed
    )


def test_what_was_not_compared_does_not_pass_but_without_benchmarks_all_does(local_store: Store):
    put_filtered(local_store, "own", [clutter(seed) for seed in range(200, 203)])
    with pytest.raises(FileNotFoundError, match="has no release to train on; materialize cem/releases first"):
        is_uncontaminated(local_store, "cem")
    make_release(local_store)
    outcome = is_uncontaminated(local_store, "cem")
    assert outcome.passed and "no benchmark is prepared" in outcome.description
    assert check_contamination(local_store, "cem", engine=HERE).manifest.counts["pairs"] == 0
    put_benchmark(local_store, "cells", {"image": clutter(1)})
    outcome = is_uncontaminated(local_store, "cem")
    assert not outcome.passed and "Materialize benchmarks/contamination, partition 'cem-v1'" in outcome.description
    check_contamination(local_store, "cem", engine=HERE)
    assert is_uncontaminated(local_store, "cem").passed
    with pytest.raises(ValueError, match="data set 'own' is not known; expected one of cem, cytoimagenet"):
        check_contamination(local_store, "own")


@pytest.mark.parametrize(("mode", "planes"), [("stack", ["xy 3"]), ("orthoplane", ["xy 3", "xz 40", "yz 70"])])
def test_volumes_are_compared_on_the_planes_they_are_tested_on(local_store: Store, mode: str, planes: list[str]):
    y = gaussian_filter(np.random.default_rng(4).normal(size=(72, 80, 88)).astype(np.float32), (2, 4, 4))
    volume = np.clip(y / y.std() * 45 + 120, 0, 255).astype(np.uint8)
    put_benchmark(local_store, "block", {"volume": volume}, {"volume": volume[::-1]})
    settings = 'title = "B"\nlicence = "CC0"\ncitation = "me"\nclasses = ["a", "b"]\n'
    settings = f'[block]\n{settings}params = {{ iters = 9, test_mode = "{mode}" }}\n'
    local_store.put(SETTINGS, settings.encode())
    cuts = [volume[3], volume[:, 40], turned(volume[:, :, 70], 5)]
    put_filtered(local_store, "slices", [*(np.ascontiguousarray(cut) for cut in cuts), clutter(1)])
    make_release(local_store)
    frame = pairs_of(local_store, check_contamination(local_store, "cem", engine=HERE).manifest)
    exact = frame[frame["is_exact"]]
    assert exact["plane"].tolist() == planes and set(frame["item"]) == {"volume"}
    assert set(frame["row"]) == set(range(len(planes)))
    # Settings decide what is compared, so a change of them calls for another report.
    other = "stack" if mode == "orthoplane" else "orthoplane"
    local_store.put(SETTINGS, settings.replace(mode, other).encode())
    assert "was compared with other test images" in is_uncontaminated(local_store, "cem").description


def put_cells(store: Store, name: str, cells: list[tuple[str, list[np.ndarray]]]) -> None:
    """Commit a prepared transfer benchmark of three channels."""
    commit = Commit(store, Inputs(BENCHMARK_DATA, name, "1", {}, {"files": str(len(cells))}))
    writer = TransferWriter(commit, ("dna", "actin", "tubulin"))
    for number, (split, planes) in enumerate(cells):
        writer.add({"name": f"cell {number}", "split": split, "label": "a"}, planes)
    commit.finish(writer.finish(name), {"task": "transfer"})


CYTO_SCHEMA = schema_of(
    ("label", pa.string()), ("filename", pa.string()), ("dhash", pa.uint64()),
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
)  # fmt: skip


def put_cyto_release(store: Store, images: list[np.ndarray]) -> None:
    """Commit a release of CytoImageNet with one label, in the form that its stage writes."""
    names = [f"mouse-{number}.png" for number in range(len(images))]
    table = pa.table(
        [
            pa.array(["mouse"] * len(names)),
            pa.array(names),
            pa.array(range(len(names)), pa.uint64()),
            image_column(names, images),
        ],
        schema=CYTO_SCHEMA,
    )
    commit = Commit(store, Inputs(CYTO_RELEASES, "v1", "1"))
    shard = commit.write("labels/mouse/part-00000.parquet", parquet_bytes([table], CYTO_SCHEMA))
    label = {"folder": commit.content.folder, "objects": [{"name": shard.name, "sha256": shard.sha256}]}
    commit.write("release.json", json.dumps({"labels": [label]}).encode())
    commit.finish({"images": len(images)}, {"sequence": 1})


def test_cell_images_are_compared_merged_as_crops_are_and_training_images_are_not(local_store: Store):
    cells = [
        (split, [(clutter(10 * number + channel).astype(np.uint16) * 100) for channel in range(3)])
        for number, split in enumerate(["train", "test1", "all", "valid", "test4"])
    ]
    put_cells(local_store, "fluorescence", cells)
    merged = [merge_channels(planes) for _, planes in cells]
    put_cyto_release(local_store, [clutter(500), merged[0], turned(merged[1], 2), merged[2], merged[3], jpeg(merged[4])])
    report = check_contamination(local_store, "cytoimagenet", engine=HERE).manifest
    frame = pairs_of(local_store, report)
    assert report.inputs.partition == "cytoimagenet-v1" and report.counts["test_images"] == 3
    assert frame["name"].tolist() == ["mouse-2.png", "mouse-3.png", "mouse-5.png"]
    assert frame["item"].tolist() == ["cell 1", "cell 2", "cell 4"] and set(frame["dataset"]) == {"mouse"}
    outcome = is_uncontaminated(local_store, "cytoimagenet")
    assert not outcome.passed and 'role = "test"' in outcome.description
    assert b"| mouse | 3 |" in local_store.read(f"{report.folder}/{CARD}")


def em_images(folder: Path, num: int, suffix: str = "png") -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("L")) for path in sorted(folder.glob(f"*.{suffix}"))[:num]]


def tiles(images: list[np.ndarray]) -> list[np.ndarray]:
    """Cut patches on the grid that CEM data is cut on."""
    return [
        np.ascontiguousarray(image[y : y + 224, x : x + 224])
        for image in images
        for y in range(0, image.shape[0] - 223, 224)
        for x in range(0, image.shape[1] - 223, 224)
    ]


def test_real_sets_of_other_tissue_give_none_and_their_own_slices_are_found(local_store: Store, test_data: Path):
    membranes = em_images(test_data / "em2d_labelled/isbi2012_membrane/image", 4)
    others = em_images(test_data / "em3d_labelled/vnc_sstem_stack1/raw", 3, "tif")
    assert len(membranes) == 4 and len(others) == 3
    put_benchmark(local_store, "membranes", {str(number): image for number, image in enumerate(membranes[:2])})
    put_filtered(local_store, "vnc", tiles(others))
    make_release(local_store)
    assert check_contamination(local_store, "cem", engine=HERE).manifest.counts["pairs"] == 0
    assert is_uncontaminated(local_store, "cem").passed

    patches = [jpeg(tiles(membranes[:1])[0]), turned(membranes[1][112:336, 224:448], 7), *tiles(membranes[2:])]
    put_filtered(local_store, "ours", patches)
    make_release(local_store)
    frame = pairs_of(local_store, check_contamination(local_store, "cem", engine=HERE).manifest)
    assert {(row["name"], row["item"]) for _, row in frame.iterrows()} >= set(zip(names_of("ours", [0, 1]), "01", strict=True))
    assert set(frame["name"]) == set(names_of("ours", [0, 1])), "other images of the same tissue are no copies"


def test_one_patch_with_pixels_of_a_test_image_is_drawn_beside_it(contaminated: Store):
    report = check_contamination(contaminated, "cem", engine=HERE).manifest
    row = pairs_of(contaminated, report).iloc[0]
    with contaminated.open(row["shard"]) as handle:
        cell = pq.ParquetFile(handle).read()["image"][int(row["row"])].as_py()
    patch = decode_image(cell["bytes"])
    box = row[["patch_top", "patch_left", "patch_height", "patch_width"]].astype(int).tolist()
    assert np.array_equal(patch[box[0] : box[0] + box[2], box[1] : box[1] + box[3]], clutter(0, (448, 448))[:224, :224])
