"""Preallocated keys and values of the positions already seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from bloomery.core.errors import DataError


class CacheShape(Protocol):
    """What a cache must know of a model's configuration."""

    @property
    def cache_slots(self) -> int: ...  # noqa: D102
    @property
    def cache_widths(self) -> tuple[tuple[int, int], ...]: ...  # noqa: D102
    @property
    def max_positions(self) -> int: ...  # noqa: D102


class KVSlot:
    """What one execution of an attention layer remembers, of which `length` positions are written.

    `tensors` are (batch, heads, max_len, width) each: keys and values, or the one latent of multi-head latent
    attention. Keys are stored rotated, so a row may be moved along the axis of positions by copying.
    """

    __slots__ = ("length", "tensors")

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors, self.length = tensors, 0

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Write tensors (batch, heads, new, width) behind the rest; return everything written, as views."""
        end = self.length + new[0].shape[2]
        for held, tensor in zip(self.tensors, new, strict=True):
            held[:, :, self.length : end] = tensor
        self.length = end
        return tuple(held[:, :, :end] for held in self.tensors)


class KVCache:
    """One slot per execution of an attention layer. `length` counts the positions written, left padding included.

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
        self.slots = [
            KVSlot(
                tuple(
                    torch.zeros(batch, heads, max_len, width, dtype=dtype, device=device)
                    for heads, width in config.cache_widths
                )
            )
            for _ in range(config.cache_slots)
        ]
        self.max_len = max_len
        self.start: Tensor | None = None

    @classmethod
    def over(cls, memory: Sequence[tuple[Tensor, ...]], length: int, start: Tensor | None = None) -> KVCache:
        """A cache in existing memory, one tuple of tensors per slot, of which `length` positions are written.

        The tensors may be views: what the model appends is then written to what they view.
        """
        cache = cls.__new__(cls)
        cache.slots = [KVSlot(tensors) for tensors in memory]
        for slot in cache.slots:
            slot.length = length
        cache.max_len, cache.start = memory[0][0].shape[2], start
        return cache

    @property
    def length(self) -> int:
        """Positions written so far."""
        return self.slots[0].length

    @property
    def batch(self) -> int:
        """Rows."""
        return self.slots[0].tensors[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for slot in self.slots for tensor in slot.tensors)

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
            slot.tensors = tuple(tensor[rows] for tensor in slot.tensors)
        if self.start is not None:
            self.start = self.start[rows]
