"""The second part of the demo: CytoImageNet on a fluorescence phantom, from three sources to a release.

The sources resemble those of real laboratories: tables in several layouts, images in folders of their own, and a `source.toml`
with a recipe for each. Thresholds are small (`settings/cytoimagenet.toml` of the demo's store), so that a few hundred images
are enough for labels.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile

from cem_assets.cytoimagenet.labels.stage import label_entries
from cem_assets.cytoimagenet.phantom.screens import PhantomSource, draw_field, phantom_sources
from cem_assets.cytoimagenet.reconciliation import SETTINGS, read_cyto_settings
from cem_assets.cytoimagenet.releases.stage import CARD, list_cyto_releases
from cem_assets.cytoimagenet.sources.inbox import register_source
from cem_assets.store.assets import CLASS_MAPS, CROPS, LABEL_TABLE
from cem_assets.store.manifests import require_manifest
from cem_assets.store.store import Store

SEED = 7
_SETTINGS = """\
# Written by `make demo`: thresholds for a few hundred images. Remove this file for the published ones.
[label_table]
min_images = 12
max_images = 60
presample_images = 100

[crops]
min_images = 24
"""

_RECIPES = {
    "phantom_painting": r"""
[[tables]]
name = "wells"
files = ["wells.csv"]
[[tables]]
name = "compounds"
files = ["compounds.txt"]
[[joins]]
table = "compounds"
on = { Compound_ID = "Compound_ID" }
[images]
pattern = 'images/(?P<plate>[^/]+)/[^/]+?_(?P<well>[A-H]\d\d)_s(?P<site>\d+)_w(?P<channel>\d)\.tif$'
on = { Plate = "{plate}", Well = "{well}" }
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
key = "2"
name = "f_er"
cell_visible = "endoplasmic reticulum"
[[channels]]
key = "3"
name = "f_actin"
cell_visible = "actin"
[[channels]]
key = "4"
name = "f_mitochondria"
cell_visible = "mitochondria"
[columns]
organism = { column = "Organism" }
cell_type = { column = "Cell_Line" }
compound = { column = "Compound_Name" }
phenotype = { column = "Mechanism" }
""",
    "phantom_knockdown": r"""
[[tables]]
name = "library"
files = ["library.txt"]
[images]
pattern = '(?P<plate>[^/]+)/(?P<well>[A-H]\d\d)/[^/]+_f(?P<site>\d+)_ch(?P<channel>\d)\.tiff$'
on = { Plate = "{plate}", Well = "{well}" }
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
key = "2"
name = "f_microtubules"
cell_visible = "microtubules"
[columns]
organism = { column = "Characteristics [Organism]" }
cell_type = { column = "Characteristics [Cell Line]" }
gene = { column = "Gene Symbol" }
sirna = { column = "siRNA Identifier" }
""",
    "phantom_lineup": r"""
[[tables]]
name = "images"
files = ["images.csv"]
columns = ["path", "plate", "well", "site", "cell_type", "organism"]
[images]
pattern = '(?P<file>stacks/.+\.tif)$'
on = { path = "{file}" }
is_pages = true
[[channels]]
key = "1"
name = "f_nucleus"
cell_visible = "nucleus"
[[channels]]
key = "2"
name = "f_actin"
cell_visible = "actin"
[[channels]]
key = "3"
name = "f_er"
cell_visible = "endoplasmic reticulum"
[columns]
organism = { column = "organism" }
cell_type = { column = "cell_type" }
""",
}


def write_phantom_source(source: PhantomSource, folder: Path) -> None:
    """Write a phantom source as a folder of tables and images with its `source.toml`."""
    folder.mkdir(parents=True)
    for name, data in source.tables.items():
        (folder / name).write_bytes(data)
    for field in source.fields:
        planes = draw_field(field)
        by_file: dict[str, list[str]] = {}
        for channel, path in field.channel_files.items():
            by_file.setdefault(path, []).append(channel)
        for path, channels in by_file.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.stack([planes[channel] for channel in channels])
            tifffile.imwrite(
                folder / path, pixels if len(channels) > 1 else pixels[0], photometric="minisblack", software=False
            )
    head = [f'name = "{source.name}"', f'title = "{source.title}"', 'database = "phantom"', f'dir_name = "{source.name}"']
    head += [f'licence = "{source.licence}"', f'citation = "{source.citation}"']
    (folder / "source.toml").write_text("\n".join(head) + "\n" + _RECIPES[source.name], encoding="utf-8")


def run_cyto_demo(store: Store, folder: Path, run: Callable[..., None]) -> Iterator[str]:
    """Take the phantom sources in and make a release of them.

    Args:
        folder: For the sources' files.
        run: Runs a job: its name, then `partition` and `config`.

    Yields:
        Lines for the person who watches.
    """
    sources = phantom_sources(SEED)
    for source in sources:
        write_phantom_source(source, folder / source.name)
        register_source(store, folder / source.name, replace=True)
    num_fields = sum(len(source.fields) for source in sources)
    yield f"{', '.join(source.name for source in sources)}: {num_fields} fields of a seeded fluorescence phantom were made"
    if store.size(SETTINGS) is None:
        store.put(SETTINGS, _SETTINGS.encode())
    settings = read_cyto_settings(store)
    for source in sources:
        run("cyto_sources", partition=source.name)
    run("cyto_label_table", config={LABEL_TABLE: settings.config[LABEL_TABLE]})
    entries = label_entries(store, require_manifest(store, LABEL_TABLE))
    for key in entries:
        run("cyto_crops", partition=key, config={CROPS: settings.config[CROPS]})
    # Only a few images of each class are mapped, because more would take minutes without a GPU.
    run("cyto_release", config={CLASS_MAPS: {"max_images": 8}})
    release = list_cyto_releases(store)[-1]
    counts = release.counts
    yield (
        f"\nCytoImageNet release {release.inputs.partition}: {counts['images']:,} images of {counts['labels']} labels from "
        f"{counts['sources']} sources, {counts['validation']:,} for validation"
    )
    yield f"  dataset card:  {store.url_of(f'{release.folder}/{CARD}')}"
    yield "  as folders:    cem-assets export cytoimagenet DIR"
