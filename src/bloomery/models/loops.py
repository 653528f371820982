"""How a looped decoder is laid out: which blocks are repeated how often, and what may differ between repetitions.

Universal Transformer, RingFormer and Inner Thinking Transformer are settings of one layout: see `models.looped`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bloomery.core import config as plain
from bloomery.core.errors import ConfigError
from bloomery.models.config import DecoderConfig


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """RingFormer's level signals: (x Bᵀ) A for each of q, k, v and the feed-forward input, A and B of `rank` rows."""

    rank: int
    input: Literal["raw", "normed"] = "raw"  # what a pre-norm block's signals see: the residual stream, or its norm
    std: float = 1e-6  # of B at the start, as published; A is 0, so the model begins as one with tied levels

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank={self.rank}", fix="must be at least 1")
        if not 0 < self.std < math.inf:
            raise ConfigError(f"std={self.std}", fix="must be a positive number")


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """ITT's accumulation over steps, and its router unless `fraction` is None."""

    fraction: float | None = 0.7  # of the tokens of a sequence that take each step after the first
    alpha: float | None = None  # weight of every step after the first; None: 1 / times

    def __post_init__(self) -> None:
        if self.fraction is not None:
            check_fraction(self.fraction)
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise ConfigError(f"alpha={self.alpha}", fix="must be a finite number")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A window of distinct blocks and how it is repeated."""

    blocks: int = 1
    times: int = 1  # levels of the ring, or thinking steps
    norms: Literal["shared", "per_level"] = "shared"
    signals: LowRank | None = None
    thinking: Thinking | None = None

    def __post_init__(self) -> None:
        for name in ("blocks", "times"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="must be at least 1")

    @property
    def endless(self) -> bool:
        """Whether nothing belongs to one level, so that there can be any number of them."""
        return self.norms == "shared" and self.signals is None and self.thinking is None


@dataclass(frozen=True, kw_only=True)
class LoopedConfig:
    """A decoder's sizes, where `n_layers` counts the distinct blocks, and the loops that run over them in order."""

    decoder: DecoderConfig
    loops: tuple[Loop, ...]
    norm_place: Literal["pre", "post"] = "pre"  # x + f(norm(x)), or norm(x + f(x)) as in RingFormer's text model

    def __post_init__(self) -> None:
        c, blocks = self.decoder, sum(loop.blocks for loop in self.loops)
        if c.n_layers != blocks:
            raise ConfigError(f"n_layers={c.n_layers}, but the loops run over {blocks} blocks", fix="make them equal")
        for loop in self.loops:
            if loop.signals is not None and loop.signals.rank > c.dim:
                raise ConfigError(f"rank={loop.signals.rank} exceeds dim={c.dim}", fix="low rank means at most dim")
        for name, plain_value in (("mla", None), ("moe", None), ("post_norm", False)):
            if getattr(c, name) != plain_value:
                raise ConfigError(f"{name} is set", where="looped decoder", fix=f"looped blocks know no {name}")
        if c.init == "fan_in_depth":
            raise ConfigError("init='fan_in_depth'", where="looped decoder", fix="a looped block has no one depth")

    @property
    def routed(self) -> bool:
        """Whether a router decides which tokens take a step."""
        return any(loop.times > 1 and loop.thinking and loop.thinking.fraction for loop in self.loops)

    @property
    def vocab_size(self) -> int:
        """Tokens known."""
        return self.decoder.vocab_size

    @property
    def max_positions(self) -> int:
        """Context the model is meant for."""
        return self.decoder.max_positions

    @property
    def z_loss(self) -> float:
        """Weight of the squared log-normaliser in the language-model loss."""
        return self.decoder.z_loss

    @property
    def executions(self) -> int:
        """How often a block is run in one forward pass."""
        return sum(loop.blocks * loop.times for loop in self.loops)

    @property
    def cache_slots(self) -> int:
        """One for each execution: weights are shared between levels, keys and values are not."""
        return self.executions

    @property
    def cache_widths(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of what a slot holds."""
        return self.decoder.cache_widths

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        fields: dict[str, Any] = plain.encode(self)
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "") -> LoopedConfig:
        """The inverse of `to_dict`; an unknown key or a wrong type is a ConfigError."""
        return plain.decode(cls, data, where)


def ringformer(
    decoder: DecoderConfig,
    levels: int,
    rank: int | None = None,
    *,
    signal_input: Literal["raw", "normed"] = "raw",
    std: float = 1e-6,
    norm_place: Literal["pre", "post"] = "post",
) -> LoopedConfig:
    """All blocks of `decoder` as one ring of `levels`: own norms and signals per level; rank dim/16 unless given."""
    signals = LowRank(rank=decoder.dim // 16 if rank is None else rank, input=signal_input, std=std)
    loop = Loop(blocks=decoder.n_layers, times=levels, norms="per_level", signals=signals)
    return LoopedConfig(decoder=decoder, loops=(loop,), norm_place=norm_place)


def inner_thinking(
    decoder: DecoderConfig, times: Sequence[int], fraction: float | None = 0.7, alpha: float | None = None
) -> LoopedConfig:
    """`decoder` with `times[i]` thinking steps in block i; the paper alternates thinking blocks with ordinary ones (1).

    Raises ConfigError unless there is one number for each block.
    """
    if len(times) != decoder.n_layers:
        raise ConfigError(f"{len(times)} numbers of steps for {decoder.n_layers} blocks", fix="give one for each block")
    thinking = Thinking(fraction=fraction, alpha=alpha)
    loops = tuple(Loop(times=n, thinking=thinking if n > 1 else None) for n in times)
    return LoopedConfig(decoder=decoder, loops=loops)


def check_fraction(fraction: float) -> None:
    """Raise ConfigError unless it is a share of tokens."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction}", fix="above 0 and at most 1")
