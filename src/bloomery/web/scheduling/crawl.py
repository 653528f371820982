"""The loop of Craw4LLM (§2, algorithm 1): take the best pages, look at what they link to, rate that, go on.

    frontier <- rated seeds
    repeat: take the n best pages; they are crawled; rate the pages they link to that are new; add these

"Crawled" pages are those selected for training. A page is rated from its own text before it is crawled, so every page
that a crawled one links to is fetched: `visited` counts them, and is the traffic. Raters that need no text
(`ParentScore`, in-links) are what can be known without.

Differences from the reference, which `Crawl` reproduces page by page otherwise: a crawl that finds no new page goes on
with what waits (there it is an error), new pages are rated in the order of their ids (there in the order of a hash
set), and pages whose text cannot be had are asked for again when they are linked again, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.files import read_json, write_json
from bloomery.core.seeds import rng
from bloomery.web.scheduling.frontier import Frontier, HeapFrontier, PageId
from bloomery.web.scheduling.raters import Ensemble, Found, MinMax, Rater, ZScore, rate_all
from bloomery.web.scheduling.sources import LinkSource, TextSource

Status = Literal["running", "budget", "exhausted"]
FORMAT = 1


@dataclass
class Iteration:
    """One round: the pages crawled, in order, and what the crawl has come to."""

    number: int
    pages: list[PageId]
    crawled: int
    visited: int
    waiting: int


@dataclass
class Crawl:
    """A crawl in rounds of `per_iteration` pages until `budget` pages are crawled or none is left.

    The last round is complete, so up to `per_iteration` - 1 pages more than the budget may be crawled.

    Args:
        links: who links to whom.
        texts: what pages say; may be None where no rater needs text.
        raters: numbers for new pages; `select_by` names the one that decides (by default the last).
        per_iteration: pages crawled in a round.
        budget: pages to crawl.
        order: "desc" crawls high ratings first, "asc" low ones.
        normalisers: by rater; they add a rating `<name>_<kind>_normalized`.
        frontier: where pages wait; by default in memory.
    """

    links: LinkSource
    texts: TextSource | None
    raters: Sequence[Rater]
    per_iteration: int
    budget: int
    select_by: str = ""
    order: Literal["desc", "asc"] = "desc"
    normalisers: Mapping[str, ZScore | MinMax] = field(default_factory=dict)
    frontier: Frontier | None = None
    status: Status = "running"

    def __post_init__(self) -> None:
        names = [rater.name for rater in self.raters]
        if not names:
            raise ConfigError("a crawl without a rater", where="raters")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"two raters are called {twice!r}", where="raters", fix="give one another name")
        self.select_by = self.select_by or names[-1]
        known = [*names, *(f"{name}_{n.kind}_normalized" for name, n in self.normalisers.items())]
        if self.select_by not in known:
            raise ConfigError(f"no rater {self.select_by!r}", where="select_by", fix=nearest(self.select_by, known))
        for rater in self.raters:
            for part in rater.weights if isinstance(rater, Ensemble) else ():
                if part not in known:
                    raise ConfigError(f"{rater.name}: no rater {part!r}", fix=nearest(part, known))
        if self.order not in ("desc", "asc"):
            raise ConfigError(f"order={self.order!r}", fix="desc or asc")
        if self.per_iteration < 1 or self.budget < 1:
            raise ConfigError(f"per_iteration={self.per_iteration}, budget={self.budget}", fix="1 or more")
        self._needs_text = any(rater.needs_text for rater in self.raters)
        if self._needs_text and self.texts is None:
            raise ConfigError("a rater reads texts, but there is no source of texts", where="texts")
        self._frontier = self.frontier if self.frontier is not None else HeapFrontier(self.order)
        self._follow = [rater for rater in self.raters if getattr(rater, "follows", False)]
        self.crawled: list[PageId] = []
        self.visited: set[PageId] = set()
        self.ratings: dict[PageId, dict[str, float]] = {}  # of the pages that wait
        self._number = 0

    def seed(self, pages: Sequence[PageId]) -> None:
        """Rate the pages a crawl begins with and let them wait.

        Raises:
            DataError: fewer than one round takes.
        """
        pages = list(dict.fromkeys(pages))
        if len(pages) < self.per_iteration:
            raise DataError(f"{len(pages)} seeds, but {self.per_iteration} pages a round", fix="give more seeds")
        self._add(pages, [[] for _ in pages])

    def run(self) -> Iterator[Iteration]:
        """Crawl; yields every round. `status` says afterwards why it ended: "budget" or "exhausted"."""
        self.status = "running"
        while len(self.crawled) < self.budget:
            best = self._frontier.pop_best(self.per_iteration)
            if not best:
                self.status = "exhausted"
                return
            for page in best:
                self.ratings.pop(page, None)
            self.crawled += best
            if len(self.crawled) < self.budget:
                self._look_ahead(best)
            yield Iteration(self._number, best, len(self.crawled), len(self.visited), len(self._frontier))
            self._number += 1
        self.status = "budget"

    def _look_ahead(self, crawled: Sequence[PageId]) -> None:
        """Rate what the crawled pages link to."""
        self._meet(parents_of(crawled, self.links.links(crawled)))

    def _meet(self, parents: Mapping[PageId, list[PageId]]) -> None:
        """Rate pages that are linked to: new ones, and waiting ones whose rating follows their links."""
        new = sorted(page for page in parents if page not in self.visited)
        self._add(new, [parents[page] for page in new])
        if self._follow:
            waiting = sorted((parents.keys() & self.ratings.keys()) - set(new))
            self._rate(Found(waiting, [None] * len(waiting), [parents[page] for page in waiting]), self._follow)

    def _add(self, pages: Sequence[PageId], parents: list[list[PageId]]) -> None:
        texts: list[str | None] = [None] * len(pages)
        if self._needs_text and self.texts is not None:
            texts = self.texts.texts(pages)
            had = [i for i, text in enumerate(texts) if text is not None]
            pages, texts, parents = [pages[i] for i in had], [texts[i] for i in had], [parents[i] for i in had]
        self.visited.update(pages)
        self._rate(Found(list(pages), texts, parents), self.raters)

    def _rate(self, found: Found, raters: Sequence[Rater]) -> None:
        if not found.pages:
            return
        rate_all(found, raters, self.normalisers)
        for i, page in enumerate(found.pages):
            ratings = self.ratings.setdefault(page, {})
            ratings.update({name: values[i] for name, values in found.ratings.items()})
            if self.select_by in found.ratings:
                self._frontier.push(page, ratings[self.select_by])

    # --- saving ------------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> None:
        """Write what waits, what is visited and what is crawled, atomically."""
        waiting = [[page, self.ratings[page]] for page, _ in self._frontier]
        names = [rater.name for rater in self.raters]
        state: dict[str, Any] = {"format": FORMAT, "raters": names, "select_by": self.select_by, "order": self.order}
        state |= {"number": self._number, "crawled": self.crawled, "visited": sorted(self.visited), "waiting": waiting}
        write_json(path, state)

    def load(self, path: Path | str) -> None:
        """Go on where `save` left a crawl with the same raters.

        Raises:
            ConfigError: the state was made with other raters, selection or order.
        """
        state: dict[str, Any] = read_json(path)
        if state.get("format") != FORMAT:
            raise ConfigError(f"a state of format {state.get('format')}", where=path, fix=f"this reads format {FORMAT}")
        now = {"raters": [r.name for r in self.raters], "select_by": self.select_by, "order": self.order}
        for key, value in now.items():
            if state.get(key) != value:
                raise ConfigError(f"{key} there {state.get(key)}, now {value}", where=path, fix="start a new crawl")
        self.crawled, self.visited, self._number = state["crawled"], set(state["visited"]), state["number"]
        for page, ratings in state["waiting"]:
            self.ratings[page] = ratings
            self._frontier.push(page, ratings[self.select_by])


def parents_of(crawled: Sequence[PageId], links: Sequence[Sequence[PageId]]) -> dict[PageId, list[PageId]]:
    """Page -> the crawled pages that link to it, each once, in their order."""
    parents: dict[PageId, list[PageId]] = {}
    for page, targets in zip(crawled, links, strict=True):
        for target in dict.fromkeys(targets):
            parents.setdefault(target, []).append(page)
    return parents


def sample_seeds(pages: Sequence[PageId], count: int, seed: int = 0) -> list[PageId]:
    """`count` of the pages, drawn without repetition."""
    if len(pages) < count:
        raise DataError(f"{len(pages)} seeds, {count} wanted", fix="give more seeds or crawl fewer pages a round")
    return [pages[i] for i in rng(seed, "seeds").choice(len(pages), count, replace=False)]
