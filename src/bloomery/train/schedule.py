"""Learning rates and positions as pure functions of how far training has come: nothing here has state to save."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from bloomery.train.config import Phase, TrainConfig


def learning_rate(phase: Phase, tokens: float, start: float = 0.0) -> float:
    """The learning rate `tokens` tokens into `phase`, when warm-up climbs from `start`.

    linear and cosine fall from the end of warm-up to the end of the phase; wsd (warm-up, stable, decay:
    arXiv:2404.06395) stays at the peak until the last `decay_tokens` and then falls linearly.
    """
    if tokens < phase.warmup_tokens:
        return start + (phase.lr - start) * tokens / phase.warmup_tokens
    if phase.schedule == "constant":
        return phase.lr
    falling = phase.decay_tokens if phase.schedule == "wsd" else phase.tokens - phase.warmup_tokens
    fallen = 1.0 if falling == 0 else min(max(1 - (phase.tokens - tokens) / falling, 0.0), 1.0)
    kept = (1 + math.cos(math.pi * fallen)) / 2 if phase.schedule == "cosine" else 1 - fallen
    return phase.final_lr + (phase.lr - phase.final_lr) * kept


@dataclass(frozen=True)
class Position:
    """What one optimiser step is made of."""

    phase: int  # index into the configuration's phases
    lr: float
    source: str | None  # name of the data source
    data_step: int  # the step to ask the source for
    batch_size: int  # sequences, over all ranks
    tokens: int  # tokens seen before this step


@dataclass(frozen=True)
class _Stretch:
    """A phase laid out in optimiser steps."""

    phase: Phase
    first: int  # optimiser step it starts with
    steps: int
    batch_size: int
    tokens: int  # tokens seen before it
    data_step: int
    start_lr: float  # learning rate that warm-up climbs from


class Plan:
    """All phases of a run in optimiser steps: `plan.at(step)` says what step number `step` is made of.

    Every step takes batch_size · seq_len tokens, so a phase is rounded up to whole steps. The learning rate of a step
    is the schedule's value in the middle of the step: the first step of a warm-up from zero and the last of a decay to
    zero both move the weights, and the rate hardly depends on the batch size.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.seq_len = config.seq_len
        self._stretches: list[_Stretch] = []
        read: dict[str | None, int] = {}  # windows taken so far from each source
        step = tokens = 0
        start_lr = 0.0
        for phase in config.phases:
            batch_size = phase.batch_size or config.batch_size
            steps = math.ceil(phase.tokens / (batch_size * self.seq_len))
            # A source is a sequence of windows, batch_size per step. After a change of batch size the phase starts at
            # the next whole batch: up to a batch of windows is skipped, none is read twice.
            data_step = math.ceil(read.get(phase.data, 0) / batch_size)
            read[phase.data] = (data_step + steps) * batch_size
            self._stretches.append(_Stretch(phase, step, steps, batch_size, tokens, data_step, start_lr))
            step, tokens = step + steps, tokens + steps * batch_size * self.seq_len
            start_lr = learning_rate(phase, phase.tokens, start_lr)
        self.steps, self.tokens = step, tokens
        self._firsts = [stretch.first for stretch in self._stretches]

    def at(self, step: int) -> Position:
        """The position of optimiser step `step`, counted from 0."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a plan with {self.steps}")
        index = bisect_right(self._firsts, step) - 1
        stretch = self._stretches[index]
        done = step - stretch.first
        middle = (done + 0.5) / stretch.steps * stretch.phase.tokens
        return Position(
            phase=index,
            lr=learning_rate(stretch.phase, middle, stretch.start_lr),
            source=stretch.phase.data,
            data_step=stretch.data_step + done,
            batch_size=stretch.batch_size,
            tokens=stretch.tokens + done * stretch.batch_size * self.seq_len,
        )

    def tokens_after(self, steps: int) -> int:
        """Tokens seen once `steps` optimiser steps are done."""
        return self.tokens if steps >= self.steps else self.at(steps).tokens
