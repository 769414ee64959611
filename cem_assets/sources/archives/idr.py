"""The Image Data Resource: folders of studies at EBI over https and ftp, without checksums; licences are per study."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import walk_listing
from cem_assets.sources.files.description import RemoteFile, check_file_path


def idr_files(
    accession: str, names: Sequence[str] | None, base_url: str = "https://ftp.ebi.ac.uk/pub/databases/IDR"
) -> list[RemoteFile]:
    """List files of a study.

    Args:
        accession: Name of its folder, such as "idr0036-gustafsdottir-cellpainting".
        names: Paths in the folder, whose existence is not checked; None reads the HTML listings.
        base_url: Folder of all studies.

    Raises:
        DataError: The accession or a name is malformed.
    """
    if not re.fullmatch(r"idr\d{4}-[A-Za-z0-9_-]{1,80}", accession, re.ASCII):
        raise DataError(f"IDR accession {accession!r} is malformed; expected the folder's name, such as idr0036-author-topic.")
    base = f"{base_url}/{accession}/"
    found = walk_listing(base) if names is None else [check_file_path(name) for name in names]
    licence = "see https://idr.openmicroscopy.org"
    return [RemoteFile(name, f"{base}{quote(name)}", licence=licence) for name in found]
