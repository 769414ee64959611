"""Archives that list their files for us: each is one module with one function, and one row of `ADAPTERS`.

An adapter turns an accession and file names (None for all files) into `RemoteFile`s, from the archive's own answer. The answer
is not trusted: its size is limited, its names are checked, and addresses are built here and never taken from it. Adapters
download no files; `cem_assets.sources.files.download` does. The addresses of archives are parameters, for mirrors of a whole
archive and for tests.
"""

from collections.abc import Callable, Sequence

from cem_assets.errors import UnknownNameError
from cem_assets.sources.archives.bbbc import bbbc_files
from cem_assets.sources.archives.biostudies import biostudies_files
from cem_assets.sources.archives.empiar import empiar_files
from cem_assets.sources.archives.figshare import figshare_files
from cem_assets.sources.archives.github import github_files
from cem_assets.sources.archives.idr import idr_files
from cem_assets.sources.archives.plain import plain_files
from cem_assets.sources.archives.zenodo import zenodo_files
from cem_assets.sources.files.description import RemoteFile

Adapter = Callable[[str, Sequence[str] | None], list[RemoteFile]]

ADAPTERS: dict[str, Adapter] = {
    "bbbc": bbbc_files,
    "biostudies": biostudies_files,
    "empiar": empiar_files,
    "figshare": figshare_files,
    "github": github_files,
    "idr": idr_files,
    "plain": plain_files,
    "zenodo": zenodo_files,
}


def archive_files(archive: str, accession: str, names: Sequence[str] | None = None) -> list[RemoteFile]:
    """List files of an accession of an archive.

    Args:
        archive: A key of `ADAPTERS`.
        accession: As the archive writes it.
        names: Paths within the accession, or None for all.

    Returns:
        The files in the order of the names; where no names are given, in order of name.

    Raises:
        UnknownNameError: The archive is not known.
        DataError: The accession or the archive's answer is malformed.
        FileNotFoundError: The archive has no such accession or file.
        ConnectionError, PermissionError: The archive could not be asked.
    """
    if archive not in ADAPTERS:
        raise UnknownNameError(f"archive {archive!r} is not known; expected one of {', '.join(ADAPTERS)}.")
    found = ADAPTERS[archive](accession, names)
    if not found:
        raise FileNotFoundError(f"{archive} {accession} has no files; expected some. Check the accession.")
    return found
