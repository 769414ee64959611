"""Sorting a dataset's files into volumes, stacks of slices and 2D images.

Each volume file is one volume, and a folder of 2D slices is one volume. No voxels are read here;
`cem_assets.cem.volumes.standardize` does that.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from cem_assets.catalog.description import DatasetDescription
from cem_assets.errors import DataError
from cem_assets.formats import SLICE_FORMATS, expected_suffixes, kind_of, open_file
from cem_assets.formats.decoding import decoding
from cem_assets.formats.stacks import natural_key
from cem_assets.formats.tiff import tiff_file
from cem_assets.formats.zarr.stores import list_zarr_stores
from cem_assets.inbox.datasets import DESCRIPTION, MAX_NAME, InboxDataset, Rejection, shown_path

_SIDECARS = frozenset(
    {
        ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".xlsx", ".xls", ".pdf", ".html", ".toml", ".yaml",
        ".yml", ".log", ".bib", ".sha256", ".md5", ".raw",
    }
)  # fmt: skip
"""Suffixes of files that may be beside images without being images; an .nhdr header refers to a `.raw` file."""


@dataclass(frozen=True)
class Intake:
    """One volume or image that will be made.

    Attributes:
        kind: "file" (one file), "stack" (2D slices, in order) or "zarr" (a folder).
        paths: The files, or the Zarr folder, relative to the dataset's folder.
    """

    name: str
    kind: str
    paths: tuple[str, ...]


def intakes(dataset: InboxDataset, is_single_image: dict[str, bool]) -> tuple[list[Intake], list[Rejection]]:
    """Sort a dataset's files into volumes or images.

    Args:
        is_single_image: For every file of `slice_candidates`, whether it holds one 2D image.

    Returns:
        What will be made, in natural order of name, and the files that cannot be used.
    """
    paths = [item.path for item in dataset.files if item.path != DESCRIPTION]
    found: list[Intake] = []
    rejections: list[Rejection] = []
    stores = list_zarr_stores(paths)
    inside = {path for members in stores.values() for path in members}
    found += [Intake(_name_of(root, _zarr_stem(root)), "zarr", (root,)) for root in stores]
    loose: dict[str, list[str]] = {}
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        if path in inside:
            continue
        if kind_of(name) is None:
            if Path(name).suffix.lower() not in _SIDECARS:
                rejections.append(
                    Rejection(path, f"no suffix of a known format; expected one of {expected_suffixes()}. Rename or remove it.")
                )
            continue
        loose.setdefault(path.rpartition("/")[0], []).append(path)
    for folder, members in loose.items():
        slices = [path for path in members if is_single_image.get(path, False)]
        if dataset.description.kind == "images" or not slices:
            found += [Intake(_name_of(path, _stem(path)), "file", (path,)) for path in members]
        elif len(slices) == len(members):
            ordered = sorted(slices, key=lambda path: natural_key(path.rsplit("/", 1)[-1]))
            name = _name_of(folder, folder.rsplit("/", 1)[-1]) if folder else dataset.name
            found.append(Intake(name, "stack", tuple(ordered)))
        else:
            volumes = [path for path in members if path not in slices]
            found += [Intake(_name_of(path, _stem(path)), "file", (path,)) for path in volumes]
            rejections += [
                Rejection(
                    path,
                    f"a single 2D image among {len(volumes)} volume file(s); expected only volumes, or only slices of one "
                    "volume, in a folder. Move the slices to a folder of their own.",
                )
                for path in slices
            ]
    return _distinct(sorted(found, key=lambda item: natural_key(item.name)), rejections)


def _distinct(found: list[Intake], rejections: list[Rejection]) -> tuple[list[Intake], list[Rejection]]:
    kept: dict[str, Intake] = {}
    for item in found:
        if len(item.name) > MAX_NAME:
            rejections.append(
                Rejection(
                    shown_path(item.paths[0]),
                    f"its name has {len(item.name)} characters; expected at most {MAX_NAME}. Rename it.",
                )
            )
        elif item.name in kept:
            rejections.append(
                Rejection(
                    item.paths[0],
                    f"it would be named {item.name!r} like {kept[item.name].paths[0]!r}; expected distinct names. "
                    "Rename one of them.",
                )
            )
        else:
            kept[item.name] = item
    return list(kept.values()), rejections


def _stem(path: str) -> str:
    kind = kind_of(path.rsplit("/", 1)[-1])
    assert kind is not None  # callers have checked that
    return kind.stem


def _zarr_stem(root: str) -> str:
    return re.sub(r"(\.ome)?\.(zarr|n5)$", "", root.rsplit("/", 1)[-1], flags=re.IGNORECASE)


def _name_of(path: str, stem: str) -> str:
    """Return the name of a volume: that of its file, after those of its folders, joined with dashes so that names differ."""
    folders = path.split("/")[:-1]
    return unicodedata.normalize("NFC", "-".join([*folders, stem]))


def slice_candidates(dataset: InboxDataset) -> list[str]:
    """List the files that may be slices of a volume, which only their contents tell; none for datasets of kind "images"."""
    if dataset.description.kind == "images":
        return []
    candidates = []
    for item in dataset.files:
        kind = kind_of(item.path.rsplit("/", 1)[-1])
        if kind is not None and kind.format in SLICE_FORMATS and not kind.compression:
            candidates.append(item.path)
    return candidates


def holds_one_image(path: Path, scratch: Path, description: DatasetDescription) -> bool:
    """Tell whether a file is one 2D image, by its header where the format allows that.

    A damaged TIFF file counts as an image, and a damaged file of another format that may hold volumes as a volume. What is
    wrong with it is said when it is opened for its voxels.
    """
    kind = kind_of(path.name)
    if kind is None or kind.format in ("PNG", "JPEG"):
        return True
    try:
        if kind.format == "TIFF":
            with decoding(path, kind.format), tiff_file(path) as tif:
                if tif.is_imagej or tif.is_ome or tif.is_shaped:
                    sizes = dict(zip(tif.series[0].axes, tif.series[0].shape, strict=True))
                    return all(int(size) == 1 for name, size in sizes.items() if name not in "YXSC")
                return len(tif.pages) == 1 or all(page.is_reduced for page in tif.pages[1:])
        return open_file(path, scratch, description).is_image
    except DataError:
        return kind.format == "TIFF"
