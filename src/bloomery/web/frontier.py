"""Which page next: the waiting links, best first, never faster for one host than politeness allows."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from bloomery.core.hashing import hash64
from bloomery.web.urls import host_of


@dataclass(slots=True)
class Link:
    """A page to fetch and how it was found. All URLs canonical."""

    url: str
    depth: int = 0  # links followed from a seed
    parent: str = ""  # the page (or redirect) it was found on, "" for a seed
    anchor: str = ""  # the text of the link
    parent_score: float = 0.0  # what the crawl's scorer said of the parent
    priority: float = 0.0  # higher is fetched earlier; links of equal priority go breadth-first
    via: tuple[str, ...] = ()  # redirects that led here, oldest first
    attempt: int = 0  # fetches that failed for a passing reason


Priority = Callable[[Link], float]


class Frontier(Protocol):
    """What the crawler asks of a frontier. It is used from one thread; `now` is a monotonic time in seconds."""

    def push(self, link: Link, not_before: float = 0.0) -> None:
        """Add a link to be fetched, at `not_before` or later. The crawler never pushes a URL that is waiting."""

    def pop(self, now: float) -> Link | None:
        """The best link whose host may be asked now; its host counts one more running request."""

    def release(self, link: Link, now: float) -> None:
        """The request for a popped link has ended."""

    def hold(self, host: str, until: float, delay: float = 0.0) -> None:
        """Ask nothing of `host` before `until`, and from then on leave at least `delay` seconds between requests."""

    def ready_at(self) -> float | None:
        """When `pop` may next succeed by itself; None when only a `release` or `push` can help."""

    def __len__(self) -> int:
        """Links waiting."""


Key = tuple[float, int, int, str]  # (-priority, depth, hash of the URL, URL): smallest first


@dataclass(slots=True)
class _Host:
    delay: float
    next_start: float = 0.0
    running: int = 0
    queue: list[tuple[Key, Link]] = field(default_factory=list)  # heap


class PoliteFrontier:
    """Best-first over the hosts that may be asked; in memory, while the crawl's store keeps the links on disk.

    Order: priority (higher first), then depth, then a hash of the URL. The hash makes ties deterministic, whichever
    answer arrived first, and spreads a level over a site instead of walking it alphabetically.

    `level_by_level` holds a depth back until the one above is finished, on all hosts: a crawl of the same web then
    stores the same pages whatever the timing, at the price of waiting for the slowest page of every level.
    """

    def __init__(
        self, per_host_delay: float = 0.0, per_host_concurrency: int = 1, level_by_level: bool = False
    ) -> None:
        self._delay, self._concurrency, self._level_by_level = per_host_delay, per_host_concurrency, level_by_level
        self._hosts: dict[str, _Host] = {}
        # A host with links and a free slot has an entry in `_waiting`, or one with the key of its best link in
        # `_ready`. Entries are never searched for: one that no longer holds true is skipped when it surfaces.
        self._ready: list[tuple[Key, str]] = []
        self._waiting: list[tuple[float, str]] = []  # (time the host may be asked again, host)
        self._later: list[tuple[float, str, Link]] = []  # (time, url, link): retries
        self._unfinished: Counter[int] = Counter()  # links per depth that are queued or running
        self._count = 0

    def push(self, link: Link, not_before: float = 0.0) -> None:
        """Add a link; see `Frontier`."""
        self._count += 1
        self._unfinished[link.depth] += 1
        if not_before > 0.0:
            heapq.heappush(self._later, (not_before, link.url, link))
        else:
            self._enqueue(link)

    def pop(self, now: float) -> Link | None:
        """The best link whose host may be asked now; see `Frontier`."""
        while self._later and self._later[0][0] <= now:
            self._enqueue(heapq.heappop(self._later)[2])
        while self._waiting and self._waiting[0][0] <= now:
            self._list(heapq.heappop(self._waiting)[1])
        while self._ready:
            key, name = self._ready[0]
            host = self._hosts[name]
            if not host.queue or host.queue[0][0] != key or host.running >= self._concurrency:
                heapq.heappop(self._ready)
            elif host.next_start > now:
                heapq.heappop(self._ready)
                heapq.heappush(self._waiting, (host.next_start, name))
            elif self._level_by_level and key[1] > min(self._unfinished):
                return None
            else:
                heapq.heappop(self._ready)
                link = heapq.heappop(host.queue)[1]
                host.running += 1
                host.next_start = now + host.delay
                self._list(name)
                self._count -= 1
                return link
        return None

    def release(self, link: Link, now: float) -> None:
        """The request for a popped link has ended; see `Frontier`."""
        name = host_of(link.url)
        self._hosts[name].running -= 1
        self._list(name)
        self._unfinished[link.depth] -= 1
        if not self._unfinished[link.depth]:
            del self._unfinished[link.depth]

    def hold(self, host: str, until: float, delay: float = 0.0) -> None:
        """Ask nothing of `host` before `until`; see `Frontier`."""
        state = self._host(host)
        state.next_start = max(state.next_start, until)
        state.delay = max(state.delay, delay)

    def ready_at(self) -> float | None:
        """When `pop` may next succeed by itself; see `Frontier`."""
        return min((heap[0][0] for heap in (self._later, self._waiting) if heap), default=None)

    def __len__(self) -> int:
        return self._count

    def _host(self, name: str) -> _Host:
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self._delay)
        return host

    def _enqueue(self, link: Link) -> None:
        name = host_of(link.url)
        host = self._host(name)
        key = _key(link)
        heapq.heappush(host.queue, (key, link))
        if host.queue[0][0] is key:
            self._list(name)

    def _list(self, name: str) -> None:
        host = self._hosts[name]
        if host.queue and host.running < self._concurrency:
            heapq.heappush(self._ready, (host.queue[0][0], name))


class RoundFrontier:
    """Best-first in rounds, as Craw4LLM crawls: choose the best links, fetch them all, then choose again.

    What is chosen depends on what the rounds before found and not on which answer came first, so the same web gives
    the same pages. For that, a link found on several pages has the best priority any of them gives it (`push` may
    raise that of a waiting link), and a round is finished, retries included, before the next is chosen. Inside a round
    a `PoliteFrontier` decides what is fetched when.

    `host_diversity` times log2(1 + links chosen of the host so far) is taken off a link's priority.
    """

    def __init__(self, per_host_delay: float = 0.0, per_host_concurrency: int = 1, host_diversity: float = 0.0) -> None:
        self._round = PoliteFrontier(per_host_delay, per_host_concurrency)
        self._weight = host_diversity
        self._links: dict[str, Link] = {}  # those waiting, with the best priority offered
        self._hosts: dict[str, list[Key]] = {}  # heaps; an entry that no longer holds true is skipped
        self._chosen: Counter[str] = Counter()

    def begin(self, count: int) -> list[Link]:
        """Choose the `count` best links, fewer when fewer wait, as the next round."""
        best = [(self._cost(name), name) for name in self._hosts if self._first(name) is not None]
        heapq.heapify(best)
        chosen: list[Link] = []
        while best and len(chosen) < count:
            name = best[0][1]
            chosen.append(self._take(heapq.heappop(self._hosts[name])[3]))
            if self._first(name) is None:
                heapq.heappop(best)
                del self._hosts[name]
            else:
                heapq.heapreplace(best, (self._cost(name), name))
        return chosen

    def resume(self, urls: list[str]) -> None:
        """The round that a killed crawl was in: those of its links that still wait."""
        for url in urls:
            if url in self._links:
                self._take(url)

    def count(self, link: Link) -> None:
        """A link that an earlier run has dealt with."""
        self._chosen[host_of(link.url)] += 1

    def __contains__(self, url: str) -> bool:
        return url in self._links

    def better(self, link: Link) -> bool:
        """Whether the URL of this link waits and this way to it is better than those known."""
        known = self._links.get(link.url)
        return known is not None and _offer(link) < _offer(known)

    @property
    def finished(self) -> bool:
        """Whether every link of the round has been popped."""
        return not len(self._round)

    def push(self, link: Link, not_before: float = 0.0) -> None:
        """Add a link to those waiting, or a retry to the round; see `Frontier`."""
        if not_before > 0.0:
            self._round.push(link, not_before)
        elif link.url not in self._links or self.better(link):
            self._links[link.url] = link
            heapq.heappush(self._hosts.setdefault(host_of(link.url), []), _key(link))

    def pop(self, now: float) -> Link | None:
        """The best link of the round whose host may be asked now; see `Frontier`."""
        return self._round.pop(now)

    def release(self, link: Link, now: float) -> None:
        """The request for a popped link has ended; see `Frontier`."""
        self._round.release(link, now)

    def hold(self, host: str, until: float, delay: float = 0.0) -> None:
        """Ask nothing of `host` before `until`; see `Frontier`."""
        self._round.hold(host, until, delay)

    def ready_at(self) -> float | None:
        """When `pop` may next succeed by itself; see `Frontier`."""
        return self._round.ready_at()

    def __len__(self) -> int:
        return len(self._links) + len(self._round)

    def _take(self, url: str) -> Link:
        link = self._links.pop(url)
        self._chosen[host_of(url)] += 1
        self._round.push(link)
        return link

    def _first(self, name: str) -> Key | None:
        """The key of the host's best link."""
        heap = self._hosts[name]
        while heap and (heap[0][3] not in self._links or _key(self._links[heap[0][3]]) != heap[0]):
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _cost(self, name: str) -> Key:
        """The key of the host's best link (there is one), with its host's share of the crawl taken off."""
        cost, depth, number, url = self._hosts[name][0]
        return (cost + self._weight * math.log2(1 + self._chosen[name]), depth, number, url)


def _key(link: Link) -> Key:
    return (-link.priority, link.depth, hash64(link.url), link.url)


def _offer(link: Link) -> tuple[float, int, str, str]:
    """Smaller is a better way to the same URL."""
    return (-link.priority, link.depth, link.parent, link.anchor)
