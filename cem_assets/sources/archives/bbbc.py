"""The Broad Bioimage Benchmark Collection: folders of zip files over https, without checksums or a common licence."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import walk_listing
from cem_assets.sources.files.description import RemoteFile, check_file_path


def bbbc_files(
    accession: str, names: Sequence[str] | None, base_url: str = "https://data.broadinstitute.org/bbbc"
) -> list[RemoteFile]:
    """List files of an image set.

    Args:
        accession: Such as "BBBC013".
        names: Files of its folder, whose existence is not checked; None reads the HTML listing.
        base_url: Folder of all image sets.

    Raises:
        DataError: The accession or a name is malformed.
    """
    if not re.fullmatch(r"BBBC\d{3}", accession, re.ASCII):
        raise DataError(f"BBBC accession {accession!r} is malformed; expected BBBC and three digits.")
    base = f"{base_url}/{accession}/"
    found = walk_listing(base) if names is None else [check_file_path(name) for name in names]
    licence = f"see https://bbbc.broadinstitute.org/{accession}"
    return [RemoteFile(name, f"{base}{quote(name)}", licence=licence) for name in found]
