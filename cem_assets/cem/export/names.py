"""Names of patches and datasets made safe as names of files, the same in every run.

Volumes are named by whoever made them, so a patch's name may hold anything: slashes, 300 letters, another case than its
neighbour. Plain names stay as they are; the others get a digest, behind a "~" that no plain name has.
"""

import hashlib
import re
from array import array
from collections.abc import Collection, Iterable

import numpy as np

from cem_assets.errors import DataError

MAX_CHARACTERS = 180
"""With ".tiff" well below the 255 bytes of common file systems."""

_PLAIN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_CHARACTERS - 1}}}", re.ASCII)
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""What Windows takes for a device, whatever follows a dot."""


def plain_name(name: str, taken: Collection[str] = (), has_dots: bool = True, is_clashing: bool = False) -> str:
    """Return a name that any common file system and shell takes, and that cannot leave its folder.

    Args:
        name: Of a patch or dataset.
        taken: Names, in lower case, that something else has.
        has_dots: Whether dots may stay; samples of a tar are told apart by what stands before the first dot.
        is_clashing: Whether another name differs from it in nothing but case (`clashing_names`).

    Returns:
        The name itself, or up to 120 of its characters, "~" and 16 hex digits of its sha256. Other names give other results.
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
    """Return a number, of 64 bits, that names differing in nothing but case share."""
    return int.from_bytes(hashlib.blake2b(name.lower().encode(), digest_size=8).digest())


def clashing_names(names: Iterable[str]) -> frozenset[int]:
    """Find names that a file system without case would put into one file; 16 bytes are held for each name.

    Args:
        names: Of the patches of one dataset.

    Returns:
        Their keys (`name_key`).

    Raises:
        DataError: A name comes twice.
    """
    exact, folded = array("Q"), array("Q")
    for name in names:
        exact.append(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))
        folded.append(name_key(name))
    if twice := len(exact) - len(np.unique(np.array(exact, np.uint64))):
        raise DataError(f"{twice} of {len(exact)} names come twice; expected names that tell patches apart.")
    keys, counts = np.unique(np.array(folded, np.uint64), return_counts=True)
    return frozenset(keys[counts > 1].tolist())
