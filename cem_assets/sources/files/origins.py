"""Opening a file at an offset, wherever it lies: https, http, ftp, mirrored folders (file://) and S3 (s3://).

One function per kind, and a literal dict of them. Trouble that may pass is a `ConnectionError`; what another try would not
change (absent, forbidden, malformed) is a `FileNotFoundError`, `PermissionError` or `ValueError`. Tries, mirrors, sizes and
digests are `cem_assets.sources.files.transfer`; which addresses are allowed is `cem_assets.sources.files.addresses`.
"""

import ftplib  # archives offer ftp; contents are checked by digest, and no secret is sent
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
from cem_assets.errors import DataError
from cem_assets.sources.files.addresses import check_address, check_redirect, local_mirror_file

_BLOCK = 1 << 18
_S3_BLOCK = 8 << 20
_MAX_REDIRECTS = 5
_PASSING = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Opened:
    """The bytes of a file from some offset on.

    Attributes:
        start: Offset of the first byte; 0 where the server gives no parts, whatever was asked for.
        num_bytes: Size of the whole file, where it is known.
        tag: Strong entity tag (http), to go on with the same contents; empty where there is none.
        blocks: The bytes; `ConnectionError` where they break off.
    """

    start: int
    num_bytes: int | None
    tag: str
    blocks: Iterator[bytes]


@contextmanager
def _open_http(url: str, start: int, tag: str, timeout_s: float) -> Iterator[Opened]:
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
    """Follow redirects by hand, so that every hop is checked before it is asked."""
    check_address(url)
    for _ in range(_MAX_REDIRECTS + 1):
        # The empty auth keeps requests from sending what a .netrc file has for the host.
        answer = session.get(
            url, headers=headers, timeout=(min(10.0, timeout_s), timeout_s), stream=True, allow_redirects=False, auth=_no_auth
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        url = check_redirect(url, urljoin(url, answer.headers["Location"]))
    raise DataError(f"it leads on more than {_MAX_REDIRECTS} times, at last to {url[:200]}")


def _no_auth(request: Any) -> Any:
    return request


def _opened(answer: requests.Response, url: str, start: int) -> Opened:
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
        # All bytes are here already, or the file is another, shorter one: the transfer compares the size.
        return Opened(start, size, tag, iter(()))
    if status not in (200, 206):
        raise DataError(f"status {status}; expected 200 or 206")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DataError(f"{url} comes with Content-Encoding {answer.headers['Content-Encoding']!r}; expected the file itself")
    length = answer.headers.get("Content-Length", "")
    if status == 206:
        if match is None or match.group(1) is None:
            raise DataError("status 206 without a Content-Range")
        return Opened(int(match.group(1)), size, tag, _http_blocks(answer))
    return Opened(0, int(length) if length.isdecimal() else None, tag, _http_blocks(answer))


def _http_blocks(answer: requests.Response) -> Iterator[bytes]:
    try:
        # read1 gives what has arrived, so a server that drips is seen as slow instead of waited for.
        while block := answer.raw.read1(_BLOCK, decode_content=False):
            yield block
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ConnectionError(f"it broke off: {type(error).__name__}: {error}") from error


@contextmanager
def _open_ftp(url: str, start: int, tag: str, timeout_s: float) -> Iterator[Opened]:
    del tag
    check_address(url)
    parts = urlsplit(url)
    path = unquote(parts.path)
    if not path.isprintable():
        raise DataError(f"path {path!r} has control characters; expected none")
    with ExitStack() as stack:
        try:
            ftp = ftplib.FTP(timeout=timeout_s)  # noqa: S321
            stack.callback(ftp.close)  # no polite QUIT: after an aborted transfer its answer is an error
            ftp.connect(parts.hostname or "", parts.port or ftplib.FTP_PORT)
            ftp.login()
            ftp.voidcmd("TYPE I")
            size = ftp.size(path)
            connection, _ = ftp.ntransfercmd(f"RETR {path}", rest=start or None)
            stack.enter_context(closing(connection))
        except ftplib.error_perm as error:
            raise FileNotFoundError(f"ftp says {error}") from error
        except (ftplib.Error, EOFError, OSError) as error:
            raise ConnectionError(f"ftp: {type(error).__name__}: {error}") from error
        # Outside of the try: what the reader does wrong, such as filling the disk, is no trouble of the server.
        yield Opened(start, size, "", _ftp_blocks(connection))


def _ftp_blocks(connection: Any) -> Iterator[bytes]:
    try:
        while block := connection.recv(_BLOCK):
            yield block
    except OSError as error:
        raise ConnectionError(f"it broke off: {type(error).__name__}: {error}") from error


@contextmanager
def _open_mirror_file(url: str, start: int, tag: str, timeout_s: float) -> Iterator[Opened]:
    del tag, timeout_s
    path = local_mirror_file(url)
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(min(start, size))
        yield Opened(min(start, size), size, "", iter(lambda: handle.read(_BLOCK), b""))


@contextmanager
def _open_s3(url: str, start: int, tag: str, timeout_s: float) -> Iterator[Opened]:
    del tag
    # As the store reaches its own bucket: keys and endpoint from the AWS_* variables, listings never cached.
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
    try:
        size = int(files.info(path)["size"])
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # botocore's errors have no common builtin type
        raise ConnectionError(f"S3: {type(error).__name__}: {error}") from error
    yield Opened(min(start, size), size, "", _s3_blocks(files, path, start, size))


def _s3_blocks(files: Any, path: str, start: int, size: int) -> Iterator[bytes]:
    for first in range(start, size, _S3_BLOCK):
        try:
            yield files.cat_file(path, start=first, end=min(first + _S3_BLOCK, size))
        except Exception as error:
            raise ConnectionError(f"S3 broke off: {type(error).__name__}: {error}") from error


Opener = Callable[[str, int, str, float], AbstractContextManager[Opened]]

OPENERS: dict[str, Opener] = {
    "https": _open_http,
    "http": _open_http,
    "ftp": _open_ftp,
    "file": _open_mirror_file,
    "s3": _open_s3,
}


def open_origin(url: str, start: int, tag: str, timeout_s: float) -> AbstractContextManager[Opened]:
    """Open a file at an offset.

    Args:
        url: An address of a kind in `OPENERS`.
        start: Offset in bytes to begin at.
        tag: Entity tag of an earlier answer, or empty: other contents then begin at 0.
        timeout_s: For the connection, and between two packets.

    Returns:
        A context with the opened file. Inside and on entry it raises `ConnectionError` for trouble that may pass,
        `FileNotFoundError`, `PermissionError` and `ValueError` for what stays.

    Raises:
        DataError: The address is of no known kind.
    """
    scheme = urlsplit(url).scheme
    if scheme not in OPENERS:
        raise DataError(f"address {url[:200]!r} is of no known kind; expected {', '.join(OPENERS)}.")
    return OPENERS[scheme](url, start, tag, timeout_s)
