"""BioStudies and the BioImage Archive: studies whose files are named in the study's JSON and in file lists beside it.

`/api/v1/studies/<accession>` gives sections with `files`, and attributes "File List" that name JSON files under
`/files/<accession>/`. Sizes are given, checksums are not.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import MAX_FILES, chosen, read_json, size_of
from cem_assets.sources.files.description import RemoteFile, check_file_path

_MAX_DEPTH = 20
_MAX_LISTS = 200


def biostudies_files(
    accession: str, names: Sequence[str] | None, base_url: str = "https://www.ebi.ac.uk/biostudies"
) -> list[RemoteFile]:
    """List files of a study.

    Args:
        accession: Such as "S-BIAD634" or "S-BSST265".
        names: Paths in the study, or None for all.
        base_url: Of the server.

    Raises:
        DataError: The accession or the answer is malformed, or one of the names is a folder.
        FileNotFoundError: There is no such study or file.
    """
    if not re.fullmatch(r"[A-Z]-[A-Z]{2,8}-?\d{1,9}", accession, re.ASCII):
        raise DataError(f"BioStudies accession {accession!r} is malformed; expected one like S-BIAD634.")
    url = f"{base_url}/api/v1/studies/{accession}"
    study = read_json(url)
    there: dict[str, dict[str, Any]] = {}
    licence = _attribute(study, "license")
    lists: list[str] = []
    for section in _sections(study.get("section"), 0):
        licence = licence or _attribute(section, "license")
        _add(there, section.get("files"), url)
        if name := _attribute(section, "file list"):
            lists.append(check_file_path(name))
    if len(lists) > _MAX_LISTS:
        raise DataError(f"{url} names {len(lists)} file lists; expected at most {_MAX_LISTS}.")
    for name in lists:
        # Studies name their lists as they were submitted, .tsv or .json; the archive serves each of them as JSON.
        address = f"{base_url}/files/{accession}/{quote(re.sub(r'[.](tsv|txt|csv|xlsx?)$', '.json', name))}"
        _add(there, read_json(address, list), address)
    found = []
    for name in chosen(names, there, url):
        if there[name].get("type", "file") != "file":
            raise DataError(f"{url}: {name!r} is a folder; expected files. Name the files in it.")
        size = size_of(there[name].get("size"), f"{url} file {name!r}")
        found.append(RemoteFile(name, f"{base_url}/files/{accession}/{quote(name)}", size, None, licence))
    return found


def _sections(section: object, depth: int) -> Iterator[dict[str, Any]]:
    """Walk through a section and its subsections, which may be inside lists (tables)."""
    if depth > _MAX_DEPTH:
        raise DataError(
            f"the answer of BioStudies has sections nested deeper than {_MAX_DEPTH}; expected a study. The archive may have "
            "changed."
        )
    if isinstance(section, list):
        for item in section:
            yield from _sections(item, depth + 1)
    elif isinstance(section, dict):
        yield section
        yield from _sections(section.get("subsections", []), depth + 1)


def _attribute(holder: dict[str, Any], name: str) -> str:
    """Return the value of the first attribute of a name (any case), or an empty text."""
    attributes = holder.get("attributes")
    for item in attributes if isinstance(attributes, list) else []:
        if isinstance(item, dict) and str(item.get("name", "")).lower() == name:
            return str(item.get("value") or "")
    return ""


def _add(there: dict[str, dict[str, Any]], files: object, url: str) -> None:
    for item in files if isinstance(files, list) else []:
        if isinstance(item, list):
            _add(there, item, url)
        elif isinstance(item, dict) and item.get("path"):
            there[str(item["path"])] = item
        else:
            raise DataError(f"{url} lists a file without a path: {str(item)[:100]}. The archive may have changed.")
        if len(there) > MAX_FILES:
            raise DataError(f"{url} lists more than {MAX_FILES:,} files; name the files you want in smaller studies.")
