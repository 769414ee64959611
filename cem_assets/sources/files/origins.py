"""Opening a remote file at an offset: over https, http and ftp, from mirrored folders (file://) and from S3 (s3://).

There is one function for each kind of address, and a literal dict of them. Trouble that may pass raises `ConnectionError`.
What another try would not change raises `FileNotFoundError` (absent), `PermissionError` (forbidden) or `DataError`
(malformed). `cem_assets.sources.files.download` has the tries, mirrors, sizes and digests, and
`cem_assets.sources.files.addresses` decides which addresses are allowed.
"""

import ftplib  # archives offer ftp; contents are checked by their digest, and no secret is sent
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import fsspec
import requests
import urllib3

from cem_assets import environment
from cem_assets.errors import DataError, Fault, fault_of
from cem_assets.sources.files.addresses import check_address, check_redirect, local_mirror_file, split_address

_BLOCK = 1 << 18
_S3_BLOCK = 8 << 20
_MAX_REDIRECTS = 5
_PASSING = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True)
class OpenOrigin:
    """The bytes of a remote file from some offset on.

    Attributes:
        start: Offset of the first byte. It is 0 where the server cannot send parts of a file, whatever was asked for.
        num_bytes: Size of the whole file; None where it is not known.
        tag: The strong entity tag of an http answer, with which the same contents can be continued; empty where there is none.
        blocks: The bytes. Iterating raises `ConnectionError` where they break off.
    """

    start: int
    num_bytes: int | None
    tag: str
    blocks: Iterator[bytes]


@contextmanager
def _open_http(url: str, start: int, tag: str, timeout_s: float) -> Iterator[OpenOrigin]:
    # No transport compression: offsets and sizes are those of the file itself.
    headers = {"Accept-Encoding": "identity", "User-Agent": "cem_assets (https; research data)"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag:
            headers["If-Range"] = tag
    try:
        with requests.Session() as session, closing(_answer(session, url, headers, timeout_s)) as answer:
            yield _opened(answer, url, start)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    except requests.RequestException as error:
        raise DataError(f"{type(error).__name__}: {error}") from error


def _answer(session: requests.Session, url: str, headers: dict[str, str], timeout_s: float) -> requests.Response:
    """Follow redirects one by one, so that every address is checked before it is asked."""
    check_address(url)
    for _ in range(_MAX_REDIRECTS + 1):
        # Without `auth`, requests would send the password that a .netrc file has for this host.
        timeouts = (min(10.0, timeout_s), timeout_s)
        try:
            answer = session.get(url, headers=headers, timeout=timeouts, stream=True, allow_redirects=False, auth=_no_auth)
        except requests.RequestException:
            raise
        except ValueError as error:  # requests parses the address of a redirect even where it does not follow it
            raise DataError(f"{url} leads to a malformed address: {error}") from error
        if not answer.is_redirect:
            return answer
        answer.close()
        url = check_redirect(url, urljoin(url, answer.headers["Location"]))
    raise DataError(f"it leads on more than {_MAX_REDIRECTS} times, at last to {url[:200]}")


def _no_auth(request: Any) -> Any:
    return request


def _opened(answer: requests.Response, url: str, start: int) -> OpenOrigin:
    status = answer.status_code
    if status in _PASSING or status >= 500:
        raise ConnectionError(f"status {status}")
    if status in (401, 403):
        raise PermissionError(f"status {status}: it is not public")
    if status in (404, 410):
        raise FileNotFoundError(f"status {status}: it is not there")
    tag = answer.headers.get("ETag", "")
    tag = tag if tag.startswith('"') else ""  # a weak tag names no exact bytes
    match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    size = int(match.group(2)) if match and match.group(2) != "*" else None
    if status == 416 and start:
        # Either all bytes are here already, or this is another, shorter file: the caller compares the sizes.
        return OpenOrigin(start, size, tag, iter(()))
    if status not in (200, 206):
        raise DataError(f"status {status}; expected 200 or 206")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DataError(f"{url} comes with Content-Encoding {answer.headers['Content-Encoding']!r}; expected the file itself")
    length = answer.headers.get("Content-Length", "")
    if status == 206:
        if match is None or match.group(1) is None:
            raise DataError("status 206 without a Content-Range")
        return OpenOrigin(int(match.group(1)), size, tag, _http_blocks(answer))
    return OpenOrigin(0, int(length) if length.isdecimal() else None, tag, _http_blocks(answer))


def _http_blocks(answer: requests.Response) -> Iterator[bytes]:
    try:
        # read1 gives what has arrived, so a server that drips is seen as slow instead of waited for.
        while block := answer.raw.read1(_BLOCK, decode_content=False):
            yield block
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ConnectionError(f"it broke off: {type(error).__name__}: {error}") from error


@contextmanager
def _open_ftp(url: str, start: int, tag: str, timeout_s: float) -> Iterator[OpenOrigin]:
    del tag
    check_address(url)
    parts = urlsplit(url)
    path = unquote(parts.path)
    if not path.isprintable():
        raise DataError(f"path {path!r} has control characters; expected none")
    with ExitStack() as stack:
        try:
            ftp = ftplib.FTP(timeout=timeout_s)  # noqa: S321
            stack.callback(ftp.close)  # without QUIT, which fails after a download that was broken off
            ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
            ftp.login()
            ftp.voidcmd("TYPE I")
            size = ftp.size(path)
            connection, _ = ftp.ntransfercmd(f"RETR {path}", rest=start or None)
            stack.enter_context(closing(connection))
        except ftplib.error_perm as error:
            raise FileNotFoundError(f"ftp says {error}") from error
        except (ftplib.Error, EOFError, OSError, ValueError) as error:  # ValueError: an answer that cannot be parsed
            raise ConnectionError(f"ftp: {type(error).__name__}: {error}") from error
        # This stands outside of the `try`, because an error of the reader, such as a full disk, is not the server's fault.
        yield OpenOrigin(start, size, "", _ftp_blocks(connection))


def _ftp_blocks(connection: Any) -> Iterator[bytes]:
    try:
        while block := connection.recv(_BLOCK):
            yield block
    except OSError as error:
        raise ConnectionError(f"it broke off: {type(error).__name__}: {error}") from error


@contextmanager
def _open_mirror_file(url: str, start: int, tag: str, timeout_s: float) -> Iterator[OpenOrigin]:
    del tag, timeout_s
    path = local_mirror_file(url)
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(min(start, size))
        yield OpenOrigin(min(start, size), size, "", iter(lambda: handle.read(_BLOCK), b""))


@contextmanager
def _open_s3(url: str, start: int, tag: str, timeout_s: float) -> Iterator[OpenOrigin]:
    del tag
    # Keys and endpoint come from the AWS_* variables, as for the store's own bucket. Listings are never cached.
    files = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        config_kwargs={
            "retries": {"max_attempts": environment.whole_number(environment.AWS_MAX_ATTEMPTS), "mode": "standard"},
            "connect_timeout": 10,
            "read_timeout": timeout_s,
        },
    )
    path = url.split("://", 1)[1]
    with _trouble_of_s3("S3"):
        size = int(files.info(path)["size"])
    yield OpenOrigin(min(start, size), size, "", _s3_blocks(files, path, start, size))


