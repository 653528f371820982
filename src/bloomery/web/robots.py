"""robots.txt as RFC 9309 reads it: one file per origin, fetched once, kept for a day.

Status 4xx means there are no rules; 5xx or no answer at all means nothing is allowed for now. Only the first 500 KiB
count (§2.5).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bloomery.core.errors import require
from bloomery.web.fetch import FetchError
from bloomery.web.urls import origin_of

MAX_BYTES = 500 * 1024
MAX_AGE = 24 * 3600.0  # seconds; RFC 9309 §2.4
MAX_CRAWL_DELAY = 60.0  # seconds; a site asking for more would take days and is held to this

# (status, body) of a robots.txt after its redirects; raises FetchError when nobody answered.
Get = Callable[[str], Awaitable[tuple[int, bytes]]]


@dataclass(slots=True)
class Rules:
    """The rules of one origin for our user agent. `parsed` is None where everything or nothing is allowed."""

    parsed: Any
    agent: str
    unknown: FetchError | None = None  # why the rules could not be had; nothing is allowed then
    loaded: float = field(default_factory=time.monotonic)

    def allows(self, url: str) -> bool:
        """Whether the rules let us fetch `url`."""
        return self.unknown is None and (self.parsed is None or self.parsed.can_fetch(url, self.agent))

    @property
    def delay(self) -> float:
        """Seconds asked for between two requests (Crawl-delay), 0 when not said."""
        delay = self.parsed.crawl_delay(self.agent) if self.parsed is not None else None
        return min(float(delay or 0), MAX_CRAWL_DELAY)

    @property
    def sitemaps(self) -> list[str]:
        """The sitemap addresses the file lists."""
        return list(self.parsed.sitemaps) if self.parsed is not None else []


def parse(url: str, status: int, body: bytes, agent: str) -> Rules:
    """Rules from the answer to a request for the robots.txt at `url`."""
    if 200 <= status < 300:
        protego = require("protego", "web")
        return Rules(protego.Protego.parse(body[:MAX_BYTES].decode("utf-8-sig", "replace")), agent)
    if 400 <= status < 500 and status != 429:  # 429 is "later", as 5xx is
        return Rules(None, agent)
    return Rules(None, agent, FetchError("robots_unreachable", f"robots.txt answered {status}", where=url))


class RobotsCache:
    """The rules of every origin met, each fetched once; pages of one origin wait for the same answer."""

    def __init__(self, get: Get, agent: str) -> None:
        self._get, self._agent = get, agent
        self._rules: dict[str, Rules] = {}
        self._loading: dict[str, asyncio.Task[Rules]] = {}

    def known(self, url: str) -> Rules | None:
        """The rules for `url` if they have been loaded and are fresh."""
        rules = self._rules.get(origin_of(url))
        return rules if rules is not None and time.monotonic() - rules.loaded < MAX_AGE else None

    async def rules(self, url: str) -> Rules:
        """The rules for `url`, loading them when needed."""
        rules = self.known(url)
        if rules is not None:
            return rules
        origin = origin_of(url)
        if origin not in self._loading:
            self._loading[origin] = asyncio.create_task(self._load(origin))
        return await asyncio.shield(self._loading[origin])

    async def _load(self, origin: str) -> Rules:
        url = f"{origin}/robots.txt"
        try:
            rules = parse(url, *await self._get(url), self._agent)
        except FetchError as error:
            rules = Rules(None, self._agent, error)
        finally:
            del self._loading[origin]
        self._rules[origin] = rules
        return rules
