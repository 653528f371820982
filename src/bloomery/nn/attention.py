"""Grouped-query attention, and the one function through which all attention goes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.nn.cache import KVSlot
from bloomery.nn.linear import Linear
from bloomery.nn.masks import Causal
from bloomery.nn.rope import Rotary, rotate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Causal) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v under `mask`; returns q's shape.

    q (batch, heads, queries, head_dim); k, v (batch, kv_heads, keys, head_dim), heads a multiple of kv_heads. The
    queries are the last of the keys' positions. Causal attention over whole sequences never builds a mask. On a CPU,
    sharing key heads inside the kernel and repeating them outside take the same time.
    """
    queries, keys, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if queries == 1:  # decoding: the heads that share a key head become its queries, so keys are read once, not copied
        visible = mask.visible(1, keys, q.device) if mask.dense else None
        grouped = F.scaled_dot_product_attention(q.view(q.shape[0], k.shape[1], groups, -1), k, v, attn_mask=visible)
        return grouped.view(q.shape)
    if queries == keys and not mask.dense:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if groups > 1:  # the GPU kernels that accept a mask want as many key heads as query heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.visible(queries, keys, q.device))


class GQAttention(nn.Module):
    """Self-attention with `n_heads` query heads sharing `n_kv_heads` key/value heads (arXiv:2305.13245).

    The three input projections are one matrix: rows [q heads; k heads; v heads], each `head_dim` tall.
    """

    def __init__(
        self, dim: int, n_heads: int, n_kv_heads: int, head_dim: int, qkv_bias: bool = False, o_bias: bool = False
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.qkv = Linear(dim, (n_heads + 2 * n_kv_heads) * head_dim, bias=qkv_bias)
        self.out = Linear(n_heads * head_dim, dim, bias=o_bias)

    def forward(self, x: Tensor, rotary: Rotary, mask: Causal, cache: KVSlot | None = None) -> Tensor:
        """Mix x (batch, seq, dim) over positions; with a cache, x continues what the cache holds."""
        batch, seq, _ = x.shape
        heads = self.qkv(x).view(batch, seq, -1, self.head_dim)  # (batch, seq, q + k + v heads, head_dim)
        qk, v = torch.split(heads, [self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        q, k = torch.split(rotate(qk, rotary), [self.n_heads, self.n_kv_heads], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq, head_dim)
        if cache is not None:
            k, v = cache.append(k, v)
        mixed = attend(q, k, v, mask).transpose(1, 2)  # (batch, seq, heads, head_dim)
        out: Tensor = self.out(mixed.reshape(batch, seq, -1))
        return out
