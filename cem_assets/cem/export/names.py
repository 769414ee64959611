"""Turns names of patches and datasets into safe names of files, which are the same in every run.

People name volumes as they like, so a patch's name may contain slashes, have 300 letters, or differ from another name only by
case. Plain names stay as they are. The others get a digest after a "~", which no plain name has.
"""

import hashlib
import re
from array import array
from collections.abc import Collection, Iterable

import numpy as np

from cem_assets.errors import DataError

MAX_CHARACTERS = 180
"""Together with ".tiff", this is well below the 255 bytes that common file systems allow."""

_PLAIN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_CHARACTERS - 1}}}", re.ASCII)
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""Names of devices on Windows, whatever follows after a dot."""


def plain_name(name: str, taken: Collection[str] = (), has_dots: bool = True, is_clashing: bool = False) -> str:
    """Return a name that any common file system and shell accepts, and that cannot lead out of its folder.

    Args:
        name: Name of a patch or dataset.
        taken: Names in lower case that cannot be used.
        has_dots: Whether dots may stay. In a tar, the part before the first dot names the sample.
        is_clashing: Whether another name differs from it only by case (`clashing_names`).

    Returns:
        The name itself, or up to 120 of its characters, "~" and 16 hex digits of its sha256. Different names have different
        results.
    """
    is_plain = (
        _PLAIN.fullmatch(name) is not None
        and not name.endswith(".")
        and name.partition(".")[0].lower() not in _DEVICES
        and name.lower() not in taken
        and (has_dots or "." not in name)
        and not is_clashing
    )
    if is_plain:
        return name
    flat = re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("-")[:120]
    return f"{flat or '_'}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def name_key(name: str) -> int:
    """Return a number of 64 bits that is the same for names that differ only by case."""
    return int.from_bytes(hashlib.blake2b(name.lower().encode(), digest_size=8).digest())


def clashing_names(names: Iterable[str]) -> frozenset[int]:
    """Find names that a file system without case would put into the same file. This takes 16 bytes of memory for each name.

    Args:
        names: Names of the patches of one dataset.

    Returns:
        Keys of the clashing names (`name_key`).

    Raises:
        DataError: A name occurs twice.
    """
    exact, folded = array("Q"), array("Q")
    for name in names:
        exact.append(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))
        folded.append(name_key(name))
    if twice := len(exact) - len(np.unique(np.array(exact, np.uint64))):
        raise DataError(
            f"{twice} of {len(exact)} names of patches occur twice; expected different names. Make the table again."
        )
    keys, counts = np.unique(np.array(folded, np.uint64), return_counts=True)
    return frozenset(keys[counts > 1].tolist())
