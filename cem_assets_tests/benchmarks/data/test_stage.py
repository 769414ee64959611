"""Preparing benchmarks: small copies of all published layouts, real masks, folders of your own, and harmful files."""

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from cem_assets import environment
from cem_assets.benchmarks.data import files as benchmark_files_module
from cem_assets.benchmarks.data import stage as benchmark_stage_module
from cem_assets.benchmarks.data.files import FolderFiles, benchmark_files, unpack_zip
from cem_assets.benchmarks.data.previews import benchmark_pictures
from cem_assets.benchmarks.data.segmentation_sets import PreparedBenchmark, open_benchmark
from cem_assets.benchmarks.data.stage import prepare_benchmark
from cem_assets.benchmarks.data.steps import patch_starts
from cem_assets.benchmarks.data.transfer_sets import TransferWriter, open_transfer
from cem_assets.benchmarks.rows import require_benchmark
from cem_assets.catalog.benchmarks import SETTINGS, BenchmarkSource, SegmentationBenchmark, benchmark_rows
from cem_assets.errors import DataError
from cem_assets.store.assets import BENCHMARK_DATA
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import current_manifest
from cem_assets.store.store import Store
from cem_assets_tests.benchmarks import published

ROWS = benchmark_rows()


@pytest.fixture(autouse=True)
def _no_benchmarks_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.BENCHMARKS_FOLDER.name, raising=False)


def prepared(store: Store, name: str, folder: Path | None = None, row=None) -> PreparedBenchmark:
    result = prepare_benchmark(store, row or ROWS[name], folder)
    assert result.is_new and result.manifest.counts["rejected"] == 0, result.manifest.details["rejections"]
    return open_benchmark(store, name)


