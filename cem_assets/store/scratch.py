"""Local scratch space for decoding and downloads."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH_VARIABLE = "CEM_ASSETS_SCRATCH"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Give a local folder for the time of a step, under CEM_ASSETS_SCRATCH or the temporary folder.

    Args:
        purpose: A word for its name, so that leftovers of killed processes can be recognised.
    """
    base = os.environ.get(SCRATCH_VARIABLE) or None
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"cem_assets-{purpose}-", dir=base, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
