"""GitHub: files of a repository at one commit, with sizes and git's own digests, by the tree API.

Files that are kept with git LFS are only pointers in the tree, and their digest is that of the pointer. Name such files by
another archive.
"""

import re
from collections.abc import Sequence
from urllib.parse import quote

from cem_assets.errors import DataError
from cem_assets.sources.archives.listings import chosen, listed, read_json, size_of
from cem_assets.sources.files.description import RemoteFile

_FILE_MODES = ("100644", "100755")


def github_files(
    accession: str,
    names: Sequence[str] | None,
    base_url: str = "https://api.github.com",
    files_url: str = "https://raw.githubusercontent.com",
) -> list[RemoteFile]:
    """List files of a repository at a commit.

    Args:
        accession: "owner/name@" and all 40 digits of the commit, so that the files cannot change.
        names: Paths in the repository, or None for all files; links and submodules do not count as files.
        base_url: Of the API.
        files_url: The address below which files are served as they are.

    Raises:
        DataError: The accession or the answer is malformed, or the tree is too large to be listed.
        FileNotFoundError: There is no such repository, commit or file.
    """
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9-]{0,38})/([A-Za-z0-9_][A-Za-z0-9._-]{0,99})@([0-9a-f]{40})", accession)
    if match is None:
        raise DataError(f"GitHub accession {accession!r} is malformed; expected owner/name@<40 hex digits of a commit>.")
    owner, repository, commit = match.groups()
    url = f"{base_url}/repos/{owner}/{repository}/git/trees/{commit}?recursive=1"
    answer = read_json(url)
    if answer.get("truncated"):
        raise DataError(f"{url} lists only a part of the tree; expected all of it. Use archive 'plain' with raw addresses.")
    tree = listed(answer, "tree", url)
    there = {str(item.get("path", "")): item for item in tree if item.get("mode") in _FILE_MODES}
    return [
        RemoteFile(
            name,
            f"{files_url}/{owner}/{repository}/{commit}/{quote(name)}",
            size_of(there[name].get("size"), f"{url} file {name!r}"),
            f"git-sha1:{there[name].get('sha', '')}",
        )
        for name in chosen(names, there, url)
    ]
