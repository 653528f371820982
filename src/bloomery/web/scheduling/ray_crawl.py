"""The crawl of `crawl.Crawl`, its pages shared out by host among the actors of a Ray cluster.

Every shard owns a range of hashes of hosts: it knows which of its pages were visited, rates them, keeps those that
wait, and reads their links. A round: every shard offers its n best pages; the n best of all offers, which are the n
best of all, are crawled; the links on them go to the shards that own their targets. Ties go by id here as there, so
the crawl is page by page that of one process, whatever the number of shards.

What travels in a round are n offers of every shard and the links of n pages; texts stay where they are rated. The
frontier of a shard is in memory. An actor that dies ends the crawl, because its pages die with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bloomery.core.errors import BloomeryError, ConfigError, DataError, require
from bloomery.core.hashing import hash64
from bloomery.corpus.ray_pool import connect
from bloomery.web.scheduling.crawl import Crawl, Iteration, Status, parents_of
from bloomery.web.scheduling.frontier import PageId


class Shard:
    """One actor: the crawl of the pages it is given, in steps."""

    def __init__(self, make: Callable[[], Crawl]) -> None:
        self._crawl = make()
        self._offered: list[PageId] = []

    def begin(self, seeds: Sequence[PageId]) -> tuple[int, int]:
        """Rate those of the seeds that are this shard's; visited and waiting pages."""
        self._crawl._add(list(seeds), [[] for _ in seeds])
        return self._sizes()

    def offer(self, count: int) -> list[tuple[float, PageId]]:
        """The best pages that wait, with what they are ordered by; the smallest is the best."""
        crawl = self._crawl
        self._offered = crawl._frontier.pop_best(count)
        sign = -1.0 if crawl.order == "desc" else 1.0
        return [(sign * crawl.ratings[page][crawl.select_by], page) for page in self._offered]

    def accept(self, count: int, follow: bool) -> list[list[PageId]]:
        """The first `count` of the offered pages are crawled, the others wait on; the links of those crawled."""
        crawl, taken = self._crawl, self._offered[:count]
        for page in self._offered[count:]:
            crawl._frontier.push(page, crawl.ratings[page][crawl.select_by])
        for page in taken:
            del crawl.ratings[page]
        return crawl.links.links(taken) if follow and taken else [[] for _ in taken]

    def meet(self, parents: dict[PageId, list[PageId]]) -> tuple[int, int]:
        """Rate pages of this shard that are linked to; visited and waiting pages."""
        self._crawl._meet(parents)
        return self._sizes()

    def _sizes(self) -> tuple[int, int]:
        return len(self._crawl.visited), len(self._crawl._frontier)


class ShardedCrawl:
    """A `Crawl` on a Ray cluster.

    Args:
        make: makes the crawl, here and in every actor; must be picklable, and its sources readable on every node.
        shards: actors, one processor each.
        host_of: page -> host.
        address: of a running cluster; None: the one this process is connected to, or a local one.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster there; a frontier given to the crawl.
        BloomeryError: an actor died.
    """

    def __init__(
        self, make: Callable[[], Crawl], shards: int, host_of: Callable[[PageId], str], address: str | None = None
    ) -> None:
        if shards < 1:
            raise ConfigError(f"shards={shards}", fix="1 or more")
        plan = make()
        if plan.frontier is not None:
            raise ConfigError("the shards have frontiers of their own", where="frontier", fix="leave it out")
        self.per_iteration, self.budget = plan.per_iteration, plan.budget
        self.status: Status = "running"
        self.crawled: list[PageId] = []
        self.visited = 0  # pages
        self._host_of, self._number = host_of, 0
        self._ray: Any = require("ray", "ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            connect(self._ray, address, shards)
        actor = self._ray.remote(num_cpus=1)(Shard)
        self._shards = [actor.remote(make) for _ in range(shards)]

    def seed(self, pages: Sequence[PageId]) -> None:
        """Rate the pages a crawl begins with and let them wait.

        Raises:
            DataError: fewer than one round takes.
        """
        pages = list(dict.fromkeys(pages))
        if len(pages) < self.per_iteration:
            raise DataError(f"{len(pages)} seeds, but {self.per_iteration} pages a round", fix="give more seeds")
        shares: list[list[PageId]] = [[] for _ in self._shards]
        for page in pages:
            shares[self.shard_of(page)].append(page)
        self._ask("begin", [(share,) for share in shares])

    def run(self) -> Iterator[Iteration]:
        """Crawl; yields every round as `Crawl.run` does."""
        while len(self.crawled) < self.budget:
            offers = self._ask("offer", [(self.per_iteration,)] * len(self._shards))
            merged = sorted((key, page, shard) for shard, offer in enumerate(offers) for key, page in offer)
            merged = merged[: self.per_iteration]
            if not merged:
                self.status = "exhausted"
                return
            best = [page for _, page, _ in merged]
            owners = [shard for _, _, shard in merged]
            self.crawled += best
            follow = len(self.crawled) < self.budget
            counts = [(owners.count(shard), follow) for shard in range(len(self._shards))]
            links = [iter(answer) for answer in self._ask("accept", counts)]
            parents = parents_of(best, [next(links[owner]) for owner in owners])
            shares: list[dict[PageId, list[PageId]]] = [{} for _ in self._shards]
            for page, linking in parents.items():
                shares[self.shard_of(page)][page] = linking
            sizes = self._ask("meet", [(share,) for share in shares])
            self.visited = sum(visited for visited, _ in sizes)
            yield Iteration(self._number, best, len(self.crawled), self.visited, sum(waiting for _, waiting in sizes))
            self._number += 1
        self.status = "budget"

    def shard_of(self, page: PageId) -> int:
        """The shard that owns a page: hashes of hosts in equal ranges."""
        return hash64(self._host_of(page)) * len(self._shards) >> 64

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for shard in self._shards:
            self._ray.kill(shard)
        if self._ours:
            self._ray.shutdown()

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every shard at once; the answers in the order of the shards."""
        calls = [getattr(s, method).remote(*given) for s, given in zip(self._shards, arguments, strict=True)]
        try:
            return list(self._ray.get(calls))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BloomeryError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise BloomeryError("a shard of the crawl has died, and its pages with it", fix="crawl anew") from error
