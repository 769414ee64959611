"""Rows of the two catalogues that the store lacks, and fetching one of them into the inbox."""

from pathlib import Path

from cem_assets.catalog import em_datasets
from cem_assets.catalog.microscopy import MicroscopySource, microscopy_sources
from cem_assets.sources.downloads import download
from cem_assets.storage.inbox import DESCRIPTION, arrival_of, path_problem, register_folder
from cem_assets.storage.layout import SOURCE_METADATA, VOLUMES
from cem_assets.storage.manifests import MANIFESTS
from cem_assets.storage.scratch import scratch_folder
from cem_assets.storage.source_inbox import SOURCE_TOML, register_source
from cem_assets.storage.store import Store


def missing_rows(store: Store) -> list[str]:
    """List the enabled rows that are neither in the inbox nor taken in, in order of name: EM datasets, microscopy sources."""
    found = []
    for rows, marker, asset in ((em_datasets(), DESCRIPTION, VOLUMES), (microscopy_sources(), SOURCE_TOML, SOURCE_METADATA)):
        enabled = sorted(name for name, row in rows.items() if row.is_enabled)
        found += [
            name
            for name in enabled
            if arrival_of(store, name, marker) is None and not store.children(f"{asset}/{name}/{MANIFESTS}")
        ]
    return found


def fetch_row(store: Store, name: str) -> str:
    """Download the files of a row, check their digests, and put them into the inbox; of a remote volume, sample cubes.

    Args:
        store: Where.
        name: Of the EM dataset or microscopy source.

    Returns:
        Its name.

    Raises:
        KeyError: The catalogue has no such row.
        ValueError: A file has another digest than the catalogue says, or the catalogue does not know the files of the row.
        ConnectionError: A file, or a chunk of a remote volume, could not be fetched; the cubes done so far are kept.
        PermissionError: Access to a remote volume is refused.
        FileExistsError: The inbox has other files under that name.
    """
    rows, sources = em_datasets(), microscopy_sources()
    if name in sources:
        return _fetch_source(store, sources[name])
    if name not in rows:
        raise KeyError(f"the catalogue has no dataset {name!r}; it has {', '.join(sorted({*rows, *sources}))}.")
    row = rows[name]
    with scratch_folder("catalogue") as scratch:
        if row.remote is not None:
            from cem_assets.stages.sampling import sample_dataset  # tensorstore is heavy, and most runs need none

            sample_dataset(store, row, Path(scratch))
            return name
        folder = Path(scratch) / name
        folder.mkdir()
        for file, sha256 in row.files.items():
            download(f"{row.base_url}{file}", sha256, folder, file)
        (folder / "dataset.toml").write_text(row.description_toml(), encoding="utf-8")
        return register_folder(store, folder)


def _fetch_source(store: Store, row: MicroscopySource) -> str:
    if not row.downloads:
        raise ValueError(
            f"the catalogue does not know the files of {row.name!r} byte for byte, so it cannot fetch them. Download them "
            f"from {row.images_url or row.source_url}, and drop them with a source.toml (recipe = {row.name!r}) into "
            f"inbox/{row.name}/."
        )
    with scratch_folder("catalogue") as scratch:
        folder = Path(scratch) / row.name
        for sha256, address, path in row.downloads:
            target = folder / path
            if problem := path_problem(path):
                raise ValueError(f"the registry of {row.name!r} names {path!r}: {problem}")
            target.parent.mkdir(parents=True, exist_ok=True)
            download(address, sha256, target.parent, target.name)
        (folder / SOURCE_TOML).write_bytes(row.source_toml())
        return register_source(store, folder)
