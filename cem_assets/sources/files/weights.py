"""Published weights over https: bounded in size, checked by the whole sha256 or by its first digits.

Digests of other files are whole: `cem_assets.sources.files.single`. Which file, and whether to download at all, is
decided in `cem_assets.pretraining.weights.importing`.
"""

import hashlib
from pathlib import Path

import requests

from cem_assets.errors import DataError

_TIMEOUT_SECONDS = 30
_BLOCK = 1 << 20


def check_sha256(found: str, expected: str, what: str) -> None:
    """Refuse a file whose digest does not begin as expected.

    Args:
        found: Its sha256, 64 hex digits.
        expected: All digits or the first ones; empty expects nothing.
        what: The file, for messages.

    Raises:
        DataError: It begins otherwise.
    """
    if not found.startswith(expected):
        begins = "" if len(expected) == len(found) else "one that begins with "
        raise DataError(f"{what} has sha256 {found}, expected {begins}{expected}. It is damaged or another file: get it again.")


def download_weights(url: str, sha256: str, path: Path, max_bytes: int) -> None:
    """Download a file of weights.

    Args:
        url: An https address; http will do where all digits of the digest are given.
        sha256: Hex digest the contents must have, or its first 8 digits or more, which over https is what torch's own
            downloads rest on.
        path: The file to write.
        max_bytes: Largest accepted size.

    Raises:
        DataError: The address or digest will not do, the file is too large, or has another digest; no file is left.
        ConnectionError: It could not be fetched.
    """
    if len(sha256) < 8 or not url.startswith("https://" if len(sha256) < 64 else ("https://", "http://")):
        raise DataError(
            f"cannot download {url!r} with sha256 {sha256!r}; expected https:// and 8 digits or more, or http:// and all 64."
        )
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as answer, path.open("wb") as handle:
            answer.raise_for_status()
            for block in answer.iter_content(_BLOCK):
                num_bytes += len(block)
                if num_bytes > max_bytes:
                    break
                digest.update(block)
                handle.write(block)
    except requests.RequestException as error:
        path.unlink(missing_ok=True)
        raise ConnectionError(f"{url} could not be fetched: {error}") from error
    try:
        if num_bytes > max_bytes:
            raise DataError(f"{url} has more than {max_bytes:,} bytes; expected weights of at most that.")
        check_sha256(digest.hexdigest(), sha256, url)
    except ValueError:
        path.unlink()
        raise
