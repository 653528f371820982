"""One decoder-only transformer for every language-model family. A family is a configuration plus a key map.

```text
tokens ─ embed ─┬─────────────┬─ + ─┬─────────────┬─ + ─ … ─ norm ─ head ─ logits
                └ norm ─ attn ┘     └ norm ─ ffn ─┘
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bloomery.core import config as plain
from bloomery.core.errors import ConfigError
from bloomery.nn import (
    Causal,
    GatedMLP,
    GQAttention,
    KVCache,
    KVSlot,
    Linear,
    RMSNorm,
    Rope,
    RopeScaling,
    Rotary,
    linear,
)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that decides a decoder's function and shapes. Sizes are explicit; nothing is derived silently."""

    vocab_size: int
    dim: int  # width of the residual stream
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int  # n_heads · head_dim need not equal dim
    ffn_dim: int
    max_positions: int = 4096  # context the model is meant for; longer input is computed all the same
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}",
                fix="every key/value head serves the same number of query heads",
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim}", fix="rotary embedding turns pairs: must be even")
        for name in ("norm_eps", "rope_theta", "init_std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="must be a positive number")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        fields: dict[str, Any] = plain.encode(self)
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "") -> DecoderConfig:
        """The inverse of `to_dict`; an unknown key or a wrong type is a ConfigError."""
        return plain.decode(cls, data, where)


class Output:
    """What a forward pass gives: `hidden` (batch, seq, dim) after the last norm, and `logits` when asked for."""

    def __init__(self, decoder: Decoder, hidden: Tensor) -> None:
        self.decoder, self.hidden = decoder, hidden

    @property
    def logits(self) -> Tensor:
        """(batch, seq, vocab), computed at each access; `decoder.logits(hidden[:, -1:])` gives only the last."""
        return self.decoder.logits(self.hidden)


class Block(nn.Module):
    """Pre-norm residual block: attention over positions, then a feed-forward layer at each position."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = RMSNorm(c.dim, c.norm_eps)
        self.attn = GQAttention(c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.qkv_bias, c.o_bias)
        self.norm2 = RMSNorm(c.dim, c.norm_eps)
        self.ffn = GatedMLP(c.dim, c.ffn_dim, c.mlp_bias)

    def forward(self, x: Tensor, rotary: Rotary, mask: Causal, cache: KVSlot | None = None) -> Tensor:  # noqa: D102
        x = x + self.attn(self.norm1(x), rotary, mask, cache)
        x = x + self.ffn(self.norm2(x))
        return x


class Decoder(nn.Module):
    """The decoder. Weights are drawn by `init_weights`, except on the meta device where there are none to draw.

    Without a `generator` the draw is a fixed one: two decoders of one configuration are equal.
    """

    def __init__(self, config: DecoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.rope = Rope(config.head_dim, config.rope_theta, config.max_positions, config.rope_scaling)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.dim, config.vocab_size, bias=False)
        if self.embed.weight.device.type != "meta":
            self.init_weights(generator)

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Causal | None = None,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
    ) -> Output:
        """Run tokens (batch, seq) int64, or embeds (batch, seq, dim), through the blocks.

        `mask` defaults to causal. With a `cache` the input continues what the cache holds and is added to it.
        `padding` (batch,) int64 counts the left-padding slots of each row (with a cache: given at the first call,
        remembered by it); positions, (batch, seq) int64, count from the first real token unless given.
        """
        if (tokens is None) == (embeds is None):
            raise ValueError("give either tokens or embeds")
        x = self.embed(tokens) if embeds is None else embeds  # (batch, seq, dim)
        rotary, mask = self._place(x, positions, mask, cache, padding)
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, mask, None if cache is None else cache.slots[i])
        return Output(self, self.norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of hidden states (..., dim): (..., vocab)."""
        return linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, dim): what turns hidden states into logits; the embedding itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def _place(
        self, x: Tensor, positions: Tensor | None, mask: Causal | None, cache: KVCache | None, padding: Tensor | None
    ) -> tuple[Rotary, Causal]:
        """Where the new positions lie and what they may see."""
        begin = 0 if cache is None else cache.length
        end = begin + x.shape[1]
        if cache is not None:
            cache.require_room(x.shape[1])
            if begin == 0 and padding is not None and bool(padding.any()):
                cache.start = padding
            padding = cache.start
        if mask is not None and padding is not None:
            raise ValueError("give either padding or a mask, which has to cover the padding itself")
        if positions is not None:
            rotary = self.rope(positions, int(positions.max()) + 1, x.device)
        elif padding is not None:
            places = torch.arange(begin, end, device=x.device) - padding[:, None]  # (batch, seq)
            rotary = self.rope(places.clamp_min(0), end, x.device)
        else:
            rotary = self.rope(slice(begin, end), end, x.device)
        return rotary, Causal(padding) if mask is None else mask

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight. The table is the whole initialisation: standard deviations; biases are 0 and norms 1."""
        std = self.config.init_std
        residual = std / math.sqrt(2 * self.config.n_layers)  # keeps the residual stream's variance flat over depth
        table = {"embed": std, "qkv": std, "out": residual, "gate_up": std, "down": residual, "head": std}
        generator = generator or torch.Generator(self.embed.weight.device).manual_seed(0)
        for name, parameter in self.named_parameters():
            place, kind = name.split(".")[-2:]
            if kind == "bias":
                parameter.zero_()
            elif place in table:
                parameter.normal_(std=table[place], generator=generator)
            else:
                parameter.fill_(1.0)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Parameters, tied ones once; without `embeddings` those of the token table and of the head are left out."""
        total = sum(p.numel() for p in self.parameters())
        return total if embeddings else total - sum(p.numel() for p in {self.embed.weight, self.head_weight})

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations to train on one token (forward and backward) in causal sequences of `seq_len`.

        6 per matrix weight (the head counts, the embedding look-up does not) plus attention: scores and their sum
        over values are 2 · 2 · heads · head_dim per visible key, (seq_len + 1) / 2 of which exist on average, times 3
        for the backward pass. Work that a kernel does on masked positions is not counted.
        """
        c = self.config
        per_layer = c.dim * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.dim * c.ffn_dim
        weights = c.n_layers * per_layer + c.dim * c.vocab_size
        return 6 * weights + 6 * c.n_layers * c.n_heads * c.head_dim * (seq_len + 1)
