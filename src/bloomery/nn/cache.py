"""Preallocated keys and values of the positions already seen."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bloomery.core.errors import DataError


class CacheShape(Protocol):
    """What a cache must know of a model's configuration."""

    @property
    def n_layers(self) -> int: ...  # noqa: D102
    @property
    def n_kv_heads(self) -> int: ...  # noqa: D102
    @property
    def head_dim(self) -> int: ...  # noqa: D102


class KVSlot:
    """The keys and values of one layer, each (batch, kv_heads, max_len, head_dim), of which `length` are written."""

    __slots__ = ("keys", "length", "values")

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (batch, kv_heads, new, head_dim) behind the rest; return everything written, as views."""
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One slot per layer. `length` counts the positions written, left padding included.

    `start` (batch,) int64, or None when no row is padded, is the number of padding slots at the left of each row;
    the model sets it at the first call (`padding=`).
    """

    def __init__(
        self,
        config: CacheShape,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (batch, config.n_kv_heads, max_len, config.head_dim)
        self.slots = [
            KVSlot(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.n_layers)
        ]
        self.max_len = max_len
        self.start: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions written so far."""
        return self.slots[0].length

    @property
    def batch(self) -> int:
        """Rows."""
        return self.slots[0].keys.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(slot.keys.nbytes + slot.values.nbytes for slot in self.slots)

    def require_room(self, new: int) -> None:
        """Raise unless `new` more positions fit."""
        if self.length + new > self.max_len:
            raise DataError(
                f"{self.length} + {new} positions do not fit a cache of {self.max_len}",
                fix="shorten the prompt or allocate a longer cache",
            )

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on (0 empties the cache for reuse)."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        for slot in self.slots:
            slot.length = length
        if length == 0:
            self.start = None

    def keep(self, rows: Tensor) -> None:
        """Keep the rows with these indices, in this order; a row may be dropped, moved or repeated."""
        for slot in self.slots:
            slot.keys, slot.values = slot.keys[rows], slot.values[rows]
        if self.start is not None:
            self.start = self.start[rows]
