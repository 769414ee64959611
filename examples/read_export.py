"""Read an export of `cem-assets export cem DIR --format tiff-tree|webdataset|hf` back, with none of our code.

    python examples/read_export.py DIR

Checks every file against SHA256SUMS, then reads all patches and adds up their pixels.
"""

import csv
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tifffile


def check(folder: Path) -> int:
    """Compare every file with its checksum, as `sha256sum --check SHA256SUMS` does; return how many there are."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, path = line.split("  ", 1)
        with open(folder / path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise SystemExit(f"{path} is damaged: it has another checksum than SHA256SUMS says. Export again.")
    return len(lines)


def patches(folder: Path, form: str) -> Iterator[tuple[str, np.ndarray]]:
    """Read (name, pixels) of every patch."""
    if form == "tiff-tree":
        with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["name"], tifffile.imread(folder / row["file"])
    elif form == "webdataset":
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                images = {}
                for member in tar:
                    stem, ending = member.name.rsplit(".", 1)
                    data = tar.extractfile(member).read()
                    if ending == "tiff":
                        images[stem] = tifffile.imread(io.BytesIO(data))
                    else:
                        images[stem, "name"] = json.loads(data)["name"]
            yield from ((images[stem, "name"], image) for stem, image in images.items() if isinstance(stem, str))
    else:
        for path in sorted(folder.glob("data/*/*.parquet")):
            for batch in pq.ParquetFile(path).iter_batches(256, columns=["name", "image"]):
                for row in batch.to_pylist():
                    yield row["name"], tifffile.imread(io.BytesIO(row["image"]["bytes"]))


def main() -> None:
    """Check and read an export."""
    folder = Path(sys.argv[1])
    num_files = check(folder)
    about = json.loads((folder / "release.json").read_bytes())
    num = total = 0
    for _, image in patches(folder, about["format"]):
        if image.dtype != np.uint8 or image.ndim != 2:
            raise SystemExit(f"found {image.dtype} {image.shape}; expected single-channel uint8")
        num, total = num + 1, total + int(image.sum())
    print(f"{about['release']} as {about['format']}: {num_files} files are whole, {num} patches, sum of pixels {total}")


if __name__ == "__main__":
    main()
