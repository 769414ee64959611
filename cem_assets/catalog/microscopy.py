"""The catalogue of microscopy sources: what they are, how their tables are read, and terms common to all.

Rows, not code: `microscopy_sources.csv` says what each source is and where it can be had, `microscopy/<name>.toml` is its
recipe (a format of `cem_assets.cytoimagenet.sources.recipe`, which also checks it), `terms.toml` holds the terms. Electron
microscopy is `cem_assets.catalog`; sources that people drop are read by `cem_assets.cytoimagenet.sources.inbox`.
"""

import csv
import io
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from cem_assets.errors import UnknownNameError


@dataclass(frozen=True)
class MicroscopySource:
    """A row of `microscopy_sources.csv`.

    Attributes:
        name: Its key.
        is_enabled: Whether it is meant to be part of the next release.
        role: "training", or "test" for a benchmark's images, which are kept out of releases.
        database, title, dir_name, licence, citation, source_url: As in `source.toml`.
        tables_urls: Addresses of its public metadata tables; empty where it has none or they are not known for certain.
        images_url: Where its images can be had.
        tried: How far its recipe was tried: "tables and images", "tables", "images" or "documentation".
        note: What is uncertain.
        downloads: (sha256, address, path in the source's folder) of files that are known byte for byte, from
            `registries/microscopy/<name>.txt`; the catalogue schedule fetches enabled rows that have them.
    """

    name: str
    is_enabled: bool
    role: str
    database: str
    title: str
    dir_name: str
    licence: str
    citation: str
    source_url: str
    tables_urls: tuple[str, ...]
    images_url: str
    tried: str
    note: str
    downloads: tuple[tuple[str, str, str], ...] = ()

    def source_toml(self) -> bytes:
        """Write the row as a `source.toml` that uses its recipe."""
        return f'name = "{self.name}"\nrecipe = "{self.name}"\n'.encode()


def _folder() -> Traversable:
    return files("cem_assets.catalog")


@lru_cache(maxsize=1)
def _rows() -> tuple[MicroscopySource, ...]:
    text = _folder().joinpath("microscopy_sources.csv").read_text(encoding="utf-8")
    return tuple(
        MicroscopySource(
            name=row["name"],
            is_enabled=row["enabled"] == "yes",
            role=row["role"],
            database=row["database"],
            title=row["title"],
            dir_name=row["dir_name"],
            licence=row["licence"],
            citation=row["citation"],
            source_url=row["source_url"],
            tables_urls=tuple(row["tables_urls"].split()),
            images_url=row["images_url"],
            tried=row["tried"],
            note=row["note"],
            downloads=_downloads(row["name"]),
        )
        for row in csv.DictReader(io.StringIO(text, newline=""))
    )


def _downloads(name: str) -> tuple[tuple[str, str, str], ...]:
    registry = _folder().joinpath("registries", "microscopy", f"{name}.txt")
    if not registry.is_file():
        return ()
    lines = [line for line in registry.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    found = [line.split(maxsplit=2) for line in lines]
    return tuple((sha256, address, path) for sha256, address, path in found)


def microscopy_sources() -> dict[str, MicroscopySource]:
    """Read the catalogue of microscopy sources, by name."""
    return {row.name: row for row in _rows()}


def recipe_text(name: str) -> bytes:
    """Read the recipe of a source of the catalogue: TOML in UTF-8.

    Raises:
        KeyError: The catalogue has no such source.
    """
    known = microscopy_sources()
    if name not in known:
        raise UnknownNameError(f"the catalogue has no recipe {name!r}; it has {', '.join(sorted(known))}.")
    return _folder().joinpath("microscopy", f"{name}.toml").read_bytes()


@lru_cache(maxsize=1)
def _terms() -> dict[str, dict[str, str]]:
    return tomllib.loads(_folder().joinpath("terms.toml").read_text(encoding="utf-8"))


def terms() -> dict[str, dict[str, str]]:
    """Read the terms that all sources share, by standard column: value in lower case to the term that replaces it."""
    return {column: dict(replacements) for column, replacements in _terms().items()}
