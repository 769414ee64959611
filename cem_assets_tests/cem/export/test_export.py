"""Exports of a release of patches: read by other tools, continued, refused, described by Croissant and RO-Crate."""

import csv
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile

from cem_assets.cem.export.export import FORMS, export_cem
from cem_assets.cem.patches.tables import FILTERED_SCHEMA
from cem_assets.cem.releases import stage as cem_releases
from cem_assets.cem.releases.stage import make_release
from cem_assets.cli.main import main
from cem_assets.errors import DataError
from cem_assets.readers import read_patches, read_release
from cem_assets.store.assets import CODE_VERSIONS, FILTERED
from cem_assets.store.commits import Commit
from cem_assets.store.manifests import Inputs
from cem_assets.store.parquet import parquet_bytes
from cem_assets.store.store import Store, open_store
from cem_assets_tests.pretraining.training_sets import put_filtered, texture_release, textures

SIZES = {"coarse": 4, "fine": 3, "middle": 2}
ODD = [
    "../../../etc/passwd", "a/b", "..", "con", "naïve größe", "日本語" * 60, "Case", "cASE", "=cmd|' /C calc'!A0", "x,y\n\"z\"",
    "-rf", "dots.in.name", ".hidden", "trailing.", "plain-LOC-0_001_0-224_0-224",
]  # fmt: skip


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one release of three datasets. Tests must not change it."""
    store = open_store(str(tmp_path_factory.mktemp("released") / "store"))
    texture_release(store, SIZES)
    return store


@pytest.fixture(scope="module")
def exports(released: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The release in every form. Tests must not change it."""
    folder = tmp_path_factory.mktemp("exports")
    for form in FORMS:
        export_cem(released, str(folder / form), form=form)
    return {form: folder / form for form in FORMS}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checksums(folder: Path) -> dict[str, str]:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {path: digest for digest, path in (line.split("  ", 1) for line in lines)}


def images_of(store: Store) -> dict[str, np.ndarray]:
    return dict(read_release(root=store.url).iter_images())


def samples(path: Path) -> Iterator[dict[str, bytes]]:
    """Group the members of a tar as WebDataset does: neighbours whose base names are equal up to the first dot."""
    last, sample = "", {}
    with tarfile.open(path) as tar:
        for member in tar:
            prefix, ending = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
            if prefix != last and sample:
                yield sample
                sample = {}
            assert ending not in sample
            last, sample = prefix, {**sample, "__key__": prefix, ending: tar.extractfile(member).read()}
    if sample:
        yield sample


# The three forms, read by other tools


def test_a_tree_has_a_folder_for_each_dataset_and_single_channel_tiff(released: Store, exports):
    folder = exports["tiff-tree"]
    found = sorted(folder.rglob("*.tiff"))
    assert {path.parent.name: sum(p.parent == path.parent for p in found) for path in found} == SIZES
    expected = images_of(released)
    for path in found:
        with tifffile.TiffFile(path) as tif:
            page = tif.pages.first
            assert (len(tif.pages), page.samplesperpixel, page.dtype, page.photometric.name) == (1, 1, "uint8", "MINISBLACK")
        assert np.array_equal(tifffile.imread(path), expected[path.stem])


@pytest.mark.parametrize("form", ["tiff-tree", "webdataset"])
def test_the_table_has_the_place_licence_and_checksum_of_every_image(released: Store, exports, form):
    frame = pd.read_csv(exports[form] / "metadata.csv", dtype={"dhash": np.uint64, "informative": np.float32})
    rows = read_release(root=released.url).patches()
    assert len(frame) == sum(SIZES.values()) == len(rows)
    joined = frame.merge(rows, on=["dataset", "name"], suffixes=("", "_released"), validate="one_to_one")
    for column in ("volume", "axis", "index", "y0", "y1", "x0", "x1", "dhash", "num_duplicates", "informative"):
        assert joined[column].tolist() == joined[f"{column}_released"].tolist(), column
    assert set(frame["licence"]) == {"CC0-1.0"}
    for row in frame.to_dict("records"):
        if form == "tiff-tree":
            data = (exports[form] / row["file"]).read_bytes()
        else:
            with tarfile.open(exports[form] / row["shard"]) as tar:
                data = tar.extractfile(row["file"]).read()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]


