"""Writing a release of CytoImageNet in the form in which it was published: `{label}/{label}-{number}.png` and `metadata.csv`.

`torchvision.datasets.ImageFolder` can open the folder. An export that was stopped continues when it is started again.
"""

import json
import os
import tempfile
from pathlib import Path

import pandas as pd

from cem_assets.cytoimagenet.columns import RELEASE_COLUMNS
from cem_assets.cytoimagenet.releases.stage import CARD, LISTING, METADATA, require_cyto_release
from cem_assets.cytoimagenet.tables import read_frame
from cem_assets.errors import DataError
from cem_assets.execution.stage import Progress, no_progress
from cem_assets.store.parquet import parquet_file
from cem_assets.store.store import Store


def export_cytoimagenet(store: Store, folder: Path, version: str = "", progress: Progress = no_progress) -> int:
    """Write a release as a folder of PNG files.

    Args:
        folder: It is created if it is missing. The dataset card, `splits.csv` and `metadata.csv` (the published columns) are
            written last, so a folder that has them is complete.
        version: Version of the release; empty takes the newest.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: There is no such release.
        FileExistsError: The folder holds another release, or other files.
    """
    manifest = require_cyto_release(store, version)
    listing = json.loads(store.read(f"{manifest.folder}/{LISTING}"))
    metadata = read_frame(store, manifest, METADATA)
    marker = folder / "release.json"
    mark = json.dumps({"release": manifest.inputs.partition, "digest": manifest.digest}).encode()
    if marker.is_file() and marker.read_bytes() != mark:
        raise FileExistsError(f"{folder} holds another release ({marker.read_text()}); export to an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not marker.is_file():
        raise FileExistsError(f"{folder} is not empty; export to a new folder.")
    _write(marker, mark)
    done = 0
    for label in listing["labels"]:
        for item in label["objects"]:
            with store.open(f"{label['folder']}/{item['name']}") as handle:
                for batch in parquet_file(handle).iter_batches(256, columns=["path", "filename", "image"]):
                    for row in batch.to_pylist():
                        _write(_place(folder, row["path"], row["filename"]), row["image"]["bytes"])
                    done += len(batch)
                    progress(done, len(metadata))
    _write(folder / CARD, store.read(f"{manifest.folder}/{CARD}"))
    _write(folder / "splits.csv", _csv(metadata[["path", "filename", "split"]]))
    _write(folder / "metadata.csv", _csv(metadata[list(RELEASE_COLUMNS)]))
    return done


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()


def _place(folder: Path, path: str, filename: str) -> Path:
    """Return the path of an image: in a folder named like the last part of its path, and never outside of `folder`."""
    name = path.rpartition("/")[2]
    if any(part in ("", ".", "..") or Path(part).name != part for part in (name, filename)):
        raise DataError(
            f"the release has an image at {path!r} named {filename!r}, which is not a plain name. The release was altered "
            "after it was made; materialize a new one."
        )
    return folder / name / filename


def _write(path: Path, data: bytes) -> None:
    """Write a file as a whole, unless it exists with the same bytes."""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    path.parent.mkdir(exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).replace(path)
    path.chmod(0o644)
