"""Readers of training images, ours and others. Each gives shuffled batches of 128 uint8 images, epoch after epoch.

A reader opens a folder or `s3://bucket` that `perf.reading_data` filled, and gets a scratch folder for what it keeps by
default. All have two workers: threads in ours; in the others forked processes of torch's DataLoader, which hand tensors over
in shared memory. Timing is in `perf.reading`.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cem_assets.pixels.reader import BatchStream, TrainingSource
from cem_assets.pretraining.data.epochs import epoch_order, share
from cem_assets.store.store import open_store
from perf.reading_data import NUM_FILES

BATCH = 128
NUM_WORKERS = 2
SHUFFLE_BUFFER = 1000
"""Size of the shuffle buffer of readers that cannot draw from all images."""

Epoch = Callable[[int], Iterator[NDArray[np.uint8]]]
"""Takes the number of an epoch and gives its batches."""


def is_s3(place: str) -> bool:
    return place.startswith("s3://")


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def stacked(images: Iterable[NDArray[np.uint8]]) -> Any:
    import torch

    return torch.from_numpy(np.stack(list(images)))


def as_arrays(loader: Iterable[Any]) -> Iterator[NDArray[np.uint8]]:
    for batch in loader:
        yield batch.numpy()


def data_loader(dataset: Any, collate: Callable[[Any], Any] | None, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        multiprocessing_context="fork",
        collate_fn=collate,
        **options,
    )


def open_ours(place: str, scratch: Path) -> Epoch:
    keys = [f"parquet/part-{number:05d}.parquet" for number in range(NUM_FILES)]
    source = TrainingSource.open(open_store(place), keys, scratch / "cache")

    def epoch(number: int) -> Iterator[NDArray[np.uint8]]:
        if number == 1:
            source.flush()  # counts what the first epoch left to write into the time of the next
        batches = share(epoch_order(source.class_sizes(), 0, 0, number), batch_size=BATCH)
        for batch in BatchStream(source, batches, num_threads=NUM_WORKERS):
            yield batch.images

    return epoch


def open_webdataset(place: str, scratch: Path) -> Epoch:
    import webdataset
    from webdataset.gopen import gopen_schemes

    def from_s3(url: str, mode: str = "rb", bufsize: int = 0, **_: Any) -> Any:
        import boto3

        bucket, key = url.removeprefix("s3://").split("/", 1)
        return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"]

    gopen_schemes["s3"] = from_s3
    urls = [f"{place}/tar/part-{number:05d}.tar" for number in range(NUM_FILES)]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=NUM_FILES)
        .shuffle(SHUFFLE_BUFFER)
        .map(lambda sample: pixels_of(sample["png"]))
        .batched(BATCH, collation_fn=stacked)
    )
    loader = data_loader(dataset, None, batch_size=None)
    return lambda number: as_arrays(loader)


def _raw_cells(dataset: Any) -> Any:
    """Give cells undecoded, for the collate function to decode. That is faster than the library's decoding to PIL images."""
    import datasets

    return dataset.cast_column("image", datasets.Image(decode=False))


def _decode_cells(samples: list[dict[str, Any]]) -> Any:
    return stacked(pixels_of(sample["image"]["bytes"]) for sample in samples)


def open_datasets(place: str, scratch: Path) -> Epoch:
    import datasets

    files = [f"{place}/parquet/part-{number:05d}.parquet" for number in range(NUM_FILES)]
    cache = str(scratch / "datasets")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", columns=["image"], cache_dir=cache)
    loader = data_loader(_raw_cells(loaded), _decode_cells, batch_size=BATCH, shuffle=True)
    return lambda number: as_arrays(loader)


def open_litdata_png(place: str, scratch: Path) -> Epoch:
    return _open_litdata(f"{place}/litdata-png", scratch, lambda items: stacked(pixels_of(item["png"]) for item in items))


def open_litdata_raw(place: str, scratch: Path) -> Epoch:
    return _open_litdata(f"{place}/litdata-raw", scratch, lambda items: stacked(item["pixels"] for item in items))


def _open_litdata(url: str, scratch: Path, collate: Callable[[Any], Any]) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    if is_s3(url):
        # litdata has no setting for servers without TLS; this lets its faster client use one.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
    cache = str(scratch / "litdata") if is_s3(url) else None
    dataset = StreamingDataset(url, cache_dir=cache, shuffle=True)
    loader = StreamingDataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        collate_fn=collate,
        multiprocessing_context="fork",
    )
    return lambda number: as_arrays(loader)


class _Tiffs:
    """Reads one file per patch. From S3 the files of a batch are requested together, from a disk one after the other."""

    def __init__(self, place: str) -> None:
        self._folder = f"{place}/tiff"
        self._fs: Any = None
        if is_s3(place):
            self._names = sorted(self._connection().ls(self._folder, detail=False))
        else:
            self._names = sorted(str(file) for file in Path(self._folder).iterdir())
        self._fs = None  # each process opens its own

    def _connection(self) -> Any:
        import s3fs

        if self._fs is None:
            self._fs = s3fs.S3FileSystem(skip_instance_cache=True)
        return self._fs

    def __len__(self) -> int:
        return len(self._names)

    def __getitems__(self, numbers: list[int]) -> list[bytes]:
        names = [self._names[n] for n in numbers]
        if not is_s3(self._folder):
            return [Path(name).read_bytes() for name in names]
        found = self._connection().cat(names)
        return [found[name] for name in names]


def open_tiffs(place: str, scratch: Path) -> Epoch:
    loader = data_loader(
        _Tiffs(place), lambda cells: stacked(pixels_of(cell) for cell in cells), batch_size=BATCH, shuffle=True
    )
    return lambda number: as_arrays(loader)


READERS: dict[str, tuple[Callable[[str, Path], Epoch], str, str]] = {
    "ours": (open_ours, "", "parquet"),
    "webdataset, tar of PNG": (open_webdataset, "webdataset", "tar"),
    "datasets, Parquet to its cache": (open_datasets, "datasets", "parquet"),
    "litdata, PNG": (open_litdata_png, "litdata", "litdata-png"),
    "litdata, raw pixels": (open_litdata_raw, "litdata", "litdata-raw"),
    "a TIFF per patch": (open_tiffs, "s3fs", "tiff"),
}
"""For each reader: how it is opened, the module it needs, and the form that it reads."""
UNCOMPRESSED = ("litdata-raw", "tiff")
"""Forms that need no unpacking, but one and a half times the bytes."""
