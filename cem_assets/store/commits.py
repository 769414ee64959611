"""Committing a partition: the data objects are written first, and an immutable manifest last.

Content is stored under `<partition>/<content id>/`. The id follows from the inputs, so a run continues where a killed one
stopped, and equal runs write equal objects. Readers see nothing until the manifest exists, and of several writers exactly one
creates it. `docs/store.md` explains the protocol and why it is safe.
"""

import hashlib
import importlib.metadata
import logging
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from cem_assets.errors import DataError
from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import Inputs, Manifest, ManifestObject, current_manifest, damaged_objects, write_manifest
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

RECORDED_VERSIONS = ("cem-assets", "numpy", "pillow", "pyarrow", "zarr")


@lru_cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)  # takes about 2 ms, because it searches the folders of all packages


def installed_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the libraries on which the written bytes depend, and of the given packages."""
    return {"python": platform.python_version()} | {name: _version(name) for name in (*RECORDED_VERSIONS, *more)}


@dataclass(frozen=True)
class ContentFolder:
    """The folder for the objects of one commit. It can be pickled, so that worker processes can write into it."""

    store: Store
    folder: str

    def write(self, name: str, data: bytes | Path) -> ManifestObject:
        """Write one object, and return its size and digest for the manifest.

        Args:
            name: Path inside the content folder.
            data: The bytes, or a local file that holds them.
        """
        if isinstance(data, Path):
            described = ManifestObject(name, data.stat().st_size, file_sha256(data))
        else:
            described = ManifestObject(name, len(data), hashlib.sha256(data).hexdigest())
        self.store.put(f"{self.folder}/{name}", data)
        return described


class Commit:
    """One attempt to commit a partition.

    Ask `up_to_date` first. Then write the objects for which `has` is false, and `adopt` the others, which a killed run left
    behind. `add` the objects that worker processes wrote. Call `finish` once, at the end.
    """

    def __init__(self, store: Store, inputs: Inputs, run_id: str = "") -> None:
        """Look up which objects of these inputs, and which manifest, the store has already."""
        self.content = ContentFolder(store, f"{inputs.folder}/{inputs.content}")
        self._store = store
        self._inputs = inputs
        self._run = {"id": run_id, "host": socket.gethostname(), "started": datetime.now(UTC).isoformat()}
        self._objects: dict[str, ManifestObject] = {}
        self._up_to_date: Manifest | None = None
        base = self.content.folder
        self._left = self._present()
        try:
            current = current_manifest(store, inputs.asset, inputs.partition)
        except DataError as error:  # a damaged or altered manifest must not prevent its own replacement
            logger.warning("%s", error)
            current = None
        if current is not None and current.inputs.content == inputs.content:
            damaged = damaged_objects(store, current)
            if not damaged:
                self._up_to_date = current
            for name, trouble in damaged.items():
                logger.warning("%s/%s is damaged (%s) and is written again", base, name, trouble)
                self._left.pop(name, None)

    def _present(self) -> dict[str, int]:
        base = self.content.folder
        return {item.key[len(base) + 1 :]: item.num_bytes for item in self._store.walk(base)}

    @property
    def up_to_date(self) -> Manifest | None:
        """The current manifest if it was made from the same inputs and all its objects are intact; otherwise None."""
        return self._up_to_date

    def has(self, name: str) -> bool:
        """Tell whether the store has an object already: a run that was killed before it wrote its manifest left it behind."""
        return name in self._left

    def adopt(self, name: str) -> ManifestObject:
        """Add an object that a killed run left behind to the manifest; it is read once, to compute its digest."""
        described = ManifestObject(name, self._left[name], self._store.sha256(f"{self.content.folder}/{name}"))
        return self.add(described)

    def add(self, described: ManifestObject) -> ManifestObject:
        """Add an object that a worker process wrote to the manifest."""
        self._objects[described.name] = described
        return described

    def write(self, name: str, data: bytes | Path) -> ManifestObject:
        """Write one object and add it to the manifest."""
        return self.add(self.content.write(name, data))

    def finish(
        self,
        counts: Mapping[str, int],
        details: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        is_final: bool = False,
    ) -> Manifest:
        """Write the manifest, which makes the content visible to readers.

        Args:
            counts: Row counts and other whole numbers.
            details: Anything else that the stage records, as JSON values without NaN.
            versions: Versions of libraries that the content depends on; None records `installed_versions()`.
            is_final: Whether this is the only manifest that the partition will ever have, as for a release.

        Returns:
            The manifest, which is the current one from now on.

        Raises:
            FileExistsError: The manifest is final, and another run has written one.
        """
        strays = sorted(set(self._present()) - set(self._objects))
        if strays:  # such as a refused volume: whoever opens the folder without its manifest must not read it
            logger.warning("removing %d objects that belong to no manifest: %s", len(strays), ", ".join(strays[:5]))
            self._store.delete(f"{self.content.folder}/{name}" for name in strays)
        manifest = Manifest(
            inputs=self._inputs,
            number=0,
            objects=tuple(self._objects[name] for name in sorted(self._objects)),
            counts=dict(counts),
            details=dict(details or {}),
            versions=dict(versions if versions is not None else installed_versions()),
            run={**self._run, "finished": datetime.now(UTC).isoformat()},
        )
        return write_manifest(self._store, manifest, is_final)
