"""An HTTP server on loopback that counts what it sends, and whose files end early, come slowly, move or change on demand."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """How one request is answered.

    Attributes:
        status: The status that is sent instead of the file.
        dies_after: The connection is closed after so many bytes of the body.
        bytes_per_s: The speed of the body; None has no limit.
        has_ranges: Whether requests for a part get that part.
        location: The target of a redirect.
        headers: More headers, which replace others of the same name.
        body: The bytes that are sent instead of the file's.
        is_chunked: Whether the body is sent in chunks, without its size.
    """

    status: int | None = None
    dies_after: int | None = None
    bytes_per_s: float | None = None
    has_ranges: bool = True
    location: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    is_chunked: bool = False


@dataclass
class UnreliableHttp:
    """A running server.

    Attributes:
        address: The server's address without a trailing slash.
        files: The bytes of files by path, without leading slash; a path may have a query.
        answers: How the requests for a path are answered, in order. The last answer is repeated; without any, the file is sent.
        etags: Entity tags by path.
        asked: (path, Range header) of every request.
        num_bytes: The bytes of bodies that were sent, by path.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    num_bytes: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ranges(self, path: str) -> list[str]:
        return [asked for name, asked in self.asked if name == path]

    def answer(self, path: str) -> Answer:
        with self.lock:
            waiting = self.answers.get(path, [])
            return (waiting.pop(0) if len(waiting) > 1 else waiting[0]) if waiting else Answer()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection early."""


@contextmanager
def serve_unreliably(files: dict[str, bytes] | None = None) -> Iterator[UnreliableHttp]:
    """Serve bytes on loopback while the block runs."""
    served = UnreliableHttp(files=dict(files or {}))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            asked = self.headers.get("Range", "")
            with served.lock:
                served.asked.append((path, asked))
            answer = served.answer(path)
            body = served.files.get(path) if answer.body is None else answer.body
            if body is None or answer.status is not None:
                status = answer.status or 404
                self.reply(status, b"<html>an error page, never data</html>", {"Location": answer.location}, answer, path)
                return
            headers = {"ETag": served.etags[path]} if path in served.etags else {}
            if_range = self.headers.get("If-Range", "")
            if asked and answer.has_ranges and if_range in ("", served.etags.get(path)):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"}, answer, path)
                    return
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.reply(206, body[start:], headers, answer, path)
                return
            self.reply(200, body, headers, answer, path)

        def reply(self, status: int, body: bytes, headers: dict[str, str], answer: Answer, path: str) -> None:
            self.send_response(status)
            length = {"Transfer-Encoding": "chunked"} if answer.is_chunked else {"Content-Length": str(len(body))}
            for name, value in ({**length, **headers} | answer.headers).items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            shown = body if answer.dies_after is None else body[: answer.dies_after]
            step = len(shown) if answer.bytes_per_s is None else max(1, int(answer.bytes_per_s / 20))
            for start in range(0, len(shown), max(step, 1)):
                block = shown[start : start + step]
                with served.lock:  # counted before it is sent: the test may go on as soon as the last block has arrived
                    served.num_bytes[path] = served.num_bytes.get(path, 0) + len(block)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if answer.is_chunked else block)
                if answer.bytes_per_s is not None:
                    time.sleep(0.05)
            if answer.dies_after is not None:
                self.close_connection = True
            elif answer.is_chunked:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            return

    server = _Server(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
