"""The server over real sockets: what crawlers rely on, and what careless clients send."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.robotparser import RobotFileParser

import pytest

from bloomery.core.errors import WebError
from bloomery.worlds.installed_docs import InstalledDocs, serve, server


@pytest.fixture(scope="module")
def base(zoo_site: InstalledDocs) -> Iterator[str]:
    with serve(zoo_site) as url:
        yield url


@pytest.fixture
def client(base: str) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=10)
    yield connection
    connection.close()


Reply = tuple[int, dict[str, str], bytes]


def ask(client: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> Reply:
    client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = client.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def raw(base: str, data: bytes) -> bytes:
    split = urlsplit(base)
    with socket.create_connection((split.hostname, split.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_every_page_is_served_as_rendered(client: http.client.HTTPConnection, zoo_site: InstalledDocs) -> None:
    sockets = set()
    for path in zoo_site.paths:
        status, headers, body = ask(client, path)
        assert status == 200
        assert body.decode() == zoo_site.page(path).html
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert int(headers["content-length"]) == len(body)
        sockets.add(client.sock)
    assert len(sockets) == 1  # kept alive
    assert None not in sockets


def test_head_has_the_same_head_and_no_body(client: http.client.HTTPConnection) -> None:
    _, got, body = ask(client, "/docs/zoo/")
    status, head, nothing = ask(client, "/docs/zoo/", "HEAD")
    assert (status, nothing) == (200, b"")
    assert head == got
    assert int(head["content-length"]) == len(body)


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/docs/zoo", "/docs/zoo/"),
        ("/docs/zoo/feed", "/docs/zoo/feed.html"),
        ("/docs/zoo/Zebra.html", "/docs/zoo/animals/Zebra.html"),  # another public name
        ("/docs/zoo/Zebra", "/docs/zoo/animals/Zebra.html"),
        ("/docs/zoo/index.html", "/docs/zoo/"),
        ("/index.html", "/"),
        ("/index", "/index/"),
        ("/docs", "/"),
        ("/source/zoo/animals/", "/source/zoo/animals/__init__.html"),
        ("/docs/zoo?x=1&y=a%20b", "/docs/zoo/?x=1&y=a%20b"),
    ],
)
def test_redirects(client: http.client.HTTPConnection, path: str, location: str) -> None:
    status, headers, _ = ask(client, path)
    assert (status, headers["location"]) == (301, location)
    assert ask(client, location)[0] == 200


@pytest.mark.parametrize("path", ["/nope", "/docs/zoo/nope.html", "/%3Cscript%3E", "/sitemap-1.xml", "/../etc/passwd"])
def test_missing_pages(client: http.client.HTTPConnection, path: str) -> None:
    status, headers, body = ask(client, path)
    assert status == 404
    assert headers["content-type"].startswith("text/html")
    assert b"Page not found" in body
    assert b"<script" not in body


def test_validators(client: http.client.HTTPConnection) -> None:
    _, headers, _ = ask(client, "/docs/zoo/")
    same = ask(client, "/docs/zoo/", if_none_match=headers["etag"])
    assert (same[0], same[2]) == (304, b"")
    assert same[1]["etag"] == headers["etag"]
    assert ask(client, "/docs/zoo/", if_none_match='"other"')[0] == 200
    assert ask(client, "/docs/zoo/", if_modified_since=headers["last-modified"])[0] == 304
    assert ask(client, "/docs/zoo/", if_modified_since="Thu, 01 Jan 1998 00:00:00 GMT")[0] == 200
    assert ask(client, "/docs/zoo/", if_modified_since="rubbish")[0] == 200


def test_robots_and_sitemap(client: http.client.HTTPConnection, base: str, zoo_site: InstalledDocs) -> None:
    status, headers, body = ask(client, "/robots.txt")
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    robots = RobotFileParser()
    robots.parse(body.decode().splitlines())
    assert robots.can_fetch("anyone", f"{base}/docs/zoo/")
    assert not robots.can_fetch("anyone", f"{base}/search?q=x")
    assert robots.site_maps() == [f"{base}/sitemap.xml"]

    status, _, body = ask(client, "/sitemap.xml")
    found = [element.text for element in ElementTree.fromstring(body).iter() if element.tag.endswith("}loc")]
    assert status == 200
    assert found == [f"{base}{path}" for path in zoo_site.paths if path != "/search"]


def test_search_and_style(client: http.client.HTTPConnection) -> None:
    status, _, body = ask(client, "/search?q=zeb%3Cra")
    assert status == 200
    assert b"zeb&lt;ra" in body
    assert b"/docs/zoo/animals/Zebra.html" in ask(client, "/search?q=zebra")[2]
    status, headers, body = ask(client, "/static/docs.css")
    assert (status, headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert b"color-scheme" in body


def test_pipelined_requests_are_answered_in_order(base: str) -> None:
    reply = raw(base, b"GET /robots.txt HTTP/1.1\r\nHost: x\r\n\r\nHEAD / HTTP/1.1\r\n\r\nGET /no HTTP/1.1\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+)", reply) == [b"200", b"200", b"404"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET  / HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000, b"431"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"GET http://host/docs/zoo/ HTTP/1.1\r\n\r\n", b"200"),
    ],
)
def test_careless_clients(base: str, request_bytes: bytes, status: bytes) -> None:
    reply = raw(base, request_bytes)
    assert reply.startswith(b"HTTP/1.1 " + status)


def test_connection_close_is_honoured(base: str) -> None:
    reply = raw(base, b"GET /robots.txt HTTP/1.1\r\nConnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    assert reply.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in reply


@pytest.mark.parametrize("process", [True, False])
def test_the_server_ends_with_the_block(zoo_site: InstalledDocs, process: bool) -> None:
    with serve(zoo_site, process=process) as url:
        split = urlsplit(url)
        assert ask(http.client.HTTPConnection(split.netloc, timeout=10), "/")[0] == 200
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by platform
        socket.create_connection((split.hostname, split.port), timeout=2)


@pytest.mark.parametrize("process", [True, False])
def test_a_taken_port_is_one_clear_error(zoo_site: InstalledDocs, process: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(WebError, match=f"127.0.0.1:{port}: cannot listen"),
            serve(zoo_site, port=port, process=process),
        ):
            pass


def test_the_server_dies_with_a_killed_parent(zoo_site: InstalledDocs) -> None:
    folder = os.path.dirname(zoo_site.library.modules["zoo"].file or "")
    code = (
        "import sys, time\nfrom bloomery.worlds.installed_docs import InstalledDocs, serve\n"
        "with serve(InstalledDocs([sys.argv[1]])) as url:\n    print(url, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        split = urlsplit(parent.stdout.readline().strip())
        socket.create_connection((split.hostname, split.port), timeout=5).close()
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        try:
            socket.create_connection((split.hostname, split.port), timeout=1).close()
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlived its parent")


def test_command_line(zoo_site: InstalledDocs) -> None:
    folder = os.path.dirname(zoo_site.library.modules["zoo"].file or "")
    command = [sys.executable, "-m", "bloomery.worlds.installed_docs"]

    with subprocess.Popen([*command, "--packages", folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.match(r"http://[\d.:]+", line)
        assert url is not None
        assert ask(http.client.HTTPConnection(urlsplit(url[0]).netloc, timeout=10), "/docs/zoo/")[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    wrong = subprocess.run([*command, "--packages", "/no/such"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "no such package or folder" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_large_site_has_a_sitemap_of_several_files(zoo_site: InstalledDocs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SITEMAP_URLS", 10)
    site = server.Site(zoo_site)

    def locations(path: str) -> list[str]:
        body = site.get(path).body.decode()
        return [e.text or "" for e in ElementTree.fromstring(body).iter() if e.tag.endswith("}loc")]

    files = locations("/sitemap.xml")
    assert len(files) == -(-(len(zoo_site) - 1) // 10)
    pages = [url for file in files for url in locations(urlsplit(file).path)]
    assert pages == [f"{site.base}{path}" for path in zoo_site.paths if path != "/search"]
    assert site.get(f"/sitemap-{len(files) + 1}.xml").status == 404


def test_the_page_cache_stays_within_its_bytes(zoo_site: InstalledDocs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CACHE_BYTES", 20_000)
    site = server.Site(zoo_site)
    for path in zoo_site.paths * 2:
        assert site.get(path).status == 200
        assert site.cached_bytes == sum(len(response.body) for response in site.cache.values()) <= 20_000
    assert 1 < len(site.cache) < len(zoo_site)
    assert list(site.cache)[-1] == zoo_site.paths[-1]


def test_one_page_that_fails_does_not_end_the_server(zoo_site: InstalledDocs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(zoo_site, "page", broken)
    with serve(zoo_site, process=False) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        status, _, body = ask(connection, "/docs/zoo/")
        assert (status, body) == (500, b"RuntimeError: no ink\n")
        assert ask(connection, "/robots.txt")[0] == 200
        connection.close()
