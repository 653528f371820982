"""Fetching images: limits, opt-outs, robots, politeness between processes, a cache that survives kills."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bloomery import corpus
from bloomery.core.errors import ConfigError, StorageError
from bloomery.corpus.interleaved import Part, from_parts, parts_of
from bloomery.corpus.interleaved.images import FetchImages, LoadImages, Missing
from bloomery.corpus.steps import REMOVED
from bloomery.web import WarcWriter, read_documents
from bloomery.web.image_cache import Entry, ImageCache, turn_of
from bloomery.web.image_fetch import WebImages, opted_out


def png(color: tuple[int, int, int] = (9, 9, 9)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 160), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    def make(**settings: object) -> WebImages:
        return WebImages(tmp_path / "cache", **{"allow_private": True, "per_host_delay": 0.0, "retries": 0, **settings})

    return make


def test_images_arrive_and_what_does_not_has_a_reason(site, reply, images):
    site.routes = {
        "/a.png": reply(png(), content_type="image/png"),
        "/gz.png": reply(gzip.compress(png()), headers={"Content-Encoding": "gzip"}),
        "/bomb.png": reply(gzip.compress(bytes(5_000_000)), headers={"Content-Encoding": "gzip"}),
        "/large.png": reply(bytes(200_000)),
        "/endless.png": reply(bytes(200_000), length=-1),
        "/empty.png": reply(b""),
        "/optout.png": reply(png(), headers={"X-Robots-Tag": "noimageai, noarchive"}),
        "/other.png": reply(png(), headers={"X-Robots-Tag": "otherbot: noai"}),
        "/moved.png": reply(status=302, headers={"Location": "/a.png"}),
        "/loop.png": reply(status=302, headers={"Location": "/loop.png"}),
        "/metadata.png": reply(status=302, headers={"Location": "http://169.254.169.254/latest"}),
        "/slow.png": reply(png(), delay=3),
        "/broken.png": reply(b"not gzip", headers={"Content-Encoding": "gzip"}),
    }
    source = images(max_bytes=100_000, timeout=0.5)
    names = [*site.routes, "/gone.png"]
    found = dict(zip(names, source.get([site.url(name) for name in names]), strict=True))
    assert found["/a.png"] == found["/gz.png"] == found["/other.png"] == found["/moved.png"] == png()
    reasons = {name: entry.reason for name, entry in found.items() if isinstance(entry, Missing)}
    assert reasons == {
        "/bomb.png": "not fetched: too_large", "/large.png": "not fetched: too_large",
        "/endless.png": "not fetched: too_large", "/empty.png": "not fetched: empty", "/optout.png": "opted out",
        "/loop.png": "not fetched: redirects", "/metadata.png": "not fetched: refused_address",
        "/slow.png": "not fetched: timeout", "/broken.png": "not fetched: broken_encoding",
        "/gone.png": "not fetched: http_404",
    }  # fmt: skip
    assert (
        source.get(["ftp://a.example/x.png", "data:image/png;base64,AAAA", "file:///etc/passwd", "nonsense"])
        == [Missing("not an address of the web")] * 4
    )


def test_private_addresses_are_refused_unless_allowed(site, images):
    for robots in (True, False):
        source = images(allow_private=False, obey_robots=robots)
        assert source.get([site.url("/a.png")]) == [Missing("not fetched: refused_address")]
    assert not site.log


def test_robots_txt_is_obeyed_and_read_once(site, reply, images):
    site.routes = {
        "/robots.txt": reply(b"User-agent: *\nDisallow: /private/\n", content_type="text/plain"),
        "/private/a.png": reply(png()), "/b.png": reply(png()), "/c.png": reply(png()),
        "/to-private.png": reply(status=301, headers={"Location": "/private/a.png"}),
    }  # fmt: skip
    urls = [site.url(path) for path in ("/private/a.png", "/b.png", "/to-private.png")]
    forbidden = Missing("not fetched: robots")
    assert images().get(urls) == [forbidden, png(), forbidden]
    assert images().get([site.url("/c.png")]) == [png()]  # another batch, the same cached rules
    assert site.counts == {"/robots.txt": 1, "/b.png": 1, "/to-private.png": 1, "/c.png": 1}
    assert images(obey_robots=False).get(urls) == [png(), png(), png()]


def test_everything_is_remembered_failures_too(site, reply, images):
    calls = []

    def flaky(path):
        calls.append(path)
        return reply(b"", 503) if len(calls) == 1 else reply(png())

    site.routes = {"/a.png": reply(png()), "/flaky.png": flaky}
    urls = [site.url(path) for path in ("/a.png", "/flaky.png", "/gone.png")]
    first = images().get(urls)
    assert first == [png(), Missing("not fetched: http_503"), Missing("not fetched: http_404")]
    count = len(site.log)
    assert images().get(urls) == first
    assert len(site.log) == count
    assert images(retry_after=-1.0).get(urls) == [png(), png(), Missing("not fetched: http_404")]  # passing ones only
    assert site.counts["/a.png"] == site.counts["/gone.png"] == 1
    images(opt_out=()).get(urls)  # other rules: answers under the old ones do not count
    assert site.counts["/a.png"] == 2


def test_prepared_images_are_not_asked_for_again(site, reply, images):
    site.routes = {"/a.png": reply(png()), "/robots.txt": reply(b"")}
    urls = [site.url("/a.png"), site.url("/gone.png"), "nonsense"]
    batch = from_parts([[Part(ref=url) for url in urls]])
    assert FetchImages(images())(batch) is batch
    count = len(site.log)
    assert images().get(urls) == [png(), Missing("not fetched: http_404"), Missing("not an address of the web")]
    assert len(site.log) == count


def test_passing_failures_are_tried_again_at_once(site, reply, images):
    calls = []

    def flaky(path):
        calls.append(path)
        return reply(b"", 500) if len(calls) == 1 else reply(png())

    site.routes = {"/flaky.png": flaky}
    assert images(retries=1).get([site.url("/flaky.png")]) == [png()]


def test_a_silent_host_is_left_alone(images, site):
    site.stopped = True
    dead = "http://127.0.0.1:9"  # nobody listens there; the guard lets the port pass only above 1023
    source = images(obey_robots=False)
    assert {e.reason for e in source.get([f"{dead}/{n}" for n in range(3)])} == {"not fetched: refused_address"}
    dead = "http://127.0.0.1:1025"
    answers = source.get([f"{dead}/{n}.png" for n in range(8)])
    assert [a.reason for a in answers] == ["not fetched: connect"] * 2 + ["not fetched: host_down"] * 6


def test_a_host_is_asked_slowly_by_several_processes_together(site, reply, images, tmp_path):
    """Four processes fetch 12 images of one host with 0.1 s between two requests."""
    site.fallback = lambda path: reply(png(), delay=0.02)
    script = tmp_path / "fetch.py"
    script.write_text(
        "import sys; from pathlib import Path; from bloomery.web.image_fetch import WebImages\n"
        "source = WebImages(Path(sys.argv[1]), allow_private=True, per_host_delay=0.1, obey_robots=False)\n"
        "assert all(isinstance(image, bytes) for image in source.get(sys.argv[2:]))\n"
    )
    urls = [site.url(f"/{n}.png") for n in range(12)]
    children = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path / "cache"), *urls[n:], *urls[:n]])
        for n in (0, 3, 6, 9)
    ]
    assert [child.wait(60) for child in children] == [0] * 4
    assert site.most_running == 1
    assert len(site.log) == 12  # each image once, whoever was first
    starts = sorted(when for when, _ in site.log)
    assert starts[-1] - starts[0] > 11 * 0.1 - 0.05


def test_a_killed_process_leaves_a_cache_that_can_be_used(site, reply, images, tmp_path):
    site.fallback = lambda path: reply(png(), delay=0.05)
    script = tmp_path / "fetch.py"
    script.write_text(
        "import sys; from pathlib import Path; from bloomery.web.image_fetch import WebImages\n"
        "WebImages(Path(sys.argv[1]), allow_private=True, per_host_delay=0.0, obey_robots=False).get(sys.argv[2:])\n"
    )
    urls = [site.url(f"/{n}.png") for n in range(40)]
    child = subprocess.Popen([sys.executable, str(script), str(tmp_path / "cache"), *urls])
    while len(site.log) < 6:
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    before = len(site.log)
    source = images(obey_robots=False)
    assert source.get(urls) == [png()] * 40
    assert len(site.log) <= 41  # at most the one that was running was asked twice
    assert before < 40


def test_damaged_and_foreign_entries_do_not_count(tmp_path):
    cache = ImageCache(tmp_path, "policy", 100)
    cache.put("http://a/", Entry(b"body"))
    assert cache.get("http://a/") == Entry(b"body")
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    for content in (path.read_bytes()[:-1], b"", b"{}\n", b"[]\nx", b"\xff\xfe"):
        path.write_bytes(content)
        assert cache.get("http://a/") is None
    assert ImageCache(tmp_path, "other", 100).get("http://a/") is None


@given(st.binary(max_size=300), st.text(max_size=20), st.booleans())
def test_entries_round_trip(tmp_path_factory, body, reason, passing):
    cache = ImageCache(tmp_path_factory.getbasetemp() / "round", "p", 100)
    cache.put("http://a/", Entry(body, reason, passing))
    assert cache.get("http://a/") == Entry(body, reason, passing)


def test_a_turn_is_for_one_and_is_remembered(tmp_path):
    with turn_of(tmp_path, "a.example", 100) as turn:
        turn.silent = 2
        with turn_of(tmp_path, "a.example", 100) as second, turn_of(tmp_path, "b.example", 100) as other:
            assert second is None
            assert other is not None
    with turn_of(tmp_path, "a.example", 100) as turn:
        assert turn.silent == 2
    with turn_of(tmp_path, "a.example", -1) as turn:
        assert turn.silent == 0


@pytest.mark.parametrize(
    ("value", "out"),
    [
        ("noai", True), ("NOIMAGEAI", True), ("all, noai", True), ("nofollow", False), ("", False),
        ("otherbot: noai", False), ("otherbot: noarchive, noai", False), ("bloomery: noai", True), ("*: noindex", True),
        ("otherbot: noai, bloomery: noindex", True), ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", True),
        ("max-snippet: 5, noindex", True), ("noairplane", False),
    ],
)  # fmt: skip
def test_opt_out_headers(value, out):
    assert opted_out([("Content-Type", "image/png"), ("x-robots-tag", value)], "bloomery/0.1 (x)") is out
    assert opted_out([("X-Robots-Tag", value)], "bloomery/0.1", ()) is False


def test_inside_a_running_loop(site, reply, images):
    site.routes = {"/a.png": reply(png())}

    async def notebook():
        return images().get([site.url("/a.png")])

    assert asyncio.run(notebook()) == [png()]


def test_a_full_disk_is_one_clear_error(site, reply, images, monkeypatch, tmp_path):
    site.fallback = lambda path: reply(png())

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="disk is full"):
        images(obey_robots=False).get([site.url(f"/{n}") for n in range(5)])
    assert not [p for p in tmp_path.rglob("*.tmp")]


def test_as_a_step(site, reply, images):
    site.routes = {"/a.png": reply(png(), content_type="text/html")}
    parts = [Part("before"), Part(ref=site.url("/a.png")), Part(ref=site.url("/gone.png")), Part("after")]
    loaded = LoadImages(images())(from_parts([parts]))
    assert [part.image or part.text for part in next(parts_of(loaded))] == ["before", png(), "after"]
    assert loaded.column(REMOVED).to_pylist() == [["not fetched: http_404"]]


def test_what_decides_the_result_is_in_the_fingerprint(images, tmp_path):
    assert images().fingerprint() == images(concurrency=3, per_host_delay=1.0).fingerprint()
    assert images().fingerprint() != images(max_bytes=5).fingerprint()
    assert json.dumps(LoadImages(images()).fingerprint())
    for fields in ({"concurrency": 0}, {"timeout": 0.0}, {"max_bytes": 0}):
        with pytest.raises(ConfigError, match="WebImages"):
            images(**fields)


def test_a_run_over_the_network_ends_the_same_inline_and_on_processes_and_asks_nothing_twice(site, reply, tmp_path):
    site.fallback = lambda path: reply(png(), delay=0.01) if path.endswith(".png") else reply(b"", 404)
    (tmp_path / "in").mkdir()
    for file in range(3):
        writer = WarcWriter(tmp_path / "in", f"pages-{file}", "test")
        for n in range(6):
            images = "".join(f'<p>Words before image {k}.</p><img src="{site.url(f"/{n}-{k}.png")}">' for k in range(2))
            page = f"{images}<img src={site.url('/gone')}>".encode()
            writer.write_page(f"http://a.example/{file}/{n}", 200, "OK", [("Content-Type", "text/html")], page, {})
        writer.close()
    read = functools.partial(read_documents, extract="interleaved")
    found = []
    for engine in ("inline", "processes"):
        site.log.clear()
        source = WebImages(tmp_path / engine / "cache", allow_private=True, per_host_delay=0.0)
        steps = [FetchImages(source), LoadImages(source)]
        out = tmp_path / engine / "out"
        report = corpus.run(steps, tmp_path / "in", out, read=read, engine=engine, workers=3, quiet=True)
        assert report.steps[2].removed == {"not fetched: http_404": 18}
        assert site.counts == {path: 1 for path in site.counts}
        assert len(site.counts) == 12 + 2
        found.append([path.read_bytes() for path in sorted(out.glob("0*.parquet"))])
    assert found[0] == found[1]
