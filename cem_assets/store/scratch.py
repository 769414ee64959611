"""Local scratch space for decoding and downloads."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cem_assets import environment


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Give a local folder for the time of a step, under CEM_ASSETS_SCRATCH or the temporary folder.

    Args:
        purpose: A word for its name, so that leftovers of killed processes can be recognised.
    """
    base = environment.text(environment.SCRATCH) or None
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"cem_assets-{purpose}-", dir=base, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
