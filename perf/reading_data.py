"""The same images in the form that each reader of `perf.reading_peers` stores, written to a disk and then copied to S3.

Every form is divided into the same number of files, so that two workers have equal shares. TIFFs hold one uncompressed patch
each, as the published scripts write them. Readers are in `perf.reading_peers`, timing is in `perf.reading`.
"""

import hashlib
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from cem_assets.cem.phantom import em_phantom
from cem_assets.store.images import image_column
from cem_assets.store.parquet import IMAGE_ROW_GROUP, parquet_bytes, schema_of
from cem_assets.store.store import open_store
from perf.peers import peer

NUM_FILES = 4
_UPLOADING_THREADS = 8


def phantom_patches(num: int) -> list[NDArray[np.uint8]]:
    """Cut patches of 224 x 224 px from a phantom at random places."""
    voxels = _voxels()
    places = np.random.default_rng(0).integers(0, (64, 224, 224), (num, 3))
    return [np.ascontiguousarray(voxels[z, y : y + 224, x : x + 224]) for z, y, x in places.tolist()]


def digests(images: NDArray[np.uint8]) -> list[str]:
    """Return a hash of the pixels of each image."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]


def write_shards(root: Path, images: list[NDArray[np.uint8]], num_files: int) -> list[str]:
    """Write shards as cem/filtered_patches does, without the columns that are not read here; return their names."""
    schema = schema_of(("dataset", pa.string()), ("image", image_column([], []).type))
    size, keys = len(images) // num_files, []
    for number in range(num_files):
        part = images[number * size : (number + 1) * size]
        column = image_column([str(n) for n in range(len(part))], part)
        table = pa.table([pa.array([f"d{number}"] * len(part)), column], schema=schema)
        keys.append(f"part-{number:05d}.parquet")
        (root / keys[-1]).write_bytes(parquet_bytes([table], schema, IMAGE_ROW_GROUP))
    return keys


def write_forms(root: Path, images: list[NDArray[np.uint8]]) -> None:
    """Write all forms, each into a folder of its own: parquet, tar, tiff, litdata-png, litdata-raw."""
    for name in ("parquet", "tar", "tiff"):
        (root / name).mkdir()
    write_shards(root / "parquet", images, NUM_FILES)
    pngs = [_encoded(image, "PNG") for image in images]
    size = len(images) // NUM_FILES
    for number in range(NUM_FILES):
        with tarfile.open(root / f"tar/part-{number:05d}.tar", "w") as tar:
            for n in range(number * size, (number + 1) * size):
                member = tarfile.TarInfo(f"{n:06d}.png")
                member.size = len(pngs[n])
                tar.addfile(member, io.BytesIO(pngs[n]))
    for n, image in enumerate(images):
        (root / f"tiff/{n:06d}.tif").write_bytes(_encoded(image, "TIFF"))
    if peer("litdata") is not None:
        from litdata.streaming import Cache

        samples = {"litdata-png": [{"png": png} for png in pngs], "litdata-raw": [{"pixels": image} for image in images]}
        for name, items in samples.items():
            cache = Cache(str(root / name), chunk_size=max(1, size // 2))
            for n, item in enumerate(items):
                cache[n] = item
            cache.done()
            cache.merge()


def upload(root: Path, bucket: str) -> None:
    """Copy all forms into a bucket."""
    store = open_store(f"s3://{bucket}")
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    with ThreadPoolExecutor(_UPLOADING_THREADS) as pool:
        for _ in pool.map(lambda file: store.put(file.relative_to(root).as_posix(), file.read_bytes()), files):
            pass


def stored_bytes(root: Path) -> dict[str, int]:
    """Return the bytes that the files of each form take on a disk or in a bucket."""
    return {form.name: sum(file.stat().st_size for file in form.rglob("*") if file.is_file()) for form in root.iterdir()}


def drop_from_memory(root: Path) -> None:
    """Ask the kernel to forget the pages of all files below a folder."""
    for file in root.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


@cache
def _voxels() -> NDArray[np.uint8]:
    return em_phantom((64, 448, 448), 4).voxels


def _encoded(image: NDArray[np.uint8], form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, form)
    return out.getvalue()
