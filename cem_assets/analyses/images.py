"""The images that analyses of weights use: patches of datasets or of a release, or pictures of a folder.

The same parameters choose the same images for all weights, which is what makes their results comparable. Pictures with masks of
organelles are `cem_assets.analyses.organelles.masks`; files of a folder, local or in the store, are read as those of
benchmarks.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.benchmarks.data.files import BenchmarkFiles, FolderFiles, StoreFiles
from cem_assets.catalog.description import DatasetDescription
from cem_assets.cem.releases.stage import LISTING, list_releases
from cem_assets.errors import DataError
from cem_assets.formats import kind_of
from cem_assets.formats.stacks import read_plane
from cem_assets.imaging.intensity import default_policy, mapping_for
from cem_assets.inbox.datasets import shown_path
from cem_assets.pixels.image_cells import SIDE_PX
from cem_assets.store.assets import FILTERED, RELEASES
from cem_assets.store.images import decode_image
from cem_assets.store.manifests import committed_partitions, require_manifest
from cem_assets.store.parquet import parquet_file
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store, check_key

logger = logging.getLogger(__name__)

IMAGES_FOLDER = "images"
"""Folder beside `masks/`. Where it exists, images are taken from it alone."""
MAX_FILES = 100_000
MAX_SIDE_PX = 4096
"""Largest side of a picture; larger ones must be cut into patches first, as `cem/raw_patches` does."""
_DESCRIPTION = DatasetDescription(name="analysis", kind="images", pixel_size_nm=(1.0, 1.0), licence="-", citation="-")


class ImageParams(BaseModel):
    """Which images are used: those of `datasets`, of a `release` or of a `folder`; by default those of the newest release.

    Attributes:
        datasets: Names of EM datasets, whose current filtered patches are taken.
        release: Version of `cem/releases`, whose patches are taken.
        folder: Pictures: an absolute path of the machine that runs this, or a folder of the store such as
            `analyses/inbox/cells`. Each subfolder counts as a dataset. Results depend on its files, not on its name.
        num_images: Number of images; for maps of and distances between datasets, the number from each dataset.
        image_seed: Seed of the draw.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: list[str] = Field(default_factory=list)
    release: str = ""
    folder: str = ""
    num_images: Annotated[int, Field(ge=2, le=100_000)] = 256
    image_seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


@dataclass(frozen=True)
class ImageSet:
    """The chosen images.

    Attributes:
        names: Name of each image, such as a patch's name or a path.
        datasets: The dataset of each, or the subfolder.
        images: uint8 (height, width) each, of any size.
    """

    names: tuple[str, ...]
    datasets: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]

    def fitted(self) -> NDArray[np.uint8]:
        """Return all as uint8 (n, 224, 224): the middle of larger ones, smaller ones mirrored outward about their border."""
        return np.stack([_fitted(image) for image in self.images])


