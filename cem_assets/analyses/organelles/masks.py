"""Pictures with masks of organelles: a folder with `images/` and `masks/`, files of equal names.

The organelle of a mask is the name of its subfolder of `masks/`, or the name of the file without the number at its end:
`mitochondria2.png` shows mitochondria. Pictures without masks are `cem_assets.analyses.images`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cem_assets.analyses.images import IMAGES_FOLDER, open_folder, picture_paths, read_picture, read_plain
from cem_assets.benchmarks.data.files import BenchmarkFiles
from cem_assets.errors import DataError
from cem_assets.formats import kind_of
from cem_assets.inbox.datasets import shown_path
from cem_assets.store.store import Store

MASKS_FOLDER = "masks"
DEFAULT_FOLDER = "analyses/inbox/organelles"
"""Folder of the store that is used unless another one is named."""
_NUMBER = re.compile(r"[\s_.-]*\d+$")


class MaskedParams(BaseModel):
    """Which pictures and masks are used.

    Attributes:
        folder: With `images/` and `masks/`: an absolute path of the machine that runs this, or a folder of the store. Results
            depend on its files, not on its name.
        max_images: Largest number of each organelle, the first in order of name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = DEFAULT_FOLDER
    max_images: Annotated[int, Field(ge=1, le=1000)] = 32


@dataclass(frozen=True)
class Masked:
    """A picture and the mask of an organelle in it.

    Attributes:
        name: Name of both files, without suffix.
        organelle: Name of the organelle in the mask.
        image: uint8 (height, width).
        mask: bool (height, width).
    """

    name: str
    organelle: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class MaskedPlan:
    """Pairs of files, known before any of them is read.

    Attributes:
        source: The source of the pictures in words, for titles.
        upstream: Their digests, as the inputs of a manifest list them.
        organelles: Names, in order; of each the (image, mask) paths.
    """

    source: str
    upstream: dict[str, str]
    organelles: dict[str, tuple[tuple[str, str], ...]]
    _files: BenchmarkFiles

    def read(self, organelle: str) -> list[Masked]:
        """Read the pictures and masks of one organelle.

        Raises:
            DataError: Files cannot be read, sizes differ, or a mask has not two gray values. The text names all problems.
        """
        found, problems = [], []
        for image_path, mask_path in self.organelles[organelle]:
            try:
                image, values = read_picture(self._files, image_path), read_plain(self._files, mask_path)
                mask = _mask_of(values, shown_path(mask_path))
            except DataError as error:
                problems.append(str(error).rstrip("."))
                continue
            if image.shape != mask.shape:
                problems.append(
                    f"{shown_path(mask_path)} has {mask.shape[0]} x {mask.shape[1]} px, its image {image.shape[0]} x "
                    f"{image.shape[1]}; expected the same"
                )
                continue
            found.append(Masked(_name_of(image_path.split("/", 1)[1]), organelle, image, mask))
        if problems:
            raise DataError(f"{len(problems)} picture(s) of {organelle} cannot be used: {'; '.join(problems[:10])}.")
        return found


def plan_masked(store: Store, params: MaskedParams) -> MaskedPlan:
    """Pair the images and masks of a folder.

    Raises:
        FileNotFoundError: There is no such folder.
        DataError: An image has no mask, a mask has no image, or a name occurs twice. The text names all problems.
    """
    files = open_folder(store, params.folder)
    paths = picture_paths(files, params.folder)
    problems: list[str] = []
    images, masks = (_by_name(paths, which, problems) for which in (IMAGES_FOLDER, MASKS_FOLDER))
    bare = {PurePosixPath(name).name: name for name in masks}
    if len(bare) < len(masks):
        problems.append(f"masks in several subfolders of {MASKS_FOLDER}/ have one name; expected each image's mask once")
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name, path in images.items():
        of_mask = bare.pop(PurePosixPath(name).name, None)
        if of_mask is None:
            problems.append(f"{shown_path(path)} has no mask of its name in {MASKS_FOLDER}/")
            continue
        pairs.setdefault(_organelle(of_mask), []).append((path, masks[of_mask]))
    problems += [f"{shown_path(masks[name])} has no image of its name in {IMAGES_FOLDER}/" for name in bare.values()]
    if not images and not masks:
        problems = [f"there are no pictures in {IMAGES_FOLDER}/ and {MASKS_FOLDER}/"]
    if problems:
        raise DataError(
            f"{params.folder!r:.200} cannot be used: {'; '.join(problems[:10])}. Expected {IMAGES_FOLDER}/NAME.png and "
            f"{MASKS_FOLDER}/NAME.png for every NAME."
        )
    kept = {organelle: tuple(sorted(found)[: params.max_images]) for organelle, found in sorted(pairs.items())}
    listing = hashlib.sha256()
    for path in sorted(path for found in kept.values() for pair in found for path in pair):
        listing.update(f"{path}\t{files.sha256(path)}\n".encode())
    return MaskedPlan(f"pictures of {PurePosixPath(params.folder).name}", {"folder": listing.hexdigest()}, kept, files)


def _by_name(paths: list[str], which: str, problems: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        if not path.startswith(f"{which}/"):
            continue
        name = _name_of(path.split("/", 1)[1])
        if name in found:
            problems.append(f"{shown_path(path)} and {shown_path(found[name])} have one name")
        found[name] = path
    return found


def _name_of(path: str) -> str:
    place = PurePosixPath(path)
    kind = kind_of(place.name)
    assert kind is not None  # others were skipped
    return str(place.with_name(kind.stem)) if kind.stem else path


def _organelle(name: str) -> str:
    place = PurePosixPath(name)
    return place.parts[0] if len(place.parts) > 1 else _NUMBER.sub("", place.name) or place.name


def _mask_of(values: NDArray[np.generic], what: str) -> NDArray[np.bool_]:
    found = np.unique(values)
    if len(found) != 2:
        raise DataError(
            f"{what} has {len(found)} gray value(s), expected two, one for the organelle and one for the rest. Save it as 0 "
            "and 255, without lossy compression"
        )
    return np.asarray(values == found[1])
