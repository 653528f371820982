"""Chains of pointers: a task whose every answer needs as many look-ups, one after another, as its chain is long.

```text
place     0     1     2     3     4     5     6
token     C     A    ◂2    ◂1    ~B    ◂2    ◂4        label, pointer so many places back, filler
answer    C     A     C     C     B     C     C        the label at the end of the chain
depth     0     0     1     2     0     3     2        pointers on the way
```

A *label* answers itself. A *pointer* has the answer of the place it points to, plus its own increment (modulo the
number of labels) when `sums` is on. A *filler* answers itself too and is never pointed to: nothing needs to be known
about it but the token. Labels are drawn evenly, so without following the chain an answer is a guess among `labels`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import rng

FILLER = -1  # depth of a filler


@dataclass(frozen=True, kw_only=True)
class PointerChase:
    """Endless random sequences of labels, pointers and fillers. A source of training batches (see `train.loop.Source`).

    Token ids: labels from 0, pointers from `labels`, (distance - 1) · increments + increment, fillers behind them.
    """

    labels: int = 4
    depth: int = 6  # longest chain, in pointers
    reach: int = 8  # farthest a pointer goes
    roots: float = 0.05  # share of labels among the places that are no fillers, beside those that start a sequence
    fillers: float = 0.0  # share of fillers
    sums: bool = False  # pointers carry an increment

    def __post_init__(self) -> None:
        for name, least in (("labels", 2), ("depth", 1), ("reach", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}", fix=f"must be at least {least}")
        for name in ("roots", "fillers"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="a share: 0 or more, less than 1")

    @property
    def vocab_size(self) -> int:
        """Number of different tokens."""
        return self.labels + self.reach * self._increments + (self.labels if self.fillers else 0)

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """Rows step · batch_size and on: `tokens`, `targets` (the answers), `depth`, each (batch_size, seq_len) int64.

        Depth is the number of pointers between a place and its label, or `FILLER`. A row depends on the seed, its
        number and seq_len only.
        """
        numbers = range(step * batch_size, (step + 1) * batch_size)
        shape = (4 + self.reach, seq_len)
        draws = np.stack([rng(seed, "pointer chase", row).random(shape) for row in numbers], axis=1)
        kind, root, label, increment = draws[:4]  # (batch, seq) each
        lots = draws[4:]  # (reach, batch, seq)
        label, increment = (label * self.labels).astype(np.int64), (increment * self._increments).astype(np.int64)
        filler, root = kind < self.fillers, root < self.roots
        filler[:, 0] = False

        tokens, targets = label.copy(), label.copy()
        tokens[filler] += self.labels + self.reach * self._increments
        depth = np.where(filler, FILLER, 0)
        rows = np.arange(batch_size)
        for place in range(1, seq_len):
            reach = min(self.reach, place)
            before = depth[:, place - reach : place][:, ::-1]  # (batch, distance - 1)
            allowed = (before != FILLER) & (before < self.depth)
            distance = 1 + np.where(allowed, lots[:reach, :, place].T, np.inf).argmin(axis=1)  # the lowest lot wins
            pointer = ~filler[:, place] & ~root[:, place] & allowed.any(axis=1)
            target = place - distance
            answer = (targets[rows, target] + increment[:, place]) % self.labels
            token = self.labels + (distance - 1) * self._increments + increment[:, place]
            tokens[:, place] = np.where(pointer, token, tokens[:, place])
            targets[:, place] = np.where(pointer, answer, targets[:, place])
            depth[:, place] = np.where(pointer, depth[rows, target] + 1, depth[:, place])
        return {"tokens": tokens, "targets": targets, "depth": depth}

    @property
    def _increments(self) -> int:
        return self.labels if self.sums else 1
