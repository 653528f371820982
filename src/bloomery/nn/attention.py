"""Grouped-query attention, and the one function through which all attention goes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.nn.cache import KVSlot
from bloomery.nn.linear import Linear
from bloomery.nn.masks import Causal
from bloomery.nn.norm import RMSNorm, make_norm
from bloomery.nn.rope import Rotary, rotate

QKNorm = Literal["none", "pre_rope", "post_rope", "all_heads"]
FEW = 16  # queries up to which heads that share a key head are folded into one set of queries


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Causal, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """softmax(q kᵀ · scale) v under `mask`: (batch, heads, queries, value width).

    q (batch, heads, queries, width); k (batch, kv_heads, keys, width); v (batch, kv_heads, keys, value width), heads a
    multiple of kv_heads. The queries are the last of the keys' positions. `scale` defaults to 1 / sqrt(width).
    `softcap` c replaces each scaled score s by c · tanh(s / c) before masking (Gemma 2, arXiv:2408.00118 §2): PyTorch's
    kernels do not know it, so the scores are then built. Causal attention over whole sequences never builds a mask.
    On a CPU, sharing key heads inside the kernel and repeating them outside take the same time.
    """
    queries, keys, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if softcap is not None:
        return _attend_capped(q, k, v, mask.visible(queries, keys, q.device), scale, softcap)
    if queries == 1 or (groups > 1 and queries <= FEW and queries < keys):
        # decoding: the heads that share a key head become its queries, so keys are read once, not copied
        visible = mask.visible(queries, keys, q.device) if mask.dense or queries > 1 else None
        if visible is not None and queries > 1:
            visible = visible.repeat(1, 1, groups, 1)
        grouped = q.reshape(q.shape[0], k.shape[1], groups * queries, -1)
        mixed = F.scaled_dot_product_attention(grouped, k, v, attn_mask=visible, scale=scale)
        return mixed.view(*q.shape[:3], v.shape[3])
    if (narrow := v.shape[3]) != q.shape[3]:  # the fused kernels want values as wide as keys
        scale = q.shape[3] ** -0.5 if scale is None else scale
        wide = max(narrow, q.shape[3])
        q, k, v = (F.pad(x, (0, wide - x.shape[3])) for x in (q, k, v))
    if queries == keys and not mask.dense:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=groups > 1)
    else:
        if groups > 1:  # the GPU kernels that accept a mask want as many key heads as query heads
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        visible = mask.visible(queries, keys, q.device)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)
    return mixed if mixed.shape[3] == narrow else mixed[..., :narrow]  # a slice costs a copy in the backward pass


def _attend_capped(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None, softcap: float) -> Tensor:
    """The written-out form: scale, cap, mask, softmax, in at least float32."""
    batch, heads, queries, width = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, queries, width)  # (batch, kv_heads, groups, queries, width)
    scores = grouped @ k.unsqueeze(2).transpose(-1, -2)  # (batch, kv_heads, groups, queries, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = softcap * torch.tanh(scores * ((width**-0.5 if scale is None else scale) / softcap))
    weights = scores.masked_fill(~visible.unsqueeze(2), -torch.inf).softmax(-1).to(v.dtype)
    return (weights @ v.unsqueeze(2)).view(batch, heads, queries, -1)


class GQAttention(nn.Module):
    """Self-attention with `n_heads` query heads sharing `n_kv_heads` key/value heads (arXiv:2305.13245).

    The three input projections are one matrix: rows [q heads; k heads; v heads], each `head_dim` tall. `qk_norm` puts
    an RMS norm with a learned scale over `head_dim`, shared by the heads, on queries and keys: before the rotation
    (Qwen3) or after it (AFM, arXiv:2407.21075). The two differ, since a scale per channel does not commute with it.
    "all_heads" is a layer norm without bias over the features of all heads together, before the rotation (OpenLM).
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        qkv_bias: bool = False,
        o_bias: bool = False,
        *,
        qk_norm: QKNorm = "none",
        norm_eps: float = 1e-6,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.qk_norm, self.scale, self.softcap = qk_norm, scale, softcap
        self.qkv = Linear(dim, (n_heads + 2 * n_kv_heads) * head_dim, bias=qkv_bias)
        self.out = Linear(n_heads * head_dim, dim, bias=o_bias)
        if qk_norm == "all_heads":
            self.q_norm = make_norm("layer", n_heads * head_dim, norm_eps)
            self.k_norm = make_norm("layer", n_kv_heads * head_dim, norm_eps)
        elif qk_norm != "none":
            self.q_norm, self.k_norm = RMSNorm(head_dim, norm_eps), RMSNorm(head_dim, norm_eps)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Causal, cache: KVSlot | None = None, signal: Tensor | None = None
    ) -> Tensor:
        """Mix x (batch, seq, dim) over positions; with a cache, x continues what the cache holds.

        `signal` (batch, seq, q + k + v heads · head_dim) is added to the projections.
        """
        batch, seq, _ = x.shape
        heads = self.qkv(x) if signal is None else self.qkv(x) + signal
        heads = heads.view(batch, seq, -1, self.head_dim)  # (batch, seq, q + k + v heads, head_dim)
        qk, v = torch.split(heads, [self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        if self.qk_norm in ("pre_rope", "all_heads"):
            qk = self._normalise(qk)
        qk = rotate(qk, rotary)
        if self.qk_norm == "post_rope":
            qk = self._normalise(qk)
        q, k = torch.split(qk, [self.n_heads, self.n_kv_heads], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (batch, heads, seq, head_dim)
        if cache is not None:
            k, v = cache.append(k, v)
        mixed = attend(q, k, v, mask, self.scale, self.softcap).transpose(1, 2)  # (batch, seq, heads, head_dim)
        out: Tensor = self.out(mixed.reshape(batch, seq, -1))
        return out

    def _normalise(self, qk: Tensor) -> Tensor:
        q, k = torch.split(qk, [self.n_heads, self.n_kv_heads], dim=2)
        if self.qk_norm == "all_heads":
            return torch.cat([self.q_norm(q.flatten(2)), self.k_norm(k.flatten(2))], dim=2).view(qk.shape)
        return torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
