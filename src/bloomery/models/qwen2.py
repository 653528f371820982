"""Qwen2 (arXiv:2407.10671) and Qwen2.5 (arXiv:2412.15115): Llama's decoder with biases on q, k and v."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.core.errors import ConfigError
from bloomery.models.config import DecoderConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys

MODEL_TYPE = "qwen2"

_SMALL = DecoderConfig(
    vocab_size=151_936, dim=896, n_layers=24, n_heads=14, n_kv_heads=2, head_dim=64, ffn_dim=4864,
    max_positions=32_768, norm_eps=1e-6, rope_theta=1_000_000.0, qkv_bias=True, tie_embeddings=True,
)  # fmt: skip
_32B = replace(
    _SMALL, vocab_size=152_064, dim=5120, n_layers=64, n_heads=40, n_kv_heads=8, head_dim=128, ffn_dim=27_648,
    max_positions=131_072, norm_eps=1e-5, tie_embeddings=False,
)  # fmt: skip

PRESETS = {
    "qwen2-tiny": DecoderConfig(
        vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352, max_positions=512,
        norm_eps=1e-6, rope_theta=1_000_000.0, qkv_bias=True, tie_embeddings=True,
    ),
    "qwen2.5-0.5b": _SMALL,
    "qwen2.5-1.5b": replace(
        _SMALL, dim=1536, n_layers=28, n_heads=12, head_dim=128, ffn_dim=8960, max_positions=131_072
    ),
    "qwen2.5-3b": replace(_SMALL, dim=2048, n_layers=36, n_heads=16, head_dim=128, ffn_dim=11_008),
    "qwen2.5-7b": replace(_32B, dim=3584, n_layers=28, n_heads=28, n_kv_heads=4, ffn_dim=18_944, norm_eps=1e-6),
    "qwen2.5-14b": replace(_32B, n_layers=48, ffn_dim=13_824),
    "qwen2.5-32b": _32B,
    "qwen2.5-72b": replace(_32B, dim=8192, n_layers=80, n_heads=64, ffn_dim=29_568),
}  # fmt: skip

KEYS = Keys()


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    refuse_windows(fields)
    return replace(read_sizes(fields, max_positions=32_768), qkv_bias=True)


def refuse_windows(fields: Fields) -> None:
    """Raise where attention is limited to a window, which this decoder does not do."""
    windowed = "sliding_attention" in (fields.data.get("layer_types") or [])
    if fields.get("use_sliding_window", False) or windowed:
        raise ConfigError("sliding-window attention is not supported", where=fields.where)


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "use_sliding_window": False,
    }
