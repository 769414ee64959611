"""Rows of the two catalogues that the store lacks, and fetching one of them into the inbox.

`cem_assets.sources.archives` lists the files of archives, and `cem_assets.sources.files.download` gets their bytes. This module
chooses rows, unpacks what arrived, and records which sources are in trouble.
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from cem_assets.catalog import EmDataset, em_datasets
from cem_assets.catalog.microscopy import MicroscopySource, microscopy_sources
from cem_assets.cytoimagenet.sources.inbox import SOURCE_TOML, register_source
from cem_assets.errors import DataError, UnknownNameError
from cem_assets.inbox.datasets import DESCRIPTION, arrival_of, path_problem, register_folder
from cem_assets.operations.licences import check_licence_accepted
from cem_assets.operations.source_health import clear_trouble, record_trouble
from cem_assets.sources.archives import archive_files
from cem_assets.sources.files.description import RemoteFile
from cem_assets.sources.files.download import download
from cem_assets.sources.files.unpacking import unpack, unpacked_stem
from cem_assets.store.assets import SOURCE_METADATA, VOLUMES
from cem_assets.store.manifests import MANIFESTS
from cem_assets.store.scratch import scratch_folder
from cem_assets.store.store import Store


def missing_rows(store: Store) -> list[str]:
    """List the enabled rows that are neither in the inbox nor in the store: EM datasets, then microscopy sources, by name."""
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

    Zip and tar files are unpacked into folders named after them. A source whose own address fails is recorded in
    `quarantine/sources/`, also where a mirror stands in, until it works again.

    Args:
        name: Name of the EM dataset or microscopy source.

    Returns:
        The same name.

    Raises:
        UnknownNameError: The catalogue has no such row.
        DataError: A file has another digest than the catalogue says, or the catalogue does not know the files of the row.
        ConnectionError: A file, or a chunk of a remote volume, could not be fetched; the cubes done so far are kept.
        FileNotFoundError: The row's archive has no such accession or file.
        PermissionError: Access is refused, or the row's licence was not accepted in the settings.
        FileExistsError: The inbox has other files of that name.
    """
    rows, sources = em_datasets(), microscopy_sources()
    if name in sources:
        return _fetch_source(store, sources[name])
    if name not in rows:
        raise UnknownNameError(f"the catalogue has no dataset {name!r}; it has {', '.join(sorted({*rows, *sources}))}.")
    row = rows[name]
    if row.licence_must_be_accepted:
        check_licence_accepted(store, name, row.licence, row.source_url)
    with scratch_folder("catalogue") as scratch:
        if row.remote is not None:
            from cem_assets.inbox.remote_cubes import sample_dataset  # imports tensorstore, which most runs do not need

            sample_dataset(store, row, Path(scratch))
            return name
        folder = Path(scratch) / name
        folder.mkdir()
        files, is_in_trouble = _row_files(store, row)
        _fetch_files(store, name, [(file, _mirrored(row, file)) for file in files], folder, is_in_trouble)
        (folder / "dataset.toml").write_text(row.description_toml(), encoding="utf-8")
        return register_folder(store, folder)


def _row_files(store: Store, row: EmDataset) -> tuple[list[RemoteFile], bool]:
    """Describe the files of a row, and tell whether its archive is in trouble.

    A sha256 of the row's registry counts before the archive's own checksum.
    """
    known = {name: f"sha256:{sha256}" for name, sha256 in row.files.items()}
    if not row.archive:
        return [RemoteFile(name, f"{row.base_url}{quote(name)}", checksum=checksum) for name, checksum in known.items()], False
    try:
        listed = archive_files(row.archive, row.accession, list(known) or None)
    except (ConnectionError, FileNotFoundError, PermissionError, DataError) as error:  # dead links often lead to a web page
        stands_in = row.mirrors[0] if known and row.mirrors else ""
        record_trouble(store, row.name, f"{row.archive} {row.accession}", str(error), stands_in)
        if not stands_in:
            raise
        # The archive is gone, but the digests of its files are known, so a mirror can be trusted.
        return [RemoteFile(name, f"{stands_in}{quote(name)}", checksum=checksum) for name, checksum in known.items()], True
    if unchecked := [file.name for file in listed if not known.get(file.name, file.checksum)]:
        raise DataError(
            f"{row.archive} gives no checksum for {len(unchecked)} file(s) of {row.name!r}, such as {unchecked[0]!r}; expected "
            "its sha256 in the row's registry. Download them once, check them, and write their sha256 down."
        )
    return [RemoteFile(f.name, f.url, f.num_bytes, known.get(f.name, f.checksum), f.licence) for f in listed], False


def _mirrored(row: EmDataset, file: RemoteFile) -> tuple[str, ...]:
    return tuple(url for folder in row.mirrors if (url := f"{folder}{quote(file.name)}") != file.url)


def _fetch_files(
    store: Store, name: str, files: Sequence[tuple[RemoteFile, tuple[str, ...]]], folder: Path, is_in_trouble: bool = False
) -> None:
    """Download files into a folder, unpack those that are archives, and record whether the source is in trouble."""
    failed: tuple[str, str, str] | None = None
    for file, mirrors in files:
        try:
            found = download(file, mirrors, folder)
        except (ConnectionError, DataError) as error:
            record_trouble(store, name, file.url, str(error))
            raise
        if found.failed and failed is None:
            failed = (file.url, found.failed[0].problem, found.origin)
        stem = unpacked_stem(found.path.name)
        if stem is not None:
            unpack(found.path, found.path.with_name(stem))
            found.path.unlink()
    if failed is not None:
        record_trouble(store, name, *failed)
    elif not is_in_trouble:
        clear_trouble(store, name)


def _fetch_source(store: Store, row: MicroscopySource) -> str:
    if not row.downloads:
        raise DataError(
            f"the catalogue does not know the files of {row.name!r} byte for byte, so it cannot fetch them. Download them "
            f"from {row.images_url or row.source_url}, and drop them with a source.toml (recipe = {row.name!r}) into "
            f"inbox/{row.name}/."
        )
    with scratch_folder("catalogue") as scratch:
        folder = Path(scratch) / row.name
        for _, _, path in row.downloads:
            if problem := path_problem(path):
                raise DataError(f"the registry of {row.name!r} names {path!r}: {problem}")
        files = [RemoteFile(path, address, checksum=f"sha256:{sha256}") for sha256, address, path in row.downloads]
        _fetch_files(store, row.name, [(file, ()) for file in files], folder)
        (folder / SOURCE_TOML).write_bytes(row.source_toml())
        return register_source(store, folder)
