"""The live crawler's hooks for crawling by value: `crawl(..., order="best", scorer=PageQuality(...), priority=...)`.

In the paper's simulation a page is rated from its own text before it is crawled. A live crawler would have to fetch it
for that; it rates what it has fetched, and what it has not from the page a link was found on, its anchor and its URL:
`PageQuality` alone passes a page's rating on to its links, `LinkValue` adds what the link itself says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.quality import LinearScorer, Scorer
from bloomery.web.extract import main_text
from bloomery.web.frontier import Link
from bloomery.web.page import Page

_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class PageQuality:
    """The rating of a page's main text: the same scorer that filters a corpus afterwards."""

    scorer: Scorer

    def __call__(self, page: Page) -> float:
        """The score, of the text in one line as in `Quality`."""
        text = main_text(page.html) if "html" in page.content_type else page.html
        return float(self.scorer.score([" ".join(text.strip().splitlines())])[0])


@dataclass(frozen=True)
class LinkValue:
    """What a page that has not been fetched promises: its parent's rating and, by `predictor`, the link's words.

    `parent_share` is the weight of the parent's rating, from 0 to 1. Parents are rated by the crawl's `scorer`.
    """

    predictor: Scorer
    parent_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.parent_share <= 1:
            raise ConfigError(f"parent_share={self.parent_share}", fix="0 to 1")

    def __call__(self, link: Link) -> float:
        """The link's priority."""
        own = float(self.predictor.score([link_words(link.url, link.anchor)])[0])
        return self.parent_share * link.parent_score + (1 - self.parent_share) * own


def link_words(url: str, anchor: str) -> str:
    """The words of an anchor, of the host and of the path."""
    parts = urlsplit(url)
    return _NO_WORD.sub(" ", f"{anchor} {parts.hostname or ''} {unquote(parts.path)} {parts.query}").strip().lower()


def train_predictor(links: Sequence[tuple[str, str]], ratings: Sequence[float], seed: int = 0) -> LinearScorer:
    """A predictor of ratings from (URL, anchor), learned from pages that were fetched: better or worse than the median.

    Raises:
        DataError: all ratings equal, or too few links (see `LinearScorer.train`).
    """
    middle = float(np.median(ratings))
    above = np.asarray(ratings) > middle
    if not above.any():
        above = np.asarray(ratings) >= middle
    if above.all():
        raise DataError("all ratings are equal", fix="learn from pages that differ")
    words = [link_words(url, anchor) for url, anchor in links]
    good = [text for text, is_good in zip(words, above, strict=True) if is_good]
    bad = [text for text, is_good in zip(words, above, strict=True) if not is_good]
    return LinearScorer.train(good, bad, seed=seed, name="link", bits=16)
