"""Qwen3's dense models (arXiv:2505.09388): Llama's decoder with RMS norms on queries and keys, before the rotation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.models.config import DecoderConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys
from bloomery.models.qwen2 import refuse_windows

MODEL_TYPE = "qwen3"

_06B = DecoderConfig(
    vocab_size=151_936, dim=1024, n_layers=28, n_heads=16, n_kv_heads=8, head_dim=128, ffn_dim=3072,
    max_positions=40_960, norm_eps=1e-6, rope_theta=1_000_000.0, qk_norm="pre_rope", tie_embeddings=True,
)  # fmt: skip
_8B = replace(_06B, dim=4096, n_layers=36, n_heads=32, ffn_dim=12_288, tie_embeddings=False)

PRESETS = {
    "qwen3-tiny": replace(
        _06B, vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352, max_positions=512
    ),
    "qwen3-0.6b": _06B,
    "qwen3-1.7b": replace(_06B, dim=2048, ffn_dim=6144),
    "qwen3-4b": replace(_06B, dim=2560, n_layers=36, n_heads=32, ffn_dim=9728),
    "qwen3-8b": _8B,
    "qwen3-14b": replace(_8B, dim=5120, n_layers=40, n_heads=40, ffn_dim=17_408),
    "qwen3-32b": replace(_8B, dim=5120, n_layers=64, n_heads=64, ffn_dim=25_600),
}

KEYS = Keys()


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    refuse_windows(fields)
    bias = fields.get("attention_bias", False)
    sizes = read_sizes(fields, max_positions=32_768)
    return replace(sizes, qk_norm="pre_rope", qkv_bias=bias, o_bias=bias, head_dim=fields.get("head_dim", 128))


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "attention_bias": config.qkv_bias,
        "use_sliding_window": False,
    }