def _s3_blocks(files: Any, path: str, start: int, size: int) -> Iterator[bytes]:
    for first in range(start, size, _S3_BLOCK):
        with _trouble_of_s3("S3 broke off"):
            block: bytes = files.cat_file(path, start=first, end=min(first + _S3_BLOCK, size))
        yield block


@contextmanager
def _trouble_of_s3(what: str) -> Iterator[None]:
    """Turn trouble with the server into a `ConnectionError`; the libraries' errors for that have no common builtin class."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        if fault_of(error) != Fault.store:
            raise
        raise ConnectionError(f"{what}: {type(error).__name__}: {error}") from error


Opener = Callable[[str, int, str, float], AbstractContextManager[OpenOrigin]]

OPENERS: dict[str, Opener] = {
    "https": _open_http,
    "http": _open_http,
    "ftp": _open_ftp,
    "file": _open_mirror_file,
    "s3": _open_s3,
}


def open_origin(url: str, start: int, tag: str, timeout_s: float) -> AbstractContextManager[OpenOrigin]:
    """Open a file at an offset.

    Args:
        url: An address of a kind in `OPENERS`.
        start: Offset of the first byte that is wanted.
        tag: Entity tag of an earlier answer, or empty. Where the contents have changed since then, they begin at 0.
        timeout_s: Seconds to wait for the connection, and between two packets.

    Returns:
        A context manager. Entering it and reading the blocks raise `ConnectionError` for trouble that may pass, and
        `FileNotFoundError`, `PermissionError` or `DataError` for what another try would not change.

    Raises:
        DataError: The address is of no known kind.
    """
    scheme = split_address(url)[0].scheme
    if scheme not in OPENERS:
        raise DataError(f"address {url[:200]!r} is of no known kind; expected {', '.join(OPENERS)}.")
    return OPENERS[scheme](url, start, tag, timeout_s)
