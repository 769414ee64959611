"""Add a volume of your own: write it with its description, and put both into the inbox.

    python examples/add_dataset.py NAME

The volume is generated here. The inbox sensor of a running platform takes it in. Without one, `cem-assets ingest FOLDER` puts
a folder into the inbox and runs its chain.
"""

import sys
import tempfile
from pathlib import Path

import tifffile

from cem_assets.cem.phantom import em_phantom
from cem_assets.inbox.datasets import register_folder
from cem_assets.store.store import open_store

DESCRIPTION = """\
name = "{name}"
kind = "volume"
voxel_size_nm = [8.0, 8.0, 8.0]   # z, y, x
licence = "CC0-1.0"
citation = "Drawn by an example, 2026"
"""


def main() -> None:
    """Write a folder and put it into the inbox."""
    name = sys.argv[1] if len(sys.argv) > 1 else "my_dataset"
    store = open_store()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tifffile.imwrite(folder / "stack.tif", em_phantom((70, 230, 240), 1).voxels)
        (folder / "dataset.toml").write_text(DESCRIPTION.format(name=name))
        register_folder(store, folder, replace=True)
    print(f"{name} lies in {store.url_of(f'inbox/{name}')}")


if __name__ == "__main__":
    main()