def test_tars_hold_samples_of_image_and_json_in_order(released: Store, exports):
    expected, rows = images_of(released), read_release(root=released.url).patches().set_index("name")
    tars = sorted(exports["webdataset"].glob("*.tar"))
    assert [path.name for path in tars] == [f"patches-{n:06d}.tar" for n in range(3)]
    seen = []
    for path in tars:
        found = list(samples(path))
        assert [sample["__key__"] for sample in found] == sorted(sample["__key__"] for sample in found)
        for sample in found:
            about = json.loads(sample["json"])
            row = rows.loc[about["name"]]
            assert np.array_equal(tifffile.imread(io.BytesIO(sample["tiff"])), expected[about["name"]])
            assert int(about["dhash"], 16) == row["dhash"] and about["dataset"] == row["dataset"]
            assert about["x1"] == row["x1"] and about["licence"] == "CC0-1.0"
            seen.append(about["name"])
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in tar} == {
                (0, 0, 0, "", "", 0o644, True)
            }
    assert sorted(seen) == sorted(expected)


def test_hf_datasets_reads_the_tars_and_the_parquet_offline(released: Store, exports, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    expected, cache = images_of(released), str(tmp_path / "cache")
    tars = datasets.load_dataset(
        "webdataset", data_files=str(exports["webdataset"] / "*.tar"), split="train", streaming=True, cache_dir=cache
    )
    found = {sample["json"]["name"]: np.asarray(sample["tiff"]) for sample in tars}
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)
    whole = datasets.load_dataset(str(exports["hf"]), cache_dir=cache)
    assert {split: len(part) for split, part in whole.items()} == {"train": sum(SIZES.values())}
    for row in whole["train"]:
        assert row["image"].mode == "L" and np.array_equal(np.asarray(row["image"]), expected[row["name"]])
    assert datasets.get_dataset_config_names(str(exports["hf"])) == ["default", *SIZES]
    part = datasets.load_dataset(str(exports["hf"]), "fine", split="train", cache_dir=cache)
    assert len(part) == SIZES["fine"] and set(part["dataset"]) == {"fine"}


# Files that describe an export


@pytest.mark.parametrize("form", FORMS)
def test_every_file_has_its_checksum_and_the_list_is_of_every_file(exports, form):
    found = contents(exports[form])
    listed = checksums(exports[form])
    assert {path: hashlib.sha256(data).hexdigest() for path, data in found.items() if path != "SHA256SUMS"} == listed
    assert not (exports[form] / ".staging").exists()


@pytest.mark.parametrize("form", FORMS)
def test_croissant_and_ro_crate_describe_the_files_there_are(released: Store, exports, form):
    folder, listed = exports[form], checksums(exports[form])
    croissant = json.loads((folder / "croissant.json").read_bytes())
    files = [item for item in croissant["distribution"] if item["@type"] == "cr:FileObject"]
    assert {"datasets.csv", "README.md"} <= {item["@id"] for item in files}
    for item in files:
        assert item["sha256"] == listed[item["contentUrl"]]
        assert item["contentSize"] == f"{(folder / item['contentUrl']).stat().st_size} B"
    (images,) = [item for item in croissant["distribution"] if item["@type"] == "cr:FileSet"]
    if form == "webdataset":
        assert [item["@id"] for item in images["containedIn"]] == sorted(path.name for path in folder.glob("*.tar"))
        names = [sample["__key__"] for path in folder.glob("*.tar") for sample in samples(path) if "tiff" in sample]
        assert len(names) == sum(SIZES.values()) and {name.count("/") for name in names} == {1}, "as */*.tiff says"
    else:
        assert len(list(folder.glob(images["includes"]))) == {"tiff-tree": sum(SIZES.values()), "hf": 3}[form]
    for records in croissant["recordSet"]:
        for field in records["field"]:
            source = field["source"]
            if "column" not in source["extract"]:
                continue
            if "fileObject" in source:
                columns = list(pd.read_csv(folder / source["fileObject"]["@id"], nrows=1).columns)
            else:
                columns = pq.read_schema(next(folder.glob(images["includes"]))).names
            assert source["extract"]["column"] in columns, field["@id"]
    manifest = make_release(released).manifest
    assert croissant["identifier"] == f"sha256:{manifest.digest}" and croissant["version"] == "1.0.0"
    assert [item["text"] for item in croissant["citation"]] == [f"Textures {name}, 2026" for name in SIZES]
    graph = {item["@id"]: item for item in json.loads((folder / "ro-crate-metadata.json").read_bytes())["@graph"]}
    for part in graph["./"]["hasPart"]:
        assert (folder / part["@id"]).exists(), part
        if graph[part["@id"]]["@type"] == "File":
            assert graph[part["@id"]]["sha256"] == listed[part["@id"]]
    assert {"croissant.json", "datasets.csv"} <= {part["@id"] for part in graph["./"]["hasPart"]}


