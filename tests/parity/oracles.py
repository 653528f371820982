"""Whole models in NumPy float64, for families that no installed library has: written from the formulas, loops and all.

Weights are dictionaries of arrays, matrices (outputs, inputs). `rope` is a pair of tables (cosines, sines), each
(positions, pairs); `angles` computes them exactly. Ours are float32 whatever the model's dtype, which alone would hide
everything below 1e-7, so the tests hand the model's own tables in and compare the tables on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]
Tables = tuple[Array, Array]


def angles(positions: int, width: int, theta: float) -> Tables:
    """Pair i of a head turns by position · theta^(-2i / width)."""
    turn = np.arange(positions)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    return np.cos(turn), np.sin(turn)


def rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * weight


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def turn(x: Array, rope: Tables, interleaved: bool) -> Array:
    """x (seq, heads, width): the pairs are (0, 1), (2, 3), … or (i, i + width / 2)."""
    cos, sin = rope[0][: len(x), None], rope[1][: len(x), None]
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = (a * cos - b * sin, a * sin + b * cos)
    return np.stack(turned, -1).reshape(x.shape) if interleaved else np.concatenate(turned, -1)


def attention(q: Array, k: Array, v: Array, cap: float | None) -> Array:
    """Causal; q (seq, heads, width), k and v (seq, kv_heads, width). Scale, cap, mask, softmax, in this order."""
    seq, heads, width = q.shape
    out = np.zeros_like(q)
    for head in range(heads):
        shared = head * k.shape[1] // heads  # consecutive query heads share a key head
        scores = q[:, head] @ k[:, shared].T / np.sqrt(width)
        if cap is not None:
            scores = cap * np.tanh(scores / cap)
        scores[np.triu_indices(seq, 1)] = -np.inf
        out[:, head] = softmax(scores) @ v[:, shared]
    return out.reshape(seq, -1)


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def grok1(w: Weights, c: Any, tokens: npt.NDArray[np.int64], rope: Tables, cap: float | None = 30.0) -> Array:
    """Logits (seq, vocab) of Grok-1 for tokens (seq,); `w` by the names of the PyTorch ports, `c` a DecoderConfig.

    h += N1(attention(N0(h))), h += N3(experts(N2(h))); the embedding is multiplied by sqrt(dim) and is the head too.
    """
    x = w["model.embed_tokens.weight"][tokens] * np.sqrt(c.dim)  # (seq, dim)
    for i in range(c.n_layers):
        layer = {k.removeprefix(f"model.layers.{i}."): v for k, v in w.items() if k.startswith(f"model.layers.{i}.")}
        y = rms(x, layer["pre_attn_norm.weight"], c.norm_eps)
        q, k, v = ((y @ layer[f"attn.{p}_proj.weight"].T).reshape(len(x), -1, c.head_dim) for p in "qkv")
        y = attention(turn(q, rope, False), turn(k, rope, False), v, cap) @ layer["attn.o_proj.weight"].T
        x = x + rms(y, layer["post_attn_norm.weight"], c.norm_eps)
        y = rms(x, layer["pre_moe_norm.weight"], c.norm_eps)
        y = np.stack([grok1_experts(token, layer, c.moe.top_k) for token in y])
        x = x + rms(y, layer["post_moe_norm.weight"], c.norm_eps)
    return rms(x, w["model.norm.weight"], c.norm_eps) @ w["model.embed_tokens.weight"].T / np.sqrt(3)


def grok1_experts(x: Array, layer: Weights, top_k: int) -> Array:
    """One token (dim,): the best experts, weighted with their probabilities among all; these are not renormalised."""
    probability = softmax(layer["moe_block.gate.weight"] @ x)
    out = np.zeros_like(x)
    for e in np.argsort(-probability, kind="stable")[:top_k]:
        gate, up, down = (layer[f"moe_block.experts.{e}.{p}.weight"] for p in ("linear", "linear_v", "linear_1"))
        out += probability[e] * (down @ (gelu_tanh(gate @ x) * (up @ x)))
    return out


def afm(w: Weights, c: Any, tokens: npt.NDArray[np.int64], rope: Tables) -> Array:
    """Logits (seq, vocab) of AFM: neighbouring pairs turn first, then queries and keys are normalised per head."""
    x = w["embed"][tokens]  # (seq, dim)
    for i in range(c.n_layers):
        layer = {k.removeprefix(f"{i}."): v for k, v in w.items() if k.startswith(f"{i}.")}
        y = rms(x, layer["norm1"], c.norm_eps)
        q, k, v = ((y @ layer[p].T).reshape(len(x), -1, c.head_dim) for p in "qkv")
        q = rms(turn(q, rope, True), layer["q_norm"], c.norm_eps)
        k = rms(turn(k, rope, True), layer["k_norm"], c.norm_eps)
        x = x + attention(q, k, v, None) @ layer["o"].T
        y = rms(x, layer["norm2"], c.norm_eps)
        x = x + (silu(y @ layer["gate"].T) * (y @ layer["up"].T)) @ layer["down"].T
    return rms(x, w["norm"], c.norm_eps) @ w["embed"].T


def norm_head(hidden: Array, weight: Array, axis: str, grad: Array) -> tuple[Array, Array, Array]:
    """NormHead: logits of hidden (n, dim) under weight (vocab, dim), and the gradients of sum(grad · logits).

    "hidden": each column of the weight is divided by its length over the vocabulary; "vocab": each row by its length
    over the features; 1e-7 is added to the length, which the gradient takes as a constant.
    """
    length = np.sqrt((weight**2).sum(0 if axis == "hidden" else 1, keepdims=True)) + 1e-7
    unit = weight / length
    return hidden @ unit.T, grad @ unit, grad.T @ hidden / length