def arrays(benchmark: PreparedBenchmark, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {item.name: (np.asarray(item.image[...]), np.asarray(item.mask[...])) for item in benchmark.items(split)}


def equal(found: dict[str, tuple[np.ndarray, np.ndarray]], expected: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    assert sorted(found) == sorted(expected)
    for name, (image, mask) in expected.items():
        assert np.array_equal(found[name][0], image), name
        assert np.array_equal(found[name][1], mask), name


# The published layouts


def test_lucchi_pp_pairs_numbers_and_takes_white_alone(local_store: Store, tmp_path: Path):
    published.lucchi_pp(tmp_path)
    found = prepared(local_store, "lucchi_pp", tmp_path)
    size = (60, 70)
    for split, seed in (("train", 0), ("test", 10)):
        equal(
            arrays(found, split),
            {str(n): (published.texture(size, seed + n), published.blobs(size, seed + n)) for n in range(3)},
        )
    assert found.items("valid") == []


def test_kasthuri_pp_takes_white_alone(local_store: Store, tmp_path: Path):
    published.kasthuri_pp(tmp_path, (64, 80))
    found = arrays(prepared(local_store, "kasthuri_pp", tmp_path), "test")
    equal(found, {f"mask{n:04}": (published.texture((64, 80), 30 + n), published.blobs((64, 80), 30 + n)) for n in range(2)})


@pytest.mark.parametrize("name", list(published.ORGANELLES))
def test_perez_pairs_names_of_other_prefixes_and_one_archive_has_four_benchmarks(local_store: Store, tmp_path: Path, name: str):
    for other in published.ORGANELLES:
        published.perez(tmp_path, other)
    found = prepared(local_store, name, tmp_path)
    seed = 40 + 4 * list(published.ORGANELLES).index(name)
    for split, more in (("train", 0), ("test", 2)):
        pairs = [(published.texture((50, 60), seed + more + n), published.blobs((50, 60), seed + more + n)) for n in range(2)]
        equal(arrays(found, split), {f"{n + 1:03}": pair for n, pair in enumerate(pairs)})


def test_guay_stretches_signed_volumes_and_slices_all_but_the_test(local_store: Store, tmp_path: Path):
    published.guay(tmp_path)
    found = prepared(local_store, "guay", tmp_path)
    folder = tmp_path / "platelet_data"
    for split, name in (("train", "train"), ("valid", "eval"), ("test", "test")):
        raw = tifffile.imread(folder / f"{name}-images.tif").astype(float)
        image = ((raw - raw.min()) / (raw.max() - raw.min()) * 255).astype(np.uint8)
        labels = tifffile.imread(folder / f"{name}-labels.tif")
        whole = {name: (image, labels)}
        sliced = {f"{name}_xy_{z}": (image[z], labels[z]) for z in range(5)}
        equal(arrays(found, split), whole if split == "test" else sliced)
    (test,) = found.items("test")
    assert test.is_volume and len(test.label_counts) == 7 and sum(test.label_counts) == 5 * 40 * 50


def test_cremi_finds_clefts_in_64_bit_labels(local_store: Store, tmp_path: Path):
    published.cremi(tmp_path)
    found = prepared(local_store, "cremi", tmp_path)
    pairs = [(published.texture((20, 40, 48), 70 + n), published.blobs((20, 40, 48), 70 + n, 0.02)) for n in range(3)]
    train = {
        f"sample_{sample}_20160501_xy_{z:02}": (pairs[n][0][z], pairs[n][1][z])
        for n, sample in enumerate("AB")
        for z in range(20)
    }
    equal(arrays(found, "train"), train)
    equal(arrays(found, "test"), {"sample_C_20160501": pairs[2]})


def urocell_pair(name: str, shape: tuple[int, int, int] = (20, 70, 30)) -> tuple[np.ndarray, np.ndarray]:
    number = published.UROCELL.index(name)
    lyso, mito = published.blobs(shape, 80 + number, 0.1), published.blobs(shape, 90 + number, 0.2)
    mask = np.where(mito, 2, np.where(lyso, 1, 0))
    first = {"fib1-0-0-0": 12, "fib1-1-0-3": 54}.get(name, 0)
    return published.texture(shape, 80 + number)[:, first:], mask[:, first:]


@pytest.mark.parametrize("has_older_layout", [False, True])
def test_urocell_combines_maps_crops_missing_planes_and_slices_three_ways(
    local_store: Store, tmp_path: Path, has_older_layout: bool
):
    published.urocell(tmp_path)
    if has_older_layout:  # lyso/*.nii.gz, as the download script of the reference arranges them
        for kind in ("lyso", "mito"):
            for path in list((tmp_path / kind / "binary").iterdir()):
                path.rename(tmp_path / kind / path.name)
    found = prepared(local_store, "urocell", tmp_path)
    equal(arrays(found, "test"), {"fib1-0-0-0": urocell_pair("fib1-0-0-0")})
    expected = {}
    for name in published.UROCELL[:-1]:
        image, mask = urocell_pair(name)
        for axis, plane in enumerate(("xy", "xz", "yz")):
            size = image.shape[axis]
            for n in range(size):
                index = f"{n:0{len(str(size - 1))}}"
                expected[f"{name}_{plane}_{index}"] = (image.take(n, axis), mask.take(n, axis))
    equal(arrays(found, "train"), expected)


def test_urocells_real_masks_keep_every_voxel_behind_the_missing_planes(local_store: Store, tmp_path: Path, test_data: Path):
    nibabel = pytest.importorskip("nibabel")
    source = test_data / "em3d_labelled/urocell_masks"
    maps: dict[tuple[str, str], np.ndarray] = {}
    image = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256, 256))
    for volume in ("fib1-0-0-0", "fib1-3-2-1"):
        for kind in ("lyso", "mito"):
            target = tmp_path / kind / "binary" / f"{volume}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{kind}_binary_{volume}.nii.gz", target)
            maps[volume, kind] = np.asarray(nibabel.load(target).dataobj).transpose(2, 1, 0) > 0
        published.save(tmp_path / f"data/{volume}.nii.gz", image)
    found = prepared(local_store, "urocell", tmp_path)
    (test,) = found.items("test")
    lyso, mito = (maps["fib1-0-0-0", kind][:, 12:] for kind in ("lyso", "mito"))
    assert test.shape == (256, 244, 256)
    assert np.array_equal(test.mask[...], np.where(mito, 2, lyso.astype(np.uint8)))
    assert test.label_counts[2] == mito.sum() and test.label_counts[1] == (lyso & ~mito).sum()
    assert len(found.items("train")) == 3 * 256
    plane = next(item for item in found.items("train") if item.name == "fib1-3-2-1_xz_100")
    both = [maps["fib1-3-2-1", kind][:, 100] for kind in ("lyso", "mito")]
    assert np.array_equal(plane.mask[...], np.where(both[1], 2, both[0].astype(np.uint8)))


@pytest.fixture
def five_sets(local_store: Store, tmp_path: Path) -> Store:
    published.lucchi_pp(tmp_path / "lucchi_pp")
    published.kasthuri_pp(tmp_path / "kasthuri_pp")
    published.perez(tmp_path / "perez_mito", "perez_mito")
    published.guay(tmp_path / "guay")
    published.urocell(tmp_path / "urocell")
    for name in ("lucchi_pp", "kasthuri_pp", "perez_mito", "guay", "urocell"):
        prepared(local_store, name, tmp_path / name)
    return local_store


