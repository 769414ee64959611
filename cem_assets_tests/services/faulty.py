"""A proxy on loopback that lets some requests to a server fail, seeded: refused with 503, cut at once, or cut half-way."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class FaultyProxy:
    """Forwards connections to an endpoint.

    Attributes:
        target: Host and port to forward to.
        share: Of requests that fail.
        endpoint: Its own address.
        num_requests, num_faults: So far.
    """

    target: tuple[str, int]
    share: float
    draw: random.Random
    endpoint: str = ""
    num_requests: int = 0
    num_faults: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        back = asyncio.create_task(self._pump(server_reader, writer))
        self._tasks.add(back)
        try:
            while data := await reader.read(1 << 16):
                # A client waits for each answer before it asks again, so requests begin where a read begins.
                if data.startswith(_METHODS):
                    self.num_requests += 1
                    if self.draw.random() < self.share:
                        self.num_faults += 1
                        kind = self.draw.choice(("busy", "cut", "half"))
                        if kind == "busy":
                            writer.write(_BUSY)
                            await writer.drain()
                        if kind == "half":
                            server_writer.write(data[: len(data) // 2])
                            await server_writer.drain()
                        return
                server_writer.write(data)
                await server_writer.drain()
        except OSError:
            return
        finally:
            back.cancel()
            self._tasks.discard(back)
            writer.close()
            server_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()


@contextmanager
def faulty_proxy(endpoint: str, share: float, seed: int) -> Iterator[FaultyProxy]:
    """Run a proxy in a thread."""
    parts = urlsplit(endpoint)
    proxy = FaultyProxy((str(parts.hostname), int(parts.port or 80)), share, random.Random(seed))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(proxy.connect, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    proxy.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
