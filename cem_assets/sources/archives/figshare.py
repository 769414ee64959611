"""figshare: articles with their files, sizes and md5, by its public API (`/v2/articles/<id>`)."""

import re
from collections.abc import Sequence
from typing import Any

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import chosen, listed, read_json, size_of
from cem_assets.sources.files.description import RemoteFile


def figshare_files(
    accession: str,
    names: Sequence[str] | None,
    base_url: str = "https://api.figshare.com",
    files_url: str = "https://ndownloader.figshare.com/files",
) -> list[RemoteFile]:
    """List files of an article.

    Args:
        accession: Number of the article and its version, such as "856713.v1". Without a version it is the newest one, which may
            change.
        names: Files, or None for all.
        base_url: Of the API.
        files_url: The address below which files are served by their number.

    Raises:
        DataError: The accession or the answer is malformed, a file is only a link, or its md5 digests contradict each other.
        FileNotFoundError: There is no such article or file.
    """
    match = re.fullmatch(r"(?:10\.6084/m9\.figshare\.)?(\d{1,12})(?:\.v(\d{1,4}))?", accession, re.ASCII)
    if match is None:
        raise DataError(f"figshare accession {accession!r} is malformed; expected the number of an article, with .v1.")
    url = f"{base_url}/v2/articles/{match.group(1)}" + (f"/versions/{match.group(2)}" if match.group(2) else "")
    answer = read_json(url)
    licence = answer.get("license")
    licence_name = str(licence.get("name", "")) if isinstance(licence, dict) else ""
    there = {str(item.get("name", "")): item for item in listed(answer, "files", url)}
    return [_file(name, there[name], url, files_url, licence_name) for name in chosen(names, there, url)]


def _file(name: str, item: dict[str, Any], url: str, files_url: str, licence: str) -> RemoteFile:
    if item.get("is_link_only"):
        raise DataError(f"{url} has only a link for {name!r}; expected the file. Use the archive that it leads to.")
    number = size_of(item.get("id"), f"{url} file {name!r}")
    if number is None:
        raise DataError(f"{url} gives no number for {name!r}; expected an id. The archive may have changed.")
    md5s = {str(item[key]).lower() for key in ("supplied_md5", "computed_md5") if item.get(key)}
    if len(md5s) != 1:
        raise DataError(f"{url} has md5 {' and '.join(sorted(md5s)) or 'nowhere'} for {name!r}; expected one. Ask figshare.")
    return RemoteFile(
        name,
        f"{files_url}/{number}",
        size_of(item.get("size"), f"{url} file {name!r}"),
        f"md5:{md5s.pop()}",
        licence,
    )
