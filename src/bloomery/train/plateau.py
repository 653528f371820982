"""Batch growth on a plateau: more sequences per optimiser step whenever the loss has stopped falling.

Yi-9B (arXiv:2403.04652, depth up-scaling) continues training at a small constant learning rate and raises the batch
each time the loss levels off: a larger batch lowers the noise of the gradient as a smaller rate would, but leaves the
rate usable for the next stage. The paper gives no rule; this one is ours: the loss, as a moving average over about
`window` steps, has fallen by less than `epsilon` of itself over the last `window` steps.

The batch grows by accumulation (more forward passes of the same size), so neither memory nor the number of GPUs
changes, and the learning rate is not rescaled. Give a `BatchGrowth` to `TrainConfig(growth=…)`; the decisions are in
`TrainResult.growth`, in the log, and in the checkpoint, so that a resumed run takes the same ones bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bloomery.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BatchGrowth:
    """When the batch grows, and to what. Sizes are sequences per optimiser step, over all ranks.

    Either `max_batch_size` (the batch is multiplied by `factor` each time, up to there) or `sizes` (it takes these in
    turn, the last one is the limit). Watching begins anew with every phase and every change of data: a new mixture has
    another loss. The next growth comes at the earliest `cooldown` steps after the last.

    Example: `TrainConfig(phases=[…], batch_size=8, growth=BatchGrowth(window=50, max_batch_size=64))`.
    """

    window: int = 200  # optimiser steps: horizon of the moving average, and how far back it is compared
    epsilon: float = 1e-3  # the average must fall by this share of itself over `window` steps, or the batch grows
    factor: int = 2
    max_batch_size: int | None = None
    sizes: list[int] = field(default_factory=list)
    cooldown: int | None = None  # optimiser steps; None: `window`

    def __post_init__(self) -> None:
        cooldown = self.cooldown is None or self.cooldown >= 1
        for holds, name, accepted in (
            (self.window >= 1, "window", ">= 1"),
            (self.epsilon >= 0, "epsilon", ">= 0"),
            (self.factor >= 2, "factor", ">= 2"),
            (cooldown, "cooldown", ">= 1"),
            ((self.max_batch_size is None) == bool(self.sizes), "sizes", "either sizes or max_batch_size"),
            (self.sizes == sorted(set(self.sizes)), "sizes", "each larger than the one before"),
        ):
            if not holds:
                raise ConfigError(f"growth: {name} is {getattr(self, name)!r}; accepted: {accepted}")

    def next_size(self, batch_size: int) -> int | None:
        """The batch size after `batch_size`; None at the limit."""
        if self.max_batch_size is None:
            return next((size for size in self.sizes if size > batch_size), None)
        larger = min(batch_size * self.factor, self.max_batch_size)
        return larger if larger > batch_size else None

    def sizes_from(self, batch_size: int) -> list[int]:
        """Every size that a run that starts with `batch_size` can grow to; a `ConfigError` if there is none."""
        found = []
        size = self.next_size(batch_size)
        while size is not None:
            found.append(size)
            size = self.next_size(size)
        if not found:
            limit = self.max_batch_size or self.sizes[-1]
            raise ConfigError(f"growth: the batch cannot grow from {batch_size}", fix=f"its limit is {limit}: raise it")
        return found


@dataclass
class Watch:
    """What has been seen of the loss; plain numbers, kept in the checkpoint."""

    average: float = 0.0  # moving average of the loss that started from 0
    seen: int = 0  # losses
    recent: list[float] = field(default_factory=list)  # the last `window` averages, corrected for the start from 0
    resting: int = 0  # steps until the batch may grow again

    def plateau(self, loss: float, rule: BatchGrowth) -> bool:
        """Take in the loss of one step; whether it has stopped falling."""
        keep = 1 - 1 / rule.window
        self.seen += 1
        self.average = keep * self.average + (1 - keep) * loss
        now = self.average / (1 - keep**self.seen)
        before = self.recent.pop(0) if len(self.recent) == rule.window else None
        self.recent.append(now)
        self.resting = max(self.resting - 1, 0)
        if before is None or self.resting or before - now >= rule.epsilon * abs(before):
            return False
        self.resting = rule.window if rule.cooldown is None else rule.cooldown
        return True


def growths(losses: Iterable[float], rule: BatchGrowth, batch_size: int) -> list[tuple[int, int]]:
    """What the rule makes of a whole history: (steps done, batch size from then on) for every growth.

    To choose `window` and `epsilon`, try them on the logged losses of an earlier run.
    """
    watch, found = Watch(), []
    for steps, loss in enumerate(losses, start=1):
        larger = rule.next_size(batch_size)
        if larger is None:
            break
        if watch.plateau(loss, rule):
            batch_size = larger
            found.append((steps, larger))
    return found
