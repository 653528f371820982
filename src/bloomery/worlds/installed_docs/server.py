"""A small HTTP/1.1 server for the site: keep-alive, HEAD, validators, redirects, robots.txt and a sitemap.

It runs in a process of its own, so that a crawler under measurement does not compete with the rendering of pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bloomery.core.errors import WebError
from bloomery.core.hashing import hash64
from bloomery.worlds.installed_docs import render
from bloomery.worlds.installed_docs.site import InstalledDocs

CACHE_BYTES = 128 << 20  # rendered pages kept in memory
MAX_HEAD = 64 << 10  # bytes of a request line with its headers
SITEMAP_URLS = 50_000  # the protocol's limit for one file
REASONS = {200: "OK", 301: "Moved Permanently", 304: "Not Modified", 400: "Bad Request", 404: "Not Found",
           405: "Method Not Allowed", 431: "Request Header Fields Too Large", 500: "Internal Server Error"}  # fmt: skip
HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"


@dataclass(slots=True)
class Response:
    """What is sent: the whole head but for the Connection line, and the body."""

    status: int
    head: bytes
    body: bytes
    etag: str = ""
    modified: float = 0.0


class Site:
    """Answers for paths: the pages of an `InstalledDocs`, plus what a web server has beside its pages."""

    def __init__(self, docs: InstalledDocs) -> None:
        self.docs = docs
        self.base = "http://localhost"
        self.cache: OrderedDict[str, Response] = OrderedDict()
        self.cached_bytes = 0
        self.clients: set[asyncio.Transport] = set()
        self.default_modified = _mtime(os.__file__)

    def get(self, target: str) -> Response:
        """Response to a request target such as "/docs/json/" or "/search?q=dump"."""
        cached = self.cache.get(target)
        if cached is not None:
            self.cache.move_to_end(target)
            return cached
        response = self.build(target)
        if response.status == 200:
            self.cache[target] = response
            self.cached_bytes += len(response.body)
            while self.cached_bytes > CACHE_BYTES:
                _, oldest = self.cache.popitem(last=False)
                self.cached_bytes -= len(oldest.body)
        return response

    def build(self, target: str) -> Response:
        """Render the response to `target`."""
        split = urlsplit(target)
        path = unquote(split.path) or "/"
        if path == "/search" and split.query:
            query = parse_qs(split.query).get("q", [""])[0]
            return respond(200, render.search_results(self.docs, query), HTML)
        if path in self.docs.entries:
            source = self.docs.entries[path].source
            modified = _mtime(source.file) if source is not None and source.file else self.default_modified
            return respond(200, self.docs.page(path).html, HTML, modified or self.default_modified)
        if path == "/robots.txt":
            text = f"User-agent: *\nDisallow: /search\nAllow: /\n\nSitemap: {self.base}/sitemap.xml\n"
            return respond(200, text, TEXT, self.default_modified)
        if path.startswith("/sitemap"):
            xml = self.sitemap(path)
            if xml is not None:
                return respond(200, xml, "application/xml; charset=utf-8", self.default_modified)
        if path == "/static/docs.css":
            return respond(200, render.STYLE, "text/css; charset=utf-8", self.default_modified)
        moved = self.moved(path)
        if moved is not None:
            location = moved + (f"?{split.query}" if split.query else "")
            return redirect(location)
        return respond(404, render.not_found(self.docs, path), HTML)

    def moved(self, path: str) -> str | None:
        """Where a path leads that is not itself a page: an alias, a missing slash or ending, an explicit index.html."""
        plain = path.removesuffix("index.html").rstrip("/")
        for candidate in (path, f"{plain}/", f"{plain}.html", f"{plain}/__init__.html"):
            if candidate in self.docs.redirects:
                return self.docs.redirects[candidate]
            if candidate != path and candidate in self.docs.entries:
                return candidate
        return "/" if plain in ("/docs", "/source") else None

    def sitemap(self, path: str) -> str | None:
        """sitemap.xml; an index of numbered parts when the site is larger than one file may be."""
        paths = [p for p in self.docs.paths if p != "/search"]
        parts = -(-len(paths) // SITEMAP_URLS)
        if path == "/sitemap.xml":
            if parts == 1:
                return render.sitemap(paths, self.base)
            rows = "".join(f"<sitemap><loc>{self.base}/sitemap-{i}.xml</loc></sitemap>\n" for i in range(1, parts + 1))
            return (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f'<sitemapindex xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{rows}</sitemapindex>\n'
            )
        number = path.removeprefix("/sitemap-").removesuffix(".xml")
        if parts > 1 and number.isdigit() and 1 <= int(number) <= parts:
            return render.sitemap(paths[(int(number) - 1) * SITEMAP_URLS : int(number) * SITEMAP_URLS], self.base)
        return None


def respond(status: int, text: str, content_type: str, modified: float = 0.0) -> Response:
    """A response with a body and its validators."""
    body = text.encode()
    etag = f'"{hash64(body):016x}"' if status == 200 else ""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    if etag:
        lines.append(f"ETag: {etag}")
    if modified:
        lines.append(f"Last-Modified: {formatdate(modified, usegmt=True)}")
    if status == 405:
        lines.append("Allow: GET, HEAD")
    return Response(status, "\r\n".join(lines).encode(), body, etag, modified)


def redirect(location: str) -> Response:
    """301 to a path of this site."""
    target = quote(location, safe="/?=&%#~")
    response = respond(
        301, f'<!DOCTYPE html><title>Moved</title><p>Moved to <a href="{target}">{target}</a>.</p>', HTML
    )
    response.head += f"\r\nLocation: {target}".encode()
    return response


class Connection(asyncio.Protocol):
    """One client. Requests are answered in order, pipelined ones too."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.site.clients.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        if self.transport is not None:
            self.site.clients.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        """Answer every complete request in the buffer."""
        assert self.transport is not None
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0 and not self.transport.is_closing():
            head, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
            self.answer(head)
        if len(self.buffer) > MAX_HEAD and not self.transport.is_closing():
            self.send(respond(431, "The request head is too large.\n", TEXT), body=True, keep=False)

    def answer(self, head: bytes) -> None:
        """Parse one request head and send the response."""
        request, _, rest = head.decode("latin-1").partition("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, colon, value in (line.partition(":") for line in rest.split("\r\n"))
            if colon
        }
        parts = request.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith(("/", "http://")):
            self.send(respond(400, "This is not an HTTP/1.1 request.\n", TEXT), body=True, keep=False)
            return
        method, target, version = parts
        connection = headers.get("connection", "").lower()
        keep = connection == "keep-alive" or (version != "HTTP/1.0" and connection != "close")
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            keep = False  # the body of a request is not read, so nothing can follow it
        if method not in ("GET", "HEAD"):
            self.send(respond(405, "Only GET and HEAD are answered here.\n", TEXT), body=True, keep=keep)
            return
        if not target.startswith("/"):
            split = urlsplit(target)
            target = (split.path or "/") + (f"?{split.query}" if split.query else "")
        try:
            response = self.site.get(target)
        except Exception as error:  # one page that cannot be shown must not end the server
            response = respond(500, f"{type(error).__name__}: {error}\n", TEXT)
        if response.status == 200 and unchanged(response, headers):
            head_lines = response.head.split(b"\r\n", 1)[1].replace(b"Content-Length: %d\r\n" % len(response.body), b"")
            response = Response(304, b"HTTP/1.1 304 Not Modified\r\n" + head_lines, b"")
        self.send(response, body=method == "GET", keep=keep)

    def send(self, response: Response, body: bool, keep: bool) -> None:
        """Write a response; HEAD gets the same head without the body."""
        assert self.transport is not None
        tail = b"\r\nConnection: keep-alive\r\n\r\n" if keep else b"\r\nConnection: close\r\n\r\n"
        self.transport.write(response.head + tail + (response.body if body else b""))
        if not keep:
            self.transport.close()


