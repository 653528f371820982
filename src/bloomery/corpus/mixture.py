"""Sources in fixed proportions: `Mixture({"web": pack, "code": pack}, {"web": 3, "code": 1})`.

Rows are dealt in blocks of 65,536. Every block holds each source exactly in its share, in an order shuffled by the
seed, so a row's source and its rank within that source follow from the row number alone. The shares of any long run
are therefore exact, each source is read in its own order without repetition, and resuming needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.files import read_json, write_json
from bloomery.core.seeds import derive, rng

BLOCK = 1 << 16  # rows; a share is exact to one row in a block


class Source(Protocol):
    """Training rows by number; `PackedTokens` and `Mixture` are sources."""

    def rows(self, numbers: np.ndarray, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """The given rows of an endless sequence, arrays (rows, …)."""


class Mixture:
    """Named sources mixed by weight. Weights need not sum to one; `weights` gives them normalised.

    `starts` are rows of each source to pass over. A second mixture of the same sources goes on where the first one
    stopped after `rows` rows with `starts=first.given(rows, seed)`: no row of any source is read in both.
    """

    def __init__(
        self, sources: Mapping[str, Source], weights: Mapping[str, float], starts: Mapping[str, int] | None = None
    ) -> None:
        self.weights = normalize(weights)
        self.sources = {name: sources[name] for name in self.weights if name in sources}
        missing = self.weights.keys() - sources.keys()
        if missing:
            name = min(missing)
            raise ConfigError(f"a weight for {name!r}, but no such source", fix=nearest(name, sources))
        unused = sources.keys() - self.weights.keys()
        if unused:
            raise ConfigError(f"no weight for the source {min(unused)!r}", fix="leave the source out or weight it")
        self.starts = dict.fromkeys(self.weights, 0) | dict(starts or {})  # also of sources that pause in this blend
        for name, start in self.starts.items():
            if start < 0:
                raise ConfigError(f"starts.{name} = {start}", fix="rows to pass over, 0 or more")
        self._counts = _block_counts(tuple(self.weights.items()))

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """Rows `step * batch_size` and following: the sources' fields and `source` (rows,), the index of the source."""
        return self.rows(np.arange(step * batch_size, (step + 1) * batch_size), seq_len, seed)

    def rows(self, numbers: np.ndarray, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        """The given rows of the mixed sequence, in the order asked for."""
        source, rank = self.assign(numbers, seed)
        fields: dict[str, np.ndarray] = {}
        for index, (name, data) in enumerate(self.sources.items()):
            mine = np.flatnonzero(source == index)
            if not len(mine):
                continue
            part = data.rows(self.starts[name] + rank[mine], seq_len, derive(seed, "mixture", name))
            part.pop("source", None)  # of a mixture inside this one
            if fields and fields.keys() != part.keys():
                raise DataError(f"source {name!r} gives {sorted(part)}, the others {sorted(fields)}")
            for key, values in part.items():
                fields.setdefault(key, np.empty((len(source), *values.shape[1:]), values.dtype))[mine] = values
        return fields | {"source": source}

    def assign(self, numbers: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Source index of each row, and how many earlier rows of the sequence that source has given."""
        blocks, inside = np.divmod(np.asarray(numbers, np.int64), BLOCK)
        source, rank = np.empty(len(blocks), np.int64), np.empty(len(blocks), np.int64)
        for block in np.unique(blocks):
            mine = blocks == block
            dealt, ranks = _deal(self._counts, seed, int(block))
            source[mine] = dealt[inside[mine]]
            rank[mine] = ranks[inside[mine]] + block * np.array(self._counts)[source[mine]]
        return source, rank

    def given(self, rows: int, seed: int) -> dict[str, int]:
        """How many rows of each source have been passed over or given once the first `rows` rows are read."""
        blocks, rest = divmod(rows, BLOCK)
        dealt = np.bincount(_deal(self._counts, seed, blocks)[0][:rest], minlength=len(self._counts))
        whole = blocks * np.array(self._counts)
        return self.starts | {
            name: self.starts[name] + int(n) for name, n in zip(self.sources, dealt + whole, strict=True)
        }

    def save(self, path: Path | str) -> None:
        """Write the weights as JSON; `load_weights` reads them back."""
        write_json(path, self.weights)


def normalize(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights divided by their sum; ConfigError unless all are positive and finite."""
    if not weights:
        raise ConfigError("a mixture without weights", fix="give at least one source a weight")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight <= 0:
            raise ConfigError(f"weights.{name} = {weight!r}", fix="a weight is a positive finite number")
    total = math.fsum(weights.values())
    if not math.isfinite(total):
        raise ConfigError("the weights add up to infinity", fix="use smaller numbers")
    return {name: weight / total for name, weight in weights.items()}


def load_weights(path: Path | str) -> dict[str, float]:
    """Weights written by `Mixture.save` (or by hand), normalised."""
    weights: Any = read_json(path)
    if not isinstance(weights, dict):
        raise DataError("expected an object of source: weight", where=path)
    return normalize(weights)


def _block_counts(weights: tuple[tuple[str, float], ...]) -> tuple[int, ...]:
    """Rows of each source in a block: largest remainders, so that they add up."""
    exact = np.array([weight for _, weight in weights]) * BLOCK
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]] += 1
    if (counts == 0).any():
        name, weight = weights[int(np.argmin(counts))]
        raise ConfigError(f"weights.{name} is {weight:.2g} of the mixture", fix=f"the least share is 1/{BLOCK}")
    return tuple(counts.tolist())


@lru_cache(maxsize=4)
def _deal(counts: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Source of each row of a block and the rank of the row within its source, both (BLOCK,)."""
    source = rng(seed, "deal", block).permutation(np.repeat(np.arange(len(counts)), counts))
    rank = np.empty(BLOCK, np.int64)
    for index, count in enumerate(counts):
        rank[source == index] = np.arange(count)
    return source, rank
