"""Overlapping rings of very different size in the plane: concepts that are common and concepts that are rare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import rng

SIZES = (20_000, 200, 1_000, 500, 8_000)  # points of each ring
CENTRES = ((0.0, 0.0), (2.2, 0.0), (1.1, 1.9), (-1.1, 1.9), (-2.2, 0.0))
RADIUS, WIDTH = 1.5, 0.12


@dataclass(frozen=True)
class Rings:
    """Points (n, 2) and the ring each belongs to (n,)."""

    points: np.ndarray
    ring: np.ndarray

    def uniformity(self, chosen: np.ndarray, cells: int = 20) -> float:
        """KL divergence of the chosen points from uniform, in nats, over the cells that any point occupies.

        The plane is cut into `cells` x `cells`; 0 means that every occupied cell has as many chosen points.
        """
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        place = ((self.points - low) / (high - low) * (cells - 1e-9)).astype(np.int64)
        cell = place[:, 0] * cells + place[:, 1]
        occupied = np.unique(cell)
        share = np.bincount(np.searchsorted(occupied, cell[chosen]), minlength=len(occupied)) / len(chosen)
        some = share[share > 0]
        return float((some * np.log(some * len(occupied))).sum())


def rings(seed: int = 0, scale: float = 1.0) -> Rings:
    """Five rings that overlap, with `scale` times 29,700 points."""
    if scale <= 0:
        raise ConfigError(f"scale = {scale}", fix="a positive number")
    random = rng(seed, "rings")
    sizes = [max(10, round(scale * size)) for size in SIZES]
    ring = np.repeat(np.arange(len(sizes)), sizes)
    angle = random.random(len(ring)) * 2 * np.pi
    radius = RADIUS + random.normal(0, WIDTH, len(ring))
    circle = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Rings(circle + np.array(CENTRES)[ring], ring)
