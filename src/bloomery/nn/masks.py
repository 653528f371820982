"""Attention masks as descriptions. Callers say *what* may be seen; `attention.attend` decides what to build.

In every mask the queries are the last `queries` of `keys` positions: all of them in training, the newest ones when
the earlier keys come from a cache.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Causal:
    """Each position sees itself and everything before it.

    `padding` (batch,) int64 hides that many slots at the left end of each row. A padded slot still sees itself, so
    that its softmax is defined; nobody sees it.
    """

    def __init__(self, padding: Tensor | None = None) -> None:
        self.padding = padding
        self._built: dict[tuple[int, int], Tensor] = {}

    @property
    def dense(self) -> bool:
        """Whether more than plain causality is asked for."""
        return self.padding is not None

    def visible(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Boolean (batch or 1, 1, queries, keys), True where a query sees a key. Built once, used by every layer."""
        size = (queries, keys)
        if size not in self._built:
            self._built[size] = self._build(queries, keys, device)
        return self._built[size]

    def _build(self, queries: int, keys: int, device: torch.device) -> Tensor:
        key, query = _places(queries, keys, device)
        causal = key <= query
        if self.padding is None:
            return causal[None, None]
        real = key >= self.padding.to(device)[:, None, None]  # (batch, 1, keys)
        return ((causal & real) | (key == query))[:, None]


class Documents(Causal):
    """Causal attention confined to documents: position i sees j <= i when `ids[:, i] == ids[:, j]`.

    `ids` is (batch, keys), any integer dtype, one number per packed document.
    """

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        self.ids = ids

    @property
    def dense(self) -> bool:
        """Always: which positions belong together is data."""
        return True

    def _build(self, queries: int, keys: int, device: torch.device) -> Tensor:
        key, query = _places(queries, keys, device)
        ids = self.ids.to(device)
        same = ids[:, keys - queries :, None] == ids[:, None, :]  # (batch, queries, keys)
        return (same & (key <= query))[:, None]


def _places(queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Key places (keys,) and query places (queries, 1) on one axis."""
    places = torch.arange(keys, device=device)
    return places, places[keys - queries :, None]
