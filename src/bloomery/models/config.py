"""What decides a decoder's function and shapes, as plain validated data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from bloomery.core import config as plain
from bloomery.core.errors import ConfigError
from bloomery.nn import (
    Activation,
    BalanceScope,
    GroupScore,
    HeadNorm,
    NormKind,
    QKNorm,
    RopeLayout,
    RopeScaling,
    ScoreKind,
    YarnScaling,
)


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Widths of multi-head latent attention: see `bloomery.nn.MLAttention`."""

    q_rank: int | None  # None: queries come straight from the residual stream
    kv_rank: int
    nope_dim: int  # per head, not rotated
    rope_dim: int  # per head, rotated; its key is shared by all heads
    v_dim: int

    def __post_init__(self) -> None:
        for name in ("kv_rank", "nope_dim", "rope_dim", "v_dim"):
            _at_least(1, name, getattr(self, name))
        if self.q_rank is not None:
            _at_least(1, "q_rank", self.q_rank)
        if self.rope_dim % 2:
            raise ConfigError(f"rope_dim={self.rope_dim}", fix="rotary embedding turns pairs: must be even")


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """A mixture of experts in place of the feed-forward layer, and what training adds: see `bloomery.nn.MoE`."""

    n_experts: int
    top_k: int
    expert_dim: int
    shared_dim: int = 0  # width of the expert that is always on; 0: none
    first_dense: int = 0  # leading layers with an ordinary feed-forward layer of ffn_dim
    score: ScoreKind = "softmax"
    renormalise: bool = False  # divide the chosen weights by their sum
    scale: float = 1.0  # of the routed experts' weights
    n_groups: int = 1
    top_groups: int = 1  # groups a token may go to
    group_score: GroupScore = "max"
    capacity: float | None = None  # most tokens of an expert in training, as a multiple of the fair share; None: all
    balance: float = 0.0  # coefficients of the auxiliary losses, in training only
    device_balance: float = 0.0
    communication_balance: float = 0.0
    z_loss: float = 0.0
    balance_scope: BalanceScope = "batch"
    warmup: int = 0  # training passes of stochastic routing

    def __post_init__(self) -> None:
        for name in ("n_experts", "top_k", "expert_dim", "n_groups", "top_groups"):
            _at_least(1, name, getattr(self, name))
        for name in ("shared_dim", "first_dense", "warmup"):
            _at_least(0, name, getattr(self, name))
        if self.n_experts % self.n_groups:
            raise ConfigError(
                f"n_experts={self.n_experts} does not divide into n_groups={self.n_groups}",
                fix="every group needs the same number of experts",
            )
        if self.top_groups > self.n_groups:
            raise ConfigError(f"top_groups={self.top_groups} of n_groups={self.n_groups}", fix="choose at most all")
        reachable = self.n_experts // self.n_groups * self.top_groups
        if self.top_k > reachable:
            raise ConfigError(
                f"top_k={self.top_k}, but a token can reach {reachable} experts",
                fix="lower top_k, or raise n_experts or top_groups",
            )
        if self.group_score == "top2" and self.n_experts // self.n_groups < 2:
            raise ConfigError("group_score='top2' with one expert in a group", fix="use 'max'")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"scale={self.scale}", fix="must be a positive number")
        if self.capacity is not None and not 0 < self.capacity < math.inf:
            raise ConfigError(f"capacity={self.capacity}", fix="must be a positive number, or None for no limit")
        for name in ("balance", "device_balance", "communication_balance", "z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="must be 0 or a positive number")

    @property
    def loss_weights(self) -> dict[str, float]:
        """The coefficients of `nn.balance_losses`, by name, those that are not 0."""
        weights = {
            "balance": self.balance,
            "device_balance": self.device_balance,
            "communication_balance": self.communication_balance,
            "z": self.z_loss,
        }
        return {name: weight for name, weight in weights.items() if weight}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that decides a decoder's function and shapes. Sizes are explicit; nothing is derived silently."""

    vocab_size: int
    dim: int  # width of the residual stream
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int  # n_heads · head_dim need not equal dim
    ffn_dim: int  # of the dense feed-forward layers
    max_positions: int = 4096  # context the model is meant for; longer input is computed all the same
    # --- norms and residual stream
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    post_norm: bool = False  # "sandwich": the output of attention and of the feed-forward layer is normalised as well
    embed_scale: float = 1.0  # what embeddings are multiplied by
    logit_scale: float = 1.0  # what logits are multiplied by
    # --- attention
    mla: MLAConfig | None = None  # latent attention instead of grouped-query attention
    qk_norm: QKNorm = "none"
    softcap: float | None = None  # attention scores s become softcap · tanh(s / softcap)
    softmax_scale: float | None = None  # of attention scores; None: 1 / sqrt(head_dim)
    rope_theta: float = 10_000.0
    rope_dim: int | None = None  # leading features of a head that turn; None: all (latent attention: its own)
    rope_layout: RopeLayout = "half"
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    # --- feed-forward layers
    activation: Activation = "silu"
    gated: bool = True
    mlp_bias: bool = False
    moe: MoEConfig | None = None
    # --- head, initialisation, loss
    tie_embeddings: bool = False
    head_norm: HeadNorm = "none"
    init: Literal["normal", "fan_in", "fan_in_depth"] = "normal"  # see `Decoder.init_weights`
    init_std: float = 0.02
    z_loss: float = 0.0  # weight of the squared log-normaliser in the language-model loss

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_positions"):
            _at_least(1, name, getattr(self, name))
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}",
                fix="every key/value head serves the same number of query heads",
            )
        turning = self.rotary_dim
        if turning % 2:
            name = "head_dim" if self.rope_dim is None else "rope_dim"
            raise ConfigError(f"{name}={turning}", fix="rotary embedding turns pairs: must be even")
        if not 0 < turning <= self.head_dim:
            raise ConfigError(f"rope_dim={turning} of head_dim={self.head_dim}", fix="between 2 and head_dim")
        for name in ("norm_eps", "rope_theta", "init_std", "embed_scale", "logit_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="must be a positive number")
        for name in ("softcap", "softmax_scale"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}", fix="must be a positive number, or None")
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(f"z_loss={self.z_loss}", fix="must be 0 or a positive number")
        if self.head_norm != "none" and self.tie_embeddings:
            raise ConfigError("head_norm with tie_embeddings: normalising the head would rescale the embedding")
        if self.mla is not None:
            self._check_mla(self.mla)
        if self.moe is not None:
            if not self.gated or self.mlp_bias:
                raise ConfigError("a mixture of experts needs gated=True and mlp_bias=False")
            if self.moe.first_dense >= self.n_layers:
                raise ConfigError(
                    f"first_dense={self.moe.first_dense} of n_layers={self.n_layers}", fix="leave a layer with experts"
                )

    def _check_mla(self, mla: MLAConfig) -> None:
        if self.head_dim != mla.nope_dim + mla.rope_dim or self.n_kv_heads != self.n_heads:
            raise ConfigError(
                f"latent attention with head_dim={self.head_dim}, n_kv_heads={self.n_kv_heads}",
                fix=f"head_dim is nope_dim + rope_dim = {mla.nope_dim + mla.rope_dim}, n_kv_heads is n_heads",
            )
        if self.qk_norm != "none" or self.softcap is not None or self.rope_dim is not None:
            raise ConfigError(
                "latent attention has no qk_norm, softcap or rope_dim", fix="leave them at their defaults"
            )
        if self.qkv_bias != self.o_bias:
            raise ConfigError("latent attention has biases on its input and output projections or on neither")

    @property
    def rotary_dim(self) -> int:
        """Features of a head that turn with position."""
        if self.mla is not None:
            return self.mla.rope_dim
        return self.head_dim if self.rope_dim is None else self.rope_dim

    @property
    def value_dim(self) -> int:
        """Width of a head's values."""
        return self.head_dim if self.mla is None else self.mla.v_dim

    @property
    def attention_scale(self) -> float | None:
        """What attention scores are multiplied by; None: 1 / sqrt(head_dim)."""
        if self.mla is None or not isinstance(self.rope_scaling, YarnScaling):
            return self.softmax_scale
        scale = self.head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale
        return scale * self.rope_scaling.softmax_factor

    @property
    def moe_layers(self) -> int:
        """Layers with a mixture of experts."""
        return 0 if self.moe is None else self.n_layers - self.moe.first_dense

    @property
    def cache_slots(self) -> int:
        """Attention executions in a forward pass, each of which remembers its own."""
        return self.n_layers

    @property
    def cache_widths(self) -> tuple[tuple[int, int], ...]:
        """(heads, width) of the tensors that a cache slot holds per position: keys and values, or one latent."""
        if self.mla is not None:
            return ((1, self.mla.kv_rank + self.mla.rope_dim),)
        return ((self.n_kv_heads, self.head_dim),) * 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or YAML."""
        fields: dict[str, Any] = plain.encode(self)
        return fields

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "") -> DecoderConfig:
        """The inverse of `to_dict`; an unknown key or a wrong type is a ConfigError."""
        return plain.decode(cls, data, where)


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ConfigError(f"{name}={value}", fix=f"must be at least {least}")
