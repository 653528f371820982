"""Recurrent depth: windows of blocks applied several times, with what lets the repetitions differ.

```text
tokens ─ embed ─ window 1 × times ─ window 2 × times ─ … ─ norm ─ head ─ logits
```

Three published designs are settings of one stack. *Universal Transformer* (arXiv:1807.03819): one block, many levels,
all weights shared. *RingFormer* (arXiv:2502.13181): the same, and every level has its own norms and low-rank signals,
functions of the token, that are added to queries, keys, values and to the input of the feed-forward layer. *Inner
Thinking Transformer* (ITT, arXiv:2502.13842): a decoder in which some blocks take several thinking steps; a router
sends only some tokens on, and the results of all steps are accumulated under learned step encodings.

ITT has no public code. Where its paper is silent: a token that skips a step keeps, for the others to see, the keys and
values of its first step, in training as in decoding; the router picks a fraction of every sequence in training, which
looks at the future, and compares with a threshold in evaluation, which does not. Left out: RingFormer's
encoder-decoder (cross-attention) and vision variants, Universal Transformer's halting and position coding per level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bloomery.core.errors import ConfigError
from bloomery.models.decoder import Decoder, make_attention, make_feed_forward, place
from bloomery.models.loops import Loop, LoopedConfig, LowRank, check_fraction
from bloomery.models.routing import Chosen, ChosenMask, FirstStep, LaterStep, Route, Router
from bloomery.nn import Causal, KVCache, KVSlot, LayerNorm1p, Linear, Rope, Rotary, linear, make_norm, normalised_head

# --- parts -----------------------------------------------------------------------------------------------------------


class LevelSignal(nn.Module):
    """What one level adds: for X in q, k, v, ffn the product (x B_Xᵀ) A_X; the dim × dim matrix is never built."""

    def __init__(self, dim: int, widths: tuple[int, int, int], low_rank: LowRank) -> None:
        super().__init__()
        self.rank, self.columns, self.std = low_rank.rank, [*widths, dim], low_rank.std
        self.b = nn.Parameter(torch.empty(4 * self.rank, dim))  # rows [q; k; v; ffn]
        self.a = nn.Parameter(torch.zeros(self.rank, sum(self.columns)))  # columns [q, k, v, ffn]

    def qkv(self, x: Tensor) -> Tensor:
        """(batch, seq, q + k + v columns) for x (batch, seq, dim)."""
        reduced = linear(x, self.b[: 3 * self.rank]).split(self.rank, dim=-1)
        return torch.cat([r @ a for r, a in zip(reduced, self.a.split(self.columns, 1)[:3], strict=True)], dim=-1)

    def ffn(self, x: Tensor) -> Tensor:
        """(batch, seq, dim) for x (batch, seq, dim)."""
        return linear(x, self.b[3 * self.rank :]) @ self.a[:, -self.columns[-1] :]


class LoopedBlock(nn.Module):
    """A block whose matrices are shared by all levels and whose norms and signals may belong to one."""

    def __init__(self, config: LoopedConfig, loop: Loop) -> None:
        super().__init__()
        c = config.decoder
        self.pre, self.raw = config.norm_place == "pre", loop.signals is None or loop.signals.input == "raw"
        norms = loop.times if loop.norms == "per_level" else 1
        self.norm1 = nn.ModuleList(make_norm(c.norm, c.dim, c.norm_eps) for _ in range(norms))
        self.attn: Any = make_attention(c)
        self.norm2 = nn.ModuleList(make_norm(c.norm, c.dim, c.norm_eps) for _ in range(norms))
        self.ffn: Any = make_feed_forward(c, 0)
        q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        signals = [] if loop.signals is None else [loop.signals] * loop.times
        self.signals: Any = nn.ModuleList(LevelSignal(c.dim, (q, kv, kv), low_rank) for low_rank in signals)

    def forward(self, x: Tensor, level: int, rotary: Rotary, mask: Causal, cache: KVSlot | None = None) -> Tensor:
        """x (batch, seq, dim) to the same shape, as the execution at `level` does it."""
        norm1, norm2 = (norms[level % len(norms)] for norms in (self.norm1, self.norm2))
        signal = self.signals[level] if len(self.signals) else None

        h = norm1(x) if self.pre else x
        added = None if signal is None else signal.qkv(x if self.raw else h)
        x = x + self.attn(h, rotary, mask, cache, added)
        if not self.pre:
            x = norm1(x)

        if signal is None:
            h = norm2(x) if self.pre else x
        elif self.raw:
            h = x + signal.ffn(x)  # the residual stays x
            h = norm2(h) if self.pre else h
        else:
            h = norm2(x) if self.pre else x
            h = h + signal.ffn(h)
        x = x + self.ffn(h)
        return x if self.pre else norm2(x)

    def matrices(self, level: int) -> int:
        """Weights that a token is multiplied with at `level`."""
        parts = [self.attn, self.ffn, *self.signals[level : level + 1]]
        return sum(p.numel() for part in parts for p in part.parameters() if p.dim() > 1)


class Effort(NamedTuple):
    """How much a loop computes; starts as configured and may be changed on a trained model."""

    times: int
    fraction: float | None  # of tokens that a router sends on
    threshold: float | None = None  # of router weights in evaluation; None: the one that lets `fraction` pass


class LoopedStack(nn.Module):
    """A window of blocks, repeated."""

    def __init__(self, config: LoopedConfig, index: int) -> None:
        super().__init__()
        self.loop = loop = config.loops[index]
        self.index, self.thinking = index, loop.thinking
        self.effort = Effort(loop.times, None if loop.thinking is None else loop.thinking.fraction)
        self.blocks: Any = nn.ModuleList(LoopedBlock(config, loop) for _ in range(loop.blocks))
        if loop.thinking is not None:
            self.encodings = nn.Parameter(torch.ones(loop.times, config.decoder.dim))  # φ, one per step
            self.alpha = 1 / loop.times if loop.thinking.alpha is None else loop.thinking.alpha
        routers = 0 if self.effort.fraction is None else loop.times - 1
        self.routers: Any = nn.ModuleList(Router(config.decoder.dim) for _ in range(routers))

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Causal, slots: Sequence[KVSlot | None], routes: list[Route]
    ) -> Tensor:
        """x (batch, seq, dim) to the same shape. `slots` are one per execution, step after step."""
        if self.thinking is None:
            for level in range(self.effort.times):
                x = self._window(x, level, rotary, mask, self._slots(slots, level))
            return x
        first = [FirstStep(slot) for slot in self._slots(slots, 0)]
        y = self._window(x, 0, rotary, mask, first) * self.encodings[0]
        for step in range(1, self.effort.times):
            held, scale = self._slots(slots, step), self.alpha * self.encodings[step]
            if not self.routers:
                y = y + scale * self._window(y, step, rotary, mask, held)
                continue
            w, selected = self._route(y, step)
            routes.append(Route(self.index, step, w, selected))
            chosen = Chosen(selected)
            if chosen.most:
                later = [LaterStep(f, chosen, slot) for f, slot in zip(first, held, strict=True)]
                part = chosen.take(y)  # (batch, most, dim)
                masked = ChosenMask(mask, chosen, y.shape[1])
                z = self._window(part, step, chosen.rotary(rotary), masked, later)
                weight = chosen.take(w)[..., None].to(z.dtype)
                y = chosen.put(part + weight * scale * z, y)
            else:  # nobody thinks on: the step's slots still have to hold every position
                for f, slot in zip(first, held, strict=True):
                    if slot is not None:
                        slot.append(*f.new)
        return y

    def _window(self, x: Tensor, level: int, rotary: Rotary, mask: Causal, slots: Sequence[Any]) -> Tensor:
        for block, slot in zip(self.blocks, slots, strict=True):
            x = block(x, level, rotary, mask, slot)
        return x

    def _slots(self, slots: Sequence[KVSlot | None], level: int) -> Sequence[KVSlot | None]:
        return slots[level * len(self.blocks) : (level + 1) * len(self.blocks)]

    def _route(self, y: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Router weights and the tokens that take the step, both (batch, seq)."""
        router, effort = self.routers[step - 1], self.effort
        assert isinstance(router, Router)
        assert effort.fraction is not None
        w = router(y)
        return w, router.top(w, effort.fraction) if self.training else router.above(
            w, effort.fraction, effort.threshold
        )

    def changed(self, times: int | None, fraction: float | None, threshold: float | None) -> Effort:
        """The present effort with what is given; ConfigError for what this loop cannot do."""
        where = f"loop {self.index}"
        most = math.inf if self.loop.endless else self.loop.times
        if times is not None and not 1 <= times <= most:
            raise ConfigError(f"times={times}", where=where, fix=f"from 1 to {most}; a level beyond has no parameters")
        for name, value in (("fraction", fraction), ("threshold", threshold)):
            if value is not None and not self.routers:
                raise ConfigError(f"{name}={value}, but it has no router", where=where, fix="give None")
        effort = self.effort if times is None else self.effort._replace(times=times)
        if fraction is not None:
            check_fraction(fraction)
            effort = effort._replace(fraction=fraction, threshold=None)
        return effort if threshold is None else effort._replace(threshold=threshold)


