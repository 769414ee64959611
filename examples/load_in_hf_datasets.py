"""A release of patches as a Hugging Face `Dataset`, straight from its Parquet files; nothing is downloaded.

python examples/load_in_hf_datasets.py [VERSION]
"""

import sys
import tempfile

import datasets

from cem_assets import readers


def main() -> None:
    """Load a release and look at a patch."""
    release = readers.read_release(sys.argv[1] if len(sys.argv) > 1 else None)
    with tempfile.TemporaryDirectory() as cache:  # leave cache_dir out to keep the Arrow files for the next time
        # with streaming=True nothing is copied at all
        patches = datasets.load_dataset("parquet", data_files=list(release.shards), split="train", cache_dir=cache)
        first = patches[0]
        print(f"{len(patches)} patches, columns {', '.join(patches.column_names)}")
        print(f"first: {first['name']}, a PIL image of {first['image'].size} in mode {first['image'].mode}")


if __name__ == "__main__":
    main()