@pytest.mark.parametrize("form", FORMS)
def test_the_card_and_the_table_of_datasets_go_along(released: Store, exports, form):
    card = (exports[form] / "README.md").read_text()
    own = read_release(root=released.url).card
    assert own.split("\n---\n", 1)[1].strip() in card and "sha256sum --check SHA256SUMS" in card
    assert ("configs:" in card) == (form == "hf")
    table = pd.read_csv(exports[form] / "datasets.csv")
    assert dict(zip(table["dataset"], table["num_patches"], strict=True)) == SIZES
    assert set(table["licence_url"]) == {"https://spdx.org/licenses/CC0-1.0"}
    assert json.loads((exports[form] / "release.json").read_bytes()) == {
        "release": "v1",
        "digest": make_release(released).manifest.digest,
        "format": form,
    }


# Continuing and refusing


@pytest.mark.parametrize("form", FORMS)
def test_an_export_that_was_stopped_goes_on_and_ends_with_the_same_bytes(released: Store, exports, tmp_path, monkeypatch, form):
    folder, put, written = tmp_path / "out", Store.put, []

    def dies(self: Store, key: str, data: bytes | Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(key)
        put(self, key, data)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "put", dies)
        export_cem(released, str(folder), form=form)
    assert not (folder / "SHA256SUMS").exists(), "an export with checksums is complete"
    first, second = (folder / key for key in written)
    data = second.read_bytes()
    second.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # the same size, but other bytes
    before = first.stat().st_mtime_ns
    progress = []
    done = export_cem(released, str(folder), form=form, progress=lambda n, total: progress.append((n, total)))
    assert first.stat().st_mtime_ns == before, "what is right is not written again"
    assert contents(folder) == contents(exports[form])
    assert done.num_kept == 1 and done.num_files == len(contents(folder))
    assert done.num_bytes == sum(map(len, contents(folder).values()))
    assert progress[-1] == (sum(SIZES.values()), sum(SIZES.values()))
    again = export_cem(released, str(folder), form=form)
    assert again.num_kept == again.num_files - 1, "all but release.json, which is compared first"


def test_a_folder_that_holds_something_else_is_left_alone(released: Store, exports, tmp_path):
    whole = contents(exports["hf"])
    with pytest.raises(FileExistsError, match=r'holds another export \(.*"format": "hf".*\)\. Export to an empty folder'):
        export_cem(released, str(exports["hf"]), form="tiff-tree")
    assert contents(exports["hf"]) == whole
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"is not empty \(it has 'thesis.tex'\)"):
        export_cem(released, str(tmp_path / "full"))
    assert contents(tmp_path / "full") == {"thesis.tex": b"x"}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        ({"form": "zip"}, ValueError, "no form 'zip' of export; expected one of tiff-tree, webdataset, hf"),
        ({"target": " "}, ValueError, "has no target; expected a folder or a URL"),
        ({"version": "v9"}, FileNotFoundError, "partition 'v9' has nothing committed"),
    ],
)
def test_a_wrong_call_says_what_was_expected_and_writes_nothing(released: Store, tmp_path, call, error, match):
    with pytest.raises(error, match=match):
        export_cem(released, **{"target": str(tmp_path / "out"), **call})
    assert not (tmp_path / "out").exists()


