"""One decoder-only transformer for every language-model family. A family is a configuration plus a key map.

```text
tokens ─ embed ─┬─────────────┬─ + ─┬─────────────┬─ + ─ … ─ norm ─ head ─ logits
                └ norm ─ attn ┘     └ norm ─ ffn ─┘
```
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bloomery.models.config import DecoderConfig, MLAConfig, MoEConfig
from bloomery.nn import (
    MLP,
    Causal,
    GatedMLP,
    GQAttention,
    KVCache,
    KVSlot,
    LayerNorm1p,
    Linear,
    MLAttention,
    MoE,
    Rope,
    Rotary,
    Router,
    Routing,
    balance_losses,
    linear,
    load,
    make_norm,
    normalised_head,
)

__all__ = ["Block", "Decoder", "DecoderConfig", "MLAConfig", "MoEConfig", "Output"]


class Output:
    """What a forward pass gives: `hidden` (batch, seq, dim) after the last norm, and `logits` when asked for.

    In training a mixture of experts adds `aux`, its auxiliary losses by name without coefficients, each the mean over
    its layers (`nn.balance_losses`); `aux_loss`, their weighted sum, to be added to the mean loss of the batch; and
    `loads` (layers with experts, experts), each expert's share of the assignments.
    """

    def __init__(self, decoder: Decoder, hidden: Tensor, routings: list[Routing] | None = None) -> None:
        self.decoder, self.hidden = decoder, hidden
        self.aux: dict[str, Tensor] = {}
        self.aux_loss: Tensor | float = 0.0
        self.loads: Tensor | None = None
        moe = decoder.config.moe
        if routings and moe is not None:
            layers = [
                balance_losses(
                    routing,
                    len(hidden),
                    score=moe.score,
                    n_groups=moe.n_groups,
                    top_groups=moe.top_groups,
                    scope=moe.balance_scope,
                )
                for routing in routings
            ]
            self.aux = {name: torch.stack([layer[name] for layer in layers]).mean() for name in layers[0]}
            self.aux_loss = sum((w * self.aux[name] for name, w in moe.loss_weights.items()), 0.0)
            self.loads = torch.stack([load(routing) for routing in routings])

    @property
    def logits(self) -> Tensor:
        """(batch, seq, vocab), computed at each access; `decoder.logits(hidden[:, -1:])` gives only the last."""
        return self.decoder.logits(self.hidden)


class Block(nn.Module):
    """Pre-norm residual block: attention over positions, then a feed-forward layer at each position.

    With `post_norm` ("sandwich") each of the two is also normalised before it is added.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        c = config
        self.norm1 = make_norm(c.norm, c.dim, c.norm_eps)
        self.attn = make_attention(c)
        self.norm2 = make_norm(c.norm, c.dim, c.norm_eps)
        self.ffn = make_feed_forward(c, layer)
        self.post1 = make_norm(c.norm, c.dim, c.norm_eps) if c.post_norm else nn.Identity()
        self.post2 = make_norm(c.norm, c.dim, c.norm_eps) if c.post_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Causal,
        cache: KVSlot | None = None,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """x (batch, seq, dim) to the same shape; a mixture of experts appends what it decided to `routings`."""
        x = x + self.post1(self.attn(self.norm1(x), rotary, mask, cache))
        h = self.norm2(x)
        return x + self.post2(self.ffn(h, routings) if isinstance(self.ffn, MoE) else self.ffn(h))


def make_attention(c: DecoderConfig) -> nn.Module:
    """The attention layer of that configuration."""
    if c.mla is not None:
        m = c.mla
        return MLAttention(
            c.dim,
            c.n_heads,
            q_rank=m.q_rank,
            kv_rank=m.kv_rank,
            nope_dim=m.nope_dim,
            rope_dim=m.rope_dim,
            v_dim=m.v_dim,
            scale=c.attention_scale,
            bias=c.o_bias,
        )
    return GQAttention(
        c.dim,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        c.qkv_bias,
        c.o_bias,
        qk_norm=c.qk_norm,
        norm_eps=c.norm_eps,
        scale=c.attention_scale,
        softcap=c.softcap,
    )


def make_feed_forward(c: DecoderConfig, layer: int) -> nn.Module:
    """The feed-forward layer, or mixture of experts, of layer number `layer`."""
    m = c.moe
    if m is None or layer < m.first_dense:
        return (GatedMLP if c.gated else MLP)(c.dim, c.ffn_dim, c.mlp_bias, c.activation)
    router = Router(
        c.dim,
        m.n_experts,
        m.top_k,
        score=m.score,
        renormalise=m.renormalise,
        scale=m.scale,
        n_groups=m.n_groups,
        top_groups=m.top_groups,
        group_score=m.group_score,
        warmup=m.warmup,
    )
    return MoE(
        c.dim,
        m.n_experts,
        m.top_k,
        m.expert_dim,
        shared_dim=m.shared_dim,
        activation=c.activation,
        capacity=m.capacity,
        router=router,
    )


