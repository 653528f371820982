"""What a crawl may do: its scope, its manners, its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError
from bloomery.web.guard import Guard

USER_AGENT = "bloomery/0.1 (research crawler)"

# Fields that may change when a crawl is continued; all others decide which pages it is about.
_CHANGEABLE = {
    "max_pages", "concurrency", "per_host_concurrency", "per_host_delay", "connect_timeout", "timeout", "retries",
    "user_agent", "segment_bytes", "sitemaps", "allow_private", "allow_networks",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """Settings of a crawl. The defaults are polite to strangers: one request a second and host, robots.txt obeyed."""

    max_pages: int = 10_000  # stop after storing this many
    max_depth: int | None = None  # links followed from a seed; None: no limit
    same_host: bool = True  # only the hosts of the seeds, and those they redirect to
    allowed_domains: tuple[str, ...] = ()  # also (or, without same_host, only) these and their subdomains
    include: tuple[str, ...] = ()  # regular expressions; a link's URL must contain a match of one of them
    exclude: tuple[str, ...] = ()  # regular expressions; a link's URL must contain no match
    order: Literal["breadth", "best"] = "breadth"  # "best" follows the priority or scorer given to `crawl`
    reproducible: bool = False  # finish a depth (best-first: a round) before the next: the same web, the same pages
    round_pages: int = 100  # reproducible best-first: the links chosen at once, as Craw4LLM chooses
    host_diversity: float = 0.0  # there: taken off a link's priority for each doubling of what its host had chosen
    concurrency: int = 32  # requests at once, over all hosts
    per_host_concurrency: int = 1  # requests at once to one host
    per_host_delay: float = 1.0  # seconds between the starts of two requests to a host; Crawl-delay can only raise it
    connect_timeout: float = 10.0  # seconds
    timeout: float = 60.0  # seconds for a whole request
    retries: int = 2  # further tries after a passing failure (429, 5xx, timeout, broken connection)
    max_redirects: int = 5  # in a row, before a link is given up
    max_bytes: int = 10 << 20  # largest body, before and after decompression
    content_types: tuple[str, ...] = ("text/html", "application/xhtml+xml", "text/plain")  # stored; empty: all
    user_agent: str = USER_AGENT  # who we say we are; robots.txt rules for this name are ours
    obey_robots: bool = True  # fetch nothing that robots.txt forbids
    sitemaps: bool = False  # start from the sitemaps that the seeds' robots.txt lists, too
    allow_private: bool = False  # loopback and private networks may be crawled
    allow_networks: tuple[str, ...] = ()  # further exceptions for the guard, e.g. ("169.254.10.0/24",)
    segment_bytes: int = 1 << 30  # a new WARC file after this many

    def __post_init__(self) -> None:
        for name, low in (("max_pages", 1), ("concurrency", 1), ("per_host_concurrency", 1), ("max_bytes", 1),
                          ("segment_bytes", 1), ("retries", 0), ("max_redirects", 0), ("per_host_delay", 0),
                          ("max_depth", 0), ("round_pages", 1), ("host_diversity", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ConfigError(f"{name} must be at least {low}, got {value!r}", where=name)
        for name in ("connect_timeout", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0 seconds, got {getattr(self, name)!r}", where=name)
        for name in ("include", "exclude"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(f"not a regular expression: {pattern!r}: {error}", where=name) from error
        if self.order not in ("breadth", "best"):
            raise ConfigError(f"unknown order {self.order!r}", where="order", fix="use breadth or best")
        if self.host_diversity and not (self.reproducible and self.order == "best"):
            raise ConfigError(
                "host_diversity belongs to rounds", where="host_diversity", fix='reproducible=True, order="best"'
            )
        if not self.user_agent.strip() or not self.user_agent.isprintable():
            raise ConfigError("a crawler must say who it is, in printable characters", where="user_agent")
        self.guard()

    def guard(self) -> Guard:
        """The connection policy these settings ask for."""
        return Guard(self.allow_private, self.allow_networks)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same when a crawl is continued."""
        return {name: value for name, value in encode(self).items() if name not in _CHANGEABLE}
