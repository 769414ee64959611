"""Benchmark images never become training images: their files and their content are recognised, however they were copied."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cem_assets.cytoimagenet.channels import merge_channels
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.held_out import stage as cyto_test_images
from cem_assets.cytoimagenet.held_out.stage import SCHEMA, fingerprint_test_images, read_test_images
from cem_assets.cytoimagenet.labels.stage import label_entries
from cem_assets.cytoimagenet.releases.stage import make_cyto_release, members
from cem_assets.execution.local import LocalEngine
from cem_assets.store.assets import LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifests import current_manifest, manifest_numbers, require_manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cytoimagenet.example_sources import (
    EVERY_IMAGE,
    PLATE,
    crop,
    dropped_of,
    images_of,
    jpeg,
    label,
    plate,
    png,
    put_source,
    rows_of,
    take_in,
    tiff,
)
from cem_assets_tests.datasets import cells

FEW = CropStageParams(min_images=1)


def resized(pixels: np.ndarray, share: float) -> np.ndarray:
    height, width = pixels.shape
    return np.asarray(Image.fromarray(pixels).resize((round(width * share), round(height * share)), Image.Resampling.BICUBIC))


COPIES = {
    "as it is": lambda data, pixels: data,
    "another format": lambda data, pixels: tiff(pixels),
    "flipped": lambda data, pixels: png(np.ascontiguousarray(pixels[:, ::-1])),
    "upside down": lambda data, pixels: tiff(np.ascontiguousarray(pixels[::-1])),
    "turned": lambda data, pixels: png(np.ascontiguousarray(np.rot90(pixels))),
    "re-encoded": lambda data, pixels: jpeg(pixels, 85),
    "turned and re-encoded": lambda data, pixels: jpeg(np.ascontiguousarray(np.rot90(pixels, 3)), 90),
    "smaller": lambda data, pixels: png(resized(pixels, 0.5)),
    "brighter": lambda data, pixels: png(np.clip(pixels.astype(int) * 5 // 4, 0, 255).astype(np.uint8)),
    "16 bits": lambda data, pixels: tiff(pixels.astype(np.uint16) * 257, byteorder=">"),
}


def real_pictures(data: Path) -> dict[str, np.ndarray]:
    """Read ten real pictures and convert each to gray of 8 bits."""
    folder = data / "fluorescence"
    paths = [
        *sorted((folder / "bbbc013_sbs").glob("Channel2-*.tif")),
        *sorted((folder / "cellprofiler_examples").rglob("*d?.tif")),
    ]
    paths += sorted(folder.glob("dsb2018_bbbc038/*/images/*.png"))[:4]
    return {path.stem[:20]: np.asarray(Image.open(path).convert("L")) for path in paths}


def suffix_of(data: bytes) -> str:
    return "png" if data.startswith(b"\x89PNG") else "jpg" if data.startswith(b"\xff\xd8") else "tif"


def test_copies_of_real_test_images_are_kept_out_and_others_stay(local_store: Store, test_data):
    """One picture belongs to the benchmark, and its copies are among all other pictures."""
    pictures = real_pictures(test_data)
    names = sorted(pictures)
    assert len(names) > 10
    secret = pictures.pop(next(name for name in names if name.startswith("Channel2-05")))
    data = png(secret)
    put_source(local_store, "benchmark", {"x.png": data}, EVERY_IMAGE, role="test")
    planted = {what: make(data, secret) for what, make in COPIES.items()}
    files = {f"planted {what}.{suffix_of(copy)}": copy for what, copy in planted.items()}
    files |= {f"{name}.png": png(pixels) for name, pixels in pictures.items()}
    put_source(local_store, "training", files, EVERY_IMAGE)
    take_in(local_store, "benchmark", "training")
    assert fingerprint_test_images(local_store).manifest.counts == {
        "sources": 1, "images": 1, "fingerprints": 1, "unreadable": 0,
    }  # fmt: skip
    label(local_store)
    manifest = crop(local_store)["human"]
    dropped = dropped_of(local_store, manifest)
    of_test = dropped[dropped["reason"] == "test_image"]
    names_of = rows_of(local_store, "training").set_index("idx")["filename"]
    assert set(names_of[of_test["idx"]]) == {name for name in files if name.startswith("planted")}
    kept = set(images_of(local_store, manifest)["source_path"])
    assert kept == {f"training/{name}.png" for name in pictures}
    details = {names_of[idx]: detail for idx, detail in of_test[["idx", "detail"]].itertuples(index=False)}
    assert details["planted as it is.png"] == "it is a file of the test set benchmark"
    assert details["planted flipped.png"].startswith("it is near the test image benchmark-0 (distance ")
    assert manifest.details["dropped_by_reason"]["test_image"] == len(of_test) == 4 * len(COPIES)


def test_one_channel_of_a_test_image_is_recognised_in_a_merged_one_and_the_reverse(local_store: Store):
    """Benchmarks are published merged or channel by channel, and copies are too."""
    plate(local_store, "benchmark", {"A01": "dmso"}, sites=2, channels=2, role="test")
    first, second = (cells((150, 160), 110 + channel) for channel in (1, 2))  # as `plate` draws them
    files = {
        "channel.png": png(second),
        "merged.png": png(merge_channels([first, second])),
        "other.png": png(cells((150, 160), 5000)),
    }
    put_source(local_store, "single", files, EVERY_IMAGE)
    more = {"images/B02_s1_w1.png": png(cells((150, 160), 6000)), "images/B02_s1_w2.png": png(np.flipud(first).copy())}
    plate(local_store, "fields", {"B01": "dmso", "B02": "dmso"}, sites=1, channels=2, seed=3, more=more)
    take_in(local_store, "benchmark", "single", "fields")
    manifest = fingerprint_test_images(local_store).manifest
    assert manifest.counts["images"] == 2 and manifest.counts["fingerprints"] == 6
    label(local_store)
    dropped = dropped_of(local_store, crop(local_store, FEW)["human"])
    of_test = set(dropped[dropped["reason"] == "test_image"]["idx"])
    rows = {
        row["idx"]: row["filename"]
        for source in ("single", "fields")
        for row in rows_of(local_store, source).to_dict("records")
    }
    assert {rows[idx] for idx in of_test} == {"channel.png", "merged.png", "B02_1"}


def test_a_single_file_of_a_test_image_keeps_its_whole_field_out(local_store: Store):
    """The file is exactly the same, but the merged image looks like nothing in the benchmark."""
    plate(local_store, "benchmark", {"A01": "dmso"}, sites=1, role="test")
    planted = {"images/B01_s1_w2.png": local_store.read("inbox/benchmark/images/A01_s1_w1.png")}
    plate(local_store, "own", {"B01": "dmso", "B02": "dmso"}, channels=2, seed=3, more=planted)
    take_in(local_store, "benchmark", "own")
    fingerprint_test_images(local_store)
    label(local_store)
    dropped = dropped_of(local_store, crop(local_store, FEW)["human"])
    assert set(dropped[dropped["reason"] == "test_image"]["idx"]) == {"own-0"}
    assert "a file of the test set benchmark" in dropped["detail"].iloc[0]


def test_crops_are_stale_when_a_test_source_is_added_and_then_clean(local_store: Store):
    wells = {"A01": "dmso", "A02": "dmso"}
    plate(local_store, "own", wells)
    take_in(local_store, "own")
    label(local_store)
    before = crop(local_store, FEW)["human"]
    assert before.counts["images"] == 16 and TEST_IMAGES not in before.inputs.upstream
    make_cyto_release(local_store)
    plate(local_store, "benchmark", {"A01": "dmso"}, role="test")  # the same pictures of A01
    take_in(local_store, "benchmark")
    label(local_store)
    tests = fingerprint_test_images(local_store).manifest
    found = members(local_store)
    assert found.current == () and found.num_waiting == 1
    with pytest.raises(ValueError, match=r"nothing to release: .* 1 label\(s\) wait for their crops"):
        make_cyto_release(local_store)
    after = crop(local_store, FEW)["human"]
    assert after.inputs.upstream[TEST_IMAGES] == tests.digest
    assert after.counts["images"] == 8 and after.details["dropped_by_reason"] == {"test_image": 8}
    assert set(images_of(local_store, after)["source_path"]) == {f"own/images/A02_s{site}_w1.png" for site in (1, 2)}
    manifest = make_cyto_release(local_store).manifest
    assert manifest.inputs.partition == "v2" and manifest.counts["images"] == 8


def test_fingerprints_are_of_test_sources_only_and_made_once(store: Store, test_data):
    folder = test_data / "fluorescence/bbbc013_sbs"
    put_source(store, "benchmark", {path.name: path for path in sorted(folder.glob("Channel2*"))[:3]}, EVERY_IMAGE, role="test")
    plate(store, "own", {"A01": "dmso"})
    assert fingerprint_test_images(store).manifest.counts == {"sources": 0, "images": 0, "fingerprints": 0, "unreadable": 0}
    assert read_test_images(store, current_manifest(store, TEST_IMAGES)).files == {}
    take_in(store, "benchmark", "own")
    assert [manifest.inputs.partition for manifest in cyto_test_images.test_sources(store)] == ["benchmark"]
    first = fingerprint_test_images(store)
    assert first.is_new and first.manifest.counts["fingerprints"] == 3
    assert first.manifest.inputs.upstream == {
        f"{SOURCE_METADATA}/benchmark": require_manifest(store, SOURCE_METADATA, "benchmark").digest
    }
    assert not fingerprint_test_images(store).is_new and manifest_numbers(store, TEST_IMAGES) == [1, 2]
    tests = read_test_images(store, first.manifest)
    assert len(tests.index) == 3 and set(tests.files.values()) == {"benchmark"}
    assert set(tests.files) == {digest for (digest,) in rows_of(store, "benchmark")["sha256"]}
    image = np.asarray(Image.open(sorted(folder.glob("Channel2*"))[1]).convert("L"))
    assert tests.index.find(image).name == "benchmark-1"


def test_unreadable_test_images_are_told_and_still_known_by_their_file(local_store: Store):
    broken = png(cells((150, 150), 1))[:2000]
    files = {"a.png": broken, "b.png": png(cells((150, 150), 2))}
    put_source(local_store, "benchmark", files, EVERY_IMAGE, role="test")
    take_in(local_store, "benchmark")
    manifest = fingerprint_test_images(local_store).manifest
    assert manifest.counts == {"sources": 1, "images": 2, "fingerprints": 1, "unreadable": 1}
    table = pq.read_table(io.BytesIO(local_store.read(f"{manifest.folder}/part-00000.parquet")))
    assert table.schema.equals(SCHEMA)
    (bad,) = [row for row in table.to_pylist() if row["problem"]]
    assert bad["name"] == "benchmark-0" and "a.png" in bad["problem"] and bad["dhash"] == []
    tests = read_test_images(local_store, manifest)
    assert len(tests.index) == 1 and len(tests.files) == 2


def test_two_workers_give_the_same_fingerprints(tmp_path):
    digests = []
    for workers in (1, 2):
        store = open_store(str(tmp_path / str(workers)))
        plate(store, "benchmark", {"A01": "dmso", "A02": "x"}, channels=2, role="test")
        take_in(store, "benchmark")
        digests.append(fingerprint_test_images(store, engine=LocalEngine(workers)).manifest.digest)
    assert digests[0] == digests[1]


def test_tables_of_benchmarks_put_no_image_of_theirs_into_a_release(local_store: Store):
    """Sources with role "test" or a benchmark's name are left out, and nothing is released before all are fingerprinted."""
    wells = {"A01": "dmso", "A02": "dmso"}
    plate(local_store, "own", wells)
    plate(local_store, "bbbc021", wells, seed=1)
    plate(local_store, "held_out", wells, seed=2, role="test")
    sections = PLATE.replace("'images/", "'Week1_22123/")
    files = {f"Week1_22123/{well}_s1_w1.png": png(cells((150, 160), n)) for n, well in enumerate(("A01", "A02", "A03", "A04"))}
    table = b"Well,Cell,Drug\nA01,u2os,dmso\nA02,u2os,dmso\nA03,u2os,dmso\nA04,u2os,dmso\n"
    put_source(local_store, "mixed", {"wells.csv": table, **files}, sections)
    take_in(local_store, "own", "bbbc021", "held_out", "mixed")
    label(local_store)
    crop(local_store)
    with pytest.raises(ValueError, match="a test set was added or changed .*; materialize cytoimagenet/test_images"):
        make_cyto_release(local_store)
    fingerprint_test_images(local_store)
    crop(local_store)
    manifest = make_cyto_release(local_store).manifest
    table = pq.read_table(io.BytesIO(local_store.read(f"{manifest.folder}/metadata.parquet")))
    assert set(table["source"].to_pylist()) == {"own"} and manifest.counts["sources"] == 1


def test_crops_made_by_an_older_list_of_test_sets_are_refused(local_store: Store, monkeypatch):
    """A release checks the names once more."""
    from cem_assets.cytoimagenet.held_out.guard import GuardRule
    from cem_assets.cytoimagenet.releases import stage as cyto_releases

    plate(local_store, "own", {"A01": "dmso", "A02": "dmso"})
    take_in(local_store, "own")
    label(local_store)
    for key in label_entries(local_store, require_manifest(local_store, LABEL_TABLE)):
        make_crops(local_store, key, FEW)
    monkeypatch.setattr(cyto_releases, "load_rules", lambda: (GuardRule("newest", "the source own", "added since"),))
    with pytest.raises(
        ValueError, match=r"images of test sets are among the crops: own \(newest\). Materialize cytoimagenet/label"
    ):
        make_cyto_release(local_store)
