"""Addresses out of sitemaps (sitemaps.org): XML, plain or gzipped, and indexes of further ones."""

from __future__ import annotations

import html as entities
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from bloomery.core.errors import DataError
from bloomery.core.log import logger
from bloomery.web.coding import Decoder
from bloomery.web.fetch import FetchError
from bloomery.web.urls import resolve

MAX_SITEMAPS = 50  # files of one host that are read
MAX_BYTES = 50 << 20  # of a sitemap, unpacked: the protocol's own limit
_LOC = re.compile(rb"<loc>\s*(?:<!\[CDATA\[)?\s*([^<\]]+)", re.IGNORECASE)

Get = Callable[[str], Awaitable[bytes]]  # the body, b"" where there is none; raises FetchError


async def listed(sitemaps: Iterable[str], get: Get) -> AsyncIterator[tuple[str, list[str]]]:
    """(sitemap, pages it lists) of these sitemaps and those that they name. An unusable one is logged and left out."""
    waiting, done = deque(sitemaps), set[str]()
    while waiting and len(done) < MAX_SITEMAPS:
        url = waiting.popleft()
        if url in done:
            continue
        done.add(url)
        try:
            body = unpacked(await get(url))
        except (FetchError, DataError) as error:
            logger("web").warning("sitemap left out: %s", error)
            continue
        found = locations(body, url)
        if b"<sitemapindex" in body[:4096]:
            waiting.extend(found)
        else:
            yield url, found


def locations(body: bytes, url: str) -> list[str]:
    """The addresses, canonical, in the XML of the sitemap at `url`."""
    entries = (entities.unescape(entry.decode("utf-8", "replace")) for entry in _LOC.findall(body))
    return [target for entry in entries if (target := resolve(url, entry)) is not None]


def unpacked(body: bytes) -> bytes:
    """The XML of a sitemap that may be a .gz file. Raises `DataError` for broken data and past `MAX_BYTES`."""
    return Decoder("gzip", MAX_BYTES).decode(body) if body.startswith(b"\x1f\x8b") else body
