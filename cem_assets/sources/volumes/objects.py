"""Objects of foreign stores (S3, GCS, https), fetched one by one with their status known exactly.

Every object is asked for over HTTP, so "there", "not there" (404), "refused" (403) and "trouble" (5xx, timeouts)
are told apart before anything is decoded. What the objects mean is `remote_layouts` and `remote_volumes`;
files with a known sha256 are `downloads`; our own store is `cem_assets.store.store`.
"""

import math
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from cem_assets.errors import DataError
from cem_assets.sources.volumes.inflation import inflate

S3_ENDPOINT_VARIABLE = "CEM_ASSETS_REMOTE_S3_ENDPOINT"
S3_SIGNED_VARIABLE = "CEM_ASSETS_REMOTE_S3_SIGNED"

Status = Literal["present", "absent", "forbidden"]

_BLOCK = 1 << 18
_MAX_RETRY_AFTER_SECONDS = 60.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class BudgetSpentError(RuntimeError):
    """The next object would take more than is left of the byte budget; nothing of it was kept."""


@dataclass(frozen=True)
class TransferLimits:
    """How hard a foreign server is worked, and how long it is waited for.

    Attributes:
        num_threads: Requests in flight.
        requests_per_second: Upper limit of the rate.
        num_attempts: Tries of one request, where the server or the network is in trouble.
        backoff_seconds: Pause before the second try; doubled for each further one.
        timeout_seconds: For the connection, and between two packets.
        object_seconds: For one object as a whole.
    """

    num_threads: int = 8
    requests_per_second: float = 100.0
    num_attempts: int = 6
    backoff_seconds: float = 0.5
    timeout_seconds: float = 30.0
    object_seconds: float = 600.0


@dataclass(frozen=True)
class Fetched:
    """The answer for one object.

    Attributes:
        status: "present", "absent" (404 or 410) or "forbidden" (403).
        data: Its bytes; empty unless present.
        object_bytes: Size of the whole object, where the server said so.
    """

    status: Status
    data: bytes = b""
    object_bytes: int | None = None


