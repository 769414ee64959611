"""Reading a release for training: batches of our reader beside a PIL image at a time in torch's DataLoader.

Both read the same shards from a local disk in random order, with as many threads here as processes there. The peer
holds the shards' compressed cells in memory already, which is more than a plain pipeline has. Needs neither Dagster nor
MLflow; `python -m perf.reading` runs it alone.
"""

import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cem_assets.cem.phantom import em_phantom
from cem_assets.pretraining.sampling import epoch_order, share
from cem_assets.storage.image_cells import decode_cells
from cem_assets.storage.store import open_store
from cem_assets.storage.tables import IMAGE_ROW_GROUP, image_column, parquet_bytes, schema_of
from cem_assets.storage.training_reader import BatchStream, TrainingSource
from perf.timing import Measured, best_seconds

NUM_PATCHES = 1024
BATCH = 128


def write_shards(root: Path) -> list[str]:
    """Two shards of phantom patches, as cem/filtered_patches writes them but without columns that nobody reads here."""
    voxels = em_phantom((64, 448, 448), 4).voxels
    generator = np.random.default_rng(0)
    schema = schema_of(("dataset", pa.string()), ("image", image_column([], []).type))
    keys = []
    for shard in range(2):
        places = generator.integers(0, (64, 224, 224), (NUM_PATCHES // 2, 3))
        images = [voxels[z, y : y + 224, x : x + 224] for z, y, x in places.tolist()]
        names = [str(n) for n in range(len(images))]
        table = pa.table([pa.array([f"d{shard}"] * len(images)), image_column(names, images)], schema=schema)
        keys.append(f"part-{shard:05d}.parquet")
        (root / keys[-1]).write_bytes(parquet_bytes([table], schema, IMAGE_ROW_GROUP))
    return keys


def per_image_loader(files: list[Path], num_workers: int):
    """The plain way: one cell to bytes, to a PIL image, to an array, to a tensor; batches put together by processes."""
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


def measure(is_quick: bool = False) -> list[Measured]:
    num_threads = max(1, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        keys = write_shards(root)
        num_bytes = sum((root / key).stat().st_size for key in keys)
        loader = per_image_loader([root / key for key in keys], num_threads)

        def by_loader() -> None:
            assert sum(len(images) for images, _ in loader) == NUM_PATCHES

        by_loader()  # starts its processes
        source = TrainingSource.open(open_store(folder), keys, root / "cache")
        batches = share(epoch_order(source.class_sizes(), 0, 0, 0), batch_size=BATCH)

        def by_reader() -> None:
            assert sum(len(b.images) for b in BatchStream(source, batches, num_threads=num_threads)) == NUM_PATCHES

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
            f"reading, cache filled, {num_threads} threads", "images/s", NUM_PATCHES / ours, NUM_PATCHES / peer, beside, 5
        ),
        Measured(
            f"reading, first epoch of {num_bytes / 1e6:.0f} MB",
            "images/s",
            NUM_PATCHES / first_epoch,
            NUM_PATCHES / peer,
            beside,
            0,
        ),
        Measured("decoding image cells", "images/s", len(cells) / together, len(cells) / one_by_one, "PIL, one by one", 0),
    ]


if __name__ == "__main__":
    for row in measure():
        print(f"{row.work:40} {row.ours:12,.0f} {row.peer:12,.0f} {row.ratio:8.1f}  {row.unit}, {row.beside}")
