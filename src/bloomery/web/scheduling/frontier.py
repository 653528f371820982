"""The pages that are known and not yet crawled, best first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Protocol

from bloomery.core.errors import DataError

PageId = str | int


class Frontier(Protocol):
    """What a crawl asks of its frontier. Pages of equal score come in the order of their ids."""

    def push(self, page: PageId, score: float) -> None:
        """Add a page, or give one that is waiting a new score."""

    def pop_best(self, count: int) -> list[PageId]:
        """Take out the `count` best pages, the best one first; fewer when fewer are left."""

    def __len__(self) -> int:
        """Pages waiting."""

    def __iter__(self) -> Iterator[tuple[PageId, float]]:
        """The waiting pages and their scores, in any order."""


class HeapFrontier:
    """A frontier in memory. `order` is "desc" (high scores first) or "asc"."""

    def __init__(self, order: str = "desc") -> None:
        self._sign = {"desc": -1.0, "asc": 1.0}[order]
        self._heap: list[tuple[float, PageId]] = []
        self._scores: dict[PageId, float] = {}  # entries of the heap that disagree are out of date

    def push(self, page: PageId, score: float) -> None:
        """Add a page, or give one that is waiting a new score."""
        if score != score:
            raise DataError("the score is not a number", where=f"page {page}", fix="check the scorer")
        if self._scores.get(page) != score:
            self._scores[page] = score
            heapq.heappush(self._heap, (self._sign * score, page))

    def pop_best(self, count: int) -> list[PageId]:
        """Take out the `count` best pages, the best one first; fewer when fewer are left."""
        best: list[PageId] = []
        while self._heap and len(best) < count:
            key, page = heapq.heappop(self._heap)
            if page in self._scores and self._sign * self._scores[page] == key:
                del self._scores[page]
                best.append(page)
        return best

    def __len__(self) -> int:
        return len(self._scores)

    def __contains__(self, page: PageId) -> bool:
        return page in self._scores

    def __iter__(self) -> Iterator[tuple[PageId, float]]:
        return iter(self._scores.items())