def test_all_mito_is_the_union_of_five_sets_cut_into_patches_without_padding(five_sets: Store):
    found = prepared(five_sets, "all_mito")
    assert set(found.parts) == {"lucchi_pp", "kasthuri_pp", "perez_mito", "guay", "urocell"}
    kasthuri = open_benchmark(five_sets, "kasthuri_pp")
    expected = {}
    for name, (image, mask) in arrays(kasthuri, "train").items():
        for y in patch_starts(300, 256):
            for x in patch_starts(400, 256):
                patch = image[y : y + 256, x : x + 256]
                if (patch > 0).mean() >= 0.05:
                    expected[f"{name}_{y}_{x}"] = (patch, mask[y : y + 256, x : x + 256])
    assert 4 < len(expected) < 8  # the padded half of one image was dropped
    cut = {item.name: (item.image[...], item.mask[...]) for item in found.items("train", "kasthuri_pp")}
    equal(cut, expected)
    for part in ("urocell", "guay"):
        whole = arrays(open_benchmark(five_sets, part), "train")
        for item in found.items("train", part):
            assert np.array_equal(item.mask[...], whole[item.name.removesuffix("_0_0")][1] == 2)
    assert not found.items("valid") and len(found.items("train", "guay")) == 5


def test_all_mito_tests_every_part_by_its_own_rule(five_sets: Store):
    found = prepared(five_sets, "all_mito")
    guay, urocell = (open_benchmark(five_sets, name).items("test")[0] for name in ("guay", "urocell"))
    labels = np.asarray(guay.mask[...])
    (item,) = found.items("test", "guay")
    assert np.array_equal(item.mask[...], np.select([labels == 0, labels == 2], [0, 1], 2))
    (item,) = found.items("test", "urocell")
    assert item.is_volume and np.array_equal(item.mask[...], np.asarray(urocell.mask[...]) == 2)
    rules = found.manifest.details["rules"]
    assert rules["perez_mito"]["is_instance_matched"] and rules["guay"] == {
        "mode": "stack", "scored_classes": [1], "mask_unlabelled": True,
    }  # fmt: skip
    assert set(found.manifest.inputs.upstream) == {f"{BENCHMARK_DATA}/{name}" for name in found.parts}


def test_a_union_wants_its_parts_prepared_and_takes_no_folder(local_store: Store, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="perez_mito"):
        prepare_benchmark(local_store, ROWS["all_mito"])
    with pytest.raises(ValueError, match="put together from perez_mito, lucchi_pp"):
        prepare_benchmark(local_store, ROWS["all_mito"], tmp_path)


# Benchmarks of your own


def own_row(store: Store, name: str, more: str = "", classes: str = '["background", "thing"]') -> SegmentationBenchmark:
    text = f'[{name}]\ntitle = "x"\nlicence = "x"\ncitation = "x"\nclasses = {classes}\nparams = {{iters = 1}}\n{more}\n'
    store.put(SETTINGS, text.encode())
    row = require_benchmark(store, name)
    assert isinstance(row, SegmentationBenchmark)
    return row


def test_vnc_mitochondria_of_many_gray_levels_are_a_benchmark_of_ones_own(store: Store, test_data: Path):
    source = test_data / "em3d_labelled/vnc_sstem_stack1"
    for split, numbers in (("train", (0, 1)), ("test", (19,))):
        for n in numbers:
            for folder, file in (("images", source / f"raw/{n:02}.tif"), ("masks", source / f"mitochondria/{n:02}.png")):
                store.put(f"benchmarks/inbox/vnc_mito/{split}/{folder}/{file.name}", file)
    row = own_row(store, "vnc_mito")
    with pytest.raises(ValueError, match=r"expected whole numbers 0 to 1. Add the step binarise"):
        prepare_benchmark(store, row)
    assert current_manifest(store, BENCHMARK_DATA, "vnc_mito") is None
    row = own_row(store, "vnc_mito", 'steps = [{step = "binarise", rule = "greater", value = 127}]')
    found = prepared(store, "vnc_mito", row=row)
    mask = np.asarray(Image.open(source / "mitochondria/19.png"))
    (item,) = found.items("test")
    assert len(np.unique(mask)) > 2 and np.array_equal(item.mask[...], mask > 127)
    assert np.array_equal(item.image[...], tifffile.imread(source / "raw/19.tif"))


