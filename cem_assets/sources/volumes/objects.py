"""Fetches objects of foreign stores (S3, GCS, https) one by one.

Every object is asked for over HTTP, so that "present", "absent" (404), "refused" (403) and "server in trouble" (5xx, timeouts)
are told apart before anything is decoded. Every size is checked before the bytes are received. What the objects mean is in
`metadata`, `shards` and `volumes`. Downloads of files with a known sha256 are in `cem_assets.sources.files`; our own store is
`cem_assets.store.store`.
"""

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from cem_assets import environment
from cem_assets.errors import DataError
from cem_assets.sources.volumes.inflation import inflate

ObjectStatus = Literal["present", "absent", "forbidden"]

_BLOCK = 1 << 18
_MAX_RETRY_AFTER_SECONDS = 60.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class BudgetSpentError(RuntimeError):
    """The next object has more bytes than the byte budget has left. Nothing of the object was kept."""


@dataclass(frozen=True)
class RequestLimits:
    """How many requests a foreign server gets, and how long we wait for its answers.

    Attributes:
        num_threads: How many requests run at the same time.
        num_attempts: How often a request is tried while the server or the network is in trouble.
        backoff_seconds: The pause before the second try; it doubles with each further one.
        timeout_seconds: The longest pause between two packets, and at most 10 s for the connection.
        object_seconds: The longest time for one object as a whole.
    """

    num_threads: int = 8
    requests_per_second: float = 100.0
    num_attempts: int = 6
    backoff_seconds: float = 0.5
    timeout_seconds: float = 30.0
    object_seconds: float = 600.0


@dataclass(frozen=True)
class ObjectAnswer:
    """What a server answered for one object.

    Attributes:
        status: "present", "absent" (404 or 410) or "forbidden" (403).
        data: The bytes; empty unless the object is present.
    """

    status: ObjectStatus
    data: bytes = b""


@dataclass
class RequestCounts:
    """How many requests were sent, how they were answered, and how many bytes were received, as they were transferred."""

    num_requests: int = 0
    num_present: int = 0
    num_absent: int = 0
    num_forbidden: int = 0
    num_retries: int = 0
    num_bytes: int = 0


def http_address(url: str) -> tuple[str, bool]:
    """Turn the address of a public volume into an http(s) address.

    Args:
        url: `s3://bucket/key`, `gs://bucket/key`, `https://...`, also with a `precomputed://`, `n5://` or `zarr://` before it.

    Returns:
        The address without a trailing slash, and whether it lies on the S3 server that CEM_ASSETS_REMOTE_S3_ENDPOINT names. The
        server of our own store is never used for foreign volumes.

    Raises:
        DataError: The address is of another kind, or has credentials, a query or '..'.
    """
    text = url
    for prefix in ("precomputed://", "n5://", "zarr://", "zarr2://", "zarr3://"):
        text = text.removeprefix(prefix)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise DataError(f"remote volume {url[:200]!r} has a malformed address: {error}. Check the address.") from error
    bucket, path = parts.netloc, parts.path.strip("/")
    if parts.scheme not in ("s3", "gs", "http", "https") or not bucket:
        raise DataError(
            f"remote volume {url!r} has no address of a known kind; expected s3://bucket/key, gs://bucket/key or https://... . "
            "Drop a local volume into the inbox instead."
        )
    if "@" in bucket or parts.query or parts.fragment:
        raise DataError(f"remote volume {parts.scheme}://... has credentials, a query or a fragment; expected a plain address.")
    check_object_key(path or "x")
    if parts.scheme == "gs":
        return f"https://storage.googleapis.com/{bucket}/{path}", False
    if parts.scheme == "s3":
        endpoint = environment.text(environment.REMOTE_S3_ENDPOINT).rstrip("/")
        if endpoint:
            return f"{endpoint}/{bucket}/{path}", True
        # The certificate for *.s3.amazonaws.com does not cover buckets with a dot in their name.
        return (
            f"https://s3.amazonaws.com/{bucket}/{path}" if "." in bucket else f"https://{bucket}.s3.amazonaws.com/{path}"
        ), False
    return f"{parts.scheme}://{bucket}/{path}".rstrip("/"), False


