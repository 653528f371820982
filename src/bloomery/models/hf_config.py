"""Reading and writing the `config.json` of a Hugging Face folder, in the spellings of transformers 4.x and 5.x.

`read_sizes` and `write_sizes` are what the families have in common; each adds its own fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from bloomery.core.errors import ConfigError, nearest
from bloomery.models.config import DecoderConfig
from bloomery.nn import Activation, LinearScaling, Llama3Scaling, NTKScaling, RopeScaling, YarnScaling

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}  # fmt: skip
PUBLISHED_ACTIVATION = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}

T = TypeVar("T")


class Fields:
    """The mapping of one `config.json`, read strictly: wrong types, missing fields and likely typos are ConfigErrors.

    Published files are full of fields that do not concern the computation, so an unknown one is accepted, unless it
    looks like a misspelling of a field that was asked for and is absent (`finish` checks that).
    """

    def __init__(self, data: Mapping[str, Any], where: object) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected a mapping of fields, got {type(data).__name__}", where=where)
        self.data, self.where = data, where
        self._absent: set[str] = set()

    def need(self, name: str, kind: type[T]) -> T:
        """The value of a field that must be there."""
        if self.data.get(name) is None:
            raise ConfigError(f"the field {name!r} is missing", where=self.where, fix=nearest(name, self.data))
        return self._typed(name, kind)

    def get(self, name: str, default: T) -> T:
        """The value of a field, or `default` (whose type it must have) when it is absent or null."""
        if self.data.get(name) is None:
            self._absent.add(name)
            return default
        return self._typed(name, type(default))

    def either(self, names: tuple[str, ...], default: T | None, kind: type[T]) -> T:
        """The value of a field that is known under several names. Two of them that differ are a ConfigError."""
        given = {name: self._typed(name, kind) for name in names if self.data.get(name) is not None}
        if len(set(given.values())) > 1:
            said = " and ".join(f"{name}={value!r}" for name, value in given.items())
            raise ConfigError(f"{said} contradict each other", where=self.where, fix="they mean the same: keep one")
        if given:
            return next(iter(given.values()))
        self._absent.update(names)
        return self.need(names[0], kind) if default is None else default

    def require(self, name: str, accepted: Any, why: str) -> None:
        """Raise unless the field is absent, null or `accepted`."""
        if self.data.get(name) not in (None, accepted):
            raise ConfigError(f"{name}={self.data[name]!r} is not supported: {why}", where=self.where)

    def finish(self) -> None:
        """Raise if a field nobody asked for is nearly the name of one that was asked for and is absent."""
        for name in sorted(self.data.keys() - self._absent):
            if close := difflib.get_close_matches(name, self._absent - self.data.keys(), n=1, cutoff=0.9):
                raise ConfigError(f"unknown field {name!r}", where=self.where, fix=f"did you mean {close[0]!r}?")

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.data[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ConfigError(f"{name}={value!r} is not of type {kind.__name__}", where=self.where)
        return value


def read_sizes(
    fields: Fields,
    *,
    max_positions: int,
    eps: tuple[str, ...] = ("rms_norm_eps",),
    default_eps: float = 1e-6,
    ffn: str = "intermediate_size",
    activation: str = "silu",
) -> DecoderConfig:
    """The fields that most families share. The other arguments are the family's spellings and defaults."""
    act = fields.get("hidden_act", activation)
    if act not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act={act!r} is not supported", where=fields.where, fix=f"known: {sorted(ACTIVATIONS)}"
        )
    fields.require("quantization_config", None, "load the unquantised checkpoint")
    dim, n_heads = fields.need("hidden_size", int), fields.need("num_attention_heads", int)
    if fields.data.get("head_dim") is None and dim % max(n_heads, 1):
        raise ConfigError(
            f"hidden_size={dim} is not a multiple of num_attention_heads={n_heads}",
            where=fields.where,
            fix="correct one of them or give head_dim",
        )
    theta, scaling = read_rope(fields)
    return DecoderConfig(
        vocab_size=fields.need("vocab_size", int),
        dim=dim,
        n_layers=fields.need("num_hidden_layers", int),
        n_heads=n_heads,
        n_kv_heads=fields.get("num_key_value_heads", n_heads),
        head_dim=fields.get("head_dim", dim // max(n_heads, 1)),
        ffn_dim=fields.need(ffn, int),
        max_positions=fields.get("max_position_embeddings", max_positions),
        norm_eps=fields.either(eps, default_eps, float),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=ACTIVATIONS[act],
        tie_embeddings=fields.get("tie_word_embeddings", False),
        init_std=fields.get("initializer_range", 0.02),
    )


def write_sizes(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": PUBLISHED_ACTIVATION[config.activation],
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
    }


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base and scaling: `rope_theta` + `rope_scaling` (4.x) or `rope_parameters` (5.x)."""
    rope = rope_fields(fields)
    theta = fields.get("rope_theta", 10_000.0)
    if rope.get("rope_theta", theta) != theta and "rope_theta" in fields.data:
        raise ConfigError(f"rope_theta is {theta} here and {rope.data['rope_theta']} there", where=rope.where)
    theta = rope.get("rope_theta", theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=rope.need("factor", float))
    if kind == "ntk":
        return theta, NTKScaling(factor=rope.need("factor", float))
    if kind == "llama3":
        return theta, Llama3Scaling(
            factor=rope.need("factor", float),
            low_freq_factor=rope.need("low_freq_factor", float),
            high_freq_factor=rope.need("high_freq_factor", float),
            original_max_positions=rope.need("original_max_position_embeddings", int),
        )
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings", fields.get("max_position_embeddings", 2048))
        return theta, YarnScaling(
            factor=rope.need("factor", float),
            original_max_positions=original,
            beta_fast=rope.get("beta_fast", 32.0),
            beta_slow=rope.get("beta_slow", 1.0),
            mscale=rope.get("mscale", 0.0) or None,
            mscale_all_dim=rope.get("mscale_all_dim", 0.0) or None,
            attention_factor=rope.get("attention_factor", 0.0) or None,
            truncate=rope.get("truncate", True),
        )
    raise ConfigError(
        f"rope type {kind!r} is not supported", where=rope.where, fix="known: default, linear, ntk, llama3, yarn"
    )


def rope_fields(fields: Fields) -> Fields:
    """The mapping about rotary embedding, under either of its names; empty when there is none."""
    old, new = fields.data.get("rope_scaling"), fields.data.get("rope_parameters")
    if old and new and old != new:
        raise ConfigError(f"rope_scaling={old} and rope_parameters={new} contradict each other", where=fields.where)
    return Fields(new or old or {}, f"{fields.where}: {'rope_parameters' if new else 'rope_scaling'}")


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """The 4.x spelling, which every reader since understands; NTK scaling becomes the larger base that it is."""
    scaling, theta = config.rope_scaling, config.rope_theta
    written: dict[str, Any] | None = None
    if isinstance(scaling, NTKScaling):
        theta *= scaling.factor ** (config.rotary_dim / (config.rotary_dim - 2))
    elif isinstance(scaling, LinearScaling):
        written = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        written = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    elif isinstance(scaling, YarnScaling):
        written = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_max_positions,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
        optional = {name: getattr(scaling, name) for name in ("mscale", "mscale_all_dim", "attention_factor")}
        written |= {name: value for name, value in optional.items() if value is not None}
    return {"rope_theta": theta, "rope_scaling": written}