def test_gala_volumes_in_hdf5_with_instance_labels(local_store: Store, tmp_path: Path, test_data: Path):
    source = test_data / "em3d_labelled/gala_fibsem"
    for split in ("train", "test"):
        for folder, file in (("images", f"{split}-image.h5"), ("masks", f"{split}-gt.lzf.h5")):
            (tmp_path / split / folder).mkdir(parents=True)
            shutil.copy(source / file, tmp_path / split / folder / "gala.h5")
    more = (
        'steps = [{step = "binarise", rule = "equal", value = 0}, '
        '{step = "slice_volumes", splits = ["train"], axes = ["xy", "xz", "yz"]}]'
    )
    found = prepared(local_store, "gala", tmp_path, own_row(local_store, "gala", more, '["inside", "membrane"]'))
    with h5py.File(source / "test-gt.lzf.h5") as file:
        membrane = file["stack"][:] == 0
    (test,) = found.items("test")
    assert test.shape == (50, 100, 200) and np.array_equal(test.mask[...], membrane)
    assert len(found.items("train")) == 50 + 100 + 200


def test_isbi_2012_membranes(local_store: Store, tmp_path: Path, test_data: Path):
    source = test_data / "em2d_labelled/isbi2012_membrane"
    for split, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        for folder, origin in (("images", "image"), ("masks", "label")):
            (tmp_path / split / folder).mkdir(parents=True)
            for n in numbers:
                shutil.copy(source / origin / f"{n}.png", tmp_path / split / folder)
    more = 'steps = [{step = "binarise", rule = "equal", value = 0}]'
    found = prepared(local_store, "isbi", tmp_path, own_row(local_store, "isbi", more, '["inside", "membrane"]'))
    assert [len(found.items(split)) for split in ("train", "valid", "test")] == [2, 1, 1]
    label = np.asarray(Image.open(source / "label/3.png"))
    assert np.array_equal(found.items("test")[0].mask[...], label == 0)


def test_axondeepseg_levels_become_three_classes_and_gray_saved_as_rgb_is_gray(
    local_store: Store, tmp_path: Path, test_data: Path
):
    source = test_data / "em2d_labelled/axondeepseg"
    files = {
        "train/images/0.png": "Train/image_0.png", "train/masks/0.png": "Train/mask_0.png",
        "train/images/1.png": "Train/image_1.png", "train/masks/1.png": "Train/mask_1.png",
        "test/images/tem.png": "tem_image_rgb.png", "test/masks/tem.png": "tem_mask.png",
        "test/images/sem.png": "sem_image.png", "test/masks/sem.png": "sem_mask_rgb.png",
    }  # fmt: skip
    for target, origin in files.items():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / origin, tmp_path / target)
    more = 'steps = [{step = "levels_to_classes", thresholds = [64, 192]}]'
    found = prepared(local_store, "axons", tmp_path, own_row(local_store, "axons", more, '["background", "myelin", "axon"]'))
    levels = np.asarray(Image.open(source / "Train/mask_0.png"))
    assert len(np.unique(levels)) > 200
    train = arrays(found, "train")["0"][1]
    assert np.array_equal(train, np.select([levels >= 192, levels >= 64], [2, 1], 0))
    sem = np.asarray(Image.open(source / "sem_mask_rgb.png"))[..., 0]
    assert np.array_equal(arrays(found, "test")["sem"][1], np.select([sem == 255, sem == 128], [2, 1], 0))


# What goes wrong


def own_files(folder: Path) -> None:
    for split in ("train", "test"):
        for n in range(3):
            published.save(folder / split / "images" / f"{n}.png", published.texture((30, 40), n))
            published.save(folder / split / "masks" / f"{n}.png", published.blobs((30, 40), n).astype(np.uint8))


