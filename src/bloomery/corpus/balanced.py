"""Balanced samples from a tree of clusters: equal quotas from the top down (arXiv 2405.15613, §3.3).

At the top every cluster gets min(c, its size), with the largest integer c that keeps within the target; what is left
goes, one each, to clusters drawn from those with more than c. Each quota is shared among the cluster's children in the
same way, and on the lowest level points are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.seeds import rng
from bloomery.corpus.kmeans import Clustering, Distance, Draws, hierarchical_kmeans
from bloomery.corpus.steps import Barrier, Plan, decisions

Tree = list[list[np.ndarray]]  # per level, the finest first, and cluster: its members, nearest first


class Quota(NamedTuple):
    """How a target is shared: everybody min(cut, size), then `extra` of the `candidates` one more."""

    cut: int
    base: np.ndarray
    extra: int
    candidates: np.ndarray


def quota(sizes: np.ndarray, target: int) -> Quota:
    """Share `target` among clusters of these sizes; all of them where they do not reach it."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(middle, sizes).sum() <= target else (low, middle - 1)
    base = np.minimum(low, sizes)
    extra = min(target, int(sizes.sum())) - int(base.sum())
    return Quota(low, base, extra, np.flatnonzero(sizes > low))


def tree_of(levels: Sequence[Clustering], points: torch.Tensor, distance: Distance = "l2") -> Tree:
    """The members of every cluster, from the levels that `hierarchical_kmeans` found."""
    rows = [points, *(level.centroids for level in levels[:-1])]
    return [level.members(below, distance) for level, below in zip(levels, rows, strict=True)]


def points_under(tree: Tree) -> list[np.ndarray]:
    """How many data points lie under every cluster, by level."""
    sizes = [np.array([len(members) for members in tree[0]])]
    for level in tree[1:]:
        sizes.append(np.array([sizes[-1][members].sum() if len(members) else 0 for members in level], dtype=np.int64))
    return sizes


def balanced_sample(
    tree: Tree,
    target: int,
    *,
    multiplier: int = 1,
    strategy: Literal["closest", "random"] = "random",
    seed: int = 0,
    draws: Draws | None = None,
) -> np.ndarray:
    """Indices of `target` points, or of all there are; a point occurs at most `multiplier` times.

    `strategy` takes the points of a lowest cluster that are closest to its centroid, or random ones.
    """
    if target < 0 or multiplier < 1:
        raise ConfigError(f"target = {target}, multiplier = {multiplier}", fix="target >= 0, multiplier >= 1")
    random = draws if draws is not None else cast(Draws, rng(seed, "balanced sample"))
    under = [sizes * multiplier for sizes in points_under(tree)]
    taken: list[np.ndarray] = []

    def descend(level: int, members: np.ndarray, wanted: int) -> None:
        if level < 0:
            taken.append(_points(members, wanted, multiplier, strategy, random))
            return
        shares = quota(under[level][members], wanted)
        amounts = shares.base.copy()
        if len(shares.candidates):
            amounts[random.choice(shares.candidates, shares.extra, replace=False)] += 1
        for cluster, amount in zip(members, amounts, strict=True):
            descend(level - 1, tree[level][cluster], int(amount))

    descend(len(tree) - 1, np.arange(len(tree[-1])), target)
    return np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)


def _points(members: np.ndarray, wanted: int, multiplier: int, strategy: str, draws: Draws) -> np.ndarray:
    """`wanted` of the members: all of them as often as they fit, then some once more."""
    whole, rest = divmod(wanted, len(members)) if len(members) else (0, 0)
    drawn = strategy == "random" and wanted < multiplier * len(members)
    some = draws.choice(members, rest, replace=False) if drawn else members[:rest]
    return np.concatenate([*[members] * whole, some]).astype(np.int64)


@dataclass
class BalancedSample(Barrier):
    """Keep `target` documents (or a `fraction`) that are spread evenly over the clusters of an embedding column.

    `column` holds one list of numbers per document. Exactly one of `target` and `fraction` is given. The embeddings of
    the whole corpus are in memory while the barrier decides.
    """

    column: str
    clusters: tuple[int, ...]
    target: int | None = None
    fraction: float | None = None
    sample_sizes: tuple[int, ...] | None = None
    distance: Distance = "l2"
    strategy: Literal["closest", "random"] = "random"
    seed: int = 0
    resamples: int = 10
    steps: int = field(default=50)

    def __post_init__(self) -> None:
        if (self.target is None) == (self.fraction is None):
            raise ConfigError("BalancedSample needs either a target or a fraction", where=self.column)
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction = {self.fraction}", fix="use a share above 0 and up to 1")

    @property
    def reads(self) -> tuple[str, ...]:
        """The column with the embeddings."""
        return (self.column,)

    def plan(self, documents: int, bytes: int) -> Plan:
        """An embedding of a thousand numbers per document, at most."""
        return Plan(ram_bytes=2 * 4 * 1024 * documents)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """The embeddings of a batch."""
        return pa.table({"embedding": batch.column(self.column).cast(pa.list_(pa.float32()))})

    def decide(self, sketches: pa.Table) -> pa.Table:
        """The reason to drop each document, null where it is kept."""
        points = _matrix(sketches.column("embedding").combine_chunks(), self.column)
        wanted = self.target if self.target is not None else round(self.fraction * len(points))  # type: ignore[operator]
        if wanted > len(points):
            raise DataError(f"{wanted} documents wanted of {len(points)}", where="BalancedSample.target")
        levels = hierarchical_kmeans(
            points,
            self.clusters,
            sample_sizes=self.sample_sizes,
            resamples=self.resamples,
            distance=self.distance,
            steps=self.steps,
            seed=self.seed,
        )
        tree = tree_of(levels, points, self.distance)
        keep = np.zeros(len(points), dtype=bool)
        keep[balanced_sample(tree, wanted, strategy=self.strategy, seed=self.seed)] = True
        notes: dict[str, Any] = {"largest_clusters": sorted(map(int, points_under(tree)[-1]), reverse=True)[:5]}
        return decisions(drop=pa.array(np.full(len(keep), "not sampled"), pa.string(), mask=keep), notes=notes)


def _matrix(column: pa.ListArray, name: str) -> torch.Tensor:
    """(documents, dim) float32; DataError naming the first document whose embedding has another length."""
    lengths = np.diff(column.offsets.to_numpy())
    if not len(lengths):
        raise DataError("no embedding to cluster", where=name)
    if column.null_count or (lengths != lengths[0]).any():
        row = int(np.flatnonzero(lengths != lengths[0])[0]) if not column.null_count else 0
        raise DataError(
            f"an embedding of {lengths[row]} numbers among those of {lengths[0]}", where=f"{name}, row {row}"
        )
    return torch.from_numpy(column.flatten().to_numpy().reshape(len(lengths), -1).copy())
