"""Small microscopy sources for tests in the inbox of a store, and the chain from there to a release without Dagster.

A plate is a table of wells and one drawn picture for each site and channel; `cem_assets_tests.datasets.cells` draws single
pictures. `cem_assets.cytoimagenet.phantom.screens` has larger sources with faults.
"""

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tifffile
import tomlkit
from PIL import Image

from cem_assets.cytoimagenet.crops.images import CropStageParams
from cem_assets.cytoimagenet.crops.stage import DROPPED, make_crops
from cem_assets.cytoimagenet.held_out.stage import fingerprint_test_images
from cem_assets.cytoimagenet.labels.stage import LabelEntry, LabelTableParams, label_entries, make_label_table
from cem_assets.cytoimagenet.releases.stage import make_cyto_release
from cem_assets.cytoimagenet.sources.stage import standardize_source
from cem_assets.cytoimagenet.tables import read_frame
from cem_assets.execution.local import Engine, LocalEngine
from cem_assets.store.assets import CROPS, LABEL_TABLE
from cem_assets.store.commits import ContentFolder
from cem_assets.store.manifests import Manifest, require_manifest
from cem_assets.store.store import Store
from cem_assets_tests.datasets import cells

LABELS = LabelTableParams(min_images=4, max_images=60, presample_images=100)
"""Thresholds of the label table for sources of a few dozen images."""
CROPPING = CropStageParams(min_images=4)

PLATE = r"""
[[tables]]
name = "wells"
files = ["wells.csv"]
[images]
pattern = 'images/(?P<well>[A-H]\d\d)_s(?P<site>\d+)_w(?P<channel>\d)\.(?:png|tif|jpg|C01)$'
on = { Well = "{well}" }
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
key = "2"
name = "f_actin"
cell_visible = "actin"
[columns]
organism = { value = "Homo sapiens" }
cell_type = { column = "Cell" }
compound = { column = "Drug" }
"""

EVERY_IMAGE = r"""
[images]
pattern = '(?P<image>.+)\.(?i:tiff?|png|jpe?g|bmp|gif|c01)$'
[columns]
organism = { value = "human" }
"""
"""A recipe in which every image file is an image of its own, with the organism "human"."""


def facts_of(name: str, **facts: str) -> str:
    """Write the first lines of a `source.toml`."""
    known = {"name": name, "title": f"The source {name}", "licence": "CC0-1.0", "citation": "Test et al. 2026", **facts}
    return "".join(f"{key} = {tomlkit.item(value).as_string()}\n" for key, value in known.items())


def put_source(store: Store, name: str, files: Mapping[str, bytes | Path], sections: str, **facts: str) -> str:
    """Put a source into the inbox of a store; its `source.toml` comes last."""
    for path, data in files.items():
        store.put(f"inbox/{name}/{path}", data)
    store.put(f"inbox/{name}/source.toml", (facts_of(name, **facts) + sections).encode())
    return name


def put_shipped(store: Store, recipe: str, files: Mapping[str, bytes | Path], **facts: str) -> str:
    """Put a source with one of the shipped recipes into the inbox, under the recipe's name."""
    for path, data in files.items():
        store.put(f"inbox/{recipe}/{path}", data)
    keys = {"name": recipe, "recipe": recipe, **facts}
    store.put(f"inbox/{recipe}/source.toml", "".join(f'{key} = "{value}"\n' for key, value in keys.items()).encode())
    return recipe


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def jpeg(pixels: np.ndarray, quality: int = 85) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def tiff(*planes: np.ndarray, **options: object) -> bytes:
    """Write planes as the pages of one TIFF file."""
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, **{key: options.pop(key) for key in ("byteorder",) if key in options}) as writer:
        for plane in planes:
            writer.write(plane, metadata=None, software=False, contiguous=False, **{"photometric": "minisblack", **options})
    return sink.getvalue()


