"""Nemotron-4 (arXiv:2402.16819, arXiv:2406.11704) and its pruned descendants (Minitron, arXiv:2407.14679).

Four differences from Llama: squared ReLU without a gate, rope on the first half of every head, layer norms whose
stored scale is the distance from one, and untied embeddings of 256,000 tokens. `transformers` 5.23 ignores the old
spelling `rope_percent` and uses 0.5; here every spelling counts, and two that differ are an error.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.core.errors import ConfigError
from bloomery.models.config import DecoderConfig
from bloomery.models.hf_config import Fields, read_sizes, rope_fields, write_sizes
from bloomery.models.keys import Keys

MODEL_TYPE = "nemotron"
FRACTION = ("partial_rotary_factor", "rope_percent", "rope_percentage")

_15B = DecoderConfig(
    vocab_size=256_000, dim=6144, n_layers=32, n_heads=48, n_kv_heads=8, head_dim=128, ffn_dim=24_576,
    max_positions=4096, norm="ln1p", norm_eps=1e-5, rope_dim=64, activation="relu2", gated=False, init_std=0.0134,
)  # fmt: skip

PRESETS = {
    "nemotron-4-tiny": replace(
        _15B, vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=512,
        max_positions=512, rope_dim=16, init_std=0.02,
    ),
    "nemotron-4-15b": _15B,
    "nemotron-4-340b": replace(
        _15B, dim=18_432, n_layers=96, n_heads=96, head_dim=192, ffn_dim=73_728, rope_dim=96, init_std=0.0063
    ),
    "minitron-4b": replace(_15B, dim=3072, n_heads=24, ffn_dim=9216),
}  # fmt: skip

KEYS = Keys()


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    sizes = read_sizes(
        fields, max_positions=4096, eps=("norm_eps", "layer_norm_eps"), default_eps=1e-5, activation="relu2"
    )
    rope = rope_fields(fields)
    spelled = {name: fields.data[name] for name in FRACTION if fields.data.get(name) is not None}
    if rope.data.get(FRACTION[0]) is not None:
        spelled["rope_parameters." + FRACTION[0]] = rope.data[FRACTION[0]]
    fraction = Fields(spelled, fields.where).either(tuple(spelled), 0.5, float) if spelled else 0.5
    rope_dim = int(sizes.head_dim * fraction)
    if rope_dim < 2 or rope_dim % 2:
        raise ConfigError(
            f"a rotary fraction of {fraction} turns {rope_dim} of {sizes.head_dim} features",
            where=fields.where,
            fix="the number must be even and at least 2",
        )
    bias = fields.get("attention_bias", False)
    return replace(
        sizes, norm="ln1p", gated=False, qkv_bias=bias, o_bias=bias, mlp_bias=fields.get("mlp_bias", False),
        rope_dim=rope_dim,
    )  # fmt: skip


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    written = write_sizes(config)
    eps = written.pop("rms_norm_eps")
    return {
        "architectures": ["NemotronForCausalLM"],
        "model_type": MODEL_TYPE,
        **written,
        "norm_eps": eps,
        "partial_rotary_factor": config.rotary_dim / config.head_dim,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }
