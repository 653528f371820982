"""One cache whose rows come and go: the memory of continuous batching.

```text
            0        start            length         capacity
row 0       ·········abcdefghijklmnopqr|·············
row 1       ················stuvwxyzabc|·············       all rows end at `length` and grow together
row 2       ···def a b c d e f g h i j k|·············
```

Every row ends where the others do and begins where its own length says, so one step of the model serves all of them.
Cached keys are already rotated and a row's positions count from its start: rows can be moved by copying, bit for bit.
Rows in use are the first ones; the last row takes the place of one that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bloomery.nn import KVCache
from bloomery.nn.cache import CacheShape

FIRST_CAPACITY = 64


class Timeline:
    """At most `max_rows` rows of at most `max_len` positions; `starts` and `length` tell where each row lies.

    Memory grows by doubling with the longest row, up to a quarter more than `max_len`: moving the rows back to the left
    end then gives room for many steps each time.
    """

    def __init__(
        self, config: CacheShape, max_rows: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.most = max_len + max_len // 4 + 1
        cache = KVCache(config, max_rows, min(FIRST_CAPACITY, self.most), dtype, device)
        self.memory = [slot.tensors for slot in cache.slots]  # (max_rows, heads, capacity, width) each
        self.length = 0
        self.starts: list[int] = []
        self.device = device

    @property
    def capacity(self) -> int:
        """Positions there is memory for."""
        return self.memory[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensors in self.memory for tensor in tensors)

    def window(self) -> KVCache:
        """The rows in use as a cache, from the earliest start on, with room for one more position.

        Run the model with it, then call `advance`.
        """
        self._make_room(self.length + 1)
        begin, rows = min(self.starts), len(self.starts)
        views = [tuple(tensor[:rows, :, begin:] for tensor in tensors) for tensors in self.memory]
        padding = [start - begin for start in self.starts]
        return KVCache.over(
            views, self.length - begin, torch.tensor(padding, device=self.device) if any(padding) else None
        )

    def advance(self) -> None:
        """The model has written one position to the window."""
        self.length += 1

    def add(self, cache: KVCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Take over rows of another cache: of each row in `rows` the last `lengths` positions it holds."""
        longest = max(lengths)
        if not self.starts:
            self.length = 0
        self._make_room(max(self.length, longest), shift=max(0, longest - self.length))
        for row, length in zip(rows, lengths, strict=True):
            place = len(self.starts)
            for ours, slot in zip(self.memory, cache.slots, strict=True):
                for tensor, other in zip(ours, slot.tensors, strict=True):
                    tensor[place, :, self.length - length : self.length] = other[
                        row, :, slot.length - length : slot.length
                    ]
            self.starts.append(self.length - length)

    def remove(self, row: int, *, wipe: bool = False) -> None:
        """Free a row; the last one moves to its place. `wipe` what it held when it may not be finite.

        Attention gives hidden positions the weight 0, and 0 · NaN would reach whoever uses the row next.
        """
        last = len(self.starts) - 1
        for tensors in self.memory:
            for tensor in tensors:
                if wipe:
                    tensor[row] = 0
                if row != last:
                    begin = self.starts[last]
                    tensor[row, :, begin : self.length] = tensor[last, :, begin : self.length]
        self.starts[row] = self.starts[last]
        self.starts.pop()

    def contents(self, row: int) -> list[tuple[Tensor, ...]]:
        """What a row holds, per slot: views (heads, positions, width)."""
        begin = self.starts[row]
        return [tuple(tensor[row, :, begin : self.length] for tensor in tensors) for tensors in self.memory]

    def _make_room(self, end: int, shift: int = 0) -> None:
        """See that positions up to `end` have memory, with all rows moved to the right by `shift`, or to the left."""
        if shift == 0 and end <= self.capacity:
            return
        begin = min(self.starts, default=self.length)
        if shift == 0:  # the end of the memory: go back to its left end, and have more of it unless that frees much
            shift, end = -begin, end - begin
        capacity = old = self.capacity
        if end > capacity - capacity // 5:
            capacity = min(self.most, max(2 * capacity, end + end // 4 + 1))
        rows = len(self.starts)
        for i, tensors in enumerate(self.memory):
            moved = []
            for tensor in tensors:
                held = tensor[:rows, :, begin : self.length].clone()
                if capacity != old:
                    batch, heads, _, width = tensor.shape
                    tensor = tensor.new_zeros(batch, heads, capacity, width)
                tensor[:rows, :, begin + shift : self.length + shift] = held
                moved.append(tensor)
            self.memory[i] = tuple(moved)
        self.starts = [start + shift for start in self.starts]
        self.length += shift