def check_object_key(key: str) -> str:
    """Return a relative key unchanged, or refuse one that could lead out of its volume.

    Raises:
        DataError: The key is empty, absolute, too long, or has '.', '..' or control characters.
    """
    parts = key.split("/")
    if len(key) > 1000 or any(part in ("", ".", "..") for part in parts) or "\\" in key or not key.isprintable():
        raise DataError(f"path {key[:120]!r} is not allowed; expected parts joined by '/', none of them '.' or '..'.")
    return key


@dataclass
class RemoteObjects:
    """The objects below one address. Safe to use from several threads.

    Attributes:
        address: An http(s) address without a trailing slash.
        is_signed: Whether requests are signed for S3 with the AWS credentials of this machine.
        budget_bytes: How many bytes may be received in all, as they are transferred; None for no limit.
    """

    address: str
    limits: RequestLimits = RequestLimits()
    is_signed: bool = False
    budget_bytes: int | None = None
    counts: RequestCounts = field(default_factory=RequestCounts)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._next_request = 0.0
        self._session = requests.Session()
        self._session.max_redirects = 3
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=self.limits.num_threads)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._auth: AuthBase | None = _SignedS3() if self.is_signed else _Unsigned()

    def stop(self) -> None:
        """End the waits of all threads, because one of them failed for good."""
        self._stopped.set()

    def resume(self) -> None:
        """Allow requests again after `stop`."""
        self._stopped.clear()

    def get(self, key: str, max_bytes: int, span: tuple[int, int] | None = None, suffix: int | None = None) -> ObjectAnswer:
        """Fetch an object or a part of it.

        Args:
            key: Relative to the address; empty for the address itself.
            max_bytes: The most bytes the object, or the part of it, may have. This holds for the bytes that are transferred and
                for what they unpack to where the server compresses them.
            span: The part to fetch, (start, stop) in bytes.
            suffix: Instead of a span, how many bytes to fetch from the end of the object.

        Raises:
            ConnectionError: The server or the network was still in trouble at the last try.
            PermissionError: The server asks for a login (401).
            DataError: The object is larger than allowed, or the server does not support byte ranges.
            BudgetSpentError: The object is larger than what is left of the budget.
        """
        url = f"{self.address}/{quote(key)}" if key else self.address
        headers = {"Accept-Encoding": "gzip, br"}
        if span is not None or suffix is not None:
            # A part of a body that the server compresses as a whole could not be decompressed.
            text = f"{span[0]}-{span[1] - 1}" if span is not None else f"-{suffix}"
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={text}"}
        trouble = ""
        for attempt in range(self.limits.num_attempts):
            if attempt:
                with self._lock:
                    self.counts.num_retries += 1
            self._wait_for_turn()
            pause = self.limits.backoff_seconds * 2**attempt
            try:
                answer = self._once(url, headers, max_bytes)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                trouble = f"{type(error).__name__}: {error}"
            except (requests.RequestException, DataError):
                raise
            except ValueError as error:  # requests parses the address of a redirect, which may be malformed
                raise DataError(f"{url} leads to a malformed address: {error}. Check the address.") from error
            else:
                if isinstance(answer, ObjectAnswer):
                    with self._lock:
                        name = f"num_{answer.status}"
                        setattr(self.counts, name, getattr(self.counts, name) + 1)
                    return answer
                trouble, wished_pause = answer
                pause = max(pause, wished_pause)
            if attempt + 1 < self.limits.num_attempts and self._stopped.wait(pause):
                break
        raise ConnectionError(
            f"{url} could not be fetched in {self.limits.num_attempts} tries: {trouble:.300}. Run again later; what was "
            "fetched before is kept, and nothing is filled in for this object."
        )

    def _once(self, url: str, headers: dict[str, str], max_bytes: int) -> ObjectAnswer | tuple[str, float]:
        """Send one request; return the answer, or what the trouble is and for how many seconds the server asks us to wait."""
        timeout = (min(10.0, self.limits.timeout_seconds), self.limits.timeout_seconds)
        with self._session.get(url, headers=headers, timeout=timeout, stream=True, auth=self._auth) as response:
            status = response.status_code
            if status in (404, 410):
                return ObjectAnswer("absent")
            if status == 403:
                return ObjectAnswer("forbidden")
            if status == 401:
                raise PermissionError(
                    f"{url} needs a login (401); expected a public volume. For a private bucket set "
                    f"{environment.REMOTE_S3_SIGNED}=yes and the AWS_* variables."
                )
            if status in _RETRIED or status >= 500:
                return f"status {status}", _retry_after(response.headers.get("Retry-After", ""))
            if url.startswith("https://") and not response.url.startswith("https://"):
                raise DataError(f"{url} redirects to an address without https; expected https all the way. Check the address.")
            is_part = "Range" in headers
            if is_part and status == 200:
                raise DataError(
                    f"{url}: the server cannot give parts of objects; expected it to support byte ranges. Use a mirror."
                )
            if status not in (200, 206):
                raise DataError(f"{url} answered with status {status}; expected 200, 403 or 404. Check the address.")
            return self._body(response, url, max_bytes)

    def _body(self, response: requests.Response, url: str, max_bytes: int) -> ObjectAnswer:
        length = response.headers.get("Content-Length", "")
        if length.isdecimal():
            if int(length) > max_bytes:
                raise DataError(
                    f"{url} has {length} bytes; expected at most {max_bytes}, as its metadata say. Check the source."
                )
            self._check_budget(int(length), url)
        blocks: list[bytes] = []
        num_bytes = 0
        deadline = time.monotonic() + self.limits.object_seconds
        try:
            while block := response.raw.read(_BLOCK, decode_content=False):
                blocks.append(block)
                num_bytes += len(block)
                if num_bytes > max_bytes:
                    raise DataError(f"{url} has more than {max_bytes} bytes; expected at most that, as its metadata say.")
                if time.monotonic() > deadline:
                    raise requests.Timeout(f"{num_bytes} bytes in {self.limits.object_seconds:.0f} s")
        except (OSError, requests.RequestException) as error:
            raise requests.ConnectionError(f"broke off after {num_bytes} bytes: {error}") from error
        except Exception as error:
            if type(error).__module__.startswith("urllib3"):
                raise requests.ConnectionError(f"broke off after {num_bytes} bytes: {error}") from error
            raise
        if length.isdecimal() and int(length) != num_bytes:
            raise requests.ConnectionError(f"broke off after {num_bytes} of {length} bytes")
        self._check_budget(num_bytes, url, is_taken=True)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        data = b"".join(blocks)
        return ObjectAnswer("present", data if encoding == "identity" else inflate(encoding, data, max_bytes, url))

    def _check_budget(self, num_bytes: int, url: str, is_taken: bool = False) -> None:
        with self._lock:
            if self.budget_bytes is not None and self.counts.num_bytes + num_bytes > self.budget_bytes:
                raise BudgetSpentError(
                    f"{url} has {num_bytes} bytes, but {self.budget_bytes - self.counts.num_bytes} are left of the byte budget."
                )
            if is_taken:
                self.counts.num_bytes += num_bytes

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_request)
            self._next_request = turn + 1.0 / self.limits.requests_per_second
            self.counts.num_requests += 1
        if turn > now:
            self._stopped.wait(turn - now)


def _retry_after(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:  # a date or nothing, so our own backoff decides
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 0.0


class _Unsigned(AuthBase):  # type: ignore[misc]  # requests has no types
    """Adds no credentials to requests, not even those that a .netrc file has for the host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _SignedS3(AuthBase):  # type: ignore[misc]  # requests has no types
    """Signs requests for S3 (version 4) with the credentials that botocore finds."""

    def __init__(self) -> None:
        import botocore.session

        session = botocore.session.get_session()
        self._credentials = session.get_credentials()
        self._region = session.get_config_variable("region") or "us-east-1"
        if self._credentials is None:
            raise PermissionError(
                f"{environment.REMOTE_S3_SIGNED} is set, but there are no AWS credentials. Set the AWS_* variables."
            )

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        signed = AWSRequest(method=request.method, url=request.url)
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        return request