@dataclass(frozen=True)
class _Part:
    """The place of a dataset's images: shards of the store, or files.

    Attributes:
        dataset: Its name.
        keys: Parquet files in order, or paths.
    """

    dataset: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class ImagePlan:
    """The images to be read, known before any of them is read.

    Attributes:
        source: The source of the images in words, for titles.
        upstream: Their digests, as the inputs of a manifest list them.
        num_images: Number of images wanted, in all or from each dataset.
        seed: Seed of the draw.
    """

    store: Store
    source: str
    upstream: dict[str, str]
    num_images: int
    seed: int
    _parts: tuple[_Part, ...]
    _files: BenchmarkFiles | None = None

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets from which images can be drawn."""
        return tuple(part.dataset for part in self._parts)

    @property
    def parameters(self) -> dict[str, int]:
        """The parameters that, with the upstream, determine the choice."""
        return {"num_images": self.num_images, "image_seed": self.seed}

    def read(self, is_per_dataset: bool = False) -> ImageSet:
        """Draw and read the images.

        Args:
            is_per_dataset: Whether the number is wanted from every dataset. Otherwise it is shared out evenly, and larger
                datasets make up for small ones.

        Raises:
            DataError: There are fewer than two images, or one cannot be read.
        """
        named = [self._names(part) for part in self._parts]
        sizes = [len(names) for names in named]
        quotas = [min(size, self.num_images) for size in sizes] if is_per_dataset else _shared_out(sizes, self.num_images)
        names: list[str] = []
        datasets: list[str] = []
        images: list[NDArray[np.uint8]] = []
        for part, every, quota in zip(self._parts, named, quotas, strict=True):
            chosen = _draw(part.dataset, every, quota, self.seed)
            found = self._read_files(part, chosen) if self._files is not None else _read_rows(self.store, part, chosen)
            names += [every[row] for row in chosen]
            datasets += [part.dataset] * len(chosen)
            images += found
        if len(images) < 2:
            raise DataError(f"{self.source} has {len(images)} image(s); expected two or more. Give more images.")
        return ImageSet(tuple(names), tuple(datasets), tuple(images))

    def _names(self, part: _Part) -> list[str]:
        if self._files is not None:
            return list(part.keys)
        names: list[str] = []
        for key in part.keys:
            with self.store.open(key) as handle:
                names += parquet_file(handle).read(columns=["name"])["name"].to_pylist()
        return names

    def _read_files(self, part: _Part, chosen: Sequence[int]) -> list[NDArray[np.uint8]]:
        assert self._files is not None
        return [read_picture(self._files, part.keys[row]) for row in chosen]


def plan_images(store: Store, params: ImageParams) -> ImagePlan:
    """Find the images that parameters name, without reading one.

    Raises:
        DataError: More than one source is named, a dataset twice, or the folder has no pictures.
        FileNotFoundError: There is no such dataset or release; the text lists those that exist.
    """
    given = [name for name in ("datasets", "release", "folder") if getattr(params, name)]
    if len(given) > 1:
        raise DataError(f"images are taken from {' and from '.join(given)}; expected one of datasets, release, folder.")
    if params.folder:
        return _folder_plan(store, params)
    if params.datasets:
        if len(set(params.datasets)) < len(params.datasets):
            raise DataError(f"datasets are {', '.join(params.datasets)}; expected each of them once.")
        manifests = [require_manifest(store, FILTERED, name) for name in sorted(params.datasets)]
        parts = tuple(
            _Part(one.inputs.partition, tuple(f"{one.folder}/{item.name}" for item in one.find(".parquet")))
            for one in manifests
        )
        upstream = {f"{FILTERED}/{one.inputs.partition}": one.digest for one in manifests}
        source = f"filtered patches of {', '.join(sorted(params.datasets))}"
    else:
        versions = committed_partitions(store, RELEASES)
        if not versions:
            raise FileNotFoundError(
                f"{store.url} has no release to take images from; name datasets or a folder, or materialize {RELEASES}."
            )
        version = params.release or list_releases(store)[-1].inputs.partition
        if version not in versions:
            raise FileNotFoundError(f"there is no release {version!r:.80}; expected one of {', '.join(versions)}.")
        manifest = require_manifest(store, RELEASES, version)
        listing = json.loads(store.read(f"{manifest.folder}/{LISTING}"))
        parts = tuple(
            _Part(str(one["dataset"]), tuple(f"{one['folder']}/{item['name']}" for item in one["objects"]))
            for one in listing["datasets"]
        )
        upstream = {f"{RELEASES}/{version}": manifest.digest}
        source = f"release {version}"
    return ImagePlan(store, source, upstream, params.num_images, params.image_seed, parts)


def open_folder(store: Store, folder: str) -> BenchmarkFiles:
    """Open a folder of the machine (an absolute path), or of the store.

    Raises:
        FileNotFoundError: It is not there, or empty.
        DataError: The key is not allowed.
    """
    if folder.startswith("/"):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder!r:.200} on this machine. Give the path of a folder.")
        return FolderFiles(Path(folder))
    if not any(True for _ in store.walk(check_key(folder))):
        raise FileNotFoundError(
            f"there is nothing under {folder!r:.200} in {store.url}. Put pictures there, or give the absolute path of a folder "
            "on the machine that runs this."
        )
    return StoreFiles(store, folder)


def picture_paths(files: BenchmarkFiles, folder: str) -> list[str]:
    """List the paths of pictures, in order; files of unknown formats are skipped.

    Raises:
        DataError: A name is not allowed, or there are too many files.
    """
    paths, rejections = files.listed()
    if rejections:
        told = "; ".join(f"{one.what} {one.reason}" for one in rejections[:5])
        raise DataError(f"{folder!r:.200} holds names that are not allowed: {told}")
    if len(paths) > MAX_FILES:
        raise DataError(
            f"{folder!r:.200} holds {len(paths):,} files; expected at most {MAX_FILES:,}. Take it in as a dataset "
            "(`cem-assets ingest`), and name that."
        )
    known = [path for path in paths if kind_of(PurePosixPath(path).name) is not None]
    if passed := len(paths) - len(known):
        logger.info("%s: %d files of unknown formats are skipped", folder, passed)
    return known


def read_picture(files: BenchmarkFiles, path: str) -> NDArray[np.uint8]:
    """Read one picture as uint8 (height, width); deeper ones are mapped by their 0.1 and 99.9 percentiles.

    Raises:
        DataError: It cannot be read, is a stack, too large, or has no contrast to map.
    """
    plane = read_plain(files, path)
    policy = default_policy(plane.dtype)
    try:
        return np.ascontiguousarray(mapping_for(policy, plane.dtype, plane).apply(plane))
    except DataError as error:
        raise DataError(f"{shown_path(path)}: {error}") from error


def read_plain(files: BenchmarkFiles, path: str) -> "NDArray[np.generic]":
    """Read one picture as it is, (height, width).

    Raises:
        DataError: It cannot be read, is a stack, or too large.
    """
    with files.local(path) as local, scratch_folder("analysis-picture") as scratch:
        plane, _ = read_plane(local, scratch, _DESCRIPTION)
    if max(plane.shape) > MAX_SIDE_PX:
        raise DataError(
            f"{shown_path(path)} has {plane.shape[0]} x {plane.shape[1]} px; expected sides of at most {MAX_SIDE_PX}. Cut it, "
            "or take it in as a dataset."
        )
    return plane


def _folder_plan(store: Store, params: ImageParams) -> ImagePlan:
    files = open_folder(store, params.folder)
    paths = picture_paths(files, params.folder)
    if any(path.startswith(f"{IMAGES_FOLDER}/") for path in paths):  # their masks lie beside them
        paths = [path for path in paths if path.startswith(f"{IMAGES_FOLDER}/")]
    if not paths:
        raise DataError(f"{params.folder!r:.200} holds no pictures; expected TIFF, PNG or JPEG files, or other known formats.")
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(path.split("/", 1)[0] if "/" in path else PurePosixPath(params.folder).name, []).append(path)
    listing = hashlib.sha256()
    for path in paths:
        listing.update(f"{path}\t{files.sha256(path)}\n".encode())
    parts = tuple(_Part(name, tuple(inside)) for name, inside in sorted(groups.items()))
    source = f"pictures of {PurePosixPath(params.folder).name}"
    return ImagePlan(store, source, {"folder": listing.hexdigest()}, params.num_images, params.image_seed, parts, files)


def _shared_out(sizes: Sequence[int], num: int) -> list[int]:
    """Share a number out evenly over datasets; small ones give all, and the first get what does not divide."""
    quotas = [0] * len(sizes)
    left = min(num, sum(sizes))
    while left:
        open_ones = [place for place, size in enumerate(sizes) if quotas[place] < size]
        step = max(1, left // len(open_ones))
        for place in open_ones:
            more = min(step, sizes[place] - quotas[place], left)
            quotas[place] += more
            left -= more
    return quotas


def _draw(dataset: str, names: Sequence[str], num: int, seed: int) -> list[int]:
    """Draw rows in the order of a keyed hash of dataset and name, so that more of them only adds; in row order."""
    key = seed.to_bytes(8, "big")
    hashes = [
        hashlib.blake2b(f"{dataset}\n{name}".encode(), digest_size=8, key=key, person=b"analysis").digest() for name in names
    ]
    return sorted(sorted(range(len(names)), key=lambda row: (hashes[row], row))[:num])


def _read_rows(store: Store, part: _Part, chosen: Sequence[int]) -> list[NDArray[np.uint8]]:
    found: list[NDArray[np.uint8]] = []
    first, wanted = 0, list(chosen)
    for key in part.keys:
        with store.open(key) as handle:
            file = parquet_file(handle)
            for group in range(file.num_row_groups):
                num = file.metadata.row_group(group).num_rows
                inside = [row - first for row in wanted if first <= row < first + num]
                first += num
                if inside:
                    cells = file.read_row_group(group, columns=["image"])["image"]
                    found += [decode_image(cells[row].as_py()["bytes"]) for row in inside]
    return found


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    for axis in (0, 1):
        size = image.shape[axis]
        if size > SIDE_PX:
            image = np.take(image, np.arange((size - SIDE_PX) // 2, (size - SIDE_PX) // 2 + SIDE_PX), axis)
        elif size < SIDE_PX:
            before = (SIDE_PX - size) // 2
            widths = [(0, 0), (0, 0)]
            widths[axis] = (before, SIDE_PX - size - before)
            image = np.pad(image, widths, mode="symmetric")
    return np.ascontiguousarray(image)
