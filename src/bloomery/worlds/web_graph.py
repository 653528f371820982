"""A generated web with known worth: hosts of different quality, links that follow quality, hosts or popularity.

Pages of good hosts are good, give or take. A link leads to the same host, to a page of similar quality (homophily), or
to any page in proportion to its popularity, which is independent of quality. So popularity says nothing about quality,
as on the real web (the Craw4LLM paper, arXiv 2502.13347 §3, finds a rank correlation of -0.11), while links do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import rng

SAME_HOST = 0.35  # share of the links that stay on their host
MEAN_LINKS = 12  # links of a page beyond the first
NEARBY = 0.02  # spread of the quality rank of linked pages, as a share of all pages
SPREAD, NOISE = 0.12, 0.1  # of a page's quality about its host's; of the scorer about the quality


@dataclass(frozen=True)
class WebGraph:
    """Pages 0 to n - 1; page i links to `targets[starts[i]:starts[i + 1]]`."""

    quality: np.ndarray  # (n,) float64: what a perfect judge would say
    score: np.ndarray  # (n,) float64: what the classifier says
    host: np.ndarray  # (n,) int64
    starts: np.ndarray  # (n + 1,) int64
    targets: np.ndarray  # (links,) int64

    @property
    def pages(self) -> int:
        """n."""
        return len(self.quality)

    def links(self, pages: Sequence[Any]) -> list[list[Any]]:
        """The pages that each page links to."""
        return [self.targets[self.starts[page] : self.starts[page + 1]].tolist() for page in pages]

    def in_links(self, pages: Sequence[Any]) -> list[int]:
        """How many links lead to each page."""
        degree = np.bincount(self.targets, minlength=self.pages)
        return [int(degree[page]) for page in pages]

    def oracle(self, share: float = 0.1) -> np.ndarray:
        """The best `share` of the pages by score, as a mask (n,)."""
        best = np.zeros(self.pages, dtype=bool)
        best[np.argsort(-self.score, kind="stable")[: round(share * self.pages)]] = True
        return best


def web_graph(pages: int = 60_000, hosts: int = 1_500, homophily: float = 0.8, seed: int = 0) -> WebGraph:
    """A web of that many pages. `homophily` is the share of the links to other hosts that lead to similar quality."""
    if not 1 <= hosts <= pages or not 0 <= homophily <= 1:
        raise ConfigError(f"pages={pages}, hosts={hosts}, homophily={homophily}", where="web_graph")
    random = rng(seed, "web graph", pages, hosts, homophily)
    host = np.sort(np.concatenate([np.arange(hosts), random.integers(hosts, size=pages - hosts)]))
    quality = random.beta(1.2, 6, hosts)[host] + random.normal(0, SPREAD, pages)
    score = quality + random.normal(0, NOISE, pages)
    by_quality = np.argsort(quality)
    rank = np.empty(pages, dtype=np.int64)
    rank[by_quality] = np.arange(pages)

    count = 1 + random.poisson(MEAN_LINKS, pages)
    source = np.repeat(np.arange(pages), count)
    kind = random.random(len(source))
    first = np.searchsorted(host, np.arange(hosts + 1))  # the first page of each host
    size = np.diff(first)[host[source]]
    own = first[host[source]] + (random.random(len(source)) * size).astype(np.int64)
    near = rank[source] + np.rint(random.normal(0, NEARBY * pages, len(source))).astype(np.int64)
    alike = by_quality[np.abs(near) % pages]
    # Popularity: a heavy-tailed weight per page, which is what preferential attachment converges to.
    weight = np.cumsum(random.pareto(1.2, pages) + 0.1)
    popular = np.searchsorted(weight, random.random(len(source)) * weight[-1])
    follows = SAME_HOST + (1 - SAME_HOST) * homophily
    targets = np.where(kind < SAME_HOST, own, np.where(kind < follows, alike, np.minimum(popular, pages - 1)))
    starts = np.concatenate([[0], np.cumsum(count)])
    return WebGraph(quality, score, host, starts, targets)