def test_files_that_cannot_be_used_are_told_and_the_rest_goes_on(local_store: Store, tmp_path: Path):
    own_files(tmp_path)
    train = tmp_path / "train"
    (train / "images/0.png").write_bytes(b"GIF89a and no PNG")
    published.save(train / "images/alone.png", published.texture((30, 40), 0))
    published.save(train / "masks/lonely.png", published.texture((30, 40), 0))
    published.save(train / "images/small.png", published.texture((9, 9), 0))
    published.save(train / "masks/small.png", published.texture((9, 8), 0))
    published.save(train / "images/gray.png", published.texture((9, 9), 0))
    published.save(train / "masks/gray.png", published.texture((9, 9), 0))
    published.save(train / "images/2.tif", published.texture((30, 40), 0))
    (train / "images/notes.txt").write_text("read me")
    (train / "images/.hidden.png").write_text("junk")
    result = prepare_benchmark(local_store, own_row(local_store, "mine"), tmp_path)
    told = {item["what"]: item["reason"] for item in result.manifest.details["rejections"]}
    for what, reason in {
        "train/images/0.png": "is GIF; expected PNG",
        "train/images/alone.png": "has no mask 'alone'",
        "train/masks/lonely.png": "is a mask without an image",
        "train/images/small.png": "has sizes (1, 9, 8), its image (1, 9, 9)",
        "train/images/gray.png": "Add the step binarise",
        "train/images/2.tif": "has the name '2' of train/images/2.png",
        "train/images/notes.txt": "no suffix of a known format",
    }.items():
        assert reason in told.pop(what)
    assert told == {} and result.manifest.counts["rejected"] == 7
    found = open_benchmark(local_store, "mine")
    assert [item.name for item in found.items("train")] == ["1", "2"] and len(found.items("test")) == 3


