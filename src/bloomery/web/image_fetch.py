"""Images over the network for `corpus.interleaved.images.LoadImages`: guarded, polite, bounded, and remembered on disk.

    steps = [LoadImages(WebImages(Path("images"))), ImageShape(), …]

The connections are the crawler's (`fetch`, `guard`): public addresses only, limits on bytes before and after their
coding and on time, no cookies. Every answer, failures too, is kept in the cache, so a run that was killed asks nothing
twice and ends with the same documents. A host gets one request at a time and `per_host_delay` seconds between two, from
all processes that share the cache together; robots.txt is obeyed for images and for every address they redirect to.
An answer whose `X-Robots-Tag` says noai, noimageai, noindex or noimageindex (what img2dataset looks for by default) is
not used.

Left out: images inside of pages (`data:`), meta tags of the page (`<meta name="robots">`), lists of opted-out images.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bloomery.core.errors import ConfigError, WebError
from bloomery.core.hashing import digest
from bloomery.corpus.interleaved.images import Missing
from bloomery.web.config import USER_AGENT
from bloomery.web.fetch import MAX_REDIRECTS, Fetcher, FetchError, Response, backoff
from bloomery.web.guard import Guard
from bloomery.web.image_cache import Entry, ImageCache, turn_of
from bloomery.web.robots import MAX_BYTES as ROBOTS_BYTES
from bloomery.web.robots import RobotsCache
from bloomery.web.urls import canonical, host_of

T = TypeVar("T")

OPT_OUT = ("noai", "noimageai", "noindex", "noimageindex")
SILENT_LIMIT = 2  # requests in a row without any answer before a host is left alone for `retry_after`
PATIENCE = 10.0  # longest wait that a server may ask for before another try, in seconds
_SILENT = ("timeout", "dns", "connect")
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # not names of robots


@dataclass(frozen=True)
class WebImages:
    """Images by HTTP; see above.

    Args:
        cache: folder of the answers; the same one in every run over the same pages, and on every machine of a cluster.
        max_bytes: of one image, before and after its content coding.
        timeout: seconds for a request, all in all.
        connect_timeout: seconds until a connection.
        concurrency: requests at once of one process.
        per_host_delay: seconds between the starts of two requests to a host; Crawl-delay can only raise it.
        retries: further tries after a passing failure of a host that answers (429, 5xx, broken connection).
        retry_after: seconds after which a passing failure is tried again in a later run.
        opt_out: values of X-Robots-Tag that forbid the use; none: the header is not looked at.
        user_agent: who we say we are, to servers and to robots.txt.
        obey_robots: fetch nothing that robots.txt forbids.
        allow_private: loopback and private networks may be asked.
        allow_networks: further exceptions for the guard, e.g. ("169.254.10.0/24",).
    """

    cache: Path
    max_bytes: int = 10 << 20
    timeout: float = 20.0
    connect_timeout: float = 5.0
    concurrency: int = 128
    per_host_delay: float = 0.1
    retries: int = 1
    retry_after: float = 3600.0
    opt_out: tuple[str, ...] = OPT_OUT
    user_agent: str = USER_AGENT
    obey_robots: bool = True
    allow_private: bool = False
    allow_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", Path(self.cache).absolute())  # workers may run elsewhere
        for name, low in (("max_bytes", 1), ("concurrency", 1), ("retries", 0), ("per_host_delay", 0)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}={getattr(self, name)!r}", where="WebImages", fix=f"{low} or more")
        for name in ("timeout", "connect_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}", where="WebImages", fix="seconds, more than 0")

    def prepare(self, addresses: Sequence[str]) -> None:
        """Fetch what the cache does not have."""
        cache = self._cache()
        todo = [url for url in addresses if cache.get(url) is None]
        if todo:
            _run(_Session(self, cache).fetch(todo))

    def get(self, addresses: Sequence[str]) -> list[bytes | Missing]:
        """The images at these addresses, from the cache where it has them."""
        cache = self._cache()
        found = {url: cache.get(url) for url in addresses}
        todo = [url for url, entry in found.items() if entry is None]
        if todo:
            _run(_Session(self, cache, found).fetch(todo))
        entries = [found[url] or Entry(reason="not fetched") for url in addresses]
        return [Missing(entry.reason) if entry.reason else entry.body for entry in entries]

    def _cache(self) -> ImageCache:
        return ImageCache(self.cache, digest(self.fingerprint()), self.retry_after)

    def fingerprint(self) -> dict[str, Any]:
        """What decides which images come: limits and manners, not the speed."""
        names = ("max_bytes", "opt_out", "user_agent", "obey_robots", "allow_private", "allow_networks")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in values.items()}


class _Session:
    """One batch of addresses in one event loop; the answers go into the cache, and into `found` where it is given."""

    def __init__(self, settings: WebImages, cache: ImageCache, found: dict[str, Entry | None] | None = None) -> None:
        self._settings, self._cache, self._found = settings, cache, found
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._robots = RobotsCache(self._get_robots, settings.user_agent)

    async def fetch(self, addresses: Sequence[str]) -> None:
        """Ask for them; hosts are asked at the same time, addresses of one host one after the other."""
        hosts: dict[str, list[str]] = {}
        for address in addresses:
            try:
                hosts.setdefault(host_of(canonical(address)), []).append(address)
            except WebError:
                self._keep(address, Entry(reason="not an address of the web"))
        settings = self._settings

        async def ask(urls: list[str]) -> None:
            for url in urls:
                self._keep(url, await self._entry(url))

        self._fetcher = Fetcher(
            Guard(settings.allow_private, settings.allow_networks),
            settings.user_agent,
            max_bytes=settings.max_bytes,
            connect_timeout=settings.connect_timeout,
            timeout=settings.timeout,
            accept="image/*,*/*;q=0.1",
        )
        async with self._fetcher:
            tasks = [asyncio.create_task(ask(urls)) for urls in hosts.values()]
            try:
                await asyncio.gather(*tasks)
            finally:  # a full disk, an interrupt
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, address: str, entry: Entry) -> None:
        if self._found is not None:
            self._found[address] = entry

    async def _entry(self, address: str) -> Entry:
        """The answer for an address, after redirects and further tries; it is in the cache then."""
        url, hops, attempt = canonical(address), 0, 0
        while True:
            try:
                answer = await self._ask(url, address)
            except FetchError as error:
                again = error.passing and error.kind not in _SILENT and attempt < self._settings.retries
                if again and error.retry_after <= PATIENCE:
                    await asyncio.sleep(backoff(attempt, error.retry_after))
                    attempt += 1
                    continue
                answer = Entry(reason=f"not fetched: {error.kind}", passing=error.passing)
                self._cache.put(address, answer)
            if isinstance(answer, Entry):
                return answer
            hops += 1
            if answer.location is None or hops > MAX_REDIRECTS:
                answer = Entry(reason="not fetched: redirects")
                self._cache.put(address, answer)
                return answer
            url = answer.location

    async def _ask(self, url: str, address: str) -> Response | Entry:
        """One request for `address`, now at `url`: a redirect or the answer."""
        delay = self._settings.per_host_delay
        if self._settings.obey_robots:
            rules = await self._robots.rules(url)
            if rules.unknown is not None:
                raise rules.unknown
            if not rules.allows(url):
                raise FetchError("robots", "robots.txt forbids it", where=url)
            delay = max(delay, rules.delay)

        async def request() -> Response | Entry:
            known = self._cache.get(address)  # another process may have been here before us
            if known is not None:
                return known
            response = await self._fetcher.get(url)
            if response.redirect:
                return response
            entry = Entry(response.body) if response.body else Entry(reason="not fetched: empty")
            if opted_out(response.headers, self._settings.user_agent, self._settings.opt_out):
                entry = Entry(reason="opted out")
            self._cache.put(address, entry)
            return entry

        return await self._in_turn(url, delay, request)

    async def _in_turn(self, url: str, delay: float, request: Callable[[], Awaitable[T]]) -> T:
        """Make a request when it is our turn at the host, among all processes."""
        settings, host = self._settings, host_of(url)
        while True:
            async with self._slots:
                with turn_of(settings.cache, host, settings.retry_after) as turn:
                    wait = 0.05 if turn is None else turn.next - time.time()
                    if turn is not None and turn.silent >= SILENT_LIMIT:
                        raise FetchError("host_down", f"{host} does not answer", where=url)
                    if turn is not None and wait <= 0:
                        turn.next = time.time() + delay
                        try:
                            answer = await request()
                        except FetchError as error:
                            turn.silent = turn.silent + 1 if error.kind in _SILENT else 0
                            if error.kind in ("http_429", "http_503"):  # the host is in trouble, not just this image
                                turn.next = time.time() + max(delay, min(error.retry_after, PATIENCE), 1.0)
                            raise
                        turn.silent = 0
                        return answer
            await asyncio.sleep(min(max(wait, 0.01), 1.0))

    async def _get_robots(self, url: str) -> tuple[int, bytes]:
        """Status and body of a robots.txt, from the cache for as long as a passing failure."""

        async def request() -> Entry:
            known = self._cache.get(url)  # another process may have been here before us
            if known is not None:
                return known
            response = await self._fetcher.follow(url, 0, ROBOTS_BYTES)
            status, body = (response.status, response.body) if response is not None else (404, b"")
            entry = Entry(body, str(status), passing=True)
            self._cache.put(url, entry)
            return entry

        entry = self._cache.get(url)
        if entry is None:
            try:
                entry = await self._in_turn(url, 0.0, request)
            except FetchError as error:
                entry = Entry(reason=error.kind, passing=True)
                self._cache.put(url, entry)
        if not entry.reason.isdigit():
            kind = entry.reason if entry.reason == "refused_address" else "robots_unreachable"
            raise FetchError(kind, f"robots.txt: {entry.reason}", where=url, passing=kind != entry.reason)
        return int(entry.reason), entry.body


def opted_out(headers: Iterable[tuple[str, str]], user_agent: str, directives: Sequence[str] = OPT_OUT) -> bool:
    """Whether a header `X-Robots-Tag` holds one of the directives, for everybody or for this robot.

    "noindex, noai" is for everybody, "otherbot: noai, noindex" for the robot of that name alone.
    """
    name = user_agent.partition("/")[0].strip().lower()
    for key, value in headers:
        if key.lower() != "x-robots-tag":
            continue
        for_us = True
        for item in value.lower().split(","):
            robot, colon, directive = item.partition(":")
            if colon and robot.strip() in _VALUED:
                continue
            if colon:
                for_us = robot.strip() in (name, "*")
            if for_us and (directive if colon else item).strip() in directives:
                return True
    return False


def _run(work: Any) -> Any:
    """`asyncio.run`, in a thread of its own where this one runs a loop already (a notebook, an actor)."""
    running = None
    with suppress(RuntimeError):
        running = asyncio.get_running_loop()
    if running is None:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