def unchanged(response: Response, headers: dict[str, str]) -> bool:
    """Whether the client's copy is current: If-None-Match decides, then If-Modified-Since."""
    if "if-none-match" in headers:
        tags = [tag.strip().removeprefix("W/") for tag in headers["if-none-match"].split(",")]
        return "*" in tags or response.etag in tags
    if "if-modified-since" in headers and response.modified:
        try:
            return int(response.modified) <= parsedate_to_datetime(headers["if-modified-since"]).timestamp()
        except (ValueError, TypeError):
            return False
    return False


async def listen(docs: InstalledDocs, host: str, port: int) -> tuple[asyncio.Server, Site]:
    """Start answering on (host, port); port 0 takes a free one. Returns the server and the site with its `base` URL."""
    site = Site(docs)
    try:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(site), host, port, backlog=1024)
    except OSError as error:
        raise WebError(f"cannot listen: {error}", where=f"{host}:{port}", fix="choose another port") from error
    shown = f"[{host}]" if ":" in host else host
    site.base = f"http://{shown}:{server.sockets[0].getsockname()[1]}"
    return server, site


@contextlib.contextmanager
def serve(site: InstalledDocs, host: str = "127.0.0.1", port: int = 0, process: bool = True) -> Iterator[str]:
    """Serve the site inside a `with` block; yields the base URL, such as "http://127.0.0.1:40123".

    With `process` the server has an interpreter of its own, which ends with the block and also when this process dies;
    otherwise it is a thread. Raises WebError when the address cannot be used.
    """
    with _in_process(site, host, port) if process else _in_thread(site, host, port) as base:
        yield base


