"""A release of patches in PyTorch: normalised tensors in shuffled batches.

    python examples/load_in_pytorch.py [VERSION]

Reads Parquet row groups as they are needed, so a release of any size will do. For training at speed use
`cem-assets weights train`, which caches decoded pixels.
"""

import io
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import tifffile
import torch
from torch.utils.data import DataLoader, IterableDataset

from cem_assets import readers

SIDE_PX = 224


class Patches(IterableDataset):
    """Patches of a release as float tensors (1, 224, 224): shards and the rows of each group in a seeded order."""

    def __init__(self, release: readers.Release, seed: int = 0) -> None:
        super().__init__()
        self.release, self.seed = release, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, str]]:
        generator = np.random.default_rng(self.seed)
        for shard in generator.permutation(self.release.shards):
            file = pq.ParquetFile(shard)  # for s3:// pass s3fs.S3FileSystem().open(shard)
            for group in generator.permutation(file.num_row_groups):
                rows = file.read_row_group(group, columns=["dataset", "image"]).to_pylist()
                for row in generator.permutation(np.array(rows, dtype=object)):
                    yield self.tensor(row["image"]["bytes"]), row["dataset"]

    def tensor(self, tiff: bytes) -> torch.Tensor:
        """Decode and normalise a patch; border patches are padded with the release's mean."""
        image = tifffile.imread(io.BytesIO(tiff)).astype(np.float32) / 255
        out = torch.zeros(1, SIDE_PX, SIDE_PX)
        values = torch.from_numpy((image - self.release.pixel_mean) / self.release.pixel_std)
        out[0, : image.shape[0], : image.shape[1]] = values
        return out


def main() -> None:
    """Read a release once and say what came."""
    release = readers.read_release(sys.argv[1] if len(sys.argv) > 1 else None)
    num = 0
    for images, datasets in DataLoader(Patches(release), batch_size=32):
        num += len(images)
        print(f"batch {tuple(images.shape)}, mean {images.mean():+.3f}, from {sorted(set(datasets))}")
    print(f"{num} of {release.num_patches} patches of {release.version}")


if __name__ == "__main__":
    main()
