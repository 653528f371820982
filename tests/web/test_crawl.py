from __future__ import annotations

import gzip
import importlib
import json
import math
import signal
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import brotli
import pytest

from bloomery.core.errors import ConfigError, DataError, EmptyError, StorageError, WebError
from bloomery.web import CrawlConfig, Crawler, CrawlReport, Link, Page, crawl, iterate_pages
from bloomery.web import fetch as fetch_module
from bloomery.web import store as store_module
from bloomery.web.frontier import PoliteFrontier

crawl_module = importlib.import_module("bloomery.web.crawl")  # the package's `crawl` is the function
FAST = CrawlConfig(allow_private=True, per_host_delay=0.0, per_host_concurrency=8, retries=1, timeout=10.0)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (crawl_module, fetch_module):
        monkeypatch.setattr(module, "backoff", lambda attempt, retry_after=0.0: 0.01 * (attempt + 1))


def run(seeds: Any, out: Path, config: CrawlConfig = FAST, **settings: Any) -> CrawlReport:
    return crawl(seeds, out, config, quiet=True, **settings)


def stored(out: Path) -> list[str]:
    """Paths of the stored pages, in the order they were archived."""
    pages = [page for path in sorted(out.glob("pages-*.warc.gz")) for page in iterate_pages(path)]
    return ["/" + page.url.split("/", 3)[3] for page in pages]


def tree(site: Any, depth: int) -> int:
    """A binary tree of pages /, /0, /1, /00, … with links to the parent; returns how many there are."""
    names = [""]
    for _ in range(depth):
        names += [name + digit for name in names for digit in "01"]
    names = sorted(set(names))
    for name in names:
        children = [name + digit for digit in "01" if name + digit in names]
        anchors = "".join(f'<a href="/{n}">{n}</a>' for n in [*children, name[:-1]])
        site.routes["/" + name] = f"<title>{name}</title>{anchors}<p>{name} text</p>"
    return len(names)


def test_a_whole_site_once_and_a_report(site: Any, tmp_path: Path) -> None:
    count = tree(site, 4)
    site.routes["/0"] = site.reply("/0").body + b'<a href="/gone">x</a><a href="http://elsewhere.example/">y</a>'
    report = run([site.url()], tmp_path)
    assert sorted(stored(tmp_path)) == sorted("/" + p for p in {path[1:] for path in site.routes})
    assert report.pages == count
    assert report.errors == {"http_404": 1}
    assert report.examples["http_404"] == [f"{site.url('/gone')}: the server answered 404 X"]
    assert report.finished == "no links left"
    assert max(site.counts.values()) == 1
    assert json.loads((tmp_path / "crawl.json").read_text()) == report.to_dict()
    assert report.bytes == sum(len(site.reply(path).body) for path in site.routes)


def test_limits_of_pages_and_depth(site: Any, tmp_path: Path) -> None:
    tree(site, 5)
    report = run([site.url()], tmp_path / "a", max_pages=7)
    assert (report.pages, len(stored(tmp_path / "a")), report.finished) == (7, 7, "max_pages reached")
    run([site.url()], tmp_path / "b", max_depth=2)
    assert sorted(stored(tmp_path / "b")) == ["/", "/0", "/00", "/01", "/1", "/10", "/11"]


def test_more_pages_continue_a_crawl(site: Any, tmp_path: Path) -> None:
    count = tree(site, 4)
    run([site.url()], tmp_path, max_pages=9)
    assert run([site.url()], tmp_path, max_pages=1000).pages == count
    assert sorted(set(stored(tmp_path))) == sorted(stored(tmp_path)) == sorted(site.routes)
    assert max(site.counts[path] for path in site.routes) == 1


def test_reproducible_gives_the_same_pages_whatever_the_timing(site: Any, reply: Any, tmp_path: Path) -> None:
    tree(site, 5)
    sets = []
    for slow in ("/0", "/1"):
        body = site.reply(slow).body
        site.routes[slow] = reply(body, delay=0.2)
        run([site.url()], tmp_path / slow[1:], reproducible=True, max_pages=20)
        site.routes[slow] = body
        sets.append(set(stored(tmp_path / slow[1:])))
    assert sets[0] == sets[1]


