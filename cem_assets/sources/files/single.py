"""Single files over https, checked by their sha256 before anyone sees them."""

import re
from pathlib import Path

import pooch
import requests

from cem_assets.errors import DataError

_TIMEOUT_SECONDS = 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(url: str, sha256: str, folder: Path, name: str) -> Path:
    """Download a file, or find it in the folder from an earlier time.

    Args:
        url: An https (or http) address.
        sha256: Hex digest the contents must have.
        folder: Where to keep the file.
        name: What to call it there; never taken from the URL or the server.

    Returns:
        The file, its digest checked.

    Raises:
        DataError: The address or the digest is malformed, or the contents have another digest.
        ConnectionError: The file could not be fetched.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"cannot download {url!r}; expected an https:// address. Give a local file as a path instead.")
    if not _SHA256.fullmatch(sha256):
        raise DataError(
            f"{url} needs the sha256 of its contents (64 hex digits), found {sha256!r}. Compute it from a copy you trust: "
            "sha256sum FILE."
        )
    downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS)
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", fname=name, path=folder, downloader=downloader))
    except (requests.RequestException, OSError) as error:
        raise ConnectionError(
            f"{url} could not be fetched: {error}. Check the network, or download it elsewhere and give its path."
        ) from error
