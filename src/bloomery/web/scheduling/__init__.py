"""In which order to crawl: Craw4LLM (arXiv 2502.13347) and the orders it is compared with.

Four seams: a `LinkSource` knows who links to whom, a `TextSource` the text of pages, raters give each page numbers
(among them any `corpus.Scorer`), and a frontier hands out the best. `Crawl` is the loop that joins them.
"""

from __future__ import annotations

from bloomery.web.scheduling.crawl import Crawl, Iteration
from bloomery.web.scheduling.disk_frontier import DiskFrontier
from bloomery.web.scheduling.disk_set import DiskSet
from bloomery.web.scheduling.frontier import Frontier, HeapFrontier
from bloomery.web.scheduling.raters import (
    Ensemble,
    InLinks,
    Length,
    MinMax,
    ParentScore,
    Quality,
    RandomScore,
    Rater,
    SeenInLinks,
    Table,
    ZScore,
)
from bloomery.web.scheduling.sources import ClueWeb22, LinkSource, Pages, TextSource

__all__ = [
    "ClueWeb22", "Crawl", "DiskFrontier", "DiskSet", "Ensemble", "Frontier", "HeapFrontier", "InLinks", "Iteration",
    "Length", "LinkSource", "MinMax", "Pages", "ParentScore", "Quality", "RandomScore", "Rater", "SeenInLinks", "Table",
    "TextSource", "ZScore",
]  # fmt: skip