def test_scope(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = '<a href="/a/1">1</a><a href="/b/1">2</a><a href="/a/2.pdf">3</a>'
    for path in ("/a/1", "/b/1", "/a/2.pdf"):
        site.routes[path] = "x"
    run([site.url()], tmp_path, include=("/a/",), exclude=(r"\.pdf$",))
    assert sorted(stored(tmp_path)) == ["/", "/a/1"]


def test_best_first_follows_the_scorer(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = "".join(f'<a href="/{n}">{n}</a>' for n in "abc")
    for n, text in (("a", "dull"), ("b", "gold"), ("c", "dull")):
        site.routes[f"/{n}"] = text + "".join(f'<a href="/{n}{i}">{n}{i}</a>' for i in range(3))
        for i in range(3):
            site.routes[f"/{n}{i}"] = text
    settings = {"order": "best", "per_host_concurrency": 1, "max_pages": 7}
    run([site.url()], tmp_path / "s", scorer=lambda page: float(b"gold" in page.body), **settings)
    order = stored(tmp_path / "s")
    assert {"/b0", "/b1", "/b2"} == set(order[order.index("/b") + 1 : order.index("/b") + 4])
    seen: list[Link] = []

    def priority(link: Link) -> float:
        seen.append(link)
        return float(link.anchor == "c")

    run([site.url()], tmp_path / "p", priority=priority, **settings)
    assert stored(tmp_path / "p")[:2] == ["/", "/c"]
    assert {(link.parent, link.depth) for link in seen if link.anchor == "a"} == {(site.url(), 1)}


def test_hooks_and_order_need_each_other(site: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need each other"):
        run([site.url()], tmp_path, order="best")
    with pytest.raises(ConfigError, match="need each other"):
        run([site.url()], tmp_path, scorer=lambda page: 0.0)
    site.routes["/"] = "x"
    with pytest.raises(DataError, match="NaN"):
        run([site.url()], tmp_path, order="best", scorer=lambda page: math.nan)


# --- bad seeds ---


def test_unreachable_seed(tmp_path: Path, unused_port: int) -> None:
    with pytest.raises(WebError, match=r"no page could be crawled: .*cannot connect"):
        run([f"http://127.0.0.1:{unused_port}/"], tmp_path)
    with pytest.raises(WebError, match="does not resolve"):
        run(["http://no-such-host.invalid/"], tmp_path / "b")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_robots_forbidden_site(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/"] = "x"
    site.routes["/robots.txt"] = reply(b"User-agent: *\nDisallow: /", content_type="text/plain")
    with pytest.raises(WebError, match=r"robots.txt forbids it.*ask its owner"):
        run([site.url()], tmp_path)
    assert site.counts["/"] == 0
    assert run([site.url()], tmp_path / "b", obey_robots=False).pages == 1


def test_robots_unreachable_forbids_and_is_tried_again(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/"] = "x"
    site.routes["/robots.txt"] = reply(b"", 503)
    with pytest.raises(WebError, match="answered 503"):
        run([site.url()], tmp_path)
    assert site.counts["/"] == 0
    del site.routes["/robots.txt"]
    assert run([site.url()], tmp_path).pages == 1


def test_robots_rules_hold_for_links_and_redirects(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/robots.txt"] = reply(b"User-agent: bloomery\nDisallow: /no", content_type="text/plain")
    site.routes["/"] = '<a href="/no/1">1</a><a href="/yes">2</a><a href="/sly">3</a>'
    site.routes["/yes"] = "x"
    site.routes["/sly"] = reply(b"", 302, {"Location": "/no/2"})
    report = run([site.url()], tmp_path)
    assert report.robots_excluded == 2
    assert not any(path.startswith("/no") for path in site.counts)


def test_private_seed_is_refused_by_default(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = "x"
    with pytest.raises(WebError, match=r"loopback address.*allow_private"):
        run([site.url()], tmp_path, allow_private=False)
    assert not site.log


@pytest.mark.parametrize("seeds", [[], ["nonsense"], ["ftp://a.example/"]])
def test_bad_seeds_are_config_errors(tmp_path: Path, seeds: list[str]) -> None:
    with pytest.raises(ConfigError):
        run(seeds, tmp_path)


# --- bad pages: each counted, the crawl goes on ---


def test_bad_pages_are_counted_by_kind(site: Any, reply: Any, tmp_path: Path) -> None:
    packed = gzip.compress(b"<p>" + b"hello " * 1000)
    site.routes.update(
        {
            "/huge": reply(b"x" * 1000, length=50 << 20),
            "/endless": lambda _: reply(b"x" * (3 << 20), length=-1),
            "/bomb": reply(gzip.compress(b"\0" * (50 << 20)), headers={"Content-Encoding": "gzip"}),
            "/brbomb": reply(brotli.compress(b"a" * (50 << 20)), headers={"Content-Encoding": "br"}),
            "/png": reply(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9),
            "/noise": reply(bytes(range(256)) * 9),
            "/pdf": reply(b"%PDF-1.7", content_type="application/pdf"),
            "/cutgzip": reply(packed[:-20], headers={"Content-Encoding": "gzip"}),
            "/badgzip": reply(packed[:20] + b"oops" + packed[24:], headers={"Content-Encoding": "gzip"}),
            "/nogzip": reply(b"<p>plain", headers={"Content-Encoding": "gzip"}),
            "/odd": reply(b"x", headers={"Content-Encoding": "snappy"}),
            "/loop": reply(b"", 302, {"Location": "/loop2"}),
            "/loop2": reply(b"", 302, {"Location": "/loop"}),
            "/self": reply(b"", 301, {"Location": "/self"}),
            "/nowhere": reply(b"", 301, {"Location": "mailto:a@b.c"}),
            "/inward": reply(b"", 302, {"Location": "http://169.254.169.254/latest/meta-data/"}),
            "/500": reply(b"", 500),
            "/cut": reply(b"<p>half", length=100),
        }
    )
    for n in range(9):
        site.routes[f"/far{n}"] = reply(b"", 302, {"Location": f"/far{n + 1}"})
    paths = [path for path in site.routes if not path.startswith("/far")] + ["/far0"]
    site.routes["/"] = "".join(f'<a href="{path}">x</a>' for path in paths)
    report = run([site.url(), site.url("/inward")], tmp_path, max_bytes=2 << 20)
    assert stored(tmp_path) == ["/"]
    assert report.errors == {
        "too_large": 4, "binary": 2, "content_type": 1, "broken_encoding": 4, "redirect_loop": 2, "bad_redirect": 1,
        "refused_address": 1, "http_500": 1, "broken_transfer": 1, "redirects": 1,
    }  # fmt: skip
    assert site.counts["/500"] == site.counts["/cut"] == 2  # tried again once
    assert all(report.examples[kind] for kind in report.errors)


def test_good_codings_and_invalid_utf8_are_stored(site: Any, reply: Any, tmp_path: Path) -> None:
    body = b"<p>caf\xe9 \xff\xfe" + b"hello " * 500
    raw = zlib.compressobj(wbits=-15)
    coded = {
        "/gzip": (gzip.compress(body[:50]) + gzip.compress(body[50:]), "gzip"),
        "/deflate": (zlib.compress(body), "deflate"),
        "/raw": (raw.compress(body) + raw.flush(), "deflate"),
        "/br": (brotli.compress(body), "br"),
    }
    for path, (data, coding) in coded.items():
        site.routes[path] = reply(data, headers={"Content-Encoding": coding})
    report = run([site.url(path) for path in coded], tmp_path)
    assert report.errors == {}
    pages = list(iterate_pages(next(tmp_path.glob("*.warc.gz"))))
    assert [page.body for page in pages] == [body] * 4
    assert all("caf�" in page.html for page in pages)


def test_redirects_are_followed_once_and_seeds_may_change_host(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/start"] = reply(
        b"", 302, {"Location": site.url("/end?utm_source=x#frag").replace("127.0.0.1", "localhost")}
    )
    site.routes["/end"] = '<a href="/next">n</a><a href="/again">a</a>'
    site.routes["/again"] = reply(b"", 307, {"Location": "/end"})
    site.routes["/next"] = "x"
    report = run([site.url("/start")], tmp_path)
    assert sorted(stored(tmp_path)) == ["/end", "/next"]
    assert report.redirects == 2
    assert site.counts["/end"] == 1


def test_retry_after_is_honoured(site: Any, reply: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(crawl_module, "backoff", lambda attempt, after=0.0: waits.append(after) or 0.01)
    answers = [reply(b"", 429, {"Retry-After": "7"}), reply(b"fine")]
    site.routes["/"] = lambda _: answers.pop(0)
    assert run([site.url()], tmp_path).pages == 1
    assert waits == [7.0]
    site.routes["/"] = reply(b"", 503, {"Retry-After": "86400"})
    with pytest.raises(WebError, match="503"):
        run([site.url()], tmp_path / "b")
    assert site.counts["/"] == 3


def test_a_dead_host_is_given_up(site: Any, tmp_path: Path, unused_port: int) -> None:
    dead = f"http://127.0.0.1:{unused_port}"
    site.routes["/"] = "".join(f'<a href="{dead}/{n}">x</a>' for n in range(20))
    report = run([site.url()], tmp_path, same_host=False, obey_robots=False, retries=0, per_host_concurrency=1)
    assert report.errors == {"host_down": 15, "connect": 5}


def test_sitemaps_seed_the_crawl(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/robots.txt"] = reply(f"Sitemap: {site.url('/index.xml')}".encode(), content_type="text/plain")
    index = f"<sitemapindex><sitemap><loc>{site.url('/s.xml.gz')}</loc></sitemap></sitemapindex>"
    site.routes["/index.xml"] = reply(index.encode(), content_type="text/xml")
    urls = f"<urlset><url><loc>{site.url('/only-here?a=1&amp;b=2')}</loc></url></urlset>"
    site.routes["/s.xml.gz"] = reply(gzip.compress(urls.encode()), content_type="application/gzip")
    site.routes["/"] = site.routes["/only-here?a=1&b=2"] = "x"
    assert run([site.url()], tmp_path / "a").pages == 1
    assert run([site.url()], tmp_path / "b", sitemaps=True).pages == 2


def test_politeness(site: Any, reply: Any, tmp_path: Path) -> None:
    tree(site, 2)
    run([site.url()], tmp_path / "a", per_host_delay=0.1, per_host_concurrency=4)
    times = [when for when, _ in site.log]
    assert all(later - earlier > 0.08 for earlier, later in pairwise(times))
    site.log.clear()
    site.most_running = 0
    for path in list(site.routes):
        site.routes[path] = reply(site.reply(path).body, delay=0.05)
    run([site.url()], tmp_path / "b", per_host_concurrency=2)
    assert site.most_running == 2
    site.log.clear()
    site.routes["/robots.txt"] = reply(b"User-agent: *\nCrawl-delay: 0.2", content_type="text/plain")
    run([site.url()], tmp_path / "c", max_pages=3)
    times = [when for when, _ in site.log]
    assert all(later - earlier > 0.15 for earlier, later in pairwise(times))


# --- the folder ---


def test_another_crawl_in_the_folder_is_refused(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = site.routes["/b"] = "x"
    run([site.url()], tmp_path)
    with pytest.raises(ConfigError, match=r"holds another crawl: seeds is .*; max_depth is null there and 3 here"):
        run([site.url("/b")], tmp_path, max_depth=3)
    assert run([site.url()], tmp_path, concurrency=2).pages == 1


def test_two_crawls_at_once_are_refused(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = "x"
    first = store_module.Store(tmp_path, "test", 1 << 20)
    try:
        with pytest.raises(StorageError, match="another crawl is running"):
            run([site.url()], tmp_path)
    finally:
        first.close()
    assert run([site.url()], tmp_path).pages == 1


def test_lost_segment_and_broken_state_are_storage_errors(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = "x"
    run([site.url()], tmp_path)
    (segment,) = tmp_path.glob("*.warc.gz")
    content = segment.read_bytes()
    segment.write_bytes(content[:100])
    with pytest.raises(StorageError, match="are gone"):
        run([site.url()], tmp_path)
    segment.write_bytes(content)
    for path in tmp_path.glob("crawl.sqlite*"):
        path.unlink()
    (tmp_path / "crawl.sqlite").write_bytes(b"this is not a database at all" * 100)
    with pytest.raises(StorageError, match="remove the file"):
        run([site.url()], tmp_path)
    (tmp_path / "crawl.sqlite").unlink()
    assert run([site.url()], tmp_path).pages == 1  # rebuilt from the archive
    assert site.counts["/"] == 1


def test_full_disk_stops_with_one_error_and_keeps_what_is_stored(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tree(site, 4)
    append = store_module.WarcWriter.append
    pages = []

    def full(self: Any, members: bytes) -> None:
        pages.append(1)
        if len(pages) > 10:
            raise StorageError("the disk is full", where=self.path)
        append(self, members)

    monkeypatch.setattr(store_module.WarcWriter, "append", full)
    with pytest.raises(StorageError, match="disk is full"):
        run([site.url()], tmp_path)
    monkeypatch.undo()
    kept = stored(tmp_path)
    assert 0 < len(kept) < count
    before = site.counts
    assert run([site.url()], tmp_path).pages == count
    assert sorted(stored(tmp_path)) == sorted(site.routes)
    assert all(site.counts[path] == before[path] for path in kept)


def test_a_torn_record_is_cut_and_complete_ones_are_adopted(site: Any, tmp_path: Path) -> None:
    import sqlite3

    count = tree(site, 3)
    run([site.url()], tmp_path)
    (segment,) = tmp_path.glob("*.warc.gz")
    size = segment.stat().st_size
    # Take the state back to before the first page, as if no batch had been committed, and tear the last record.
    database = sqlite3.connect(tmp_path / "crawl.sqlite")
    database.execute("DELETE FROM segments")
    database.execute("DELETE FROM urls")
    database.commit()
    database.close()
    segment.write_bytes(segment.read_bytes()[: size - 150])
    site.log.clear()
    assert run([site.url()], tmp_path).pages == count
    assert sorted(stored(tmp_path)) == sorted(site.routes)
    assert sum(site.counts[path] for path in site.routes) <= 1


def test_works_inside_a_running_event_loop(site: Any, tmp_path: Path) -> None:
    import asyncio

    site.routes["/"] = "x"

    async def main() -> CrawlReport:
        return await Crawler(FAST, quiet=True).run([site.url()], tmp_path)

    assert asyncio.run(main()).pages == 1


def test_only_unusable_pages_is_an_empty_error(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/"] = reply(b"%PDF-1.7")
    with pytest.raises(EmptyError, match="binary data served as text/html"):
        run([site.url()], tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_pages": 0}, {"timeout": 0}, {"include": ("(",)}, {"order": "depth"}, {"user_agent": " "},
        {"user_agent": "a\nb"}, {"allow_networks": ("x",)}, {"host_diversity": 1.0}, {"round_pages": 0},
        {"retries": -1},
    ],
)  # fmt: skip
def test_bad_settings_are_config_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CrawlConfig(**settings)


def test_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_pages"):
        run(["http://a.example/"], tmp_path, max_page=3)


def test_a_crawler_may_be_used_again(site: Any, tmp_path: Path) -> None:
    tree(site, 3)
    crawler = Crawler(CrawlConfig(allow_private=True, per_host_delay=0.0, max_pages=2), quiet=True)
    for name in "ab":
        assert crawler.crawl([site.url()], tmp_path / name).pages == 2
        assert stored(tmp_path / name)[0] == "/"


def test_interrupt_keeps_what_is_stored(site: Any, reply: Any, tmp_path: Path) -> None:
    def page(path: str) -> Any:
        if not path[1:].isdigit():
            return reply(b"", 404)
        number = int(path[1:])
        links = "".join(f'<a href="/{n}">x</a>' for n in (2 * number, 2 * number + 1) if n < 300)
        return reply(links.encode(), delay=0.02)

    site.fallback = page
    program = (
        "import sys; from bloomery.web import crawl\n"
        "crawl([sys.argv[1]], sys.argv[2], allow_private=True, per_host_delay=0.0, quiet=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, site.url("/1"), str(tmp_path)], stderr=subprocess.PIPE)
    while len(site.log) < 20 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode != 0
    assert b"KeyboardInterrupt" in errors
    assert len(stored(tmp_path)) >= 15
    counts = site.counts
    kept = stored(tmp_path)
    assert run([site.url("/1")], tmp_path).pages == 299
    assert all(site.counts[path] == counts[path] for path in kept)


def test_the_page_a_scorer_gets(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = "<p>hello"
    pages: list[Page] = []
    run([site.url()], tmp_path, order="best", scorer=lambda page: pages.append(page) or 1.0)
    assert [(page.url, page.status, page.content_type, page.html) for page in pages] == [
        (site.url(), 200, "text/html", "<p>hello")
    ]


def test_the_links_of_a_page_are_committed_with_it(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tree(site, 3)
    links = store_module.Store.links
    with monkeypatch.context() as patch:  # a kill right behind the commit of the page: later events are lost
        patch.setattr(store_module.Store, "links", lambda self, new: links(self, [n for n in new if not n.depth]))
        assert run([site.url()], tmp_path, max_pages=1).pages == 1
    assert run([site.url()], tmp_path, max_pages=100).pages == count


def test_the_target_of_a_redirect_is_remembered_before_the_redirect_is_settled(
    site: Any, reply: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.routes["/"] = reply(b"", 302, {"Location": "/there"})
    site.routes["/there"] = "<p>text"
    with monkeypatch.context() as patch:  # a kill between the two events: the later one is lost
        calls: list[str] = []
        for name in ("links", "settle"):
            call = getattr(store_module.Store, name)
            patch.setattr(store_module.Store, name, lambda *a, call=call, name=name: (calls.append(name), call(*a)))
        run([site.url()], tmp_path)
    assert calls == ["links", "links", "settle"]  # the seed, the target, the redirect
    assert stored(tmp_path) == ["/there"]


def test_robots_beyond_the_limit_is_read_up_to_it_however_it_is_coded(site: Any, reply: Any, tmp_path: Path) -> None:
    rules = b"User-agent: *\nDisallow: /0\n" + b"# padding\n" * 80_000
    site.routes["/robots.txt"] = reply(
        gzip.compress(rules), headers={"Content-Encoding": "gzip"}, content_type="text/plain"
    )
    tree(site, 1)
    assert run([site.url()], tmp_path).robots_excluded == 1
    assert sorted(stored(tmp_path)) == ["/", "/1"]


def test_crawl_delay_counts_when_a_sitemap_is_read_first(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/robots.txt"] = lambda path: reply(
        f"User-agent: *\nCrawl-delay: 0.2\nSitemap: {site.url('/map.xml')}\n".encode(), content_type="text/plain"
    )
    site.routes["/map.xml"] = lambda path: reply(f"<urlset><loc>{site.url('/a')}</loc></urlset>".encode())
    site.routes["/"] = site.routes["/a"] = "<p>text"
    delays: list[float] = []

    class Noting(PoliteFrontier):
        def hold(self, host: str, until: float, delay: float = 0.0) -> None:
            delays.append(delay)
            super().hold(host, until, delay)

    config = CrawlConfig(allow_private=True, per_host_delay=0.0, sitemaps=True)
    report = Crawler(config, frontier=Noting(), quiet=True).crawl([site.url()], tmp_path)
    assert report.pages == 2
    assert delays == [0.2]
