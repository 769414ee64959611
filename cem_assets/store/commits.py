"""Committing a partition: data objects first, an immutable manifest last.

Content lies under `<partition>/<content id>/`, and the id follows from the inputs, so a run that was
killed is taken up where it stopped and equal runs write equal objects. Nothing is visible to readers
until the manifest is created, exclusively. See `docs/store.md` for the protocol and its proofs.
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

from cem_assets.store.local import file_sha256
from cem_assets.store.manifests import Inputs, Manifest, ManifestObject, current_manifest, damaged_objects, write_manifest
from cem_assets.store.store import Store

logger = logging.getLogger(__name__)

RECORDED_VERSIONS = ("cem-assets", "numpy", "pillow", "pyarrow", "zarr")


@lru_cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)  # some 2 ms: it looks through the folders of all packages


def installed_versions(*more: str) -> dict[str, str]:
    """Return the versions of the libraries that decide bytes, and of any named besides."""
    return {"python": platform.python_version()} | {name: _version(name) for name in (*RECORDED_VERSIONS, *more)}


@dataclass(frozen=True)
class ContentFolder:
    """Where the objects of one commit go. Picklable, so that worker processes can write."""

    store: Store
    folder: str

    def write(self, name: str, data: bytes | Path) -> ManifestObject:
        """Write one object whole and describe it.

        Args:
            name: Path inside the content folder.
            data: Bytes, or a local file to take them from.
        """
        if isinstance(data, Path):
            described = ManifestObject(name, data.stat().st_size, file_sha256(data))
        else:
            described = ManifestObject(name, len(data), hashlib.sha256(data).hexdigest())
        self.store.put(f"{self.folder}/{name}", data)
        return described


class Commit:
    """One attempt to commit a partition.

    Use: ask `up_to_date` first; write what `has` does not know; `adopt` what a killed run left or a
    worker wrote; `finish` once.
    """

    def __init__(self, store: Store, inputs: Inputs, run_id: str = "") -> None:
        """Look at what is there already.

        Args:
            inputs: What the content is made from.
        """
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
        except ValueError as error:  # a manifest that was tampered with must not block its own replacement
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
        """The current manifest, where it was made from the same inputs and every object matches it."""
        return self._up_to_date

    def has(self, name: str) -> bool:
        """Tell whether an object is there whole, left by a run that was killed before its manifest."""
        return name in self._left

    def adopt(self, name: str) -> ManifestObject:
        """Take up an object left by a killed run: it is read once, for its digest."""
        described = ManifestObject(name, self._left[name], self._store.sha256(f"{self.content.folder}/{name}"))
        return self.add(described)

    def add(self, described: ManifestObject) -> ManifestObject:
        """Take up an object that a worker wrote."""
        self._objects[described.name] = described
        return described

    def write(self, name: str, data: bytes | Path) -> ManifestObject:
        """Write one object and take it up."""
        return self.add(self.content.write(name, data))

    def finish(
        self,
        counts: Mapping[str, int],
        details: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        is_final: bool = False,
    ) -> Manifest:
        """Make the content visible.

        Args:
            counts: Row counts and other whole numbers.
            details: What else the stage records; JSON values without NaN.
            versions: Versions it was made with; default `installed_versions()`.
            is_final: Whether this is the only manifest the partition will ever have.

        Returns:
            The manifest, current from now on.

        Raises:
            FileExistsError: `is_final`, and another run was first.
        """
        strays = sorted(set(self._present()) - set(self._objects))
        if strays:  # refused volumes and the like: who opens the folder without the manifest must not read them
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
