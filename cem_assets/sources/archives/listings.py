"""Reading what archives say about their files: small JSON documents and HTML listings of folders.

The answers are not trusted and their size is limited. Each archive has its own module in `cem_assets.sources.archives`, which
knows what its answers mean; the files themselves come by `cem_assets.sources.files.download`.
"""

import json
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from cem_assets.errors import DataError
from cem_assets.sources.files.description import check_file_path
from cem_assets.sources.files.origins import open_origin

MAX_FILES = 100_000

_MAX_ANSWER_BYTES = 64 << 20
_MAX_FOLDERS = 2000
_NUM_ATTEMPTS = 4
_TIMEOUT_S = 30.0
_BACKOFF_S = 0.5
_MAX_ANSWER_S = 300.0


def read_answer(url: str, max_bytes: int = _MAX_ANSWER_BYTES) -> bytes:
    """Read a document, with a few tries where the server is in trouble.

    Raises:
        ConnectionError: No try succeeded.
        FileNotFoundError: The document is not there.
        PermissionError: It is not public.
        DataError: It is larger than allowed, or the address is malformed.
    """
    for attempt in range(_NUM_ATTEMPTS):
        try:
            return _read_once(url, max_bytes)
        except ConnectionError as error:
            if attempt + 1 == _NUM_ATTEMPTS:
                raise ConnectionError(f"{url} could not be asked in {_NUM_ATTEMPTS} tries: {error}. Try later.") from error
            time.sleep(_BACKOFF_S * 2**attempt)
        except (FileNotFoundError, PermissionError) as error:
            raise type(error)(f"{url}: {error}. Check the accession.") from error
    raise AssertionError("the last try returns or raises")


def _read_once(url: str, max_bytes: int) -> bytes:
    found = bytearray()
    deadline = time.monotonic() + _MAX_ANSWER_S
    with open_origin(url, 0, "", _TIMEOUT_S) as opened:
        for block in opened.blocks:
            found += block
            if len(found) > max_bytes:
                raise DataError(f"{url} answers with more than {max_bytes:,} bytes; expected a list of files.")
            if time.monotonic() > deadline:
                raise ConnectionError(f"it took more than {_MAX_ANSWER_S:.0f} s")
        if opened.num_bytes is not None and len(found) != opened.num_bytes:
            raise ConnectionError(f"it broke off after {len(found):,} of {opened.num_bytes:,} bytes")
    return bytes(found)


def read_json(url: str, kind: type[dict[str, Any]] | type[list[Any]] = dict) -> Any:
    """Read a JSON document.

    Args:
        kind: What its top level must be.

    Raises:
        DataError: The answer is no JSON of that kind.
        ConnectionError, FileNotFoundError, PermissionError: As `read_answer`.
    """
    data = read_answer(url)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{url} answers with no JSON: {type(error).__name__}: {error}. The archive may have changed."
        ) from error
    if not isinstance(found, kind):
        raise DataError(
            f"{url} answers with a {type(found).__name__}; expected a {kind.__name__}. The archive may have changed."
        )
    return found


def listed(answer: dict[str, Any], key: str, url: str) -> list[dict[str, Any]]:
    """Return the list of objects that an answer has under a key.

    Raises:
        DataError: The key is absent, or its value is no list of objects or too long.
    """
    found = answer.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found) or len(found) > MAX_FILES:
        raise DataError(f"{url}: {key!r} is no list of at most {MAX_FILES:,} objects. The archive may have changed.")
    return found


def size_of(value: object, what: str) -> int | None:
    """Return a size in bytes that an answer gives; None where it gives none.

    Args:
        what: The thing whose size it is, for errors.

    Raises:
        DataError: The value is no size.
    """
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()):
        raise DataError(f"{what} has size {text[:40]!r}; expected a number of bytes. The archive may have changed.")
    return int(text)


def chosen(names: Sequence[str] | None, there: dict[str, Any], what: str) -> list[str]:
    """Return the names in the order given, or all names that are there in order of name.

    Raises:
        FileNotFoundError: Some names are not there; the error lists them.
    """
    if names is None:
        return sorted(there)
    if absent := [name for name in names if name not in there]:
        raise FileNotFoundError(
            f"{what} has no {', '.join(absent[:20])}; it has {', '.join(sorted(there)[:20]) or 'no files'}"
            f"{' and more' if len(there) > 20 else ''}."
        )
    return list(names)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def links_below(url: str, html: str) -> list[str]:
    """Return the files and folders that an HTML listing names directly in its folder, in order of name; folders end with '/'.

    Links to the folder itself, its parents, other hosts, deeper files and sorted views are ignored.

    Args:
        url: Address of the folder, with '/' at its end.
    """
    links = _Links()
    links.feed(html)
    base = urlsplit(url)
    found = set()
    for link in links.found:
        try:
            parts = urlsplit(urljoin(url, link))
        except ValueError:  # a malformed link names no file
            continue
        if parts.query or (parts.scheme, parts.netloc) != (base.scheme, base.netloc) or not parts.path.startswith(base.path):
            continue
        rest = unquote(parts.path[len(base.path) :])
        if rest and "/" not in rest.removesuffix("/"):
            check_file_path(rest.removesuffix("/"))
            found.add(rest)
    return sorted(found)


def walk_listing(url: str, read: Callable[[str], bytes] = read_answer) -> list[str]:
    """List all files below a folder that is served as HTML listings, as paths relative to it, in order of name.

    Args:
        url: Address of the folder, with '/' at its end.
        read: Returns the bytes of an address.

    Raises:
        DataError: The folder has too many files or folders, or a name that is not allowed.
        ConnectionError, FileNotFoundError, PermissionError: As `read_answer`.
    """
    files: list[str] = []
    folders, num_folders = [""], 0
    while folders:
        folder = folders.pop()
        num_folders += 1
        if num_folders > _MAX_FOLDERS or len(files) > MAX_FILES:
            raise DataError(
                f"{url} has more than {_MAX_FOLDERS:,} folders or {MAX_FILES:,} files; name the files you want instead of all."
            )
        address = f"{url}{quote(folder)}"
        for name in links_below(address, read(address).decode("utf-8", "replace")):
            (folders if name.endswith("/") else files).append(f"{folder}{name}")
    for name in files:
        check_file_path(name)
    return sorted(files)
