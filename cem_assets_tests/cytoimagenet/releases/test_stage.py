"""Releases of CytoImageNet are numbered and complete, never change, and are read by other tools; export writes PNG files."""

import io
import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cem_assets.cli.demo.cytoimagenet import write_phantom_source
from cem_assets.cytoimagenet.checks import cyto_release_is_complete
from cem_assets.cytoimagenet.columns import RELEASE_COLUMNS
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.naming import image_name, label_folder, splits
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.labels.stage import LabelTableParams, label_entries
from cem_assets.cytoimagenet.phantom.screens import phantom_sources
from cem_assets.cytoimagenet.releases import export as cyto_export
from cem_assets.cytoimagenet.releases import stage as cyto_releases
from cem_assets.cytoimagenet.releases.export import export_cytoimagenet
from cem_assets.cytoimagenet.releases.stage import (
    CARD,
    EXCLUDED,
    LISTING,
    METADATA,
    is_cyto_release_due,
    list_cyto_releases,
    make_cyto_release,
    require_cyto_release,
)
from cem_assets.cytoimagenet.sources.inbox import register_source
from cem_assets.cytoimagenet.tables import read_frame
from cem_assets.operations.maintenance import sweep
from cem_assets.store.assets import CROPS, CYTO_RELEASES, LABEL_TABLE, SOURCE_METADATA, TEST_IMAGES
from cem_assets.store.manifests import Manifest, committed_partitions, damaged_objects, require_manifest
from cem_assets.store.store import Store
from cem_assets_tests.cytoimagenet.example_sources import (
    CROPPING,
    PLATE,
    WELLS,
    chain,
    crop,
    crops_of,
    images_of,
    killed_after,
    label,
    plate,
    png,
    put_source,
    take_in,
    tiff,
)
from cem_assets_tests.datasets import cells


def listing_of(store: Store, manifest: Manifest) -> dict:
    return json.loads(store.read(f"{manifest.folder}/{LISTING}"))


def shards_of(store: Store, manifest: Manifest) -> list[str]:
    return [f"{part['folder']}/{item['name']}" for part in listing_of(store, manifest)["labels"] for item in part["objects"]]


def metadata_of(store: Store, manifest: Manifest) -> pd.DataFrame:
    return read_frame(store, manifest, METADATA)


# Contents


def test_the_whole_chain_has_the_same_digests_on_a_disk_and_in_s3(done: Store, s3_store: Store):
    manifest = chain(s3_store)
    assert manifest.digest == require_manifest(done, CYTO_RELEASES, "v1").digest
    for asset, partitions in (
        (SOURCE_METADATA, ["one", "two"]),
        (TEST_IMAGES, [""]),
        (LABEL_TABLE, [""]),
        (CROPS, committed_partitions(done, CROPS)),
    ):
        for partition in partitions:
            found = require_manifest(s3_store, asset, partition)
            assert found.digest == require_manifest(done, asset, partition).digest, (asset, partition)
            assert damaged_objects(s3_store, found) == {}
    assert cyto_release_is_complete(s3_store).passed


def test_a_release_holds_the_crops_of_every_label(done: Store):
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    listing, metadata = listing_of(done, manifest), metadata_of(done, manifest)
    entries = label_entries(done, require_manifest(done, LABEL_TABLE))
    assert [part["key"] for part in listing["labels"]] == list(entries)
    crops = [require_manifest(done, CROPS, key) for key in entries]
    assert [part["digest"] for part in listing["labels"]] == [found.digest for found in crops]
    expected = pd.concat([images_of(done, found) for found in crops], ignore_index=True)
    pd.testing.assert_frame_equal(metadata, expected[metadata.columns])
    assert manifest.counts == {
        "labels": len(entries),
        "images": len(expected),
        "validation": (expected["split"] == "validation").sum(),
        "sources": 2,
        "excluded": 0,
        "labels_waiting": 0,
    }
    assert listing["num_images"] == len(expected) and listing["version"] == "v1"
    assert {name: facts["num_images"] for name, facts in listing["sources"].items()} == metadata[
        "source"
    ].value_counts().to_dict()


