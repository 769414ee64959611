"""Reading images for training: our reader beside those that others train with, from a disk and from S3.

Every reader gives the same images, in shuffled batches of uint8 arrays, with two workers (`perf.reading_peers`). Each runs in a
forked process of its own in which all modules are loaded.

First epoch: it begins with a new reader and with empty caches, and on the disk with files that the kernel was asked to
forget. Opening is part of it. What the S3 server holds in memory is the same for all.
Second epoch: our reader writes its cache in the background, and the second epoch begins with a wait for what the first one
left to write. So the row of both epochs together includes all of that writing.
Third epoch: each reader has the cache that it keeps by default: ours decoded pixels, litdata its chunks (of S3), datasets an
Arrow table, the others none.
Fourth epoch: it is not timed. Hashes of the pixels assert that it gives exactly the images that were written.

The best of some runs counts, all readers in turn; readers that need more than twice the best time run once. The peer of a row
is the fastest of the others. The note of the row has the rates of all, each with the bytes that it stores for a patch, because
raw pixels need no unpacking but more room. A second row of the first epoch has the fastest of those that store compressed
images, as ours does. Further rows compare ours with one PIL image at a time in torch's DataLoader, where the compressed cells
are already in memory, and time the decoding of cells alone. Neither Dagster nor MLflow is needed.
"""

import io
import multiprocessing
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cem_assets.pixels.image_cells import decode_cells
from cem_assets.pixels.reader import BatchStream, TrainingSource
from cem_assets.pretraining.data.epochs import epoch_order, share
from cem_assets.store.store import open_store
from perf.peers import absence, peer
from perf.reading_data import (
    digests,
    drop_from_memory,
    phantom_patches,
    stored_bytes,
    upload,
    write_forms,
    write_shards,
)
from perf.reading_peers import BATCH, NUM_WORKERS, READERS, UNCOMPRESSED, is_s3
from perf.s3_server import s3_bucket
from perf.timing import Measured, best_seconds

GOAL = 1.2


def per_image_loader(files: list[Path], num_workers: int):
    """Reads cells the plain way: one becomes bytes, a PIL image, an array, a tensor. Processes make batches."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    table = pa.concat_tables([pq.read_table(file) for file in files])

    class Patches(Dataset):
        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, row: int):
            cell = table["image"][row]["bytes"].as_py()
            pixels = np.asarray(Image.open(io.BytesIO(cell)).convert("L"))
            return torch.from_numpy(pixels.copy()), row

    return DataLoader(
        Patches(), BATCH, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0, drop_last=True
    )


def in_process(do, *arguments: Any) -> Any:
    """Call a function in a forked process, so that no reader inherits the threads, connections or memory of another.

    Raises:
        RuntimeError: The function failed there.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        receiver.close()
        sender.send(do(*arguments))

    process = context.Process(target=child)
    process.start()
    sender.close()
    result = None
    with suppress(EOFError):
        result = receiver.recv()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{do.__name__}{arguments[:2]} failed with exit status {process.exitcode}; see above")
    return result


def time_reader(name: str, place: str, expected: list[str]) -> tuple[float, float, float]:
    """Read some epochs; return the seconds of the first one with opening, of the first two together, and of the third."""
    scratch = Path(tempfile.mkdtemp(prefix="perf-reading-"))
    try:
        if not is_s3(place):
            drop_from_memory(Path(place))
        seconds = []
        started = time.perf_counter()
        epoch = READERS[name][0](place, scratch)
        for number in range(3):
            num_images = sum(len(batch) for batch in epoch(number))
            assert num_images == len(expected), f"{name}: {num_images} images, expected {len(expected)}"
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
        found = [digest for batch in epoch(3) for digest in digests(batch)]
        assert sorted(found) == expected, f"{name}: other images than were written"
        assert found != expected
        return seconds[0], seconds[0] + seconds[1], seconds[2]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def in_turns(names: list[str], place: str, expected: list[str], repeats: int) -> dict[str, list[tuple[float, float, float]]]:
    """Time readers in turn, several times; those that need more than twice the best time run only once."""
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for turn in range(repeats):
        best = [min((t[0][n] for name, t in times.items() if t and name != "ours"), default=0.0) for n in range(3)]
        for name in names:
            if not turn or name == "ours" or any(times[name][0][n] <= 2 * best[n] for n in range(3)):
                times[name].append(in_process(time_reader, name, place, expected))
    return times