@contextlib.contextmanager
def _in_thread(docs: InstalledDocs, host: str, port: int) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="installed-docs", daemon=True)
    thread.start()
    try:
        server, answering = asyncio.run_coroutine_threadsafe(listen(docs, host, port), loop).result()
        try:
            yield answering.base
        finally:
            asyncio.run_coroutine_threadsafe(_close(server, answering), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server, site: Site) -> None:
    server.close()
    for client in list(site.clients):
        client.abort()
    await asyncio.sleep(0)  # lets the transports close their sockets


@contextlib.contextmanager
def _in_process(site: InstalledDocs, host: str, port: int) -> Iterator[str]:
    # A fresh interpreter: a fork would copy the caller's threads in mid-flight, and multiprocessing's spawn would run
    # the caller's main module again. The site travels through the pipe, and closing the pipe is what ends the child.
    code = "from bloomery.worlds.installed_docs.server import child; child()"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    child_process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child_process.stdin is not None
    assert child_process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((site, host, port), child_process.stdin, protocol=5)
            child_process.stdin.flush()
        line = child_process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the server process ended at its start"}
        if "error" in reply:
            raise WebError(reply["error"], where=f"{host}:{port}", fix="choose another port")
        yield reply["url"]
    finally:
        with contextlib.suppress(BrokenPipeError):
            child_process.stdin.close()
        try:
            child_process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child_process.kill()
            child_process.wait()
        child_process.stdout.close()


def child() -> None:
    """Body of the server process: take the site from standard input, serve until that is closed."""
    docs, host, port = pickle.load(sys.stdin.buffer)

    def wait_for_end() -> None:
        while sys.stdin.buffer.read(1 << 16):
            pass
        os._exit(0)

    async def main() -> None:
        try:
            server, answering = await listen(docs, host, port)
        except WebError as error:
            print(json.dumps({"error": error.what}), flush=True)
            return
        threading.Thread(target=wait_for_end, daemon=True).start()
        print(json.dumps({"url": answering.base}), flush=True)
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole group; the parent says when to end
        asyncio.run(main())


def _mtime(file: str | None) -> float:
    try:
        return os.path.getmtime(file) if file else 0.0
    except OSError:
        return 0.0
