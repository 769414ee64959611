"""EMPIAR: raw electron-microscopy images at EBI, served as plain folders over https and ftp, without checksums.

All entries are CC0 by EMPIAR's policy. Files of an entry lie under `data/`; names are relative to that folder.
"""

import re
from collections.abc import Sequence
from urllib.parse import quote

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import walk_listing
from cem_assets.sources.files.description import RemoteFile, check_file_path


def empiar_files(
    accession: str, names: Sequence[str] | None, base_url: str = "https://ftp.ebi.ac.uk/empiar/world_availability"
) -> list[RemoteFile]:
    """List files of an EMPIAR entry.

    Args:
        accession: "EMPIAR-10094", or its number.
        names: Paths below `data/`, whose existence is not checked; None reads the HTML listings.
        base_url: Folder of all entries; `ftp://ftp.ebi.ac.uk/empiar/world_availability` serves named files as well.

    Raises:
        DataError: The accession or a name is malformed.
    """
    match = re.fullmatch(r"(?:EMPIAR-)?([1-9]\d{4,5})", accession, re.ASCII)
    if match is None:
        raise DataError(f"EMPIAR accession {accession!r} is malformed; expected EMPIAR- and five digits or more.")
    base = f"{base_url}/{match.group(1)}/data/"
    found = walk_listing(base) if names is None else [check_file_path(name) for name in names]
    return [RemoteFile(name, f"{base}{quote(name)}", licence="CC0 1.0") for name in found]
