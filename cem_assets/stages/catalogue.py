"""Datasets of the catalogue that the store lacks, and fetching one of them into the inbox."""

from pathlib import Path

from cem_assets.catalog import em_datasets
from cem_assets.sources.downloads import download
from cem_assets.storage.inbox import arrival_of, register_folder
from cem_assets.storage.layout import VOLUMES
from cem_assets.storage.manifests import MANIFESTS
from cem_assets.storage.scratch import scratch_folder
from cem_assets.storage.store import Store


def missing_rows(store: Store) -> list[str]:
    """List the enabled rows that are neither in the inbox nor standardized, in order of name."""
    enabled = sorted(name for name, row in em_datasets().items() if row.is_enabled)
    return [name for name in enabled if arrival_of(store, name) is None and not store.children(f"{VOLUMES}/{name}/{MANIFESTS}")]


def fetch_row(store: Store, name: str) -> str:
    """Download the files of a row, check their digests, and put them into the inbox.

    Args:
        store: Where.
        name: Of the dataset.

    Returns:
        The dataset's name.

    Raises:
        KeyError: The catalogue has no such row.
        ValueError: A file has another digest than the catalogue says.
        ConnectionError: A file could not be fetched.
        FileExistsError: The inbox has other files under that name.
    """
    rows = em_datasets()
    if name not in rows:
        raise KeyError(f"the catalogue has no dataset {name!r}; it has {', '.join(sorted(rows))}.")
    row = rows[name]
    with scratch_folder("catalogue") as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        for file, sha256 in row.files.items():
            download(f"{row.base_url}{file}", sha256, folder, file)
        (folder / "dataset.toml").write_text(row.description_toml(), encoding="utf-8")
        return register_folder(store, folder)
