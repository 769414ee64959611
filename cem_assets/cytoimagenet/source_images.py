"""The images of CytoImageNet's sources, read from the inbox."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cem_assets.cytoimagenet.sources.stage import file_of, page_of
from cem_assets.errors import DataError
from cem_assets.formats.microscopy_images import MicroscopyImage, read_microscopy_image
from cem_assets.inbox.local import local_paths
from cem_assets.store.local import file_sha256
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store


def read_images(store: Store, source: str, digests: Mapping[str, str]) -> dict[str, MicroscopyImage]:
    """Read files of a source in the inbox.

    Args:
        digests: The sha256 of each file by its path, as the metadata recorded it.

    Raises:
        FileNotFoundError: A file is missing.
        DataError: A file changed since then, or cannot be decoded.
    """
    images = {}
    with scratch_folder("images") as scratch, local_paths(store, source, digests, scratch) as paths:
        for (name, digest), path in zip(digests.items(), paths, strict=True):
            if file_sha256(path) != digest:
                raise DataError(f"{name} changed since its source was read; materialize cytoimagenet/source_metadata again")
            images[name] = read_microscopy_image(path)
    return images


def planes_of(files: Sequence[str], images: dict[str, MicroscopyImage]) -> MicroscopyImage:
    """Collect the planes of an image from the pages and files that the metadata names, in order of channel.

    Raises:
        DataError: A file has no such page.
    """
    if len(files) == 1 and page_of(files[0]) is None:
        return images[files[0]]
    planes: list[NDArray[Any]] = []
    for name in files:
        image, page = images[file_of(name)], page_of(name)
        if page is not None:
            if not 0 <= page < len(image.planes):
                raise DataError(f"{name}: the file has {len(image.planes)} page(s). Correct the recipe's channels.")
            planes.append(image.planes[page])
        elif image.is_colour:  # a single stain saved in colour
            planes.append(np.asarray(np.mean(np.stack(image.planes), axis=0, dtype=np.float32)))
        else:
            planes += image.planes
    return MicroscopyImage(tuple(planes), False, ())
