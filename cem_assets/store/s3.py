"""Objects, ranges and listings of S3 through obstore, which takes a fraction of s3fs's processor time and no GIL.

Only frequent requests go this way. Where one fails, `cem_assets.store.store` repeats it through s3fs, which retries patiently
and raises the errors that the platform knows. So nothing here raises: every method returns None where s3fs has to be used.
"""

import hashlib
import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import obstore
from botocore.exceptions import BotoCoreError
from botocore.session import Session
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError
from obstore.store import S3Store

from cem_assets import environment

PART_BYTES = 16 << 20
"""Objects too large for a single request are uploaded in parts of this size, some of them at the same time."""
STREAMED_PART_BYTES = 8 << 20
"""Objects larger than this are streamed in parts of this size; four parts are in memory."""
PAGE_KEYS = 1000
"""Keys in one page of a listing; servers answer at most so many at once."""

_BLOCK = 4 << 20
_NUM_PARTS_AT_ONCE = 4
_MAX_FAILURES = 8
_PAUSE_SECONDS = 60.0
_CREDENTIALS_LAST = timedelta(minutes=5)
_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass
class QuickBucket:
    """One bucket, which may be shared between threads. After many failures in a row all methods return None for a while."""

    name: str
    _client: S3Store
    _num_failures: int = 0
    _paused_until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def read(self, key: str) -> bytes | None:
        """Read an object."""

        def read() -> bytes:
            found = obstore.get(self._client, key)
            num_bytes = int(found.meta["size"])
            if num_bytes <= PART_BYTES:
                return found.bytes().to_bytes()
            # A large object is copied twice less than by to_bytes().
            whole = io.BytesIO()
            for block in found.stream(min_chunk_size=_BLOCK):
                whole.write(block)
            if whole.tell() != num_bytes:
                raise OSError(f"{key} ended after {whole.tell()} of {num_bytes} bytes")
            return whole.getvalue()

        return self._attempt(read)

    def read_range(self, key: str, start: int, num_bytes: int) -> tuple[Any, int] | None:
        """Read a range without copying it; return a buffer, and the size of the whole object in bytes."""

        def read() -> tuple[Any, int]:
            found = obstore.get(self._client, key, options={"range": (start, start + num_bytes)})
            return found.bytes(), int(found.meta["size"])

        return self._attempt(read)

    def stream(self, key: str, take: Callable[[Any], object]) -> bool | None:
        """Pass an object's bytes to a function, in order, part after part.

        Parts of a large object are requested several at a time, because servers limit the speed of one connection. All
        requests ask for the same version of the object.

        Args:
            take: Called with buffers. If the method returns None, discard what was passed.

        Returns:
            True at the end.
        """

        def stream() -> bool:
            found = obstore.get(self._client, key)
            num_bytes = int(found.meta["size"])
            if num_bytes <= STREAMED_PART_BYTES:
                take(found.bytes())
                return True
            version = found.meta["e_tag"]
            del found  # ends that request

            def part(start: int) -> Any:
                wanted: Any = {"range": (start, min(start + STREAMED_PART_BYTES, num_bytes)), "if_match": version}
                return obstore.get(self._client, key, options=wanted).bytes()

            waiting: deque[Future[Any]] = deque()
            with ThreadPoolExecutor(_NUM_PARTS_AT_ONCE, "parts") as pool:
                try:
                    for start in range(0, num_bytes, STREAMED_PART_BYTES):
                        waiting.append(pool.submit(part, start))
                        if len(waiting) == _NUM_PARTS_AT_ONCE:
                            take(waiting.popleft().result())
                    while waiting:
                        take(waiting.popleft().result())
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
            return True

        return self._attempt(stream)

    def sha256(self, key: str) -> str | None:
        """Hash an object."""
        digest = hashlib.sha256()
        return digest.hexdigest() if self.stream(key, digest.update) else None

    def download(self, key: str, target: Path) -> str | None:
        """Write an object to a file; return its sha256."""
        digest = hashlib.sha256()
        with open(target, "wb") as file:

            def take(part: Any) -> None:
                file.write(part)
                digest.update(part)

            return digest.hexdigest() if self.stream(key, take) else None

    def pages(self, folder: str, behind: str) -> Iterator[Sequence[Any] | None]:
        """List all objects under a folder, page by page, in order of key.

        obstore treats keys as paths: it does not distinguish "a/" (the marker of a folder) from "a", and fails on parts that
        are empty or dots. Pages with such keys are left to s3fs.

        Args:
            folder: Without a slash at its end.
            behind: The listing begins behind this key; empty begins at the first.

        Yields:
            For each page the descriptions of its objects (`path`, `size`, `e_tag`, `last_modified`). None comes last if s3fs
            has to list the next page.
        """
        if folder:
            stream = self._attempt(lambda: obstore.list(self._client, folder, offset=behind or None, chunk_size=PAGE_KEYS))
            while stream is not None:
                page: Sequence[Any] | None = self._attempt(lambda: next(stream, ()))
                if page is None or not all(item["size"] for item in page):  # markers are empty
                    break
                if not page:
                    return
                yield page
        yield None

    def write(self, key: str, data: bytes | Path, is_multipart: bool) -> bool | None:
        """Write an object, which becomes visible when it is complete."""

        def write() -> bool:
            obstore.put(
                self._client, key, data, use_multipart=is_multipart, chunk_size=PART_BYTES, max_concurrency=_NUM_PARTS_AT_ONCE
            )
            return True

        return self._attempt(write)

    def create(self, key: str, data: bytes) -> bool | None:
        """Write an object only if the key is free (`If-None-Match: *`); return False if it is not."""

        def create() -> bool:
            try:
                obstore.put(self._client, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        return self._attempt(create)

    def _attempt(self, call: Callable[[], _T]) -> _T | None:
        if time.monotonic() < self._paused_until:
            return None
        try:
            found = call()
        except FileNotFoundError:  # an answer of the server and no failure; s3fs finds out what it means
            return None
        except (InvalidPathError, ValueError):  # obstore does not accept the key, so the server is not in trouble
            return None
        except (BaseError, OSError) as error:
            with self._lock:
                self._num_failures += 1
                if self._num_failures == _MAX_FAILURES:
                    self._num_failures, self._paused_until = 0, time.monotonic() + _PAUSE_SECONDS
                    text = " ".join(str(error).split())[:500]
                    _logger.warning(
                        "obstore failed %d times in a row on the bucket %s; only s3fs is used for the next %.0f s: %s",
                        _MAX_FAILURES, self.name, _PAUSE_SECONDS, text,
                    )  # fmt: skip
            return None
        self._num_failures = 0
        return found


class _Credentials:
    """The credentials that botocore finds in variables, profiles, a web identity or the role of the machine."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __call__(self) -> Any:
        frozen = self._found.get_frozen_credentials()  # botocore renews credentials that expire
        does_end = hasattr(self._found, "refresh_needed")
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST if does_end else None,
        }


_first_process: int | None = None


@lru_cache(maxsize=32)
def quick_bucket(name: str, endpoint: str, region: str, process: int) -> QuickBucket | None:
    """Open a bucket, or return None where obstore cannot be used.

    Args:
        endpoint: URL of the server, as s3fs found it.
        region: The region as s3fs found it; may be empty.
        process: `os.getpid()`. obstore's threads do not survive a fork, and the child would share their epoll with the parent,
            which crashes when the child uses it. A child of a process that has used obstore therefore uses s3fs alone.
    """
    global _first_process
    if _first_process not in (None, process):
        return None
    try:
        credentials = Session().get_credentials()
    except BotoCoreError:
        return None
    if credentials is None:
        return None
    is_amazon = endpoint.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    config: dict[str, Any] = {"region": region or "us-east-1", "virtual_hosted_style_request": is_amazon}
    if not is_amazon:
        config["endpoint"] = endpoint
    authority = environment.text(environment.AWS_CA_BUNDLE)
    options: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=60),
        "timeout": timedelta(minutes=10),
    }
    try:
        if authority:
            options["root_certificate"] = Path(authority).read_bytes()
        client = S3Store(
            name,
            config=config,  # type: ignore[arg-type]
            client_options=options,  # type: ignore[arg-type]
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=30)},
            credential_provider=_Credentials(credentials),
        )
    except (BaseError, OSError, ValueError) as error:
        _logger.warning("obstore cannot open the bucket %s, so only s3fs is used: %s", name, " ".join(str(error).split()))
        return None
    _first_process = process
    return QuickBucket(name, client)
