"""The catalogue of microscopy sources: their addresses, the recipes to read their tables, and terms common to all.

`microscopy_sources.csv` lists the sources with their addresses. `microscopy/<name>.toml` is the recipe of a source, which
`cem_assets.cytoimagenet.sources.recipe` reads and checks. `terms.toml` holds the common terms. `cem_assets.catalog` has the
datasets of electron microscopy, and `cem_assets.cytoimagenet.sources.inbox` reads sources that people put into the inbox.
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
        is_enabled: Whether it is meant to be part of the next release.
        role: "training", or "test" for the images of a benchmark, which are kept out of releases.
        database, title, dir_name, licence, citation, source_url: As in `source.toml`.
        tables_urls: Addresses of its public metadata tables; empty if it has none or their addresses are uncertain.
        images_url: The address of its images.
        tried: How far its recipe was tested: "tables and images", "tables", "images" or "documentation".
        note: What is uncertain.
        downloads: (sha256, address, path in the source's folder) of the files in `registries/microscopy/<name>.txt`. The
            schedule of the catalogue fetches enabled sources that have such files.
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
        UnknownNameError: The catalogue has no such source.
    """
    known = microscopy_sources()
    if name not in known:
        raise UnknownNameError(f"the catalogue has no recipe {name!r}; it has {', '.join(sorted(known))}.")
    return _folder().joinpath("microscopy", f"{name}.toml").read_bytes()


@lru_cache(maxsize=1)
def _terms() -> dict[str, dict[str, str]]:
    return tomllib.loads(_folder().joinpath("terms.toml").read_text(encoding="utf-8"))


def terms() -> dict[str, dict[str, str]]:
    """Read the terms that all sources share: for each standard column, values in lower case and the terms replacing them."""
    return {column: dict(replacements) for column, replacements in _terms().items()}
