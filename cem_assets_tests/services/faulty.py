"""A proxy on loopback that makes some requests to a server fail: it answers 503, or closes the connection at once or half-way.

Which requests fail follows from a seed.
"""

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
        share: The share of requests that fail, from 0 to 1; it may be changed at any time.
        endpoint: The proxy's own address.
        num_requests, num_faults: The requests so far, and those that the proxy made fail.
    """

    target: tuple[str, int]
    share: float
    draw: random.Random
    endpoint: str = ""
    num_requests: int = 0
    num_faults: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        back = asyncio.create_task(self._pump(server_reader, writer))
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
            writer.close()
            server_writer.close()

    async def close(self) -> None:
        """End all connections, so that none is left when the loop stops."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