def test_a_store_without_a_release_says_so(local_store: Store, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no release yet; materialize cem/releases"):
        export_cem(local_store, str(tmp_path / "out"))


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_shard_is_not_exported(local_store: Store, tmp_path, form):
    manifest = texture_release(local_store, {"coarse": 2})
    (part,) = manifest.details["contents"]
    key = f"{part['folder']}/part-00000.parquet"
    data = bytearray(local_store.read(key))
    data[200] ^= 1
    local_store.put(key, bytes(data))
    with pytest.raises(ValueError, match=r"part-00000.parquet has sha256 .*\. Materialize the dataset 'coarse' again"):
        export_cem(local_store, str(tmp_path / "out"), form=form)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["release.json"]


@pytest.mark.parametrize("form", ["tiff-tree", "webdataset"])
def test_a_shard_that_is_no_parquet_any_more_is_named(local_store: Store, tmp_path, form):
    manifest = texture_release(local_store, {"coarse": 2})
    (part,) = manifest.details["contents"]
    key = f"{part['folder']}/part-00000.parquet"
    local_store.put(key, local_store.read(key)[:-4] + b"XXXX")
    with pytest.raises(DataError, match=f"{key} cannot be read as Parquet: .* Materialize the dataset 'coarse' again"):
        export_cem(local_store, str(tmp_path / "out"), form=form)


def test_a_changed_card_is_not_exported(local_store: Store, tmp_path):
    manifest = texture_release(local_store, {"coarse": 2})
    local_store.put(f"{manifest.folder}/README.md", b"# Free for all")
    with pytest.raises(ValueError, match="README.md is not the file that the release v1 was made with"):
        export_cem(local_store, str(tmp_path / "out"), form="hf")


# Unusual names, releases and targets


def put_named(store: Store, dataset: str, names: list[str]) -> None:
    """Commit a partition of `cem/filtered_patches` whose patches have these names."""
    made = put_filtered(store, dataset, textures(40.0, len(names), 0))
    table = pq.read_table(io.BytesIO(store.read(f"{made.folder}/part-00000.parquet")))
    table = table.set_column(table.schema.get_field_index("name"), FILTERED_SCHEMA.field("name"), pa.array(names, pa.string()))
    commit = Commit(store, Inputs(FILTERED, dataset, CODE_VERSIONS[FILTERED], {"threshold": 0.5}, {"renamed": "1"}))
    commit.write("part-00000.parquet", parquet_bytes([table], FILTERED_SCHEMA, 4))
    commit.finish(counts=dict(made.counts), details=dict(made.details))


@pytest.mark.parametrize("form", ["tiff-tree", "webdataset"])
def test_patches_of_any_name_stay_inside_and_keep_their_names_in_the_table(local_store: Store, tmp_path, form):
    put_named(local_store, "metadata.csv", ODD)  # a dataset may have this name, but the export needs it for a file
    make_release(local_store)
    folder = tmp_path / "deep" / "out"
    export_cem(local_store, str(folder), form=form)
    assert {path.name for path in tmp_path.iterdir()} <= {"deep", "store", "dagster_home", "mlflow.db"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert sorted(row["name"] for row in rows) == sorted(ODD) and {row["dataset"] for row in rows} == {"metadata.csv"}
    files = [row["file"] for row in rows]
    assert len({file.lower() for file in files}) == len(ODD), "no two share a file, whatever the file system makes of case"
    for file in files:
        parent, name = file.split("/")
        assert re.fullmatch(r"metadata_csv~[0-9a-f]{16}", parent) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.~-]*", name)
        assert len(file.encode()) < 255
    if form == "tiff-tree":
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tiff")) == sorted(files)
        assert "plain-LOC-0_001_0-224_0-224.tiff" in {Path(file).name for file in files}, "plain names stay"
    else:
        found = [sample for path in folder.glob("*.tar") for sample in samples(path)]
        assert sorted(f"{sample['__key__']}.tiff" for sample in found) == sorted(files)
        assert sorted(json.loads(sample["json"])["name"] for sample in found) == sorted(ODD)
    expected = images_of(local_store)
    sums = {row["name"]: row["sha256"] for row in rows}
    assert len(expected) == len(set(sums.values())) == len(ODD)


def test_a_name_that_comes_twice_is_refused(local_store: Store, tmp_path):
    put_named(local_store, "twins", ["a", "b", "a"])
    make_release(local_store)
    with pytest.raises(ValueError, match="1 of 3 names of patches occur twice"):
        export_cem(local_store, str(tmp_path / "out"))


@pytest.mark.parametrize("form", FORMS)
def test_what_a_release_left_out_is_not_exported_and_is_told(local_store: Store, tmp_path, monkeypatch, form):
    texture_release(local_store, {"coarse": 3, "fine": 2})
    rows = pd.concat([read_patches(name, root=local_store.url) for name in ("coarse", "fine")])
    rows = rows[(rows["dataset"] == "fine") | rows["name"].str.contains("_1-")]
    hits: dict[str, dict[tuple[str, int], tuple[str, ...]]] = {}
    for row in rows.to_dict("records"):
        hits.setdefault(row["dataset"], {})[(row["name"], row["dhash"])] = ("cells",)
    monkeypatch.setattr(cem_releases, "contamination_reports", lambda *_: ["a report"])
    monkeypatch.setattr(cem_releases, "contaminated_patches", lambda *_: hits)
    assert make_release(local_store, exclude_contaminated=True).manifest.counts["excluded"] == 3
    folder = tmp_path / "out"
    assert export_cem(local_store, str(folder), form=form).num_patches == 2
    table = pd.read_csv(folder / "datasets.csv")
    assert table[["num_patches", "num_excluded"]].to_numpy().tolist() == [[2, 1], [0, 2]]
    excluded = pd.read_parquet(folder / "_excluded" / "part-00000.parquet")
    assert (
        sorted(excluded["name"]) == sorted(rows["name"])
        and "`_excluded/part-00000.parquet`" in (folder / "README.md").read_text()
    )
    if form == "hf":
        assert [path.parent.name for path in folder.glob("data/*/*.parquet")] == ["coarse"]
        assert '"fine"' not in (folder / "README.md").read_text(), "no configuration without files"
    else:
        assert set(pd.read_csv(folder / "metadata.csv")["name"]).isdisjoint(excluded["name"])


def test_an_export_goes_to_any_url(released: Store, exports):
    target = open_store("memory://export/tree")
    done = export_cem(released, target.url)
    base = contents(exports["tiff-tree"])
    assert {path: target.read(path) for path in base} == base and done.num_files == len(base)
    again = export_cem(released, target.url)
    assert again.num_kept == again.num_files - 1
    with pytest.raises(FileExistsError, match="holds another export"):
        export_cem(released, target.url, form="hf")


@pytest.mark.parametrize("form", ["webdataset", "hf"])
def test_an_export_from_s3_to_s3_has_the_same_files(released: Store, exports, s3_store: Store, form):
    source, target = open_store(f"{s3_store.url}/store"), open_store(f"{s3_store.url}/export")
    for item in released.walk("cem"):
        source.put(item.key, released.read(item.key))
    export_cem(source, target.url, form=form)
    base = contents(exports[form])
    assert {item.key.lstrip("/"): target.read(item.key.lstrip("/")) for item in target.walk("")} == base
    again = export_cem(source, target.url, form=form)
    assert again.num_kept == again.num_files - 1


def test_the_command_line_exports_and_says_what(released: Store, exports, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["--root", released.url, "export", "cem", str(folder), "--release", "v1", "--format", "webdataset"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"9 patches of release v1 in {folder}: {len(contents(folder))} files (0 were there), ")
    assert contents(folder) == contents(exports["webdataset"])
    assert main(["--root", released.url, "export", "cytoimagenet", str(tmp_path / "x"), "--format", "hf"]) == 1
    assert "--format is for cem" in capsys.readouterr().err