def plate(
    store: Store,
    name: str,
    wells: Mapping[str, str],
    sites: int = 2,
    channels: int = 1,
    shape: tuple[int, int] = (150, 160),
    cell_type: str = "u2os",
    seed: int = 0,
    order: str = "",
    more: Mapping[str, bytes] | None = None,
    **facts: str,
) -> str:
    """Put a plate with a compound in each well into the inbox.

    Args:
        name: Name of the source.
        wells: Compound by well, such as {"A01": "taxol"}.
        sites: Number of sites in each well.
        channels: Number of pictures of each site.
        shape: Height and width of a picture in px.
        seed: Seed of the pictures, which also depend on well, site and channel.
        order: The wells in the order of the table's lines, separated by blanks; empty keeps the order of `wells`.
        more: Further files, which replace pictures of the same name.
        facts: Further keys of `source.toml`.
    """
    lines = [f"{well},{cell_type},{wells[well]}" for well in (order.split() or wells)]
    files = {"wells.csv": ("Well,Cell,Drug\n" + "\n".join(lines) + "\n").encode()}
    for well in wells:
        for site in range(1, sites + 1):
            for channel in range(1, channels + 1):
                number = (seed * 97 + (ord(well[0]) - 65) * 12 + int(well[1:])) * 100 + site * 10 + channel
                files[f"images/{well}_s{site}_w{channel}.png"] = png(cells(shape, number))
    return put_source(store, name, {**files, **(more or {})}, PLATE, **facts)


# The chain


def take_in(store: Store, *names: str) -> dict[str, Manifest]:
    return {name: standardize_source(store, name).manifest for name in names}


def rows_of(store: Store, source: str) -> pd.DataFrame:
    """Read the committed rows of a source."""
    return read_frame(store, require_manifest(store, "cytoimagenet/source_metadata", source), "part-00000.parquet")


def label(store: Store, params: LabelTableParams = LABELS) -> dict[str, LabelEntry]:
    """Make the label table, and return its labels by name."""
    manifest = make_label_table(store, params).manifest
    return {entry.label: entry for entry in label_entries(store, manifest).values()}


def crop(store: Store, params: CropStageParams = CROPPING, engine: Engine | None = None) -> dict[str, Manifest]:
    """Make the crops of every label, in this process if no engine is given, and return the manifests by label."""
    chosen = engine or LocalEngine(1)
    entries = label_entries(store, require_manifest(store, LABEL_TABLE))
    return {entry.label: make_crops(store, key, params, engine=chosen).manifest for key, entry in entries.items()}


def keys_of(store: Store) -> dict[str, str]:
    """Read the partition keys of the labels in the label table, by label."""
    return {entry.label: key for key, entry in label_entries(store, require_manifest(store, LABEL_TABLE)).items()}


def images_of(store: Store, manifest: Manifest) -> pd.DataFrame:
    """Read all columns of a label's images, with decoded pixels in the column `pixels`."""
    tables = [pq.read_table(io.BytesIO(store.read(f"{manifest.folder}/{item.name}"))) for item in manifest.find(".parquet")]
    frame = pd.concat([table.to_pandas() for table in tables], ignore_index=True)
    frame["pixels"] = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in frame["image"]]
    return frame


def dropped_of(store: Store, manifest: Manifest) -> pd.DataFrame:
    return read_frame(store, manifest, DROPPED)


def crops_of(store: Store, label_name: str) -> Manifest:
    """Read the current manifest of a label's crops."""
    entries = label_entries(store, require_manifest(store, LABEL_TABLE)).values()
    return require_manifest(store, CROPS, next(entry.key for entry in entries if entry.label == label_name))


def quarantined(store: Store, source: str) -> dict | None:
    """Read the report of a source in quarantine; None if there is no report."""
    key = f"quarantine/{source}/report.json"
    return None if store.size(key) is None else json.loads(store.read(key))


WELLS = {"A01": "dmso", "A02": "dmso", "B01": "taxol", "B02": "taxol", "C01": "", "C02": ""}


def chain(store: Store) -> Manifest:
    """Make two plates and everything from their metadata to a release."""
    plate(store, "one", WELLS, channels=2)
    plate(store, "two", dict(list(WELLS.items())[:4]), seed=1, cell_type="hela", licence="CC BY 4.0", citation="Others 2025")
    take_in(store, "one", "two")
    fingerprint_test_images(store)
    label(store)
    crop(store)
    return make_cyto_release(store).manifest


def copy_of(source: Store, target: Store) -> Store:
    """Copy a local store into another one, and keep the times of files."""
    shutil.copytree(source.url, target.url, dirs_exist_ok=True)
    return target


@contextmanager
def killed_after(num_writes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt what runs here, as if the process were killed, at the first write to a store after `num_writes` writes."""
    write, create, calls = ContentFolder.write, Store.create, []

    def dies(real):
        def step(self, *args):
            calls.append(args[0])
            if len(calls) > num_writes:
                raise KeyboardInterrupt
            return real(self, *args)

        return step

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ContentFolder, "write", dies(write))
        patched.setattr(Store, "create", dies(create))
        yield
