"""Crops of real and of broken images: windows, pixels and reasons equal those of a slow computation from the original files."""

import hashlib
import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cem_assets import environment, errors
from cem_assets.cytoimagenet import source_images
from cem_assets.cytoimagenet.crops import images as cyto_images
from cem_assets.cytoimagenet.crops import stage as cyto_crops
from cem_assets.cytoimagenet.crops.crops import CropParams
from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.naming import splits
from cem_assets.cytoimagenet.crops.quality import DropReason
from cem_assets.cytoimagenet.crops.stage import make_crops
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.source_images import planes_of
from cem_assets.cytoimagenet.sources.stage import file_of, page_of
from cem_assets.cytoimagenet.tables import CROPS_SCHEMA, read_frame
from cem_assets.errors import DataError, Fault
from cem_assets.execution.local import LocalEngine
from cem_assets.formats.microscopy_images import MicroscopyImage
from cem_assets.store.assets import CROPS, LABEL_TABLE, SOURCE_METADATA
from cem_assets.store.manifests import committed_partitions, current_manifest, damaged_objects, require_manifest
from cem_assets.store.store import Store, open_store
from cem_assets_tests.cytoimagenet.example_sources import (
    CROPPING,
    EVERY_IMAGE,
    LABELS,
    PLATE,
    crop,
    dropped_of,
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

FIELDS = r"""
[images]
pattern = '(?P<field>AS_09125_050116030001_D03f00|01_POS002)[d_](?P<channel>[012DFR])\.(?i:tif)$'
[columns]
organism = { value = "human" }
"""
FEW = LABELS.model_copy(update={"min_images": 2})
ONE_LABEL = LABELS.model_copy(update={"min_images": 5})
"""With these, four images of a stain make no label, and stay in the label of their organism."""
WELLS = {"A01": "dmso", "A02": "dmso", "A03": "dmso"}


# The slow computation, written from the definitions


def original(data: bytes, name: str) -> tuple[list[np.ndarray], bool]:
    """Decode a file with Pillow, or .C01 by hand, and return its planes and whether they are a colour image."""
    if name.lower().endswith(".c01"):
        plain = zlib.decompress(data[4:])
        width, height, bits = *struct.unpack("<ii", plain[4:12]), struct.unpack("<H", plain[14:16])[0]
        return [np.frombuffer(plain, f"<u{bits // 8}", offset=52).reshape(height, width)], False
    planes = []
    with Image.open(io.BytesIO(data)) as image:
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            frame = image.convert("RGB") if image.mode in ("P", "RGBA") else image
            pixels = np.asarray(frame)
            if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
                pixels = pixels[..., 0]
            planes += [pixels] if pixels.ndim == 2 else list(np.moveaxis(pixels, -1, 0))
            is_colour = pixels.ndim == 3
    return planes, is_colour


def normalised(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane.astype(np.float64), [0.1, 99.9])
    return np.zeros(plane.shape) if low == high else np.clip((plane - low) / (high - low), 0, 1)


def gray_of(planes: list[np.ndarray], is_colour: bool) -> np.ndarray:
    shown = [np.mean([plane.astype(np.float64) for plane in planes], axis=0)] if is_colour else planes
    return np.rint(np.mean([normalised(plane) for plane in shown], axis=0) * 255).astype(np.uint8)


def fault_of(raw: np.ndarray, crop_: np.ndarray) -> DropReason | None:
    if np.percentile(raw, 0.1) == np.percentile(raw, 99.9):
        return DropReason.uniform
    if min(len(np.unique(raw)), len(np.unique(crop_))) <= 2:
        return DropReason.mask
    if np.percentile(crop_, 75) == 0:
        return DropReason.dim
    return DropReason.dark if crop_.mean() <= 1 else DropReason.bright if crop_.mean() >= 254 else None


def gray_of_row(store: Store, row: dict) -> np.ndarray:
    """Read the files of a row from the inbox, and merge them."""
    planes: list[np.ndarray] = []
    is_colour = False
    for name in row["files"]:
        found, is_picture = original(store.read(f"inbox/{row['source']}/{file_of(name)}"), file_of(name))
        page = page_of(name)
        if page is not None:
            found = [found[page]]
        is_colour = is_picture and len(row["files"]) == 1 and page is None
        planes += [np.mean(found, axis=0)] if is_picture and not is_colour else found
    return gray_of(planes, is_colour)


def check_window(record: dict, shape: tuple[int, int]) -> None:
    """Check that a crop lies in one quadrant at an allowed scale, or is the whole image."""
    height, width = record["y_max"] - record["y_min"], record["x_max"] - record["x_min"]
    if not record["crop"]:
        assert min(shape) < 140 and record["scaling"] == 1.0
        assert (height, width) == shape and (record["y_min"], record["x_min"]) == (0, 0)
        return
    assert min(shape) >= 140 and record["scaling"] in (1 / 2, 1 / 4, 1 / 8, 1 / 16)
    assert (height, width) == tuple(int(side * record["scaling"]) for side in shape) and min(height, width) >= 70
    for side, low, high in zip(shape, (record["y_min"], record["x_min"]), (record["y_max"], record["x_max"]), strict=True):
        assert low >= 0 and high <= side and (high <= side // 2 or low >= side // 2), "a crop lies in one quadrant"


def quadrant(record: dict, shape: tuple[int, int]) -> tuple[bool, bool]:
    return record["y_min"] >= shape[0] // 2, record["x_min"] >= shape[1] // 2


# Real images


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Store:
    """A store with real images of many kinds, all with the label "human", and their crops. Tests must only read it."""
    store = open_store(str(tmp_path_factory.mktemp("real")))
    data = test_data / "fluorescence"
    examples = [
        path for path in sorted((data / "cellprofiler_examples").rglob("*")) if path.suffix.lower() in (".tif", ".png", ".jpg")
    ]
    fields = [path for path in examples if path.parent.name in ("ExampleHuman", "ExampleFly")]
    files = [
        path for path in examples if path not in fields and path.stat().st_size < 2 << 20 and path.name != "DMSO_B5_t0.JPG"
    ]
    files += [*sorted((data / "cellprofiler_tests").iterdir()), *sorted((data / "stardist").glob("*.tif"))]
    files += [*sorted((data / "bbbc013_sbs").glob("*.tif"))[:4], *sorted(data.glob("dsb2018_bbbc038/*/images/*.png"))[:6]]
    files += sorted(data.glob("dsb2018_bbbc038/*/masks/*.png"))[:2]
    put_source(store, "files", {path.relative_to(data).as_posix(): path for path in files}, EVERY_IMAGE)
    put_source(store, "fields", {path.name: path for path in fields}, FIELDS)
    take_in(store, "files", "fields")
    label(store)
    crop(store, engine=LocalEngine(1))
    return store


def human(store: Store):
    (entry,) = label_entries_of(store)
    return require_manifest(store, CROPS, entry)


def label_entries_of(store: Store) -> list[str]:
    return committed_partitions(store, CROPS)


def label_rows_of(store: Store) -> list[dict]:
    return read_frame(store, current_manifest(store, LABEL_TABLE), "part-00000.parquet").to_dict("records")


def test_every_crop_of_every_real_image_is_as_recomputed(real: Store):
    images, dropped = images_of(real, human(real)), dropped_of(real, human(real))
    rows = label_rows_of(real)
    kept, reasons = dict(list(images.groupby("idx"))), dict(list(dropped.groupby("idx")))
    assert len(rows) > 30 and set(kept) | set(reasons) == {row["idx"] for row in rows}
    for row in rows:
        gray = gray_of_row(real, row)
        quadrants = []
        for record in kept.get(row["idx"], images.head(0)).to_dict("records"):
            check_window(record, gray.shape)
            quadrants.append(quadrant(record, gray.shape))
            raw = gray[record["y_min"] : record["y_max"], record["x_min"] : record["x_max"]]
            expected = np.rint(normalised(raw) * 255).astype(np.uint8)
            np.testing.assert_array_equal(record["pixels"], expected, err_msg=row["idx"])
            assert fault_of(raw, expected) is None
            assert (record["height"], record["width"]) == expected.shape
        lost = reasons.get(row["idx"], dropped.head(0))
        assert len(quadrants) + len(lost) == (1 if min(gray.shape) < 140 else 4), row["idx"]
        assert len(set(quadrants)) == len(quadrants), "each crop has a quadrant of its own"


def test_real_images_of_every_kind_are_among_them(real: Store):
    names = {Path(row["files"][0]).name: len(row["files"]) for row in label_rows_of(real)}
    # There are pages, channels in separate files, colour, big-endian 16 bits, and .C01.
    for name in ("5channel.tif", "img3d.tif", "1832-48hours-gal-1.JPG", "NikonTIF.tif", "iamac01file.c01", "01_POS002_D.TIF"):
        assert name in names, name
    assert names["01_POS002_D.TIF"] == 3 and names["AS_09125_050116030001_D03f00d0.tif"] == 3
    kinds = {Path(row["files"][0]).suffix.lower() for row in label_rows_of(real)}
    assert kinds == {".tif", ".png", ".jpg", ".c01"}
    found = set(images_of(real, human(real))["idx"])
    masks = {row["idx"] for row in label_rows_of(real) if "/masks/" in row["files"][0]}
    assert len(masks) == 2 and not masks & found, "masks of nuclei are told from pictures"
    reasons = set(dropped_of(real, human(real))["reason"])
    assert reasons == {"uniform", "mask", "dim"}


def test_hashes_digests_names_and_splits_of_real_crops(real: Store):
    manifest = human(real)
    images = images_of(real, manifest)
    for record in images.to_dict("records")[::5]:
        pixels = record["pixels"]
        height, width = pixels.shape
        digest = hashlib.sha256(f"{height},{width}\n".encode() + pixels.tobytes()).hexdigest()
        stretched = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR)
        assert record["pixel_sha256"] == digest and record["dhash"] == int(str(imagehash.dhash(stretched)), 16)
        assert record["image"]["path"] == record["filename"] and record["image"]["bytes"].startswith(b"\x89PNG")
    assert images["filename"].tolist() == [f"human-{number:08b}.png" for number in range(len(images))]
    assert set(images["path"]) == {"/cytoimagenet/human"} and images["pixel_sha256"].is_unique
    identities = [f"{source}/{place}" for source, place in zip(images["source"], images["source_path"], strict=True)]
    assert images["split"].tolist() == splits(identities)
    assert (images.groupby("idx")["split"].nunique() == 1).all()
    assert not images.drop(columns=["image", "pixels"]).isna().any().any()


def test_counts_of_real_crops_add_up(real: Store):
    manifest = human(real)
    images, dropped = images_of(real, manifest), dropped_of(real, manifest)
    assert manifest.counts == {
        "source_images": len(label_rows_of(real)),
        "crops_cut": len(images) + (dropped["crop"] >= 0).sum(),
        "images": len(images),
        "validation": (images["split"] == "validation").sum(),
        "dropped": len(dropped),
        "shards": 1,
    }
    assert manifest.details["dropped_by_reason"] == dropped["reason"].value_counts().sort_index().to_dict()
    assert {name: facts["num_images"] for name, facts in manifest.details["sources"].items()} == (
        images["source"].value_counts().to_dict()
    )
    assert manifest.details["num_crops"] == 4 and (manifest.details["label"], manifest.details["category"]) == (
        "human",
        "organism",
    )


def test_two_workers_give_the_same_digest(real: Store, tmp_path):
    other = open_store(str(tmp_path / "other"))
    for prefix in ("inbox", SOURCE_METADATA, LABEL_TABLE):
        for item in real.walk(prefix):
            other.put(item.key, Path(real.url_of(item.key)))
    assert crop(other, engine=LocalEngine(2))["human"].digest == human(real).digest


# Every reason


def levels(shares: dict[int, float], side: int = 120) -> np.ndarray:
    """Draw an image with given shares of gray levels at random places."""
    counts = [round(share * side * side) for share in shares.values()]
    values = np.repeat(np.array(list(shares), np.uint8), counts)
    values = np.concatenate([values, np.full(side * side - len(values), next(iter(shares)), np.uint8)])
    return np.random.default_rng(0).permutation(values).reshape(side, side)


BROKEN = {
    "uniform.png": (png(np.full((120, 120), 77, np.uint8)), DropReason.uniform),
    "black.png": (png(np.zeros((120, 120), np.uint8)), DropReason.uniform),
    "hot pixel.png": (png(levels({10: 0.9995, 255: 0.0005})), DropReason.uniform),
    "mask.png": (png(levels({0: 0.7, 255: 0.3})), DropReason.mask),
    "dim.png": (png(levels({0: 0.9, 128: 0.05, 255: 0.05})), DropReason.dim),
    "dark.png": (png(levels({0: 0.698, 1: 0.3, 255: 0.002})), DropReason.dark),
    "bright.png": (png(levels({255: 0.996, 254: 0.002, 0: 0.002})), DropReason.bright),
    "truncated.png": (png(cells((120, 120), 1))[:3000], DropReason.unreadable),
    "text.tif": (b"this is no image", DropReason.unreadable),
    "empty.png": (b"", DropReason.unreadable),
}


def broken_store(store: Store, **sound: bytes) -> None:
    """Make a source of broken images and some good ones, and its label table."""
    files = {name: data for name, (data, _) in BROKEN.items()}
    whole = {f"sound {n}.png": png(cells((120, 120), 100 + n)) for n in range(6)}
    extra = {name.replace("_", "."): data for name, data in sound.items()}
    put_source(store, "broken", {**files, **whole, **extra}, EVERY_IMAGE)
    take_in(store, "broken")
    label(store)


def reasons_of(store: Store, manifest) -> dict[str, str]:
    """Return the reasons why files were left out, by name."""
    names = {row["idx"]: row["filename"] for row in label_rows_of(store)}
    return {names[idx]: reason for idx, reason in dropped_of(store, manifest)[["idx", "reason"]].itertuples(index=False)}


def test_every_reason_to_drop_an_image_is_given_by_a_broken_one(local_store: Store):
    store = local_store
    twin = np.asarray(cells((120, 120), 100))
    broken_store(store, copy_tif=tiff(twin), gone_png=png(cells((120, 120), 7)), changed_png=png(cells((120, 120), 8)))
    put_source(store, "benchmark", {"a.png": png(cells((120, 120), 101))}, EVERY_IMAGE, role="test")
    take_in(store, "benchmark")
    fingerprint_test_images(store)
    store.delete(["inbox/broken/gone.png"])
    store.put("inbox/broken/changed.png", png(cells((120, 120), 9)))
    manifest = crop(store)["human"]
    expected = {name: reason for name, (_, reason) in BROKEN.items()} | {
        "gone.png": "missing",
        "changed.png": "unreadable",
        "sound 1.png": "test_image",
    }
    reasons = reasons_of(store, manifest)
    duplicate = {name for name, reason in reasons.items() if reason == "duplicate"}
    assert len(duplicate) == 1 and duplicate < {"copy.tif", "sound 0.png"}
    assert {name: reason for name, reason in reasons.items() if name not in duplicate} == expected
    details = dict(dropped_of(store, manifest)[["reason", "detail"]].itertuples(index=False))
    assert details["missing"] == "gone.png is no longer in inbox/broken/"
    assert "crop 0" in details["duplicate"] and details["duplicate"].startswith("the same pixels as broken-")
    told = set(dropped_of(store, manifest)["detail"])
    assert any("changed since its source was read; materialize cytoimagenet/source_metadata again" in text for text in told)
    assert any("truncated.png" in text for text in told)
    assert manifest.counts["images"] == 5
    few = crop(store, CropStageParams(min_images=2, max_images=3))["human"]
    assert few.counts["images"] == 3 and few.details["dropped_by_reason"]["sampled_back"] == 2
    none = crop(store, CropStageParams(min_images=6))["human"]
    assert none.counts["images"] == 0 and none.details["dropped_by_reason"]["too_few_images"] == 5
    given = {reason for found in (manifest, few, none) for reason in found.details["dropped_by_reason"]}
    assert given == {str(reason) for reason in DropReason}, "every reason there is was seen"


def test_the_cause_of_an_unreadable_file_is_told_and_the_rest_goes_on(local_store: Store, test_data):
    """Real files of every format that are cut off in the middle are unreadable."""
    data = test_data / "fluorescence"
    files = {
        "a.tif": data / "stardist/img2d.tif",
        "b.c01": data / "cellprofiler_tests/iamac01file.c01",
        "c.png": next(iter(sorted(data.glob("dsb2018_bbbc038/*/images/*.png")))),
        "d.jpg": data / "cellprofiler_examples/ExampleYeastPatches/1832-48hours-gal-1.JPG",
    }
    cut_off = {name: path.read_bytes()[: path.stat().st_size // 2] for name, path in files.items()}
    sound = {f"sound {n}.png": png(cells((120, 120), n)) for n in range(4)}
    put_source(local_store, "own", {**cut_off, **sound}, EVERY_IMAGE)
    take_in(local_store, "own")
    label(local_store)
    manifest = crop(local_store)["human"]
    assert reasons_of(local_store, manifest) == dict.fromkeys(files, "unreadable") and manifest.counts["images"] == 4
    for detail in dropped_of(local_store, manifest)["detail"]:
        assert any(detail.startswith(name) or name in detail for name in files) and "Traceback" not in detail


def test_a_label_left_with_too_few_is_committed_empty(local_store: Store):
    plate(local_store, "own", WELLS)
    take_in(local_store, "own")
    label(local_store)
    manifest = crop(local_store, CropStageParams(min_images=25))["human"]
    assert manifest.counts["images"] == 0 and manifest.counts["dropped"] == 24 and manifest.details["sources"] == {}
    table = pq.read_table(io.BytesIO(local_store.read(f"{manifest.folder}/part-00000.parquet")))
    assert len(table) == 0 and table.schema.equals(CROPS_SCHEMA, check_metadata=True)


def test_back_sampling_gives_up_second_crops_of_an_image_first(local_store: Store):
    plate(local_store, "own", WELLS, shape=(300, 300))
    take_in(local_store, "own")
    label(local_store)
    manifest = crop(local_store, CropStageParams(min_images=2, max_images=8))["human"]
    images, dropped = images_of(local_store, manifest), dropped_of(local_store, manifest)
    per_image = Counter(images["idx"])
    assert len(images) == 8 and sorted(per_image.values()) == [1, 1, 1, 1, 2, 2]
    assert set(dropped["reason"]) == {"sampled_back"} and (dropped["crop"] >= 1).all() and len(dropped) == 16


@pytest.mark.parametrize(("steps", "expected"), [(((6, 1),), 1), (((7, 1), (6, 2)), 2), (((7, 1), (6, 3)), 3), ((), 4)])
def test_how_many_crops_depends_on_the_labels_images(local_store: Store, monkeypatch, steps, expected):
    monkeypatch.setattr(CropParams, "crop_steps", steps)
    plate(local_store, "own", WELLS, shape=(300, 300))
    take_in(local_store, "own")
    label(local_store)
    manifest = crop(local_store)["human"]
    assert manifest.details["num_crops"] == expected
    assert set(Counter(images_of(local_store, manifest)["idx"]).values()) == {expected}


# Kinds of files


PAGES = r"""
[images]
pattern = '(?P<well>[A-H]\d\d)\.tif$'
is_pages = true
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
key = "2"
name = "junk"
is_used = false
[[channels]]
key = "3"
name = "f_actin"
cell_visible = "actin"
[[channels]]
key = "4"
name = "brightfield"
microscopy = "brightfield"
[columns]
organism = { value = "human" }
"""


def paged(store: Store, num: int = 3) -> None:
    files = {f"A{n:02d}.tif": tiff(*(cells((150, 150), 10 * n + k) for k in range(4))) for n in range(1, num + 1)}
    put_source(store, "pages", files, PAGES)
    take_in(store, "pages")


def test_channels_and_modalities_of_one_file_become_images_of_their_own(local_store: Store):
    paged(local_store)
    label(local_store)
    (manifest,) = crop(local_store, CropStageParams(min_images=2)).values()
    rows = {row["idx"]: row for row in label_rows_of(local_store)}
    assert Counter(row["microscopy"] for row in rows.values()) == {"fluorescence": 3, "brightfield": 3}
    for record in images_of(local_store, manifest).to_dict("records"):
        row = rows[record["idx"]]
        number = int(file_of(row["files"][0])[1:3])
        pages = [0, 2] if row["microscopy"] == "fluorescence" else [3]
        gray = gray_of([cells((150, 150), 10 * number + page) for page in pages], False)
        raw = gray[record["y_min"] : record["y_max"], record["x_min"] : record["x_max"]]
        np.testing.assert_array_equal(record["pixels"], np.rint(normalised(raw) * 255).astype(np.uint8))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_number_types_and_byte_orders_do_not_change_an_image(local_store: Store, dtype, byteorder):
    scale = 1 if dtype == np.uint8 else 16
    planes = {
        f"{well}_s1_w1.tif": (cells((150, 150), n).astype(np.int64) * scale).astype(dtype) for n, well in enumerate(WELLS)
    }
    files = {f"images/{name}": tiff(plane, byteorder=byteorder) for name, plane in planes.items()}
    files["wells.csv"] = b"Well,Cell,Drug\nA01,u2os,dmso\nA02,u2os,dmso\nA03,u2os,dmso\n"
    put_source(local_store, "own", files, PLATE)
    take_in(local_store, "own")
    label(local_store, FEW)
    images = images_of(local_store, crop(local_store, CropStageParams(min_images=2))["human"])
    assert len(images) == 12
    for record in images.to_dict("records"):
        gray = gray_of([planes[Path(record["source_path"]).name]], False)
        raw = gray[record["y_min"] : record["y_max"], record["x_min"] : record["x_max"]]
        np.testing.assert_array_equal(record["pixels"], np.rint(normalised(raw) * 255).astype(np.uint8))


def test_a_page_that_is_not_there_is_told(local_store: Store):
    paged(local_store)
    local_store.put("inbox/pages/A04.tif", tiff(cells((150, 150), 1), cells((150, 150), 2)))
    take_in(local_store, "pages")
    label(local_store, ONE_LABEL)
    (manifest,) = crop(local_store, CropStageParams(min_images=2)).values()
    dropped = dropped_of(local_store, manifest)
    assert dropped["detail"].unique().tolist() and all(
        text.endswith("the file has 2 page(s). Correct the recipe's channels.") for text in dropped["detail"]
    )
    assert set(dropped["reason"]) == {"unreadable"} and len(dropped) == 2


# Work


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter:
    read, names = source_images.read_microscopy_image, Counter()

    def counting(path: Path):
        names[path.name] += 1
        return read(path)

    monkeypatch.setattr(source_images, "read_microscopy_image", counting)
    return names


def test_every_file_is_decoded_once_whatever_is_made_of_it(local_store: Store, monkeypatch):
    paged(local_store, 4)
    plate(local_store, "own", WELLS, channels=2, shape=(300, 300))
    take_in(local_store, "own")
    label(local_store, ONE_LABEL)
    names = counted(monkeypatch)
    manifests = crop(local_store, engine=LocalEngine(1))
    files = [file_of(name) for row in label_rows_of(local_store) for name in set(row["files"])]
    assert set(names) == {Path(name).name for name in files} and set(names.values()) == {1}
    assert sum(manifest.counts["images"] for manifest in manifests.values()) > len(names)
    crop(local_store, engine=LocalEngine(1))
    assert set(names.values()) == {1}, "what is up to date is not read again"


def test_every_object_is_fetched_once_from_s3(s3_store: Store, monkeypatch):
    plate(s3_store, "own", WELLS, shape=(300, 300))
    take_in(s3_store, "own")
    label(s3_store)
    fetched: Counter = Counter()
    download = Store.download

    def counting(self, key: str, target):
        fetched[key.rsplit("/", 1)[-1]] += 1
        return download(self, key, target)

    monkeypatch.setattr(Store, "download", counting)
    manifest = crop(s3_store, engine=LocalEngine(1))["human"]
    assert manifest.counts["images"] == 24
    assert fetched == Counter({f"{well}_s{site}_w1.png": 1 for well in WELLS for site in (1, 2)})


def test_pixels_wait_in_scratch_and_leave_nothing_behind(local_store: Store, tmp_path, monkeypatch):
    plate(local_store, "own", WELLS, shape=(300, 300))
    take_in(local_store, "own")
    label(local_store)
    monkeypatch.setenv(environment.SCRATCH.name, str(tmp_path / "scratch"))
    sizes = []
    write = cyto_crops._write_shards

    def looking(commit, spool, kept, records):
        spool.flush()
        sizes.append((os.fstat(spool.fileno()).st_size, sum(item.stop - item.start for item in kept)))
        assert all(item.crop.png == b"" for item in kept), "no pixels are held in memory"
        assert list((tmp_path / "scratch").glob("cem_assets-crops-*/crops.png"))
        return write(commit, spool, kept, records)

    monkeypatch.setattr(cyto_crops, "_write_shards", looking)
    crop(local_store)
    assert len(sizes) == 1 and sizes[0][0] == sizes[0][1] > 0
    assert list((tmp_path / "scratch").iterdir()) == []


def test_large_labels_are_several_shards_with_the_same_rows(local_store: Store, tmp_path, monkeypatch):
    other = open_store(str(tmp_path / "other"))
    for store in (local_store, other):
        plate(store, "own", WELLS, shape=(300, 300))
        take_in(store, "own")
        label(store)
    whole = images_of(local_store, crop(local_store)["human"])
    monkeypatch.setattr(cyto_crops, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(cyto_crops, "IMAGE_ROW_GROUP", 5)
    manifest = crop(other)["human"]
    assert manifest.counts["shards"] == len(manifest.find(".parquet")) > 2
    pd.testing.assert_frame_equal(images_of(other, manifest).drop(columns="pixels"), whole.drop(columns="pixels"))


def test_an_image_has_the_same_crops_whatever_else_its_label_has(local_store: Store):
    """Windows depend on identities, so only images whose idx changes get other crops."""
    plate(local_store, "own", WELLS, shape=(300, 300))
    take_in(local_store, "own")
    label(local_store)
    before = images_of(local_store, crop(local_store)["human"])
    plate(local_store, "other", {"A01": "dmso", "A02": "dmso"}, seed=1, shape=(300, 300))
    take_in(local_store, "other")
    label(local_store)
    after = images_of(local_store, crop(local_store)["human"])
    place = ["idx", "scaling", "x_min", "x_max", "y_min", "y_max", "pixel_sha256", "split"]
    mine = after[after["source"] == "own"]
    order = ["idx", "y_min", "x_min"]
    one, two = (frame[place].sort_values(order, ignore_index=True) for frame in (before, mine))
    pd.testing.assert_frame_equal(one, two)
    assert len(after) > len(before)


def test_a_bug_of_ours_is_not_recorded_as_an_unreadable_image(local_store: Store, monkeypatch):
    def merge(planes, is_colour):
        raise ValueError("operands could not be broadcast together")

    plate(local_store, "own", WELLS)
    take_in(local_store, "own")
    label(local_store)
    monkeypatch.setattr(cyto_images, "merge_image", merge)
    with pytest.raises(ValueError, match="operands") as found:
        crop(local_store)
    assert errors.fault_of(found.value) == Fault.bug and committed_partitions(local_store, CROPS) == []


def test_pages_that_a_file_does_not_have_are_refused():
    pages = {"a.tif": MicroscopyImage((np.zeros((2, 2)), np.ones((2, 2))), False, ())}
    assert planes_of(["a.tif#2"], pages).planes[0].all()
    for name in ("a.tif#0", "a.tif#3"):
        with pytest.raises(DataError, match=f"{name}: the file has 2 page"):
            planes_of([name], pages)


@pytest.mark.parametrize("moment", range(3))
def test_a_killed_run_leaves_nothing_visible_and_is_taken_up(local_store: Store, tmp_path, monkeypatch, moment):
    undisturbed = open_store(str(tmp_path / "undisturbed"))
    for store in (local_store, undisturbed):
        plate(store, "own", WELLS)
        take_in(store, "own")
        label(store)
    with killed_after(moment, monkeypatch):
        crop(local_store)
    assert committed_partitions(local_store, CROPS) == []
    manifest = crop(local_store)["human"]
    assert manifest.digest == crop(undisturbed)["human"].digest and damaged_objects(local_store, manifest) == {}


def test_labels_that_are_not_there_are_told(local_store: Store):
    with pytest.raises(FileNotFoundError, match=f"asset {LABEL_TABLE} has nothing committed"):
        make_crops(local_store, "dmso-12345678", CROPPING)
    plate(local_store, "own", WELLS)
    take_in(local_store, "own")
    (entry,) = label(local_store).values()
    with pytest.raises(KeyError, match=f"no label with the key 'dmso-12345678'; it has 1, such as {entry.key}"):
        make_crops(local_store, "dmso-12345678", CROPPING)
