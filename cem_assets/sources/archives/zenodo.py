"""Zenodo: records with their files, sizes and md5, by its REST API (`/api/records/<id>`)."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import chosen, listed, read_json, size_of
from cem_assets.sources.files.description import RemoteFile


def zenodo_files(accession: str, names: Sequence[str] | None, base_url: str = "https://zenodo.org") -> list[RemoteFile]:
    """List files of a record.

    Args:
        accession: Number of the record of one version, also as "10.5281/zenodo.<number>".
        names: Files, or None for all.
        base_url: Of the server.

    Raises:
        DataError: The accession or the answer is malformed, or its files are not public.
        FileNotFoundError: There is no such record or file.
    """
    match = re.fullmatch(r"(?:10\.5281/zenodo\.)?(\d{1,12})", accession, re.ASCII)
    if match is None:
        raise DataError(f"Zenodo accession {accession!r} is malformed; expected the number of a record.")
    url = f"{base_url}/api/records/{match.group(1)}"
    answer = read_json(url)
    raw = answer.get("metadata")
    metadata: dict[str, Any] = raw if isinstance(raw, dict) else {}
    if metadata.get("access_right", "open") != "open":
        raise DataError(f"{url}: access is {metadata['access_right']!r}; expected open. Ask its authors for the files.")
    licence = metadata.get("license")
    licence_id = str(licence.get("id", "")) if isinstance(licence, dict) else ""
    there = {str(item.get("key", "")): item for item in listed(answer, "files", url)}
    return [
        RemoteFile(
            name,
            # The address is built here and not taken from `links`, so that no answer leads to another host.
            f"{url}/files/{quote(name, safe='')}/content",
            size_of(there[name].get("size"), f"{url} file {name!r}"),
            str(there[name].get("checksum", "")),
            licence_id,
        )
        for name in chosen(names, there, url)
    ]
