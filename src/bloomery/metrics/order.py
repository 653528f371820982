"""How well an order agrees with the true one: Kendall's tau, and the longest common subsequence."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def kendall_tau(ranks: Sequence[float]) -> float:
    """Kendall's tau of things listed in true order with their ranks in another: 1 the same order, -1 the reverse.

    (Pairs in order less pairs out of order) / pairs; ties count for neither. Quadratic in memory: for thousands.

    Raises:
        ValueError: fewer than two things.
    """
    values = np.asarray(ranks, dtype=np.float64)
    if values.size < 2:
        raise ValueError(f"an order needs at least two things, got {values.size}")
    signs = np.sign(values[None, :] - values[:, None])  # (thing, later thing)
    return float(np.triu(signs, 1).sum() / (values.size * (values.size - 1) / 2))


def common_subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest sequence that both contain in order, with gaps; time len(one) x len(other)."""
    before = [0] * (len(other) + 1)
    for a in one:
        row = [0]
        for place, b in enumerate(other):
            row.append(before[place] + 1 if a == b else max(before[place + 1], row[place]))
        before = row
    return before[-1]
