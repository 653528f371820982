"""Centralities of a web graph: what crawlers order pages by when they do not look at the text."""

from __future__ import annotations

import numpy as np

from bloomery.core.errors import DataError

ROUNDS = 100
TOLERANCE = 1e-10


def pagerank(starts: np.ndarray, targets: np.ndarray, damping: float = 0.85) -> np.ndarray:
    """PageRank by power iteration, float64 (pages,); a page without links passes its rank to all.

    Args:
        starts: where the links of each page begin in `targets`, int64 (pages + 1,).
        targets: the pages linked to, int64 (links,). A link that occurs twice counts twice.
        damping: share of the rank that follows links.
    """
    count = _check(starts, targets)
    degree = np.diff(starts)
    source = np.repeat(np.arange(count), degree)
    rank = np.full(count, 1 / count)
    for _ in range(ROUNDS):
        share = np.divide(rank, degree, out=np.zeros(count), where=degree > 0)
        flow = np.bincount(targets, share[source], minlength=count) + rank[degree == 0].sum() / count
        after = damping * flow + (1 - damping) / count
        done = np.abs(after - rank).sum() < TOLERANCE
        rank = after
        if done:
            break
    return rank


def harmonic(starts: np.ndarray, targets: np.ndarray, sources: np.ndarray | None = None) -> np.ndarray:
    """Harmonic centrality: the sum of 1 / distance from every page that reaches the page, float64 (pages,).

    Exact when `sources` is None (one breadth-first search for each page); with `sources` the sum goes over these pages
    only and is scaled up, the usual estimate for large webs.
    """
    count = _check(starts, targets)
    chosen = np.arange(count) if sources is None else np.asarray(sources)
    total = np.zeros(count)
    for source in chosen:
        seen = np.zeros(count, dtype=bool)
        seen[source] = True
        front, distance = np.array([source]), 0
        while len(front):
            distance += 1
            degree = starts[front + 1] - starts[front]
            offset = np.arange(degree.sum()) - np.repeat(np.cumsum(degree) - degree, degree)
            reached = np.unique(targets[np.repeat(starts[front], degree) + offset])
            front = reached[~seen[reached]]
            seen[front] = True
            total[front] += 1 / distance
    return total * (count / max(len(chosen), 1))


def in_degree(starts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Links to each page, int64 (pages,)."""
    return np.bincount(targets, minlength=_check(starts, targets))


def _check(starts: np.ndarray, targets: np.ndarray) -> int:
    count = len(starts) - 1
    if count < 1 or starts[0] != 0 or starts[-1] != len(targets) or (np.diff(starts) < 0).any():
        raise DataError("`starts` does not cut `targets` into pages")
    if len(targets) and (targets.min() < 0 or targets.max() >= count):
        raise DataError(f"a link to page {int(targets.max())} of {count}")
    return count