# --- model -----------------------------------------------------------------------------------------------------------


class LoopedOutput:
    """What a forward pass gives: `hidden` (batch, seq, dim) after the last norm, `logits` when asked for, `routes`."""

    def __init__(self, decoder: LoopedDecoder, hidden: Tensor, routes: list[Route]) -> None:
        self.decoder, self.hidden, self.routes = decoder, hidden, routes
        self.aux: dict[str, Tensor] = {}  # as of a decoder without experts: ITT has no ponder cost
        self.aux_loss, self.loads = 0.0, None

    @property
    def logits(self) -> Tensor:
        """(batch, seq, vocab), computed at each access."""
        return self.decoder.logits(self.hidden)


class LoopedDecoder(nn.Module):
    """A decoder of loops, used like `Decoder`: same call, same cache, same training and generation.

    The gradient of a shared matrix is a sum over its executions: keep clipping on, and expect a best learning rate
    below that of the untied model. In training mode routers look at whole sequences, so a cache is refused then.
    Without a `generator` the weights are a fixed draw.
    """

    def __init__(self, config: LoopedConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, c = config, config.decoder
        self.embed = nn.Embedding(c.vocab_size, c.dim)
        self.rope = Rope(c.rotary_dim, c.rope_theta, c.max_positions, c.rope_scaling, c.rope_layout)
        self.stacks: Any = nn.ModuleList(LoopedStack(config, index) for index in range(len(config.loops)))
        self.norm = make_norm(c.norm, c.dim, c.norm_eps) if config.norm_place == "pre" else nn.Identity()
        self.head = None if c.tie_embeddings else Linear(c.dim, c.vocab_size, bias=False)
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
    ) -> LoopedOutput:
        """As `Decoder.forward`: tokens (batch, seq) int64 or embeds (batch, seq, dim), a mask or left `padding`.

        Raises ValueError for a cache or padding with routers in training mode, and BloomeryError in evaluation mode
        when a router has neither seen training nor been given a threshold.
        """
        if (tokens is None) == (embeds is None):
            raise ValueError("give either tokens or embeds")
        if self.training and (cache is not None or padding is not None) and any(len(s.routers) for s in self.stacks):
            raise ValueError("a router in training mode looks at whole sequences: call eval() before decoding")
        x = self.embed(tokens) if embeds is None else embeds  # (batch, seq, dim)
        x = x * self.config.decoder.embed_scale
        rotary, mask = place(self.rope, x, positions, mask, cache, padding)
        routes: list[Route] = []
        for stack, slots in zip(self.stacks, self._slots(cache), strict=True):
            x = stack(x, rotary, mask, slots, routes)
        return LoopedOutput(self, self.norm(x) * self.config.decoder.logit_scale, routes)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of hidden states (..., dim): (..., vocab)."""
        return linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """(vocab, dim): what turns hidden states into logits."""
        if self.head is None:
            return self.embed.weight
        return normalised_head(self.head.weight, self.config.decoder.head_norm)

    def _slots(self, cache: KVCache | None) -> list[list[KVSlot | None]]:
        """The cache's slots by loop; every configured execution has its own, also one that is switched off now."""
        parts: list[list[KVSlot | None]] = []
        begin = 0
        for stack in self.stacks:
            blocks, times = stack.loop.blocks, stack.effort.times
            if cache is None:
                parts.append([None] * (blocks * times))
                continue
            if times > stack.loop.times:
                what = f"{times} levels in loop {stack.index}, but a cache has slots for {stack.loop.times}"
                raise ConfigError(what, fix="decode without a cache, or configure more levels")
            used = cache.slots[begin : begin + blocks * times]
            if any(slot.length != cache.length for slot in used):
                raise ConfigError("the cache was begun with fewer levels than the model has now", fix="begin a new one")
            parts.append(list(used))
            begin += blocks * stack.loop.times
        return parts

    def set_effort(
        self,
        *,
        times: Sequence[int | None] | None = None,
        fraction: Sequence[float | None] | None = None,
        threshold: Sequence[float | None] | None = None,
    ) -> None:
        """Change the depth of a trained model: one entry for each loop, None leaves that loop as it is.

        `times` goes from 1 to the loop's own number, or on from there where no parameter belongs to one level (no
        cache then: it has slots for the configured number). `fraction` is what share of tokens a router sends on;
        `threshold` is what its weights are compared with in evaluation, until `fraction` is set again.

        Raises ConfigError for a list of the wrong length, values out of range or meant for a loop without a router.
        """
        none = [None] * len(self.stacks)
        for name, given in (("times", times), ("fraction", fraction), ("threshold", threshold)):
            if given is not None and len(given) != len(none):
                raise ConfigError(f"{name} has {len(given)} entries", fix=f"one for each of the {len(none)} loops")
        values = zip(self.stacks, times or none, fraction or none, threshold or none, strict=True)
        for stack, effort in [(stack, stack.changed(*wanted)) for stack, *wanted in values]:
            stack.effort = effort

    def _blocks(self) -> list[LoopedBlock]:
        """The distinct blocks, in order."""
        return [block for stack in self.stacks for block in stack.blocks]

    @torch.no_grad()
    def load_decoder(self, decoder: Decoder) -> None:
        """Take over the weights of a decoder of the same sizes; all norms of a block begin as its one.

        With one step per loop, or all step encodings 1 and alpha 0, this is the decoder's function.
        """
        if decoder.config != self.config.decoder or self.config.norm_place == "post":
            raise ConfigError(
                "the decoder's layout is not that of the blocks here", fix="use `config.decoder`, pre-norm"
            )
        pairs: list[tuple[Any, Any]] = [
            (self.embed, decoder.embed),
            (self.norm, decoder.norm),
            (self.head, decoder.head),
        ]
        for ours, theirs in zip(self._blocks(), decoder.blocks, strict=True):
            pairs += [(ours.attn, theirs.attn), (ours.ffn, theirs.ffn)]
            pairs += [(norm, theirs.norm1) for norm in ours.norm1] + [(norm, theirs.norm2) for norm in ours.norm2]
        for mine, source in pairs:
            if source is not None:  # a tied head
                mine.load_state_dict(source.state_dict())

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight as `Decoder.init_weights` does, where depth is the number of executions.

        Signals begin as zero (A = 0, B of their own std), step encodings as one, router weights w as a half for every
        token.
        """
        c = self.config.decoder
        indifferent = {id(p) for stack in self.stacks for p in stack.routers.parameters()}
        generator = generator or torch.Generator(self.embed.weight.device).manual_seed(0)
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, LevelSignal):
                    parameter.normal_(std=module.std, generator=generator) if name == "b" else parameter.zero_()
                elif isinstance(module, LoopedStack):
                    parameter.fill_(1.0)
                elif id(parameter) in indifferent:
                    parameter.zero_()
                elif parameter.dim() == 1:
                    parameter.fill_(0.0 if name == "bias" or isinstance(module, LayerNorm1p) else 1.0)
                elif c.init == "fan_in":
                    parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
                else:
                    parameter.normal_(std=c.init_std, generator=generator)
        if c.init == "normal":
            for block in self._blocks():
                for matrix in (block.attn.out.weight, block.ffn.down.weight):
                    matrix /= math.sqrt(2 * self.config.executions)

    def num_parameters(self, embeddings: bool = True) -> int:
        """Parameters, shared ones once; without `embeddings` those of the token table and of the head are left out."""
        total = sum(p.numel() for p in self.parameters())
        tables = [self.embed.weight, *([] if self.head is None else [self.head.weight])]
        return total if embeddings else total - sum(table.numel() for table in tables)

    def flops_per_token(self, seq_len: int) -> int:
        """Operations to train on one token in causal sequences of `seq_len`, counted as `Decoder.flops_per_token` does.

        Depth costs what it costs: a shared block counts once per execution at the present effort, and a routed step
        for the fraction of the tokens that take it. Loops save parameters, not operations.
        """
        c = self.config.decoder
        attention = 6 * c.n_heads * c.head_dim * (seq_len + 1)  # of one execution
        total = 6.0 * c.dim * c.vocab_size
        for stack in self.stacks:
            for step in range(stack.effort.times):
                share = 1.0 if step == 0 or not stack.routers else stack.effort.fraction
                routing = 6 * c.dim if step and stack.routers else 0
                total += share * sum(6 * block.matrices(step) + attention for block in stack.blocks) + routing
        return round(total)