class Decoder(nn.Module):
    """The decoder. Weights are drawn by `init_weights`, except on the meta device where there are none to draw.

    Without a `generator` the draw is a fixed one: two decoders of one configuration are equal.
    """

    def __init__(self, config: DecoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.rope = Rope(
            config.rotary_dim, config.rope_theta, config.max_positions, config.rope_scaling, config.rope_layout
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.dim, config.vocab_size, bias=False)
        self._normalised: tuple[tuple[int, int], Tensor] | None = None  # the head as last normalised, without gradients
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

        `embeds` stand for rows of the embedding table; `embed_scale` multiplies them too. `mask` defaults to causal.
        With a `cache` the input continues what the cache holds and is added to it.
        `padding` (batch,) int64 counts the left-padding slots of each row (with a cache: given at the first call,
        remembered by it); positions, (batch, seq) int64, count from the first real token unless given.
        """
        if (tokens is None) == (embeds is None):
            raise ValueError("give either tokens or embeds")
        x = self.embed(tokens) if embeds is None else embeds  # (batch, seq, dim)
        if self.config.embed_scale != 1.0:
            x = x * self.config.embed_scale
        rotary, mask = place(self.rope, x, positions, mask, cache, padding)
        routings: list[Routing] | None = [] if self.training and self.config.moe is not None else None
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, mask, None if cache is None else cache.slots[i], routings)
        hidden = self.norm(x)
        if self.config.logit_scale != 1.0:
            hidden = hidden * self.config.logit_scale
        return Output(self, hidden, routings)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of hidden states (..., dim): (..., vocab)."""
        return linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, dim): what turns hidden states into logits; the embedding when tied, normalised if asked for."""
        if self.head is None:
            return self.embed.weight
        weight = self.head.weight
        if self.config.head_norm == "none":
            return weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return normalised_head(weight, self.config.head_norm)
        state = (weight.data_ptr(), weight._version)  # decoding asks at every token: normalise once per change
        if self._normalised is None or self._normalised[0] != state:
            self._normalised = (state, normalised_head(weight, self.config.head_norm))
        return self._normalised[1]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight. Matrices are normal, biases 0, norms the identity.

        The standard deviation is `init_std`, divided by sqrt(2 · n_layers) for the two matrices that write to the
        residual stream, so that its variance stays flat over depth; or, with init="fan_in", 1 / sqrt(inputs) for
        every matrix, the embedding's inputs being its width; "fan_in_depth" (OpenLM) also cuts at three deviations and
        divides the matrices of layer l = 1, 2, … that write to the residual stream by sqrt(2 l).
        """
        c = self.config
        residual = 1 / math.sqrt(2 * c.n_layers)
        generator = generator or torch.Generator(self.embed.weight.device).manual_seed(0)
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 1:
                    parameter.fill_(0.0 if name == "bias" or isinstance(module, LayerNorm1p) else 1.0)
                elif c.init == "fan_in_depth":
                    std = parameter.shape[-1] ** -0.5
                    nn.init.trunc_normal_(parameter, std=std, a=-3 * std, b=3 * std, generator=generator)
                elif c.init == "fan_in":
                    parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
                else:
                    parameter.normal_(std=c.init_std, generator=generator)
        for layer, block in enumerate(self.blocks if c.init != "fan_in" else [], start=1):
            for matrix in _residual_outputs(block):
                matrix.mul_(residual if c.init == "normal" else (2 * layer) ** -0.5)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Parameters, tied ones once; without `embeddings` those of the token table and of the head are left out."""
        total = sum(p.numel() for p in self.parameters())
        return total if embeddings else total - sum(p.numel() for p in self._vocabulary_matrices())

    def active_parameters(self, embeddings: bool = True) -> int:
        """Parameters that one token meets: of the routed experts only its own `top_k`."""
        return self.num_parameters(embeddings) - self._idle_parameters()

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations to train on one token (forward and backward) in causal sequences of `seq_len`.

        6 per matrix weight that the token meets (the head counts, the embedding look-up does not) plus attention:
        scores take 2 · heads · head_dim per visible key and their sum over values 2 · heads · value_dim, (seq_len + 1)
        / 2 keys are visible on average, times 3 for the backward pass. Work that a kernel does on masked positions is
        not counted.
        """
        c = self.config
        weights = sum(p.numel() for p in self.blocks.parameters() if p.dim() > 1) - self._idle_parameters()
        attention = 3 * c.n_layers * c.n_heads * (c.head_dim + c.value_dim) * (seq_len + 1)
        return 6 * (weights + c.dim * c.vocab_size) + attention

    def _vocabulary_matrices(self) -> list[Tensor]:
        return [self.embed.weight] if self.head is None else [self.embed.weight, self.head.weight]

    def _idle_parameters(self) -> int:
        """Parameters of the routed experts that a token does not visit."""
        m = self.config.moe
        if m is None:
            return 0
        return self.config.moe_layers * (m.n_experts - m.top_k) * 3 * self.config.dim * m.expert_dim


def place(
    rope: Rope,
    x: Tensor,
    positions: Tensor | None,
    mask: Causal | None,
    cache: KVCache | None,
    padding: Tensor | None,
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
        rotary = rope(positions, int(positions.max()) + 1, x.device)
    elif padding is not None:
        places = torch.arange(begin, end, device=x.device) - padding[:, None]  # (batch, seq)
        rotary = rope(places.clamp_min(0), end, x.device)
    else:
        rotary = rope(slice(begin, end), end, x.device)
    return rotary, Causal(padding) if mask is None else mask


def _residual_outputs(block: nn.Module) -> list[Tensor]:
    """The matrices whose products are added to the residual stream."""
    last = ("attn.out.weight", "ffn.down.weight", "ffn.down", "ffn.shared.down.weight")
    return [parameter for name, parameter in block.named_parameters() if name in last]