def beside_others(is_quick: bool) -> list[Measured]:
    """Return the rows of the first epoch, of the first two together and of a later one, from a disk and from S3."""
    num_images, repeats = (256, 1) if is_quick else (4096, 3)
    readers = [name for name, (_, module, _) in READERS.items() if not module or peer(module) is not None]
    import torch.utils.data  # noqa: F401 - imported before forking, so that no first epoch pays for it

    note = absence("webdataset", "datasets", "litdata", "s3fs")
    with tempfile.TemporaryDirectory() as folder, s3_bucket() as bucket:
        images = phantom_patches(num_images)
        expected = sorted(digests(np.stack(images)))
        in_process(write_forms, Path(folder), images)
        in_process(upload, Path(folder), bucket)
        sizes = {name: stored_bytes(Path(folder)).get(form, 0) // num_images for name, (_, _, form) in READERS.items()}
        rows = []
        for place, where in ((folder, "disk"), (f"s3://{bucket}", "S3")):
            times = in_turns(readers, place, expected, repeats)
            for number, what in enumerate(("first epoch", "first two epochs", "later epoch")):
                num_read = num_images * (2 if number == 1 else 1)
                rates = {name: num_read / min(turn[number] for turn in turns) for name, turns in times.items()}
                rows.append(row_of(f"reading from {where}, {what}", rates, sizes, note))
                if not number:
                    alike = {name: rate for name, rate in rates.items() if READERS[name][2] not in UNCOMPRESSED}
                    rows.append(row_of(f"reading from {where}, {what}, compressed forms", alike, sizes, note))
    return rows


def row_of(work: str, rates: dict[str, float], sizes: dict[str, int], note: str) -> Measured:
    """Compare our rate with the best of the others; the note has all of their rates."""
    others = {name: rate for name, rate in rates.items() if name != "ours"}
    best = max(others, key=others.__getitem__) if others else ""
    told = "; ".join(f"{name} {rate:,.0f} ({sizes[name]:,} B)" for name, rate in others.items() if name != best)
    stored = f"stored for a patch: ours {sizes['ours']:,} B" + (f", {best} {sizes[best]:,} B" if best else "")
    text = "; ".join(part for part in (stored, told, f"{NUM_WORKERS} workers each", note) if part)
    return Measured(work, "images/s", rates["ours"], others.get(best, 0.0), best or "-", GOAL, text)


def measure(is_quick: bool = False) -> list[Measured]:
    # The others come first, because a process that has started threads should not be forked.
    return beside_others(is_quick) + beside_pil(256 if is_quick else 1024)


def beside_pil(num_patches: int) -> list[Measured]:
    num_threads = max(1, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        keys = write_shards(root, phantom_patches(num_patches), 2)
        num_bytes = sum((root / key).stat().st_size for key in keys)
        loader = per_image_loader([root / key for key in keys], num_threads)

        def by_loader() -> None:
            assert sum(len(images) for images, _ in loader) == num_patches

        by_loader()  # the first call starts the worker processes
        source = TrainingSource.open(open_store(folder), keys, root / "cache")
        batches = share(epoch_order(source.class_sizes(), 0, 0, 0), batch_size=BATCH)

        def by_reader() -> None:
            assert sum(len(b.images) for b in BatchStream(source, batches, num_threads=num_threads)) == num_patches

        started = time.perf_counter()
        by_reader()
        first_epoch = time.perf_counter() - started
        batch = next(iter(BatchStream(source, batches)))
        expected = [row for key in keys for row in pq.read_table(root / key)["image"].to_pylist()]
        for row, pixels in zip(batch.rows[:8].tolist(), batch.images, strict=False):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(expected[row]["bytes"]))), pixels)
        ours, peer = best_seconds(by_reader, by_loader)
        column = pq.read_table(root / keys[0])["image"].combine_chunks()
        cells = column.field("bytes").to_pylist()
        together, one_by_one = best_seconds(
            lambda: decode_cells(column, "mirror"), lambda: [np.asarray(Image.open(io.BytesIO(cell))) for cell in cells]
        )
    beside = f"PIL + DataLoader, {num_threads} processes"
    return [
        Measured(
            f"reading from disk, cache filled, {num_threads} threads",
            "images/s",
            num_patches / ours,
            num_patches / peer,
            beside,
            5,
        ),
        Measured(
            f"reading, first epoch of {num_bytes / 1e6:.0f} MB",
            "images/s",
            num_patches / first_epoch,
            num_patches / peer,
            beside,
            0,
        ),
        Measured("decoding image cells", "images/s", len(cells) / together, len(cells) / one_by_one, "PIL, one by one", 0),
    ]


if __name__ == "__main__":
    for row in measure():
        print(f"{row.work:40} {row.ours:12,.0f} {row.peer:12,.0f} {row.ratio:8.1f}  {row.unit}, {row.beside}")
