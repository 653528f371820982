"""k-means as hierarchical clustering needs it: k-means++, a fixed number of Lloyd steps, then clusters of clusters.

Centroids of k-means follow density^(d / (d + 2)), so equal samples per cluster still over-represent what is common.
Clustering the centroids again, and *resampling* (clustering only the points nearest to each centroid, which are nearly
uniform over concepts), flattens that: "Automatic Data Curation for Self-Supervised Learning" (arXiv 2405.15613, §3).
`balanced` then samples from the tree.

Points are rows of a tensor on any device. Distances are computed block by block, so memory stays bounded by `BLOCK`;
means are taken in float64. Cosine distance wants unit rows; centroids are plain means and are not normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.log import logger
from bloomery.core.seeds import rng

Distance = Literal["l2", "cos"]
BLOCK = 1 << 24  # distances in memory at a time
LLOYD_STEPS = 50
UNIT = 1e-3  # how far from 1 the length of a row may be under cosine distance


class Draws(Protocol):
    """What is used of `numpy.random.Generator`."""

    def random(self, size: int) -> np.ndarray:
        """Uniform numbers in [0, 1)."""

    def integers(self, high: int) -> int:
        """A uniform integer below `high`."""

    def choice(self, a: np.ndarray, size: int, replace: bool) -> np.ndarray:
        """`size` elements of `a`."""


Initialise = Callable[[Tensor, int], Tensor]  # (points, k) -> centroids


@dataclass(frozen=True)
class Clustering:
    """Centroids (k, dim) and the cluster of each point (n,)."""

    centroids: Tensor
    assignment: Tensor

    def members(self, points: Tensor, distance: Distance = "l2") -> list[np.ndarray]:
        """The points of each cluster, nearest to its centroid first (the earlier one of equals)."""
        near = _distances_to_own(points, self, distance).cpu().numpy()
        cluster = self.assignment.cpu().numpy()
        order = np.lexsort((near, cluster))
        return np.split(order, np.searchsorted(cluster[order], np.arange(1, len(self.centroids))))


def kmeans(points: Tensor, centroids: Tensor, distance: Distance = "l2", steps: int = LLOYD_STEPS) -> Clustering:
    """Lloyd's algorithm from given centroids: assign, then `steps` times means and assignment. No convergence test.

    An empty cluster keeps its centroid.
    """
    check_points(points, distance)
    return _lloyd(points, centroids, distance, steps)


def _lloyd(points: Tensor, centroids: Tensor, distance: Distance, steps: int) -> Clustering:
    """`kmeans` without the check of the rows: on higher levels they are centroids, and shorter than 1."""
    assignment = assign(points, centroids, distance)
    for _ in range(steps):
        centroids = _means(points, assignment, centroids)
        assignment = assign(points, centroids, distance)
    return Clustering(centroids, assignment)


def assign(points: Tensor, centroids: Tensor, distance: Distance = "l2") -> Tensor:
    """The nearest centroid of each point, the first one of equals: int64 (n,)."""
    rows = max(1, BLOCK // len(centroids))
    return torch.cat([_distances(block, centroids, distance).argmin(dim=1) for block in torch.split(points, rows)])


def _distances(points: Tensor, centroids: Tensor, distance: Distance) -> Tensor:
    """(points, centroids): squared distance, or 2 - 2 cosine."""
    product = points @ centroids.T
    if distance == "cos":
        return 2 - 2 * product
    return (points**2).sum(dim=1, keepdim=True) - 2 * product + (centroids**2).sum(dim=1)


def _distances_to_own(points: Tensor, clustering: Clustering, distance: Distance) -> Tensor:
    own = clustering.centroids[clustering.assignment]
    if distance == "cos":
        return 2 - 2 * (points * own).sum(dim=1)
    return (points**2).sum(dim=1) - 2 * (points * own).sum(dim=1) + (own**2).sum(dim=1)


def _means(points: Tensor, assignment: Tensor, before: Tensor) -> Tensor:
    """The mean of each cluster, accumulated in float64; the centroid before where it is empty."""
    k = len(before)
    total = torch.zeros(k, points.shape[1], dtype=torch.float64, device=points.device)
    total.index_add_(0, assignment, points.double())
    count = torch.bincount(assignment, minlength=k)[:, None]
    return torch.where(count > 0, total / count.clamp(min=1), before.double()).to(points.dtype)


def potential(points: Tensor, assignment: Tensor) -> float:
    """Sum of squared distances of the points to the mean of their cluster."""
    k = int(assignment.max()) + 1
    centroids = _means(points, assignment, torch.zeros(k, points.shape[1], dtype=points.dtype, device=points.device))
    return float(((points.double() - centroids.double()[assignment]) ** 2).sum())


def plus_plus(points: Tensor, k: int, draws: Draws) -> Tensor:
    """Indices of k initial centroids by greedy k-means++: of 2 + floor(ln k) candidates the best one, int64 (k,).

    Each candidate is drawn in proportion to its squared distance from the centroids so far.
    """
    trials = 2 + int(math.log(k))
    norms = (points**2).sum(dim=1)

    def squared(to: Tensor) -> Tensor:  # (candidates, n)
        return ((points[to] ** 2).sum(dim=1, keepdim=True) - 2 * points[to] @ points.T + norms).clamp(min=0)

    chosen = [int(draws.integers(len(points)))]
    nearest = squared(torch.tensor(chosen, device=points.device))[0]
    for _ in range(1, k):
        cumulated = nearest.cumsum(0)
        at = torch.as_tensor(draws.random(trials), dtype=points.dtype, device=points.device) * cumulated[-1]
        candidates = torch.searchsorted(cumulated, at).clamp(max=len(points) - 1)
        after = torch.minimum(nearest, squared(candidates))
        best = int(after.sum(dim=1).argmin())
        chosen.append(int(candidates[best]))
        nearest = after[best]
    return torch.tensor(chosen, device=points.device)


def hierarchical_kmeans(
    points: Tensor,
    clusters: Sequence[int],
    *,
    sample_sizes: Sequence[int] | None = None,
    resamples: int = 10,
    strategy: Literal["closest", "random"] = "closest",
    distance: Distance = "l2",
    steps: int = LLOYD_STEPS,
    seed: int = 0,
    initialise: Initialise | None = None,
    draws: Draws | None = None,
) -> list[Clustering]:
    """Cluster the points, then the centroids, and so on: one `Clustering` per level, the finest first.

    Args:
        points: (n, dim), float32 or float64.
        clusters: clusters on each level, falling.
        sample_sizes: points of each cluster that resampling takes, by level; 1 or less: no resampling there. About half
            of a mean cluster is the authors' choice.
        resamples: how often a level is resampled.
        strategy: take the points closest to the centroid, or random ones.
        distance: "l2", or "cos" for unit rows.
        steps: Lloyd steps of each run.
        seed: of k-means++ and of random resampling.
        initialise: initial centroids in place of k-means++.
        draws: random numbers in place of those of `seed`.

    Raises:
        ConfigError: levels that do not shrink, or sample sizes that do not match them.
        DataError: rows with NaN, or not of unit length under cosine distance.
    """
    sizes = list(sample_sizes) if sample_sizes is not None else [1] * len(clusters)
    if not clusters or any(k < 1 for k in clusters) or sorted(clusters, reverse=True) != list(clusters):
        raise ConfigError(f"clusters = {list(clusters)}", where="clusters", fix="positive numbers that fall")
    if len(sizes) != len(clusters):
        raise ConfigError(f"{len(sizes)} sample sizes for {len(clusters)} levels", where="sample_sizes")
    check_points(points, distance)
    random = draws if draws is not None else cast(Draws, rng(seed, "hierarchical k-means"))

    def start(rows: Tensor, k: int) -> Tensor:
        return rows[plus_plus(rows, k, random)]

    initialise = initialise or start
    levels: list[Clustering] = []
    for wanted, size in zip(clusters, sizes, strict=True):
        rows = levels[-1].centroids if levels else points
        k = min(wanted, len(rows))
        if k < wanted:
            logger("corpus").warning("%d clusters of %d points: %d are made", wanted, len(rows), k)
        found = _lloyd(rows, initialise(rows, k), distance, steps)
        for _ in range(resamples if size > 1 else 0):
            nearest = found.members(rows, distance)
            if strategy == "closest":
                subset = np.concatenate([members[:size] for members in nearest])
            else:
                subset = np.concatenate([random.choice(m, min(size, len(m)), replace=False) for m in nearest])
            sample = rows[torch.as_tensor(subset, device=rows.device)]
            centroids = _lloyd(sample, initialise(sample, k), distance, steps).centroids
            found = Clustering(centroids, assign(rows, centroids, distance))
        levels.append(found)
    return levels


def check_points(points: Tensor, distance: Distance) -> None:
    """DataError naming the first row that cannot be clustered."""
    if points.ndim != 2 or not len(points):
        raise DataError(f"points of shape {tuple(points.shape)}", fix="give (points, dim), at least one point")
    if not bool(torch.isfinite(points).all()):
        row = int((~torch.isfinite(points)).any(dim=1).nonzero()[0])
        raise DataError("a number is not finite", where=f"row {row}", fix="drop rows without an embedding first")
    if distance == "cos":
        lengths = points.norm(dim=1)
        if bool(((lengths - 1).abs() > UNIT).any()):
            row = int(((lengths - 1).abs() > UNIT).nonzero()[0])
            raise DataError(
                f"length {float(lengths[row]):.3g}", where=f"row {row}", fix="divide each row by its length for cos"
            )
