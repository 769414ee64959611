"""Libraries that are measured beside ours. The lock file of `make bench` has them, the project's own environment does not.

A benchmark whose peer is absent still measures ours, and its row says so.
"""

import importlib
import importlib.metadata
from types import ModuleType

PEERS = ("boto3", "datasets", "datasketch", "faiss-cpu", "imagededup", "litdata", "obstore", "s3fs", "webdataset")


def installed_peers() -> dict[str, str]:
    """Return the versions of the peers that are there."""
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peer(name: str) -> ModuleType | None:
    """Import a peer, or return None where it is not installed; a peer that is broken raises."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".", maxsplit=1)[0]:
            raise
        return None


def absence(*names: str) -> str:
    """Say which of these peers are not installed, for the note of a row; empty where all are."""
    absent = [name for name in names if peer(name) is None]
    return f"not installed: {', '.join(absent)}; run it by make bench" if absent else ""
