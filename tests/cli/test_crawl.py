from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TEXT = "The hill is where the quick brown fox and the lazy dog went to see what there was for them to find. " * 8


class Site(BaseHTTPRequestHandler):
    """Five pages in a row, a private one, and a link that is dead."""

    def do_GET(self):
        if self.path == "/robots.txt":
            return self.answer(200, "text/plain", "User-agent: *\nDisallow: /private\n")
        name = self.path.strip("/") or "0"
        if name not in "01234":
            return self.answer(404, "text/html", "gone")
        links = "".join(f'<a href="/{to}">to {to}</a>' for to in (int(name) + 1, "private", "dead"))
        main = f"<main><p>Page {name}. {TEXT}</p>{links}</main>"
        page = f"<html><head><title>{name}</title></head><body>{main}</body></html>"
        return self.answer(200, "text/html; charset=utf-8", page)

    def answer(self, status, kind, body):
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


HERE = ("--allow-private", "--per-host-delay", 0)


def test_from_a_site_to_packed_tokens(site, ok, bloomery):
    report = ok("crawl", site, "--out", "pages", *HERE, "--quiet")
    assert (report["pages"], report["robots_excluded"]) == (5, 1)
    assert sum(report["errors"].values()) >= 1
    assert list(Path("pages").rglob("*.warc.gz"))

    survival = ok("curate", "pages", "corpus", "--use", "Length", "ExactDedup", "--engine", "inline", "--quiet")
    assert survival["documents_out"] == 5
    ok("tokenizer", "train", "corpus", "--out", "words", "--vocab-size", 270)
    packed = ok("tokenizer", "pack", "corpus", "--tokenizer", "words", "--out", "packed", "--quiet")
    assert packed["documents"] == 5
    same = ok("tokenizer", "pack", "pages", "--tokenizer", "words", "--out", "direct", "--quiet")
    assert same["bytes"] == packed["bytes"]  # the web reader feeds the packer, too

    code, out, _ = bloomery("crawl", site, "--out", "pages", *HERE, "--quiet")
    assert code == 0
    assert "5 pages" in out
    assert "http_404" in out


def test_limits_are_options(site, ok):
    assert ok("crawl", site, "--out", "two", "--max-pages", 2, *HERE, "--quiet")["pages"] == 2
    assert ok("crawl", site, "--out", "shallow", "--max-depth", 1, *HERE, "--quiet")["pages"] == 2
    assert ok("crawl", site, "--out", "none", "--exclude", "/[2-9]", *HERE, "--quiet")["pages"] == 2


def test_bad_input_gives_one_line(site, refused, bloomery):
    assert "missing from bloomery crawl: --out" in refused("crawl", site)
    assert "no seeds" in refused("crawl", "--out", "x")
    assert "'ftp' is not crawled" in refused("crawl", "ftp://example.org/", "--out", "x")
    assert "max_pages must be at least 1" in refused("crawl", site, "--out", "x", "--max-pages", 0)
    assert "did you mean '--max-pages'" in refused("crawl", site, "--out", "x", "--max-pagse", 3)
    code, out, err = bloomery("crawl", site, "--out", "x", "--quiet")  # loopback needs permission
    assert (code != 0, out, err.count("\n")) == (True, "", 1)
    assert "allow_private" in err or "private" in err
