"""Chains of pointers: a task whose every answer needs as many look-ups, one after another, as its chain is long.

```text
place     0     1     2     3     4     5     6
token     C     A     B    ◂2    ~A    ◂2    ◂1        label, pointer so many places back, filler
answer    C     A     B     A     A     A     A        the label at the end of the chain
depth     0     0     0     1     -     2     3        pointers on the way
```

A *label* answers itself, a *pointer* as the place it points to. A *filler* answers itself too and is never pointed to:
nothing needs to be known about it but the token. Every sequence begins with all labels in random order, so that who
does not follow the chain can only guess among them.
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

    Token ids: labels from 0, pointers by distance from `labels` on, fillers from `labels + reach` on.
    """

    labels: int = 4
    depth: int = 6  # longest chain, in pointers
    reach: int = 8  # farthest a pointer goes
    roots: float = 0.0  # share of further labels among the places behind the first that are no fillers
    fillers: float = 0.0  # share of fillers

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
        return self.labels + self.reach + (self.labels if self.fillers else 0)

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """Rows step · batch_size and on: `tokens`, `targets` (the answers), `depth`, each (batch_size, seq_len) int64.

        Depth is the number of pointers between a place and its label, or `FILLER`. A row depends on the seed, its
        number and seq_len only.
        """
        numbers = range(step * batch_size, (step + 1) * batch_size)
        shape = (3 + self.reach, max(seq_len, self.labels))
        draws = np.stack([rng(seed, "pointer chase", row).random(shape) for row in numbers], axis=1)
        first = draws[0, :, : self.labels].argsort(axis=1)  # (batch, labels): every label once
        label, filler, root = (draws[0] * self.labels).astype(np.int64), draws[1] < self.fillers, draws[2] < self.roots
        label[:, : self.labels], filler[:, : self.labels] = first, False
        label, filler, root = label[:, :seq_len], filler[:, :seq_len], root[:, :seq_len]
        lots = draws[3:]  # (reach, batch, seq)

        tokens, targets = label.copy(), label.copy()
        tokens[filler] += self.labels + self.reach
        depth = np.where(filler, FILLER, 0)
        rows = np.arange(batch_size)
        for place in range(self.labels, seq_len):
            reach = min(self.reach, place)
            before = depth[:, place - reach : place][:, ::-1]  # (batch, distance - 1)
            allowed = (before != FILLER) & (before < self.depth)
            distance = 1 + np.where(allowed, lots[:reach, :, place].T, np.inf).argmin(axis=1)  # the lowest lot wins
            pointer = ~filler[:, place] & ~root[:, place] & allowed.any(axis=1)
            there = place - distance
            tokens[pointer, place] = self.labels + distance[pointer] - 1
            targets[pointer, place] = targets[rows, there][pointer]
            depth[pointer, place] = depth[rows, there][pointer] + 1
        return {"tokens": tokens, "targets": targets, "depth": depth}
