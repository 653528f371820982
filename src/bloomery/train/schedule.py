"""Phases laid out in optimiser steps: every position is a pure function of the step's number."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bloomery.train.config import Phase, TrainConfig
from bloomery.train.rates import learning_rate


@dataclass(frozen=True)
class Position:
    """What one optimiser step is made of."""

    phase: int  # index into the configuration's phases
    lr: float
    peak_lr: float  # of the phase; lr / peak_lr is the schedule's shape, mostly 0 … 1
    source: str | None  # name of the data source
    row: int  # rows that have been taken from the source before
    batch_size: int  # sequences, over all ranks
    tokens: int  # tokens seen before this step


@dataclass(frozen=True)
class _Stretch:
    """Steps of one phase, one source and one batch size."""

    phase: int
    first: int  # optimiser step it starts with
    steps: int
    source: str | None
    row: int
    batch_size: int
    tokens: int  # tokens seen before it


class Plan:
    """All phases of a run in optimiser steps: `plan.at(step)` says what step number `step` is made of.

    Every step takes batch_size · seq_len tokens, so a phase is rounded up to whole steps, and a change inside it comes
    at the first step that begins at or after its place. Rows of a source are counted, not batches: whatever the batch
    sizes, each row is taken once and none is left out. The learning rate of a step is the schedule's value in the
    middle of the step: the first step of a warm-up from zero and the last of a decay to zero both move the weights,
    and the rate hardly depends on the batch size.

    `growth` are batch sizes that were decided while training, each with the tokens seen before it took hold.
    """

    def __init__(self, config: TrainConfig, growth: Sequence[tuple[int, int]] = ()) -> None:
        self.config, self.seq_len = config, config.seq_len
        self.rows: dict[str | None, int] = defaultdict(int)  # taken from each source in the whole run
        self._stretches: list[_Stretch] = []
        self._spans: list[tuple[int, int, float]] = []  # of each phase: first token, tokens, rate before it
        self.steps = self.tokens = 0
        start_lr = 0.0
        for index, phase in enumerate(config.phases):
            begun = self.tokens
            for source, batch_size, end in self._pieces(phase, begun, growth):
                steps = max(math.ceil((begun + end - self.tokens) / (batch_size * self.seq_len)), 0)
                if steps:
                    at = (self.rows[source], batch_size, self.tokens)
                    self._stretches.append(_Stretch(index, self.steps, steps, source, *at))
                self.rows[source] += steps * batch_size
                self.steps, self.tokens = self.steps + steps, self.tokens + steps * batch_size * self.seq_len
            self._spans.append((begun, self.tokens - begun, start_lr))
            start_lr = learning_rate(phase, phase.tokens, start_lr)
        self._firsts = [stretch.first for stretch in self._stretches]

    def at(self, step: int) -> Position:
        """The position of optimiser step `step`, counted from 0."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a plan with {self.steps}")
        stretch = self._stretches[bisect_right(self._firsts, step) - 1]
        done = (step - stretch.first) * stretch.batch_size  # rows of this stretch
        tokens = stretch.tokens + done * self.seq_len
        phase, (begun, taken, start_lr) = self.config.phases[stretch.phase], self._spans[stretch.phase]
        middle = (tokens - begun + stretch.batch_size * self.seq_len / 2) / taken * phase.tokens
        return Position(
            phase=stretch.phase,
            lr=learning_rate(phase, middle, start_lr),
            peak_lr=phase.lr,
            source=stretch.source,
            row=stretch.row + done,
            batch_size=stretch.batch_size,
            tokens=tokens,
        )

    def tokens_after(self, steps: int) -> int:
        """Tokens seen once `steps` optimiser steps are done."""
        return self.tokens if steps >= self.steps else self.at(steps).tokens

    def _pieces(
        self, phase: Phase, begun: int, growth: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[str | None, int, int]]:
        """Source, batch size and end (in tokens into the phase) of its stretches, for a phase after `begun` tokens."""
        source, batch_size = phase.data, phase.batch_size or self.config.batch_size
        events = [(at, change.batch_size, change.data) for at, change in zip(phase.edges(), phase.changes, strict=True)]
        events += [(max(at - begun, 0), size, None) for at, size in growth]
        events = sorted((event for event in events if event[0] < phase.tokens), key=lambda event: event[0])
        for at, size, data in events:
            yield source, batch_size, at
            source, batch_size = data or source, size or batch_size
        yield source, batch_size, phase.tokens