@dataclass
class TransferCounts:
    """What went over the wire so far, and how requests were answered."""

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
        The address without a trailing slash, and whether it is S3 at an endpoint of its own
        (`CEM_ASSETS_REMOTE_S3_ENDPOINT`; the endpoint of our own store is never used for foreign volumes).

    Raises:
        DataError: The address is of another kind, or holds credentials, a query or '..'.
    """
    text = url
    for prefix in ("precomputed://", "n5://", "zarr://", "zarr2://", "zarr3://"):
        text = text.removeprefix(prefix)
    parts = urlsplit(text)
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
        endpoint = os.environ.get(S3_ENDPOINT_VARIABLE, "").rstrip("/")
        if endpoint:
            return f"{endpoint}/{bucket}/{path}", True
        # A certificate for *.s3.amazonaws.com covers no bucket with a dot in its name.
        return (
            f"https://s3.amazonaws.com/{bucket}/{path}" if "." in bucket else f"https://{bucket}.s3.amazonaws.com/{path}"
        ), False
    return f"{parts.scheme}://{bucket}/{path}".rstrip("/"), False


def check_object_key(key: str) -> str:
    """Return a relative key unchanged, or refuse one that could leave its volume.

    Raises:
        DataError: It is empty, absolute, too long, or has '.', '..' or control characters.
    """
    parts = key.split("/")
    if len(key) > 1000 or any(part in ("", ".", "..") for part in parts) or "\\" in key or not key.isprintable():
        raise DataError(f"path {key[:120]!r} is not allowed; expected parts joined by '/', none of them '.' or '..'.")
    return key


@dataclass
class RemoteObjects:
    """The objects below one address. Safe to use from several threads.

    Attributes:
        address: http(s) address without a trailing slash.
        limits: Rates, retries and timeouts.
        is_signed: Whether requests are signed for S3 with the AWS credentials of this machine.
        budget_bytes: Bytes that may come over the wire in all, or None.
    """

    address: str
    limits: TransferLimits = TransferLimits()
    is_signed: bool = False
    budget_bytes: int | None = None
    counts: TransferCounts = field(default_factory=TransferCounts)

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
        """End waits of other threads: somebody failed for good."""
        self._stopped.set()

    def resume(self) -> None:
        """Allow requests again after `stop`."""
        self._stopped.clear()

    def get(self, key: str, max_bytes: int, span: tuple[int, int] | None = None, suffix: int | None = None) -> Fetched:
        """Fetch an object or a part of it.

        Args:
            key: Relative to the address; empty for the address itself.
            max_bytes: Most bytes it may have, after the transport's compression is undone.
            span: (start, stop) in bytes.
            suffix: Instead of a span, this many bytes from its end.

        Returns:
            The bytes, or that the object is absent or forbidden.

        Raises:
            ConnectionError: The server or the network stayed in trouble for all tries.
            PermissionError: The server wants to know who asks (401).
            DataError: The object is larger than allowed, or the server cannot give parts of objects.
            BudgetSpentError: It does not fit into what is left of the budget.
        """
        url = f"{self.address}/{quote(key)}" if key else self.address
        headers = {"Accept-Encoding": "gzip, br"}
        if span is not None or suffix is not None:
            # A part of a compressed transport encoding could not be undone.
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
            else:
                if isinstance(answer, Fetched):
                    with self._lock:
                        name = f"num_{answer.status}"
                        setattr(self.counts, name, getattr(self.counts, name) + 1)
                    return answer
                trouble, asked = answer
                pause = max(pause, asked)
            if attempt + 1 < self.limits.num_attempts and self._stopped.wait(pause):
                break
        raise ConnectionError(
            f"{url} could not be fetched in {self.limits.num_attempts} tries: {trouble:.300}. Nothing stands in for it; run "
            "again later, what is done is kept."
        )

    def _once(self, url: str, headers: dict[str, str], max_bytes: int) -> Fetched | tuple[str, float]:
        """Ask once; return the answer, or trouble in words and how long the server asks to wait."""
        timeout = (min(10.0, self.limits.timeout_seconds), self.limits.timeout_seconds)
        with self._session.get(url, headers=headers, timeout=timeout, stream=True, auth=self._auth) as response:
            status = response.status_code
            if status in (404, 410):
                return Fetched("absent")
            if status == 403:
                return Fetched("forbidden")
            if status == 401:
                raise PermissionError(
                    f"{url} needs a login (401); expected a public volume. For a private bucket set {S3_SIGNED_VARIABLE}=yes "
                    f"and the AWS_* variables."
                )
            if status in _RETRIED or status >= 500:
                return f"status {status}", _retry_after(response.headers.get("Retry-After", ""))
            if url.startswith("https://") and not response.url.startswith("https://"):
                raise DataError(f"{url} leads to an address without https; expected none. Check the address.")
            is_part = "Range" in headers
            if is_part and status == 200:
                raise DataError(f"{url}: the server cannot give parts of objects; expected ranges to work. Use a mirror.")
            if status not in (200, 206):
                raise DataError(f"{url} answered with status {status}; expected 200, 403 or 404. Check the address.")
            return self._body(response, url, max_bytes)

    def _body(self, response: requests.Response, url: str, max_bytes: int) -> Fetched:
        length = response.headers.get("Content-Length", "")
        if length.isdecimal():
            if int(length) > max_bytes:
                raise DataError(f"{url} has {length} bytes; expected at most {max_bytes} by its metadata. Check the source.")
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
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        size = int(total) if total.isdecimal() else (num_bytes if response.status_code == 200 else None)
        data = b"".join(blocks)
        return Fetched("present", data if encoding == "identity" else inflate(encoding, data, max_bytes, url), size)

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
    except ValueError:  # a date, or nothing: our own backoff will do
        return 0.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else 0.0


class _Unsigned(AuthBase):  # type: ignore[misc]  # requests has no types
    """Sends no credentials, not even those a .netrc file has for the host."""

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
            raise PermissionError(f"{S3_SIGNED_VARIABLE} is set, but there are no AWS credentials. Set the AWS_* variables.")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        signed = AWSRequest(method=request.method, url=request.url)
        S3SigV4Auth(self._credentials, "s3", self._region).add_auth(signed)
        request.headers.update(dict(signed.headers.items()))
        return request
