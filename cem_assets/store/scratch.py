"""Local scratch folders for decoding and downloads."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cem_assets import environment


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Make a local folder under CEM_ASSETS_SCRATCH or the temporary folder, and delete it when the block ends.

    Args:
        purpose: A word in the folder's name, by which people recognise what killed processes leave behind.
    """
    base = environment.text(environment.SCRATCH) or None
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"cem_assets-{purpose}-", dir=base, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
