from __future__ import annotations

import asyncio

import pytest

from bloomery.web.fetch import FetchError
from bloomery.web.robots import MAX_BYTES, MAX_CRAWL_DELAY, RobotsCache, parse

URL = "http://a.example/robots.txt"
AGENT = "bloomery/0.1 (research crawler)"


def test_rules_delay_and_sitemaps() -> None:
    text = (
        b"User-agent: *\nDisallow: /\n\nUser-agent: bloomery\nDisallow: /private\nAllow: /private/but\n"
        b"Crawl-delay: 3\nSitemap: http://a.example/s.xml\n"
    )
    rules = parse(URL, 200, text, AGENT)
    assert rules.allows("http://a.example/x")
    assert not rules.allows("http://a.example/private/x")
    assert rules.allows("http://a.example/private/but/x")
    assert rules.delay == 3.0
    assert rules.sitemaps == ["http://a.example/s.xml"]
    assert parse(URL, 200, b"User-agent: *\nCrawl-delay: 86400", AGENT).delay == MAX_CRAWL_DELAY


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (401, True), (429, False), (500, False), (503, False)])
def test_status_decides_without_a_file(status: int, allowed: bool) -> None:
    assert parse(URL, status, b"", AGENT).allows("http://a.example/") is allowed


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00", b"<html>not robots</html>", b"Disallow", b"\0" * 100])
def test_any_body_is_some_rules(body: bytes) -> None:
    assert parse(URL, 200, body, AGENT).allows("http://a.example/")


def test_only_the_first_500_kib_count() -> None:
    padding = b"#" * (MAX_BYTES - 30) + b"\nUser-agent: *\nDisallow: /a\n"
    rules = parse(URL, 200, padding + b"Disallow: /b\n", AGENT)
    assert rules.allows("http://a.example/b")


def test_one_request_per_origin_and_failures_forbid() -> None:
    asked = []

    async def get(url: str) -> tuple[int, bytes]:
        asked.append(url)
        await asyncio.sleep(0)
        if "down" in url:
            raise FetchError("connect", "cannot connect", where=url)
        return 200, b"User-agent: *\nDisallow: /no"

    async def main() -> None:
        cache = RobotsCache(get, AGENT)
        rules = await asyncio.gather(*(cache.rules(f"http://a.example/{n}") for n in range(5)))
        assert len({id(r) for r in rules}) == 1
        assert asked == [URL]
        assert cache.known("http://a.example/z") is rules[0]
        down = await cache.rules("http://down.example/")
        assert not down.allows("http://down.example/")
        assert down.unknown is not None
        assert down.unknown.kind == "connect"

    asyncio.run(main())


def test_a_byte_order_mark_does_not_hide_the_first_line() -> None:
    rules = parse("http://a.example/robots.txt", 200, b"\xef\xbb\xbfUser-agent: *\nDisallow: /x", "bloomery")
    assert not rules.allows("http://a.example/x")
