from __future__ import annotations

import asyncio
import gzip

from bloomery.web import FetchError
from bloomery.web.sitemaps import MAX_BYTES, MAX_SITEMAPS, listed

ROOT = "https://a.example/"


def read(files: dict[str, bytes], *start: str) -> dict[str, list[str]]:
    async def get(url: str) -> bytes:
        if url not in files:
            raise FetchError("http_500", "the server answered 500", where=url)
        return files[url]

    async def collect() -> dict[str, list[str]]:
        return {sitemap: urls async for sitemap, urls in listed(start, get)}

    return asyncio.run(collect())


def xml(kind: str, *locations: str) -> bytes:
    return f"<{kind}>{''.join(f'<url><loc> {at} </loc></url>' for at in locations)}</{kind}>".encode()


def test_indexes_are_followed_and_pages_named_like_sitemaps_are_pages() -> None:
    files = {
        ROOT + "index.xml": xml(
            "sitemapindex", ROOT + "one.xml", "two.xml.gz", ROOT + "missing.xml", ROOT + "index.xml"
        ),
        ROOT + "one.xml": xml("urlset", "/a?x=1&amp;y=2", "feed.xml", "mailto:x@a.example", "<![CDATA[/c]]>"),
        ROOT + "two.xml.gz": gzip.compress(xml("urlset", "/b")),
    }
    assert read(files, ROOT + "index.xml") == {
        ROOT + "one.xml": [ROOT + "a?x=1&y=2", ROOT + "feed.xml", ROOT + "c"],
        ROOT + "two.xml.gz": [ROOT + "b"],
    }


def test_bombs_and_endless_indexes_end() -> None:
    assert read({ROOT: gzip.compress(bytes(MAX_BYTES + 1))}, ROOT) == {}
    assert read({ROOT: b"\x1f\x8bbroken"}, ROOT) == {}
    asked = []

    async def get(url: str) -> bytes:
        asked.append(url)
        return xml("sitemapindex", f"/{len(asked)}.xml")

    async def walk() -> list[tuple[str, list[str]]]:
        return [entry async for entry in listed([ROOT], get)]

    assert asyncio.run(walk()) == []
    assert len(asked) == MAX_SITEMAPS
