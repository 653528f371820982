"""The crawl: seeds in, an archive of pages and a report out, resumable after a kill at any moment.

`Crawler.run` is one event loop: it takes links from the frontier, fetches up to `concurrency` at once, hands every
outcome to the store and pushes the links it finds. See `store` for what is on disk and why nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.files import write_json
from bloomery.core.hashing import hash64
from bloomery.core.log import logger
from bloomery.core.progress import Progress
from bloomery.web.config import CrawlConfig
from bloomery.web.extract import links as page_links
from bloomery.web.fetch import HTML_TYPES, MAX_RETRY_AFTER, Fetcher, FetchError, Response, backoff
from bloomery.web.frontier import Frontier, Link, PoliteFrontier, Priority, RoundFrontier
from bloomery.web.page import Page
from bloomery.web.report import CrawlReport
from bloomery.web.robots import MAX_BYTES as ROBOTS_BYTES
from bloomery.web.robots import RobotsCache, Rules
from bloomery.web.scope import Scope, canonical_seeds, leads_back
from bloomery.web.sitemaps import listed
from bloomery.web.store import EXCLUDED, FAILED, QUEUED, REDIRECTED, STORED, Adopted, Store
from bloomery.web.urls import host_of, origin_of, resolve

Scorer = Callable[[Page], float]

# Failures that may be gone when the same crawl is run again; they are then tried anew.
PASSING = ("timeout", "dns", "connect", "broken_transfer", "robots_unreachable", "host_down", "http_429", "http_500",
           "http_502", "http_503", "http_504")  # fmt: skip
SILENT_LIMIT = 5  # links in a row that cannot connect before a host is given up
_SILENT_KINDS = {"timeout", "dns", "connect"}

_log = logger("web")


def crawl(
    seeds: Iterable[str],
    out: Path | str,
    config: CrawlConfig | None = None,
    *,
    priority: Priority | None = None,
    scorer: Scorer | None = None,
    quiet: bool = False,
    **settings: Any,
) -> CrawlReport:
    """Crawl from `seeds` into the folder `out`; run again with the same arguments, it continues where it was.

    `settings` are fields of `CrawlConfig` to change in `config`. With `order="best"`, `priority(link)` decides what
    comes next; without it, links inherit `scorer(page)` of the page they were found on. With `reproducible=True` too,
    the crawl goes in rounds, as Craw4LLM's, and depends on the web alone (see `RoundFrontier`). A crawl that has run to
    its end only tries again what failed for a passing reason.

    Raises:
        ConfigError: bad seeds or settings, or a folder that holds another crawl.
        WebError, EmptyError: no page could be stored; the message says why.
        StorageError: the disk is full, or another crawl is running in the folder.
    """
    known = [setting.name for setting in fields(CrawlConfig)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"a crawl has no setting {name!r}", fix=nearest(name, known))
    config = with_changes(config or CrawlConfig(), **settings)
    return Crawler(config, priority=priority, scorer=scorer, quiet=quiet).crawl(seeds, out)


class Crawler:
    """A crawler with its settings and hooks; `crawl` runs it, `run` is the same as a coroutine.

    `frontier` replaces the default `PoliteFrontier` or `RoundFrontier`; `resolver` replaces aiohttp's name resolution.
    """

    def __init__(
        self,
        config: CrawlConfig | None = None,
        *,
        priority: Priority | None = None,
        scorer: Scorer | None = None,
        frontier: Frontier | None = None,
        resolver: Any = None,
        quiet: bool = False,
    ) -> None:
        self.config = config = config or CrawlConfig()
        if (config.order == "best") != (priority is not None or scorer is not None):
            raise ConfigError(
                "best-first order and a priority or scorer need each other",
                where="order",
                fix='give order="best" and priority=… or scorer=…, or neither',
            )
        self._priority, self._scorer, self._resolver, self._quiet = priority, scorer, resolver, quiet
        self._given_frontier = frontier

    def crawl(self, seeds: Iterable[str], out: Path | str) -> CrawlReport:
        """Run the crawl to its end; see the function `crawl`."""
        return asyncio.run(self.run(seeds, out))

    async def run(self, seeds: Iterable[str], out: Path | str) -> CrawlReport:
        """The same, for callers that have an event loop already."""
        seeds = canonical_seeds(seeds)
        self._store = Store(Path(out), self.config.user_agent, self.config.segment_bytes)
        try:
            self._store.check_identity({"seeds": seeds, **self.config.identity()})
            self._begin(seeds)
            began = time.monotonic()
            earlier = float(self._store.meta("seconds", "0"))
            try:
                await self._loop()
            finally:
                self._store.stop()
                self._store.set_meta("seconds", str(earlier + time.monotonic() - began))
            report = CrawlReport.of(self._store, seeds, self.config.max_pages)
            write_json(Path(out) / "crawl.json", report.to_dict())
            report.raise_if_empty()
            return report
        finally:
            self._store.close()

    # --- state ---

    def _begin(self, seeds: list[str]) -> None:
        """Fill the frontier from the seeds and from what earlier runs in this folder left."""
        store = self._store
        self._frontier = self._new_frontier()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: Counter[str] = Counter()
        self._silent: Counter[str] = Counter()  # host -> links in a row that could not connect
        self._bytes = 0
        self._redirects = dict(store.redirects())
        self._seeds = seeds
        self._scope = Scope(self.config, {host_of(url) for url in seeds})
        self._seen = {hash64(url) for url in seeds}
        fresh = {url: Link(url) for url in seeds}
        for link in store.rows(QUEUED, STORED, FAILED, REDIRECTED, EXCLUDED):
            self._seen.add(hash64(link.url))
            fresh.pop(link.url, None)
            if link.depth == 0:
                self._scope.hosts.add(host_of(link.url))
        self._adopt_tail(fresh)
        self._stored = store.totals().get(STORED, (0, 0))[0]
        store.requeue(PASSING if self._stored else None)
        waiting = list(store.rows(QUEUED))
        self._frontier = self._new_frontier()  # the tail may have used the one before
        self._push(waiting)
        if self._rounds is not None:
            for link in store.rows(STORED, FAILED, REDIRECTED, EXCLUDED):
                self._rounds.count(link)
            self._rounds.resume(json.loads(store.meta("round", "[]")))
        store.start()
        self._add(list(fresh.values()))

    def _new_frontier(self) -> Frontier:
        config, given = self.config, self._given_frontier
        manners = config.per_host_delay, config.per_host_concurrency
        self._rounds: RoundFrontier | None = None
        if given is not None:  # an empty one is false
            return given
        if config.reproducible and config.order == "best":
            self._rounds = RoundFrontier(*manners, config.host_diversity)
            return self._rounds
        return PoliteFrontier(*manners, config.reproducible)

    def _adopt_tail(self, fresh: dict[str, Link]) -> None:
        """Take in the pages that a killed run archived without recording them, in the order it archived them."""
        tail = list(self._store.tail())
        known = fresh | {link.url: link for link in self._store.rows(QUEUED)} if tail else {}
        self._push(list(known.values()) if self._rounds is not None else [])  # to tell which links are better
        adopted = []
        for page, metadata in tail:
            depth = int(metadata.get("hopsFromSeed", "0"))
            link = known.get(page.url) or Link(page.url, depth, metadata.get("via", ""))
            fresh.pop(page.url, None)
            self._seen.add(hash64(page.url))
            children = self._children(link, page)
            known.update((child.url, child) for child in children)
            self._push(children if self._rounds is not None else [])
            adopted.append(Adopted(link, page, children))
        self._store.adopt(adopted)

    def _add(self, links: list[Link]) -> None:
        """Links never met before: remembered on disk and queued."""
        if links:
            self._store.links(links)
            self._push(links)

    def _push(self, links: list[Link]) -> None:
        for link in links:
            self._frontier.push(link)

    # --- the loop ---

    async def _loop(self) -> None:
        config = self.config
        async with Fetcher(
            config.guard(),
            config.user_agent,
            max_bytes=config.max_bytes,
            connect_timeout=config.connect_timeout,
            timeout=config.timeout,
            resolver=self._resolver,
        ) as self._fetcher:
            self._robots = RobotsCache(self._get_robots, config.user_agent)
            with Progress("crawl", config.max_pages, "pages", done=self._stored, quiet=self._quiet) as self._progress:
                self._started = time.monotonic()
                try:
                    if config.sitemaps:
                        await self._add_sitemaps()
                    await self._fetch_all()
                finally:
                    for task in self._tasks:
                        task.cancel()
                    await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fetch_all(self) -> None:
        """Keep `concurrency` requests running until no link is left or enough pages are stored."""
        config, frontier, tasks = self.config, self._frontier, self._tasks
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._store.raise_error()
            if self._rounds is not None and not tasks and self._rounds.finished and self._stored < config.max_pages:
                # never more than may still be stored: all pages of a round are, whichever arrives first
                chosen = self._rounds.begin(min(config.round_pages, config.max_pages - self._stored))
                self._store.begin_round(chosen)
            while (
                len(tasks) < config.concurrency
                and self._stored + len(tasks) < config.max_pages
                and not self._store.congested
                and (link := frontier.pop(time.monotonic())) is not None
            ):
                task = loop.create_task(self._visit(link))
                tasks.add(task)
                task.add_done_callback(self._visited)
            if not tasks and (self._stored >= config.max_pages or not len(frontier)):
                return
            ready_at = frontier.ready_at()
            if self._store.congested:
                ready_at = time.monotonic() + 0.05
            timer = loop.call_later(max(ready_at - time.monotonic(), 0.0), self._wake.set) if ready_at else None
            await self._wake.wait()
            if timer is not None:
                timer.cancel()

    def _visited(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._store.fail(error)

    async def _visit(self, link: Link) -> None:
        """Fetch one link and deal with whatever comes of it."""
        host = host_of(link.url)
        try:
            if self._silent[host] >= SILENT_LIMIT:
                raise FetchError("host_down", f"{host} has stopped answering", where=link.url)
            if self.config.obey_robots and not await self._permitted(link):
                self._store.settle(link.url, EXCLUDED, "robots", "robots.txt forbids it")
                return
            response = await self._fetcher.get(link.url, self.config.content_types)
            self._silent.pop(host, None)
            if response.redirect:
                self._redirected(link, response)
            else:
                self._arrived(link, response)
        except FetchError as error:
            self._failed(link, host, error)
        finally:
            self._frontier.release(link, time.monotonic())

    async def _permitted(self, link: Link) -> bool:
        rules = await self._rules(link.url)
        if rules.unknown is not None:
            raise FetchError(rules.unknown.kind, f"robots.txt: {rules.unknown.what}", where=link.url)
        return rules.allows(link.url)

    def _arrived(self, link: Link, response: Response) -> None:
        page = Page(link.url, response.status, response.content_type, response.body, "", response.headers)
        children = self._children(link, page)
        self._store.page(link, response, children)
        self._push(children)
        self._stored += 1
        self._bytes += len(response.body)
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._progress.advance(
            1, MB_s=self._bytes / 1e6 / seconds, queue=len(self._frontier), errors=dict(self._errors) or 0
        )

    def _redirected(self, link: Link, response: Response) -> None:
        """The target becomes a link of its own, at the same depth, unless the chain ends here."""
        chain = (*link.via, link.url)
        target = response.location
        if target is None:
            raise FetchError("bad_redirect", "a redirect to no usable address", where=link.url)
        if leads_back(target, link.url, self._redirects):
            raise FetchError("redirect_loop", f"redirects in a loop, to {target}", where=link.url)
        if len(chain) > self.config.max_redirects:
            raise FetchError("redirects", f"more than {self.config.max_redirects} redirects", where=link.url)
        self._redirects[link.url] = target
        if link.depth == 0:
            self._scope.hosts.add(host_of(target))
        if link.depth == 0 or self._scope.holds(target):
            following = with_changes(link, url=target, via=chain, attempt=0)
            if self._is_wanted(following):
                self._add([following])
        self._store.settle(link.url, REDIRECTED, "redirect", target)  # last: a kill in between must not lose the target

    def _failed(self, link: Link, host: str, error: FetchError) -> None:
        now = time.monotonic()
        if error.passing and link.attempt < self.config.retries and error.retry_after <= MAX_RETRY_AFTER:
            wait = backoff(link.attempt, error.retry_after)
            link.attempt += 1
            if error.kind in ("http_429", "http_503", *_SILENT_KINDS):  # the host is in trouble, not just this page
                self._frontier.hold(host, now + wait)
            self._frontier.push(link, not_before=now + wait)
            return
        if error.kind in _SILENT_KINDS:
            self._silent[host] += 1
        self._errors[error.kind] += 1
        self._store.settle(link.url, FAILED, error.kind, error.what)
        _log.debug("%s: %s", error.kind, error)

    # --- links ---

    def _children(self, link: Link, page: Page) -> list[Link]:
        """The links on a page that are new and in scope, with their priorities."""
        score = self._checked(self._scorer(page), "scorer", page.url) if self._scorer is not None else 0.0
        if page.content_type not in HTML_TYPES or self._scope.too_deep(link.depth + 1):
            return []
        children = []
        for url, anchor in page_links(page.html, page.url):
            waits = self._rounds is not None and url in self._rounds
            if (waits or hash64(url) not in self._seen) and self._scope.holds(url):
                child = Link(url, link.depth + 1, page.url, anchor, score, score)
                if self._priority is not None:
                    child.priority = self._checked(self._priority(child), "priority", url)
                if self._is_wanted(child):
                    children.append(child)
        return children

    def _is_wanted(self, link: Link) -> bool:
        """Whether this is the first way to an address, or in rounds a better one."""
        return self._is_new(link.url) or (self._rounds is not None and self._rounds.better(link))

    def _is_new(self, url: str) -> bool:
        key = hash64(url)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    @staticmethod
    def _checked(value: float, hook: str, url: str) -> float:
        if math.isnan(value):
            raise DataError(f"the {hook} returned NaN", where=url)
        return float(value)

    # --- robots.txt and sitemaps ---

    async def _rules(self, url: str) -> Rules:
        """The robots.txt rules for `url`; its host is left in peace for a while after they had to be fetched."""
        rules = self._robots.known(url)
        if rules is None:
            rules = await self._robots.rules(url)
            delay = max(rules.delay, self.config.per_host_delay)
            if delay:
                self._frontier.hold(host_of(url), time.monotonic() + 2 * delay, delay)
                await asyncio.sleep(delay)
        return rules

    async def _get_robots(self, url: str) -> tuple[int, bytes]:
        response = await self._fetcher.follow(url, self.config.retries, ROBOTS_BYTES)
        return (response.status, response.body) if response is not None else (404, b"")

    async def _add_sitemaps(self) -> None:
        """Queue what the sitemaps of the seeds' hosts list."""

        async def get(sitemap: str) -> bytes:
            response = await self._fetcher.follow(sitemap, self.config.retries)
            await asyncio.sleep(delay)
            return response.body if response is not None else b""

        for origin in sorted({origin_of(url) for url in self._seeds}):
            rules = await self._rules(origin + "/")
            delay = max(rules.delay, self.config.per_host_delay)
            sitemaps = (resolve(origin + "/", entry) for entry in rules.sitemaps)
            async for sitemap, urls in listed(filter(None, sitemaps), get):
                if not self._scope.too_deep(1):
                    self._add([Link(url, 1, sitemap) for url in urls if self._scope.holds(url) and self._is_new(url)])
