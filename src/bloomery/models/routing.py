"""Routing of tokens through thinking steps (Inner Thinking Transformer, arXiv:2502.13842): who goes on, who sees whom.

The paper has no public code and does not say what a token that skips a step shows to those that take it. Here it shows
the keys and values of its first step; training and cached decoding agree on this.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.core.errors import BloomeryError
from bloomery.nn import Causal, KVSlot, Linear, Rotary

CALIBRATION = 101  # quantiles of router weights that are remembered: every hundredth
SLOWEST = 0.05  # weight of a new batch in the running quantiles, once twenty have been seen


class Router(nn.Module):
    """Which tokens take the next thinking step: those with the largest w = sigmoid(linear(x / rms(x))).

    The residual stream grows over the steps, and w would saturate on it: hence the norm.

    Training takes the best `fraction` of each sequence (`top`), evaluation those above a threshold (`above`): the
    running quantile of w over the training batches. All hundredths are kept, so that the fraction can be changed later.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = Linear(dim, 1)
        self.register_buffer("quantiles", torch.zeros(CALIBRATION))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.quantiles: Tensor
        self.batches: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """w (batch, seq), between 0 and 1, in float32 at least."""
        score = self.score(F.rms_norm(x, x.shape[-1:])).squeeze(-1)
        return score.to(torch.promote_types(score.dtype, torch.float32)).sigmoid()

    def top(self, w: Tensor, fraction: float) -> Tensor:
        """The best `fraction` of each row of w (batch, seq), at least one, as a mask; adds w to the quantiles."""
        chosen = w.topk(max(1, round(fraction * w.shape[1])), dim=1).indices
        if torch.is_grad_enabled():
            self._observe(w.detach())
        return torch.zeros_like(w, dtype=torch.bool).scatter_(1, chosen, True)

    def above(self, w: Tensor, fraction: float, threshold: float | None) -> Tensor:
        """Where w reaches `threshold`, or the quantile that lets `fraction` pass: a mask that knows no other token."""
        if threshold is not None:
            return w >= threshold
        if not int(self.batches):
            raise BloomeryError(
                "the router has no threshold yet, and the best of a sequence cannot be known before its end",
                where="looped decoder in evaluation mode",
                fix="train it first, or give thresholds to set_effort",
            )
        if fraction == 1.0:
            return torch.ones_like(w, dtype=torch.bool)
        place = (1 - fraction) * (CALIBRATION - 1)
        below = min(int(place), CALIBRATION - 2)
        return w >= torch.lerp(self.quantiles[below], self.quantiles[below + 1], place - below)

    @torch.no_grad()
    def _observe(self, w: Tensor) -> None:
        levels = torch.linspace(0, 1, CALIBRATION, dtype=w.dtype, device=w.device)
        self.batches += 1
        self.quantiles += (1 / self.batches).clamp_min(SLOWEST) * (w.flatten().quantile(levels) - self.quantiles)


class Route(NamedTuple):
    """What a router decided before one thinking step."""

    loop: int
    step: int  # 1 is the second
    weights: Tensor  # (batch, seq) float32
    chosen: Tensor  # (batch, seq) bool


class Chosen:
    """The tokens of a mask (batch, seq), packed to the left: row i has its count, padded to that of the longest."""

    def __init__(self, mask: Tensor) -> None:
        self.most = int(mask.sum(1).max())
        self.index = mask.int().argsort(dim=1, descending=True, stable=True)[:, : self.most]  # (batch, most)
        self.real = mask.gather(1, self.index)

    def take(self, x: Tensor, axis: int = 1) -> Tensor:
        """The chosen of x (batch, …, seq, …): (batch, …, most, …)."""
        return x.gather(axis, self._like(self.index, x, axis))

    def put(self, x: Tensor, into: Tensor, axis: int = 1) -> Tensor:
        """`into` (batch, …, seq, …) with the chosen replaced by x (batch, …, most, …)."""
        x = torch.where(self._like(self.real, x, axis), x, self.take(into, axis))
        return into.scatter(axis, self._like(self.index, x, axis), x)

    def rotary(self, rotary: Rotary) -> Rotary:
        """Angles of the chosen positions."""
        cos, sin = (t.expand(len(self.index), *t.shape[-3:]) for t in (rotary.cos, rotary.sin))
        return rotary._replace(cos=self.take(cos), sin=self.take(sin))

    @staticmethod
    def _like(which: Tensor, x: Tensor, axis: int) -> Tensor:
        """`which` (batch, most), spread over the other axes of x."""
        shape = [len(which), *([1] * (x.dim() - 1))]
        shape[axis] = which.shape[1]
        wide = list(x.shape)
        wide[axis] = which.shape[1]
        return which.view(shape).expand(wide)


class ChosenMask(Causal):
    """What chosen tokens see: the rows of another mask that are theirs."""

    def __init__(self, mask: Causal, chosen: Chosen, seq: int) -> None:
        super().__init__()
        self.mask, self.chosen, self.seq = mask, chosen, seq

    @property
    def dense(self) -> bool:  # noqa: D102
        return True

    def _build(self, queries: int, keys: int, device: torch.device) -> Tensor:
        whole = self.mask.visible(self.seq, keys, device)  # (batch or 1, 1, seq, keys)
        return self.chosen.take(whole.expand(len(self.chosen.index), -1, -1, -1), axis=2)


class FirstStep:
    """Cache slot of a first thinking step: also remembers what the new tokens have brought."""

    def __init__(self, slot: KVSlot | None) -> None:
        self.slot = slot
        self.new: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        self.new = new
        return new if self.slot is None else self.slot.append(*new)


class LaterStep:
    """Cache slot of a later step: chosen tokens bring new keys and values, all others reuse those of the first."""

    def __init__(self, first: FirstStep, chosen: Chosen, slot: KVSlot | None) -> None:
        self.first, self.chosen, self.slot = first, chosen, slot

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        merged = [self.chosen.put(x, old, axis=2) for x, old in zip(new, self.first.new, strict=True)]
        return tuple(merged) if self.slot is None else self.slot.append(*merged)