def test_its_table_begins_with_the_published_columns_in_their_order(done: Store):
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    columns = pq.read_table(io.BytesIO(done.read(f"{manifest.folder}/{METADATA}"))).schema.names
    published = ["label", "category", "database", "name", "dir_name", "path", "filename", "idx", "organism", "cell_type"]
    published += ["cell_visible", "phenotype", "compound", "sirna", "gene", "microscopy", "crop", "scaling"]
    published += ["x_min", "x_max", "y_min", "y_max"]
    assert columns[: len(published)] == published == list(RELEASE_COLUMNS)
    added = ["channels", "split", "source", "source_path", "licence", "height", "width", "dhash", "pixel_sha256"]
    assert columns[len(published) :] == added


def test_it_is_read_back_by_hf_datasets_with_pixels_and_features(done: Store, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    files = [done.url_of(key) for key in shards_of(done, manifest)]
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    metadata = metadata_of(done, manifest)
    assert found.num_rows == len(metadata)
    assert isinstance(found.features["image"], datasets.Image)
    kinds = {name: found.features[name].dtype for name in ("label", "crop", "scaling", "x_min", "dhash")}
    assert kinds == {"label": "string", "crop": "bool", "scaling": "float64", "x_min": "int32", "dhash": "uint64"}
    expected = pd.concat([images_of(done, crops_of(done, str(name))) for name in metadata["label"].unique()], ignore_index=True)
    for place in range(0, len(metadata), 7):
        row = found[place]
        assert row["label"] == metadata["label"][place] and row["split"] == metadata["split"][place]
        assert row["image"].mode == "L" and row["dhash"] == int(metadata["dhash"][place])
        np.testing.assert_array_equal(np.asarray(row["image"]), expected["pixels"][place])


def test_it_is_read_back_by_duckdb_and_pandas_alone(done: Store):
    duckdb = pytest.importorskip("duckdb")
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    files = [done.url_of(key) for key in shards_of(done, manifest)]
    query = f"select label, count(*), sum(height * width) from read_parquet({files!r}) group by label order by label"
    frame = pd.concat([pd.read_parquet(file) for file in files])
    frame["area"] = frame["height"].astype(np.int64) * frame["width"]
    expected = frame.groupby("label").agg({"idx": "size", "area": "sum"}).reset_index()
    assert [list(row) for row in duckdb.sql(query).fetchall()] == expected.to_numpy().tolist()


def test_pictures_lie_beside_it(done: Store):
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    names = [item.name for item in manifest.objects if item.name.endswith(".png")]
    assert names == ["crops by scale and source.png", "labels per category.png"]
    for name in names:
        data = done.read(f"{manifest.folder}/{name}")
        assert Image.open(io.BytesIO(data)).size[0] > 200 and len(data) < 100_000


# Versions


def test_releases_are_numbered_and_never_change(settled: Store):
    first = require_cyto_release(settled)
    before = {item.key: settled.read(item.key) for item in settled.walk(first.folder)}
    shards = {key: settled.sha256(key) for key in shards_of(settled, first)}
    assert not is_cyto_release_due(settled)
    again = make_cyto_release(settled)
    assert not again.is_new and again.manifest.digest == first.digest
    plate(settled, "three", {"A01": "dmso", "A02": "dmso"}, seed=2)
    take_in(settled, "three")
    label(settled)
    crop(settled)
    assert is_cyto_release_due(settled)
    second = make_cyto_release(settled)
    assert second.is_new and second.manifest.inputs.partition == "v2" and second.manifest.number == 1
    assert [release.inputs.partition for release in list_cyto_releases(settled)] == ["v1", "v2"]
    assert {item.key: settled.read(item.key) for item in settled.walk(first.folder)} == before
    assert sweep(settled, min_age_hours=0).folders, "the label table and metadata of before"
    assert {key: settled.sha256(key) for key in shards} == shards, "what a release names is never swept"
    assert require_cyto_release(settled).digest == second.manifest.digest
    assert require_cyto_release(settled, "v1").digest == first.digest


def test_a_chosen_name_is_taken_once(settled: Store):
    manifest = make_cyto_release(settled, "cyto-2026.1").manifest
    assert manifest.inputs.partition == "cyto-2026.1" and manifest.details["sequence"] == 2
    assert not make_cyto_release(settled, "cyto-2026.1").is_new
    plate(settled, "three", {"A01": "dmso", "A02": "dmso"}, seed=2)
    take_in(settled, "three")
    label(settled)
    crop(settled)
    with pytest.raises(FileExistsError, match="release 'cyto-2026.1' exists with other contents, and releases never change"):
        make_cyto_release(settled, "cyto-2026.1")
    with pytest.raises(ValueError, match="release version 'A B' is not allowed"):
        make_cyto_release(settled, "A B")


def test_a_version_taken_by_another_run_meanwhile_is_passed_over(settled: Store, monkeypatch):
    real = cyto_releases._commit
    plate(settled, "three", {"A01": "dmso", "A02": "dmso"}, seed=2)
    take_in(settled, "three")
    label(settled)
    crop(settled)

    def race(store, version, found, *rest):
        monkeypatch.setattr(cyto_releases, "_commit", real)
        entry, manifest = found.current[0]
        others = {**found.upstream, "somebody": "else"}
        part = cyto_releases.Members(((entry, manifest),), others, 0, found.facts, True)
        real(store, version, part, *rest)
        return real(store, version, found, *rest)

    monkeypatch.setattr(cyto_releases, "_commit", race)
    mine = make_cyto_release(settled).manifest
    assert mine.inputs.partition == "v3" and [m.details["sequence"] for m in list_cyto_releases(settled)] == [1, 2, 3]


def test_two_runs_of_the_same_contents_make_one_release(settled: Store, monkeypatch):
    settled.delete([item.key for item in settled.walk(CYTO_RELEASES)])
    real = cyto_releases._commit

    def race(*arguments):
        real(*arguments)
        return real(*arguments)

    monkeypatch.setattr(cyto_releases, "_commit", race)
    result = make_cyto_release(settled)
    assert not result.is_new and result.manifest.inputs.partition == "v1" and len(list_cyto_releases(settled)) == 1


def test_labels_whose_crops_are_missing_or_stale_wait(settled: Store):
    before = label(settled)
    plate(settled, "three", {f"A{n:02d}": "colchicine" for n in range(1, 4)}, seed=4)
    plate(settled, "four", {"A01": "dmso", "A02": "dmso"}, seed=5)
    take_in(settled, "three", "four")
    entries = label(settled)
    changed = [entry for name, entry in entries.items() if name not in before or before[name].digest != entry.digest]
    assert 1 < len(changed) < len(entries) and "colchicine" not in before
    done_now = entries["colchicine"]
    make_crops(settled, done_now.key, CROPPING)
    manifest = make_cyto_release(settled).manifest
    waiting = {entry.label for entry in changed} - {done_now.label}
    assert manifest.counts["labels_waiting"] == len(waiting)
    assert set(metadata_of(settled, manifest)["label"]) == set(entries) - waiting
    told = f"- {len(waiting)} label(s) of the label table had no crops yet"
    assert told in settled.read(f"{manifest.folder}/{CARD}").decode()
    crop(settled)
    whole = make_cyto_release(settled).manifest
    assert whole.counts["labels_waiting"] == 0 and set(metadata_of(settled, whole)["label"]) == set(entries)


def test_empty_labels_are_left_out(settled: Store):
    entries = label(settled)
    make_crops(settled, entries["dmso"].key, CropStageParams(min_images=1000))
    manifest = make_cyto_release(settled).manifest
    assert set(metadata_of(settled, manifest)["label"]) == set(entries) - {"dmso"}
    assert manifest.counts["labels"] == len(entries) - 1 and manifest.counts["labels_waiting"] == 0


def test_nothing_to_release_is_told(local_store: Store):
    with pytest.raises(ValueError, match="there is nothing to release: no partition of cytoimagenet/crops is up to date"):
        make_cyto_release(local_store)
    assert not is_cyto_release_due(local_store)
    plate(local_store, "one", WELLS)
    take_in(local_store, "one")
    label(local_store)
    with pytest.raises(ValueError, match=r"3 label\(s\) wait for their crops"):
        make_cyto_release(local_store)
    with pytest.raises(FileNotFoundError, match="has no release of CytoImageNet yet; materialize cytoimagenet/releases first"):
        require_cyto_release(local_store)


@pytest.mark.parametrize("moment", [0, 3, 6])
def test_a_killed_run_leaves_no_release(settled: Store, monkeypatch, moment):
    expected = require_cyto_release(settled).digest
    settled.delete([item.key for item in settled.walk(CYTO_RELEASES)])
    with killed_after(moment, monkeypatch):
        make_cyto_release(settled)
    assert list_cyto_releases(settled) == [] and is_cyto_release_due(settled)
    assert make_cyto_release(settled).manifest.digest == expected


# Exact copies


def with_copies(store: Store, num_copies: int, num_own: int, least: int = 4) -> None:
    """Make two labels; files of the second one have the same pixels as files of the first one."""
    first = {f"images/A{n:02d}_s1_w1.png": png(cells((120, 120), n)) for n in range(1, 9)}
    table = "Well,Cell,Drug\n" + "".join(f"A{n:02d},u2os,first\n" for n in range(1, 9))
    put_source(store, "first", {"wells.csv": table.encode(), **first}, PLATE)
    pixels = [cells((120, 120), n) for n in range(1, 1 + num_copies)] + [cells((120, 120), 50 + n) for n in range(num_own)]
    second = {f"images/B{n:02d}_s1_w1.tif": tiff(each) for n, each in enumerate(pixels, 1)}
    table = "Well,Cell,Drug\n" + "".join(f"B{n:02d},hela,second\n" for n in range(1, len(pixels) + 1))
    put_source(store, "second", {"wells.csv": table.encode(), **second}, PLATE)
    take_in(store, "first", "second")
    label(store)
    crop(store, CropStageParams(min_images=least))


def test_exact_copies_of_other_labels_are_excluded_and_listed(local_store: Store):
    with_copies(local_store, num_copies=3, num_own=9)
    manifest = make_cyto_release(local_store).manifest
    listing, metadata = listing_of(local_store, manifest), metadata_of(local_store, manifest)
    assert manifest.counts["excluded"] == 3 and metadata["pixel_sha256"].is_unique
    excluded = read_frame(local_store, manifest, EXCLUDED)
    assert set(excluded["reason"]) == {"exact copy of an image of another label"} and len(excluded) == 3
    assert len(set(excluded["source"])) == 1
    rewritten = [part for part in listing["labels"] if part["folder"] == manifest.folder]
    assert len(rewritten) == 1 and rewritten[0]["objects"][0]["name"].startswith(f"labels/{rewritten[0]['key']}/")
    for part in listing["labels"]:
        rows = [pq.read_table(io.BytesIO(local_store.read(f"{part['folder']}/{item['name']}"))) for item in part["objects"]]
        found = pd.concat([table.to_pandas() for table in rows])
        assert len(found) == part["num_images"] == (metadata["label"] == part["label"]).sum()
        assert found["pixel_sha256"].tolist() == metadata[metadata["label"] == part["label"]]["pixel_sha256"].tolist()
        assert set(found["idx"]).isdisjoint(set(excluded["idx"]))
    card = local_store.read(f"{manifest.folder}/{CARD}").decode()
    assert "- 3 crop(s): exact copy of an image of another label" in card
    assert cyto_release_is_complete(local_store).passed
    assert {item.name for item in manifest.objects} >= {f"labels/{rewritten[0]['key']}/part-00000.parquet", EXCLUDED}


def test_a_label_that_copies_leave_too_small_is_no_label_of_the_release(local_store: Store, tmp_path):
    with_copies(local_store, num_copies=6, num_own=2)
    manifest = make_cyto_release(local_store).manifest
    metadata, excluded = metadata_of(local_store, manifest), read_frame(local_store, manifest, EXCLUDED)
    (kept,) = metadata["label"].unique()
    assert len(metadata) == 8 and manifest.counts["labels"] == 1 == len(listing_of(local_store, manifest)["labels"])
    assert Counter(excluded["reason"]) == {"its label was left with fewer images than a label needs": 8}
    assert "its label was left with fewer" in local_store.read(f"{manifest.folder}/{CARD}").decode()
    export_cytoimagenet(local_store, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == [kept]


# Training and validation


def test_about_a_tenth_is_for_validation_whatever_the_seed():
    identities = [f"screen/images/plate {n // 384}/well {n % 384}.tif" for n in range(5000)]
    for seed in range(4):
        share = splits(identities, seed).count("validation") / len(identities)
        assert abs(share - 0.1) < 4 * (0.1 * 0.9 / len(identities)) ** 0.5
    assert splits(identities, 0) != splits(identities, 1)
    assert splits(identities[::-1]) == splits(identities)[::-1] and splits(identities[:10]) == splits(identities)[:10]


def test_adding_data_never_moves_an_image_between_training_and_validation(local_store: Store):
    params = CropStageParams(min_images=4, validation_share=0.4)
    wells = {f"{row}{column:02d}": "dmso" for row in "CDE" for column in range(2, 10, 2)}
    plate(local_store, "one", wells, shape=(40, 40))
    take_in(local_store, "one")
    label(local_store)
    crop(local_store, params)
    before = metadata_of(local_store, make_cyto_release(local_store).manifest)
    # New wells before and between the others change every idx, a new label takes images, and there is a new source.
    more = {f"{row}{column:02d}": "taxol" if row == "C" else "dmso" for row in "ABCDE" for column in range(1, 10)}
    plate(local_store, "one", {**more, **wells}, shape=(40, 40))
    plate(local_store, "a_first", {"A01": "dmso", "A02": "dmso"}, seed=1, shape=(40, 40))
    take_in(local_store, "one", "a_first")
    label(local_store, LabelTableParams(min_images=4, max_images=200, presample_images=200))
    crop(local_store, params)
    after = metadata_of(local_store, make_cyto_release(local_store).manifest)
    sides = [dict(zip(frame["source_path"], frame["split"], strict=True)) for frame in (before, after)]
    common = sides[0].keys() & sides[1].keys()
    assert len(common) == 24 and len(sides[1]) > 80
    assert {path: sides[0][path] for path in common} == {path: sides[1][path] for path in common}
    assert set(sides[0].values()) == {"train", "validation"}
    moved = before.set_index("source_path")["idx"].to_dict(), after.set_index("source_path")["idx"].to_dict()
    assert any(moved[0][path] != moved[1][path] for path in common), "their idx did change"


# Dataset card


def test_the_card_rolls_up_licences_and_citations(done: Store):
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    card, metadata = done.read(f"{manifest.folder}/{CARD}").decode(), metadata_of(done, manifest)
    counts = metadata["source"].value_counts()
    assert f"| CC0-1.0 | one | {counts['one']} |" in card and f"| CC BY 4.0 | two | {counts['two']} |" in card
    assert f"- **The source two** ({counts['two']:,} images): Others 2025" in card and "Test et al. 2026" in card
    assert f"| own | {len(metadata):,} |" in card and "arXiv:2111.11646" in card
    by_category = metadata.drop_duplicates("label")["category"].value_counts()
    for category, count in by_category.items():
        assert f"| {category} | {count} | {(metadata['category'] == category).sum()} |" in card
    assert f"{len(metadata):,} gray images of {metadata['label'].nunique()} weak labels from 2 source(s)" in card
    assert set(metadata["licence"]) == {"CC0-1.0", "CC BY 4.0"}


def test_hostile_text_of_a_source_stays_text(local_store: Store):
    hostile = "a | b <script>alert(1)</script>\n## Free | [click](javascript:x) ![p](http://e.vil/p.png) `code` \\| end"
    facts = {"licence": hostile, "citation": hostile, "title": hostile, "database": hostile, "source_url": "javascript:x"}
    plate(local_store, "own", WELLS, **facts)
    take_in(local_store, "own")
    label(local_store)
    crop(local_store)
    manifest = make_cyto_release(local_store).manifest
    card = local_store.read(f"{manifest.folder}/{CARD}").decode()
    assert "<script" not in card and "\n## Free" not in card
    assert "](" not in card.replace("\\]", ""), "no link or picture of a source's own"
    lines = [line for line in card.splitlines() if line.startswith("|") and "script" in line]
    assert len(lines) == 2
    for line, cells_wanted in zip(lines, (2, 3), strict=True):
        assert len(line.replace("\\\\", "").replace("\\|", "").strip("|").split("|")) == cells_wanted, line
    assert card.startswith("---\n") and card.count("\n---\n") == 1


def test_a_corrected_citation_is_in_the_next_release_without_cutting_again(settled: Store):
    before = crop(settled)
    text = settled.read("inbox/two/source.toml").replace(b"Others 2025", b"Others et al., J. Cells 2025")
    settled.put("inbox/two/source.toml", text)
    take_in(settled, "two")
    label(settled)
    assert {name: found.digest for name, found in crop(settled).items()} == {
        name: found.digest for name, found in before.items()
    }
    assert is_cyto_release_due(settled)
    manifest = make_cyto_release(settled).manifest
    assert manifest.inputs.partition == "v2"
    assert "Others et al., J. Cells 2025" in settled.read(f"{manifest.folder}/{CARD}").decode()
    assert not is_cyto_release_due(settled)


# Export


def test_an_export_is_an_image_folder_with_the_published_table(done: Store, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    manifest = require_manifest(done, CYTO_RELEASES, "v1")
    metadata = metadata_of(done, manifest)
    progress = []
    folder = tmp_path / "out"
    assert export_cytoimagenet(done, folder, progress=lambda n, total: progress.append((n, total))) == len(metadata)
    assert progress[-1] == (len(metadata), len(metadata))
    found = torchvision.datasets.ImageFolder(str(folder))
    assert found.classes == sorted(metadata["label"].unique()) and len(found) == len(metadata)
    counts = Counter(found.classes[target] for _, target in found.samples)
    assert counts == metadata["label"].value_counts().to_dict()
    table = pd.read_csv(folder / "metadata.csv", keep_default_na=False)
    assert list(table.columns) == list(RELEASE_COLUMNS)
    for column in ("label", "idx", "filename", "x_min", "scaling", "crop", "gene"):
        assert table[column].tolist() == metadata[column].tolist(), column
    assert table["filename"].tolist()[:2] == [f"{metadata['label'][0]}-{n:08b}.png" for n in range(2)]
    sides = pd.read_csv(folder / "splits.csv")
    assert sides["split"].tolist() == metadata["split"].tolist()
    known = {f"{row['label']}/{row['filename']}": row["pixel_sha256"] for row in metadata.to_dict("records")}
    import hashlib

    for path, digest in known.items():
        pixels = np.asarray(Image.open(folder / path))
        assert pixels.dtype == np.uint8 and pixels.ndim == 2
        assert hashlib.sha256(f"{pixels.shape[0]},{pixels.shape[1]}\n".encode() + pixels.tobytes()).hexdigest() == digest
    assert (folder / "README.md").read_bytes() == done.read(f"{manifest.folder}/{CARD}")


def test_an_export_that_was_stopped_goes_on_where_it_was(done: Store, tmp_path, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "out"
    export_cytoimagenet(done, whole)
    write, written = cyto_export._write, []

    def dies(path, data):
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cyto_export, "_write", dies)
        export_cytoimagenet(done, folder)
    assert not (folder / "metadata.csv").exists(), "a folder with the table is complete"
    images = sorted(folder.rglob("*.png"))
    for path in images[::2]:
        path.unlink()
    images[1].write_bytes(images[1].read_bytes()[:100])
    stays = {path: path.stat().st_mtime_ns for path in images[3::2]}
    export_cytoimagenet(done, folder)
    assert {path: path.stat().st_mtime_ns for path in stays} == stays, "what is there is not written again"
    contents = [{p.relative_to(base): p.read_bytes() for p in base.rglob("*") if p.is_file()} for base in (whole, folder)]
    assert contents[0] == contents[1]
    assert oct(images[0].stat().st_mode)[-3:] == "644"


def test_a_folder_that_holds_something_else_is_refused(settled: Store, tmp_path):
    folder = tmp_path / "out"
    export_cytoimagenet(settled, folder)
    plate(settled, "three", {"A01": "dmso", "A02": "dmso"}, seed=2)
    take_in(settled, "three")
    label(settled)
    crop(settled)
    make_cyto_release(settled)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(FileExistsError, match=r"holds another release \(.*v1.*\); export to an empty folder"):
        export_cytoimagenet(settled, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    export_cytoimagenet(settled, folder, "v1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="is not empty; export to a new folder"):
        export_cytoimagenet(settled, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="partition 'v9' has nothing committed"):
        export_cytoimagenet(settled, tmp_path / "new", "v9")
    assert not (tmp_path / "new").exists()


ODD = [
    "a/b", "../../etc/passwd", "..", "con:*?", ".hidden", "trailing.", "naïve größe", "日本語" * 60, "metadata.csv",
    "readme.md", "-rf", "x y,z;'\"",
]  # fmt: skip


def test_labels_of_any_name_are_exported_inside_the_folder(local_store: Store, tmp_path):
    wells = {f"{'ABCDEFGH'[n % 8]}{n // 8 + 1:02d}": drug for n, drug in enumerate(d for d in ODD for _ in range(2))}
    plate(local_store, "own", wells, shape=(40, 40))
    lines = "".join('{},u2os,"{}"\n'.format(well, drug.replace('"', '""')) for well, drug in wells.items())
    local_store.put("inbox/own/wells.csv", f"Well,Cell,Drug\n{lines}".encode())
    take_in(local_store, "own")
    entries = label(local_store)
    assert set(ODD[:7]) <= set(entries) and len(entries) == len(ODD)
    crop(local_store)
    manifest = make_cyto_release(local_store).manifest
    folder = tmp_path / "deep" / "out"
    (tmp_path / "deep").mkdir()
    num = export_cytoimagenet(local_store, folder)
    found = [path for path in (tmp_path / "deep").rglob("*") if path.is_file()]
    images = [path for path in found if path.suffix == ".png"]
    assert len(images) == num == manifest.counts["images"] and all(path.parent.parent == folder for path in images)
    assert sorted(path.name for path in found if path.parent == folder) == [
        "README.md",
        "metadata.csv",
        "release.json",
        "splits.csv",
    ]
    assert len({path.parent for path in images}) == len(ODD), "no two labels share a folder"
    table = pd.read_csv(folder / "metadata.csv", keep_default_na=False)
    assert set(table["label"]) == set(entries)
    for path, name in zip(table["path"], table["filename"], strict=True):
        assert (folder / path.removeprefix("/cytoimagenet/") / name).is_file()


@pytest.mark.parametrize("name", ODD)
def test_folders_of_labels_are_plain_names(name):
    folder = label_folder(name, "compound")
    assert "/" not in folder and folder not in ("", ".", "..") and not folder.startswith(".") and folder == folder.strip(" .")
    assert len(image_name(folder, 999).encode()) <= 255 and all(character.isprintable() for character in folder)
    assert folder != label_folder(name, "gene") or folder == name


@pytest.mark.parametrize(
    ("path", "filename"),
    [("/c/..", "a.png"), ("/c/", "a.png"), ("/c/.", "a.png"), ("/c/dmso", "../a.png"), ("/c/dmso", ""), ("/c/dmso", "..")],
)
def test_a_release_that_was_tampered_with_writes_nothing_outside(tmp_path, path, filename):
    with pytest.raises(ValueError, match="which is not a plain name. The release was altered"):
        cyto_export._place(tmp_path, path, filename)


# A larger source with faults


def test_the_phantom_goes_through_the_whole_chain(local_store: Store, tmp_path):
    """The phantom has three kinds of tables, joins, pages and channels, and a black, a saturated and a uniform field."""
    (source,) = [source for source in phantom_sources(7) if source.name == "phantom_lineup"]
    write_phantom_source(source, tmp_path / source.name)
    register_source(local_store, tmp_path / source.name)
    take_in(local_store, source.name)
    entries = label(local_store, LabelTableParams(min_images=12, max_images=60, presample_images=100))
    assert {"hela", "hepg2", "huvec"} < set(entries)
    manifests = crop(local_store, CropStageParams(min_images=24))
    reasons = Counter()
    for manifest in manifests.values():
        reasons.update(manifest.details["dropped_by_reason"])
    assert reasons["uniform"] == 4, "the field that is uniform"
    manifest = make_cyto_release(local_store).manifest
    assert manifest.counts["images"] == sum(found.counts["images"] for found in manifests.values()) > 200
    assert cyto_release_is_complete(local_store).passed
