"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 §2.1): keys and values live in one small latent.

```text
x ─ down ─┬ q latent ─ norm ─ q_up ─ [q_nope | q_rope]   per head          (or q directly when q_rank is None)
          ├ kv latent ─ norm ─────── c                   shared, cached
          └ k_rope ─ rotate ─────────────────────────── shared, cached
score = (q_nope · K c + q_rope · k_rope) · scale        value = V c         K, V: the rows of kv_up
```

Training expands c into keys and values of every head. Decoding moves K to the query and V behind the attention
instead ("absorbed"): attention then has one key head of width kv_rank + rope_dim, and only c and k_rope are cached.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bloomery.nn.attention import attend
from bloomery.nn.cache import KVSlot
from bloomery.nn.linear import Linear
from bloomery.nn.masks import Causal
from bloomery.nn.norm import RMSNorm
from bloomery.nn.rope import Rotary, rotate

LATENT_EPS = 1e-6  # of the two latent norms, whatever the model's own eps: as in the released code


class MLAttention(nn.Module):
    """Latent attention with `n_heads` heads of width nope_dim + rope_dim for scores and v_dim for values.

    `down` holds the rows [q (q_rank, or all heads when None); kv latent (kv_rank); k_rope (rope_dim)]; `kv_up` per
    head nope_dim rows for keys, then v_dim for values. `scale` multiplies the scores; by default 1 / sqrt(width).
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        q_rank: int | None,
        kv_rank: int,
        nope_dim: int,
        rope_dim: int,
        v_dim: int,
        scale: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.q_rank, self.kv_rank = n_heads, q_rank, kv_rank
        self.nope_dim, self.rope_dim, self.v_dim = nope_dim, rope_dim, v_dim
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        self.q_width = n_heads * (nope_dim + rope_dim) if q_rank is None else q_rank
        self.down = Linear(dim, self.q_width + kv_rank + rope_dim, bias=bias)
        if q_rank is not None:
            self.q_norm = RMSNorm(q_rank, LATENT_EPS)
            self.q_up = Linear(q_rank, n_heads * (nope_dim + rope_dim), bias=False)
        self.kv_norm = RMSNorm(kv_rank, LATENT_EPS)
        self.kv_up = Linear(kv_rank, n_heads * (nope_dim + v_dim), bias=False)
        self.out = Linear(n_heads * v_dim, dim, bias=bias)

    def forward(self, x: Tensor, rotary: Rotary, mask: Causal, cache: KVSlot | None = None) -> Tensor:
        """Mix x (batch, seq, dim) over positions; with a cache, x continues what the cache holds."""
        batch, seq, _ = x.shape
        q, latent, k_rope = torch.split(self.down(x), [self.q_width, self.kv_rank, self.rope_dim], dim=-1)
        if self.q_rank is not None:
            q = self.q_up(self.q_norm(q))
        q_nope, q_rope = q.view(batch, seq, self.n_heads, -1).split([self.nope_dim, self.rope_dim], dim=-1)
        turned = rotate(torch.cat([q_rope, k_rope[:, :, None]], dim=2), rotary)  # (batch, seq, heads + 1, rope_dim)
        q_rope, k_rope = turned[:, :, :-1], turned[:, :, -1]
        memory = torch.cat([self.kv_norm(latent), k_rope], dim=-1)[:, None]  # (batch, 1, seq, kv_rank + rope_dim)
        if cache is not None:
            (memory,) = cache.append(memory)
        # Absorbing costs queries · 2 · kv_rank per key and head, expanding kv_rank · (nope_dim + v_dim).
        few = cache is not None and 2 * seq < self.nope_dim + self.v_dim
        mixed = (self.absorbed if few else self.expanded)(q_nope, q_rope, memory, mask)  # (batch, seq, heads, v_dim)
        out: Tensor = self.out(mixed.flatten(2))
        return out

    def expanded(self, q_nope: Tensor, q_rope: Tensor, memory: Tensor, mask: Causal) -> Tensor:
        """Attention over keys and values of every head, made from the latents: (batch, seq, heads, v_dim).

        q_nope (batch, seq, heads, nope_dim), q_rope (batch, seq, heads, rope_dim), memory (batch, 1, keys,
        kv_rank + rope_dim).
        """
        latent, k_rope = memory.split([self.kv_rank, self.rope_dim], dim=-1)
        kv = self.kv_up(latent[:, 0]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (batch, heads, keys, k + v)
        k_nope, v = kv.split([self.nope_dim, self.v_dim], dim=-1)
        k = torch.cat([k_nope, k_rope.expand(-1, self.n_heads, -1, -1)], dim=-1)
        q = torch.cat([q_nope, q_rope], dim=-1).transpose(1, 2)  # (batch, heads, seq, nope_dim + rope_dim)
        return attend(q, k, v, mask, self.scale).transpose(1, 2)

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, memory: Tensor, mask: Causal) -> Tensor:
        """The same over the latents: all heads share one key head, whose first kv_rank features are the values."""
        k_up, v_up = self.kv_up.weight.view(self.n_heads, -1, self.kv_rank).split([self.nope_dim, self.v_dim], dim=1)
        q_latent = _per_head(q_nope.transpose(1, 2), k_up)  # (batch, heads, seq, kv_rank)
        q = torch.cat([q_latent, q_rope.transpose(1, 2)], dim=-1)
        mixed = attend(q, memory, memory[..., : self.kv_rank], mask, self.scale)  # (batch, heads, seq, kv_rank)
        return _per_head(mixed, v_up.transpose(1, 2)).transpose(1, 2)


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """x (batch, heads, seq, in) times weight (heads, in, out); the batch never repeats the weights."""
    batch, heads, seq, _ = x.shape
    if batch == 1:
        return torch.bmm(x[0], weight)[None]
    rows = x.transpose(0, 1).reshape(heads, batch * seq, -1)
    return torch.bmm(rows, weight).view(heads, batch, seq, -1).transpose(0, 1)
