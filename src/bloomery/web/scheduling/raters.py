"""What a page is worth before it is crawled: one number per page from its text, its links, or its parents.

A rater is asked for the pages that have just become known. `needs_text` says whether it reads them: then every page is
fetched to be rated, which is what the paper does and what it costs (visited pages, not crawled ones, are the traffic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.seeds import derive
from bloomery.corpus.quality import Scorer
from bloomery.web.scheduling.frontier import PageId
from bloomery.web.scheduling.sources import LinkSource

SHARE = 2.0**-64


@dataclass
class Found:
    """Pages that have just become known: ids, texts (None where no rater needs them), and who links to them."""

    pages: list[PageId]
    texts: list[str | None]
    parents: list[list[PageId]]
    ratings: dict[str, list[float]] = field(default_factory=dict)  # of the raters before


class Rater(Protocol):
    """One number per page. `name` is what `select_by` and ensembles call it."""

    name: str
    needs_text: bool

    def rate(self, found: Found) -> list[float]:
        """The rating of each page."""


@dataclass
class Length:
    """Characters of the text."""

    name: str = "length"
    needs_text: bool = True

    def rate(self, found: Found) -> list[float]:
        """The length of each text."""
        return [len(text or "") for text in found.texts]


@dataclass
class Quality:
    """Any `corpus.Scorer`: the classifier that filters a corpus orders the crawl."""

    scorer: Scorer
    name: str = "fasttext_score"
    needs_text: bool = True

    def rate(self, found: Found) -> list[float]:
        """The score of each text, whose lines are joined by spaces."""
        joined = [" ".join((text or "").strip().splitlines()) for text in found.texts]
        scores = [float(score) for score in self.scorer.score(joined)]
        for page, score in zip(found.pages, scores, strict=True):
            if score != score:
                raise DataError("the score is not a number", where=f"page {page}", fix="check the scorer")
        return scores


@dataclass
class InLinks:
    """Links to the page in the whole web, as if known in advance. A live crawler can only have `SeenInLinks`."""

    source: LinkSource
    name: str = "inlink_count"
    needs_text: bool = False

    def rate(self, found: Found) -> list[float]:
        """The number of links to each page."""
        return [float(count) for count in self.source.in_links(found.pages)]


@dataclass
class SeenInLinks:
    """Links to the page from pages crawled so far. Grows while the page waits: `Crawl` asks again (`follows`)."""

    name: str = "seen_inlink_count"
    needs_text: bool = False
    follows: bool = True
    _count: dict[PageId, int] = field(default_factory=dict)

    def rate(self, found: Found) -> list[float]:
        """The number of links to each page that have been seen."""
        for page, parents in zip(found.pages, found.parents, strict=True):
            self._count[page] = self._count.get(page, 0) + len(parents)
        return [float(self._count[page]) for page in found.pages]


@dataclass
class ParentScore:
    """The best rating among the crawled pages that link to the page: what is known without fetching it."""

    of: Rater
    text_of: Mapping[PageId, str] | None = None
    name: str = "parent_score"
    needs_text: bool = False
    follows: bool = True
    _known: dict[PageId, float] = field(default_factory=dict)
    _best: dict[PageId, float] = field(default_factory=dict)

    def rate(self, found: Found) -> list[float]:
        """The best parent's rating; that of the page itself for seeds, which are given and have no parent."""
        fresh = list(dict.fromkeys(p for parents in found.parents for p in parents if p not in self._known))
        seeds = [page for page, parents in zip(found.pages, found.parents, strict=True) if not parents]
        asked = [*fresh, *seeds]
        texts: list[str | None] = [None if self.text_of is None else self.text_of.get(page) for page in asked]
        rated = self.of.rate(Found(asked, texts, [[] for _ in asked]))
        self._known.update(zip(asked, rated, strict=True))
        for page, parents in zip(found.pages, found.parents, strict=True):
            best = max((self._known[parent] for parent in parents), default=self._known.get(page, 0.0))
            self._best[page] = max(best, self._best.get(page, best))
        return [self._best[page] for page in found.pages]


@dataclass
class RandomScore:
    """A number in [0, 1) that depends on the seed and the page alone."""

    seed: int = 0
    name: str = "random_score"
    needs_text: bool = False

    def rate(self, found: Found) -> list[float]:
        """The page's number."""
        return [2 * derive(self.seed, "random score", page) * SHARE for page in found.pages]


@dataclass
class Table:
    """Numbers known in advance, such as PageRank (`graph.pagerank`) or the score of a generated page."""

    values: Mapping[PageId, float] | np.ndarray
    name: str
    needs_text: bool = False

    def rate(self, found: Found) -> list[float]:
        """The page's number."""
        try:
            return [float(self.values[page]) for page in found.pages]
        except (KeyError, IndexError) as error:
            raise DataError(f"no {self.name} of page {error}", fix="give a number for every page") from error


@dataclass(frozen=True)
class ZScore:
    """(x - mean) / std."""

    mean: float
    std: float
    kind: str = "zscore"

    def __call__(self, x: float) -> float:
        """The normalised rating."""
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class MinMax:
    """(x - least) / (most - least)."""

    least: float
    most: float
    kind: str = "minmax"

    def __call__(self, x: float) -> float:
        """The normalised rating."""
        return (x - self.least) / (self.most - self.least)


@dataclass
class Ensemble:
    """A weighted sum of other ratings; normalised ones are called `<name>_<zscore|minmax>_normalized`."""

    weights: Mapping[str, float]
    name: str = "ensemble_score"
    needs_text: bool = False

    def rate(self, found: Found) -> list[float]:
        """The weighted sum of the ratings before."""
        for part in self.weights:
            if part not in found.ratings:
                raise ConfigError(f"{self.name}: no rater {part!r}", fix=nearest(part, found.ratings))
        total = [0.0] * len(found.pages)
        for part, weight in self.weights.items():
            total = [t + weight * rating for t, rating in zip(total, found.ratings[part], strict=True)]
        return total


def rate_all(found: Found, raters: Sequence[Rater], normalisers: Mapping[str, ZScore | MinMax]) -> None:
    """Fill `found.ratings` with every rater's numbers and the normalised ones, ensembles last."""
    for rater in sorted(raters, key=lambda rater: isinstance(rater, Ensemble)):
        found.ratings[rater.name] = rater.rate(found)
        normaliser = normalisers.get(rater.name)
        if normaliser is not None:
            key = f"{rater.name}_{normaliser.kind}_normalized"
            found.ratings[key] = [normaliser(rating) for rating in found.ratings[rater.name]]
