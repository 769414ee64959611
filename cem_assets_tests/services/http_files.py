"""An HTTP server for the files of a folder, with byte ranges, whose answers a test can make fail."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class HttpFiles:
    """A running server.

    Attributes:
        folder: The folder with the files.
        address: The server's address without a trailing slash.
        fault: Returns, for a path without leading slash and the number of earlier requests for it, a status to answer with, or
            None to serve the file.
        has_ranges: Whether it serves parts of files.
        encoding: The Content-Encoding that it claims for every file.
        asked: The number of requests for each path.
        num_bytes: The bytes of all bodies that were sent.
    """

    folder: Path
    address: str = ""
    fault: Callable[[str, int], int | None] = lambda path, count: None
    has_ranges: bool = True
    encoding: str = ""
    asked: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        self.fault, self.has_ranges, self.encoding = lambda path, count: None, True, ""
        self.asked, self.num_bytes = {}, 0


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may leave, for example when their budget is spent
            super().handle_error(request, client_address)


@contextmanager
def serve_files(folder: Path) -> Iterator[HttpFiles]:
    """Serve a folder on loopback while the block runs."""
    files = HttpFiles(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = unquote(self.path.split("?")[0]).strip("/")
            with files.lock:
                count = files.asked.get(path, 0)
                files.asked[path] = count + 1
            status = files.fault(path, count)
            target = files.folder / path
            if status is None and not target.is_file():
                status = 404
            if status is not None:
                self._send(status, b"<html>an error page, never voxels</html>", {})
                return
            size = target.stat().st_size
            match = _RANGE.fullmatch(self.headers.get("Range", "")) if files.has_ranges else None
            with open(target, "rb") as handle:
                if match is None:
                    self._send(200, handle.read(), {"Content-Encoding": files.encoding} if files.encoding else {})
                    return
                first, last = match.groups()
                start = int(first) if first else max(0, size - int(last))
                stop = min(int(last) + 1, size) if first and last else size
                if start >= stop:
                    self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                    return
                handle.seek(start)
                self._send(206, handle.read(stop - start), {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if status in (200, 206):
                with files.lock:
                    files.num_bytes += len(body)

        def log_message(self, *_: Any) -> None:
            return

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    files.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
