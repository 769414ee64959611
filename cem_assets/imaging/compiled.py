"""The decorator that compiles hot loops with `numba.njit`.

Every kernel releases the GIL, so callers may split work over threads. Compiled kernels are cached on disk, so that each is
compiled once on a machine.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


# numba refuses to cache (and so to import the kernel) when neither the package folder nor the home folder
# can be written, as in a container with a read-only root; a folder under the temporary one always works.
if "NUMBA_CACHE_DIR" not in os.environ and not _writable(Path(__file__).parent / "__pycache__"):
    os.environ["NUMBA_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"cem_assets-numba-{os.getuid()}")

from numba import njit  # noqa: E402  (reads NUMBA_CACHE_DIR when imported)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` with numba: no Python objects, no GIL, cached on disk."""
    compiled: Callable[..., Any] = njit(cache=True, nogil=True)(function)
    return compiled
