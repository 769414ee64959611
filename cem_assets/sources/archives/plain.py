"""Any server of files: https, http or ftp, without an accession of its own."""

from collections.abc import Sequence
from urllib.parse import quote, unquote

from cem_assets.errors import DataError
from cem_assets.sources.files.addresses import split_address
from cem_assets.sources.files.description import RemoteFile, check_file_path


def plain_files(accession: str, names: Sequence[str] | None) -> list[RemoteFile]:
    """Describe files by their address.

    Args:
        accession: Address of a folder, with '/' at its end; or of one file, where names is None.
        names: Paths below the folder.

    Raises:
        DataError: The address is of another kind, the names do not go with it, or a name is not allowed.
    """
    parts, _ = split_address(accession)
    if parts.scheme not in ("https", "http", "ftp") or not parts.netloc or parts.fragment:
        raise DataError(f"address {accession!r} is of no known kind; expected https://, http:// or ftp://.")
    is_folder = accession.endswith("/")
    if is_folder != (names is not None):
        raise DataError(f"{accession!r} and {names} do not go together; expected a folder/ with names, or one file without.")
    if names is None:
        return [RemoteFile(check_file_path(unquote(parts.path.rsplit("/", 1)[-1])), accession)]
    return [RemoteFile(name, f"{accession}{quote(check_file_path(name))}") for name in names]