def test_a_volume_that_fails_late_leaves_none_of_its_planes(local_store: Store, tmp_path: Path):
    own_files(tmp_path)
    volume = published.texture((4, 20, 30), 1)
    mask = (volume > 200).astype(np.uint8)
    mask[3, 5, 5] = 9  # only in its last plane
    published.save(tmp_path / "train/images/v.tif", volume)
    published.save(tmp_path / "train/masks/v.tif", mask)
    row = own_row(local_store, "mine", 'steps = [{step = "slice_volumes", axes = ["xy"]}]')
    result = prepare_benchmark(local_store, row, tmp_path)
    assert result.manifest.counts["train"] == 3 and result.manifest.counts["rejected"] == 1
    assert "v_xy_3: its mask has values 0, 1, 9" in result.manifest.details["rejections"][0]["reason"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_benchmark_needs_both_training_and_testing(local_store: Store, tmp_path: Path, split: str):
    own_files(tmp_path)
    shutil.rmtree(tmp_path / split)
    with pytest.raises(ValueError, match=f"there are {'0' if split == 'train' else '3'} items to train"):
        prepare_benchmark(local_store, own_row(local_store, "mine"), tmp_path)
    assert current_manifest(local_store, BENCHMARK_DATA, "mine") is None


def test_a_folder_of_another_layout_is_told_which_one_was_expected(local_store: Store, tmp_path: Path):
    own_files(tmp_path)
    with pytest.raises(ValueError, match=r"none of its 12 files fit the layout:\n  - train: data/fib1-1-0-3.nii.gz"):
        prepare_benchmark(local_store, ROWS["urocell"], tmp_path)


def test_links_that_leave_the_folder_are_not_followed(local_store: Store, tmp_path: Path):
    folder = tmp_path / "mine"
    own_files(folder)
    published.save(tmp_path / "secret.png", published.texture((30, 40), 0))
    (folder / "train/images/link.png").symlink_to(tmp_path / "secret.png")
    (folder / "train/masks/link.png").symlink_to(folder / "train/masks/0.png")
    result = prepare_benchmark(local_store, own_row(local_store, "mine"), folder)
    reasons = {item["what"]: item["reason"] for item in result.manifest.details["rejections"]}
    assert "leads out of the folder" in reasons["train/images/link.png"]
    assert "mask without an image" in reasons["train/masks/link.png"]


# Where files come from


def test_equal_files_are_prepared_once_wherever_they_come_from(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own_files(tmp_path / "mine")
    row = own_row(store, "mine")
    first = prepare_benchmark(store, row, tmp_path / "mine")
    assert first.is_new and not prepare_benchmark(store, row, tmp_path / "mine").is_new
    monkeypatch.setenv(environment.BENCHMARKS_FOLDER.name, str(tmp_path))
    assert not prepare_benchmark(store, row).is_new
    for path in sorted((tmp_path / "mine").rglob("*.png")):
        store.put(f"benchmarks/inbox/mine/{path.relative_to(tmp_path / 'mine').as_posix()}", path)
    assert not prepare_benchmark(store, row).is_new
    published.save(tmp_path / "new.png", published.texture((30, 40), 9))
    store.put("benchmarks/inbox/mine/train/images/1.png", tmp_path / "new.png")
    changed = prepare_benchmark(store, row)
    assert changed.is_new and changed.manifest.digest != first.manifest.digest  # the inbox comes before the folder
    assert json.loads(store.read(f"{changed.manifest.folder}/files.json"))[0]["path"] == "test/images/0.png"


def test_training_parameters_do_not_prepare_anew_but_steps_do(local_store: Store, tmp_path: Path):
    own_files(tmp_path)
    prepare_benchmark(local_store, own_row(local_store, "mine"), tmp_path)
    row = own_row(local_store, "mine")
    assert not prepare_benchmark(local_store, dataclasses.replace(row, params={"iters": 99}), tmp_path).is_new
    row = own_row(local_store, "mine", 'steps = [{step = "cut_patches", side_px = 16}]')
    assert prepare_benchmark(local_store, row, tmp_path).is_new


def test_without_files_all_ways_are_told(local_store: Store):
    with pytest.raises(FileNotFoundError) as caught:
        prepare_benchmark(local_store, ROWS["lucchi_pp"])
    for words in (
        "benchmarks/inbox/lucchi_pp/",
        environment.BENCHMARKS_FOLDER.name,
        SETTINGS,
        "sha256 of http://www.casser.io",
    ):
        assert words in str(caught.value)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        prepare_benchmark(local_store, ROWS["lucchi_pp"], Path("nowhere"))


def test_a_download_is_checked_and_unpacked(local_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published.lucchi_pp(tmp_path / "files")
    archive = Path(shutil.make_archive(str(tmp_path / "lucchi_pp"), "zip", tmp_path / "files"))
    asked = []

    def fetch(url: str, sha256: str, folder: Path, name: str) -> Path:
        asked.append((url, sha256))
        return Path(shutil.copy(archive, folder / name))

    monkeypatch.setattr(benchmark_files_module, "download_url", fetch)
    row = ROWS["lucchi_pp"]
    assert isinstance(row, SegmentationBenchmark)
    source = BenchmarkSource(url=row.sources[0].url, file="lucchi_pp.zip", sha256=file_sha256(archive))
    found = prepared(local_store, "lucchi_pp", row=dataclasses.replace(row, sources=(source,)))
    assert asked == [(source.url, source.sha256)] and len(found.items("train")) == 3
    bad = dataclasses.replace(row, sources=(BenchmarkSource(url=source.url, file="../x.zip", sha256=source.sha256),))
    with pytest.raises(ValueError, match="names the file"), benchmark_files(local_store, bad):
        pass


@pytest.mark.parametrize(
    ("names", "words"), [(["../out.txt"], "'..' part"), (["/abs.txt"], "empty"), (["ok.txt", "a\\b"], "backslash")]
)
def test_archives_that_would_leave_their_folder_are_refused_whole(tmp_path: Path, names: list[str], words: str):
    path, target = tmp_path / "a.zip", tmp_path / "target"
    target.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(ValueError, match=words):
        unpack_zip(path, target)
    assert list(target.iterdir()) == []


def test_links_and_bombs_in_archives_are_refused(tmp_path: Path):
    path, target = tmp_path / "a.zip", tmp_path / "target"
    target.mkdir()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        unpack_zip(path, target)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(1000))
        archive.infolist()[0].file_size = 1 << 40
    with pytest.raises(ValueError, match="more than 200 times its size"):
        unpack_zip(path, target)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack_zip(path, target)
    assert list(target.iterdir()) == []


def test_listing_a_folder_leaves_out_junk(tmp_path: Path):
    for name in ("a.png", ".DS_Store", "__MACOSX/a.png", "Thumbs.db", "x/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert FolderFiles(tmp_path).listed() == (["a.png", "x/b.png"], [])


# Transfer benchmarks


def cell(path: Path, seed: int, dtype: type = np.uint16, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, size).astype(dtype)
    published.save(path, pixels)
    return pixels


def test_coos_7_has_labels_and_splits_in_its_folders(local_store: Store, tmp_path: Path):
    planes = {}
    for number, (split, label) in enumerate((s, c) for s in ("train", "test1", "test4") for c in ("Actin", "Lysosome")):
        for n in range(2):
            for k, channel in enumerate(("protein", "nucleus", "mask")):
                path = tmp_path / "CURATED-COOS7" / split / label / f"plate1_r1_c{n}_{channel}.tif"
                planes[f"{split}/{label}/plate1_r1_c{n}", channel] = cell(path, 10 * number + 3 * n + k)
    (tmp_path / "CURATED-COOS7/train/Actin/plate9_protein.tif").write_bytes(b"no nucleus beside it")
    result = prepare_benchmark(local_store, ROWS["coos_7"], tmp_path)
    assert result.manifest.counts["rows"] == 12 and result.manifest.counts["rejected"] == 1
    assert "lacks the channel nucleus" in result.manifest.details["rejections"][0]["reason"]
    found = open_transfer(local_store, "coos_7")
    assert found.channels == ("protein", "nucleus")
    assert found.table().groupby("split").size().to_dict() == {"train": 4, "test1": 4, "test4": 4}
    for facts, images in found.batches():
        for name, label, (protein, nucleus) in zip(facts["name"], facts["label"], images, strict=True):
            assert name.split("/")[1] == label
            assert np.array_equal(protein, planes[name, "protein"]) and np.array_equal(nucleus, planes[name, "nucleus"])


def test_cyclops_leaves_out_dead_cells_and_ghosts_and_merges_spindle_poles(local_store: Store, tmp_path: Path):
    for number, label in enumerate(("ACTIN", "DEAD", "GHOST", "SPINDLE", "SPINDLEPOLE")):
        for k, channel in enumerate(("gfp", "rfp")):
            cell(tmp_path / "chong_labeled" / label / f"c1_{channel}.tif", number + k, np.uint8)
    prepare_benchmark(local_store, ROWS["cyclops"], tmp_path)
    table = open_transfer(local_store, "cyclops").table()
    assert sorted(table["label"]) == ["ACTIN", "SPINDLE", "SPINDLE"] and set(table["split"]) == {"all"}


IMAGE_CSV = (
    "TableNumber,Image_FileName_DAPI,Image_PathName_DAPI,Image_FileName_Tubulin,Image_FileName_Actin,"
    "Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,Replicate,Image_Metadata_Compound,Image_Metadata_Concentration\n"
)


def bbbc021_files(folder: Path) -> None:
    wells = [
        ("Week1_22123", "B02", "AZ258", "1.0"), ("Week1_22123", "B03", "DMSO", "0.0"), ("Week2_24121", "C04", "ALLN", "3.0"),
        ("Week2_24121", "C05", "taxol", "0.003"), ("Week2_24121", "C06", "AZ258", "1.0"),
    ]  # fmt: skip
    lines = []
    for number, (plate, well, compound, dose) in enumerate(wells):
        names = [f"{well}_s1_w{w}.tif" for w in (1, 2, 4)]
        lines.append(f"4,{names[0]},Week,{names[1]},{names[2]},{plate},{well},1,{compound},{dose}")
        for k, name in enumerate(names):
            if (well, k) != ("C06", 2):
                cell(folder / plate / name, 3 * number + k)
    (folder / "BBBC021_v1_image.csv").write_text(IMAGE_CSV + "\n".join(lines) + "\n")
    moa = (
        'compound,concentration,moa\n"AZ258",1.000000,"Aurora kinase inhibitors"\n"DMSO",0,"DMSO"\nALLN,3,Protein degradation\n'
    )
    (folder / "BBBC021_v1_moa.csv").write_text(moa)


def test_bbbc021_joins_doses_written_in_other_ways_and_leaves_out_dmso(local_store: Store, tmp_path: Path):
    bbbc021_files(tmp_path)
    result = prepare_benchmark(local_store, ROWS["bbbc021"], tmp_path)
    found = open_transfer(local_store, "bbbc021")
    table = found.table()
    assert found.channels == ("dapi", "tubulin", "actin")
    assert table["label"].tolist() == ["Aurora kinase inhibitors", "Protein degradation"]
    assert table["concentration"].tolist() == [1.0, 3.0] and table["batch"].tolist() == ["Week1", "Week2"]
    assert table["well"].tolist() == ["B02", "C04"] and not table["is_control"].any()
    told = {item["what"]: item["reason"] for item in result.manifest.details["rejections"]}
    assert "1 of 5 rows have no partner in BBBC021_v1_moa.csv" in told["BBBC021_v1_image.csv"]
    assert "lacks Week2_24121/C06_s1_w4.tif" in told["Week2_24121/C06_s1_w1"]
    ((_, images),) = found.batches()
    assert np.array_equal(images[1][2], tifffile.imread(tmp_path / "Week2_24121/C04_s1_w4.tif"))


def test_a_ready_table_of_real_features_is_a_transfer_benchmark(local_store: Store, tmp_path: Path, test_data: Path):
    for file in ("features/bbbc021_ljosa2013/ljosa_jbiomolscreen_2013_per_well_mean.csv.gz",
                 "metadata/bbbc021/BBBC021_v1_image.csv.gz", "metadata/bbbc021/BBBC021_v1_moa.csv"):  # fmt: skip
        shutil.copy(test_data / file, tmp_path)
    expected = json.loads((test_data / "features/bbbc021_ljosa2013/expected.json").read_text())
    local_store.put(SETTINGS, published.LJOSA.encode())
    prepare_benchmark(local_store, require_benchmark(local_store, "ljosa"), tmp_path)
    table, features = open_transfer(local_store, "ljosa").features()
    treated = table[~table["is_control"]]
    assert len(table) == expected["wells"] and int(table["is_control"].sum()) == expected["dmso_wells"]
    assert treated.groupby(["compound", "concentration"]).ngroups == expected["treatments"]
    assert treated["compound"].nunique() == expected["compounds"] and treated["label"].nunique() == expected["moa_classes"]
    assert features.shape[0] == len(table) and features.shape[1] > 500 and np.isfinite(features).mean() > 0.99


def test_cells_that_cannot_be_used_are_told(local_store: Store, tmp_path: Path):
    base = tmp_path / "train/Actin"
    cell(base / "a_protein.tif", 0)
    cell(base / "a_nucleus.tif", 1, size=(9, 9))
    cell(base / "b_protein.tif", 0)
    published.save(base / "b_nucleus.tif", np.zeros((20, 24), np.float32))
    cell(base / "c_protein.tif", 2)
    cell(base / "c_nucleus.tif", 3)
    result = prepare_benchmark(local_store, ROWS["coos_7"], tmp_path)
    told = {item["what"]: item["reason"] for item in result.manifest.details["rejections"]}
    assert "sizes (20, 24), (9, 9)" in told["train/Actin/a"] and "planes of float32" in told["train/Actin/b"]
    assert result.manifest.counts["rows"] == 1
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"none of its \d+ files could be used"):
        prepare_benchmark(local_store, ROWS["coos_7"], tmp_path)


def test_wrong_expressions_and_patterns_of_a_table_are_refused_in_words(local_store: Store, tmp_path: Path):
    bbbc021_files(tmp_path)
    row = ROWS["bbbc021"]
    wrong = dataclasses.replace(row, columns={**row.columns, "batch": "{Image_Metadata_Plate_DAPI|(}"})
    with pytest.raises(DataError, match=r"template \{Image_Metadata_Plate_DAPI\|\(\} has no valid regular expression"):
        prepare_benchmark(local_store, wrong, tmp_path)
    with pytest.raises(DataError, match="a pattern of files is '', which cannot be matched"):
        prepare_benchmark(local_store, dataclasses.replace(row, tables=("",)), tmp_path)


def test_an_error_of_our_own_code_is_not_written_down_as_a_rejection(
    local_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("a bug")

    published.lucchi_pp(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(benchmark_stage_module, "finished", broken)
        with pytest.raises(ValueError, match="a bug"):
            prepare_benchmark(local_store, ROWS["lucchi_pp"], tmp_path)
    cell(tmp_path / "cells/train/Actin/a_protein.tif", 0)
    cell(tmp_path / "cells/train/Actin/a_nucleus.tif", 1)
    monkeypatch.setattr(TransferWriter, "add", broken)
    with pytest.raises(ValueError, match="a bug"):
        prepare_benchmark(local_store, ROWS["coos_7"], tmp_path / "cells")


def test_columns_a_table_lacks_are_told(local_store: Store, tmp_path: Path):
    bbbc021_files(tmp_path)
    (tmp_path / "BBBC021_v1_moa.csv").write_text("compound,moa\nALLN,x\n")
    with pytest.raises(ValueError, match="has no column concentration; it has compound, moa"):
        prepare_benchmark(local_store, ROWS["bbbc021"], tmp_path)
    (tmp_path / "BBBC021_v1_moa.csv").unlink()
    with pytest.raises(ValueError, match=r"no file matches BBBC021_v1_moa.csv; there are BBBC021_v1_image.csv"):
        prepare_benchmark(local_store, ROWS["bbbc021"], tmp_path)


# Pictures


def test_pictures_are_small_and_show_what_is_there(local_store: Store, tmp_path: Path):
    published.guay(tmp_path / "guay")
    manifest = prepare_benchmark(local_store, ROWS["guay"], tmp_path / "guay").manifest
    (picture,) = benchmark_pictures(local_store, manifest).values()
    assert picture[:2] == b"\xff\xd8" and len(picture) < 100_000
    bbbc021_files(tmp_path / "cells")
    manifest = prepare_benchmark(local_store, ROWS["bbbc021"], tmp_path / "cells").manifest
    (picture,) = benchmark_pictures(local_store, manifest).values()
    assert picture[:2] == b"\xff\xd8" and len(picture) < 100_000
