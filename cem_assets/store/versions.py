"""Names of release versions: which are allowed, and which comes next."""

import re
from collections.abc import Sequence

from cem_assets.errors import DataError

VERSION_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}", re.ASCII)


def check_version(version: str) -> None:
    """Check that a version can be the name of a folder.

    Raises:
        DataError: It cannot; the error says what is allowed.
    """
    if not VERSION_PATTERN.fullmatch(version) or ".." in version:
        raise DataError(
            f"release version {version[:60]!r} is not allowed; expected 1 to 40 of a-z, 0-9, '.', '_', '-', such as v3."
        )


def next_version(taken: Sequence[str]) -> str:
    """Return the next version of the form v1, v2, ...; versions with other names are ignored."""
    numbers = [int(name[1:]) for name in taken if re.fullmatch(r"v[0-9]{1,9}", name)]
    return f"v{max(numbers, default=0) + 1}"
