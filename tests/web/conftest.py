"""A small web server whose pages misbehave on demand, and a log of every request it got."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "text/html; charset=utf-8"
    delay: float = 0.0
    length: int | None = None  # Content-Length to announce; None: the true one; -1: none, end by closing


Handler = Callable[[str], Reply]


class Site:
    """Routes by path (query included); a route is a Reply, bytes of HTML, or a function of the path."""

    def __init__(self) -> None:
        self.routes: dict[str, Reply | bytes | str | Handler] = {}
        self.fallback: Handler = lambda path: Reply(b"not here", 404)
        self.log: list[tuple[float, str]] = []
        self.running = self.most_running = 0
        self.port = 0

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def counts(self) -> Counter[str]:
        return Counter(path for _, path in self.log)

    def reply(self, path: str) -> Reply:
        route = self.routes.get(path, self.fallback)
        reply = route(path) if callable(route) else route
        if isinstance(reply, str):
            reply = reply.encode()
        return Reply(reply) if isinstance(reply, bytes) else reply

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                self.log.append((time.monotonic(), path))
                self.running += 1
                self.most_running = max(self.running, self.most_running)
                try:
                    reply = self.reply(path)
                    await asyncio.sleep(reply.delay)
                finally:
                    self.running -= 1
                length = len(reply.body) if reply.length is None else reply.length
                lines = [f"HTTP/1.1 {reply.status} X", f"Content-Type: {reply.content_type}"]
                lines += [f"{k}: {v}" for k, v in reply.headers.items()]
                if length >= 0:
                    lines.append(f"Content-Length: {length}")
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body)
                await writer.drain()
                if length != len(reply.body):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def main(self, started: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self.stop.wait()
        server.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site, started = Site(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(site.main(started)), daemon=True)
    thread.start()
    assert started.wait(10)
    yield site
    site.loop.call_soon_threadsafe(site.stop.set)
    thread.join(10)


@pytest.fixture
def reply() -> type[Reply]:
    return Reply
