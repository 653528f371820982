"""Llama 2 (arXiv:2307.09288), Llama 3 (arXiv:2407.21783) and Yi (arXiv:2403.04652): RMSNorm, GQA, RoPE, SwiGLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.models.config import DecoderConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys
from bloomery.nn import Llama3Scaling

MODEL_TYPE = "llama"

_LLAMA2_7B = DecoderConfig(
    vocab_size=32_000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, ffn_dim=11_008,
    max_positions=4096, norm_eps=1e-5,
)  # fmt: skip
_LLAMA3_8B = DecoderConfig(
    vocab_size=128_256, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, ffn_dim=14_336,
    max_positions=8192, norm_eps=1e-5, rope_theta=500_000.0,
)  # fmt: skip
_LLAMA3_70B = replace(_LLAMA3_8B, dim=8192, n_layers=80, n_heads=64, ffn_dim=28_672)
_LLAMA31_SCALING = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
_LLAMA32_3B = replace(
    _LLAMA3_8B, dim=3072, n_layers=28, n_heads=24, ffn_dim=8192, max_positions=131_072, tie_embeddings=True,
    rope_scaling=replace(_LLAMA31_SCALING, factor=32.0),
)  # fmt: skip
_YI_6B = DecoderConfig(
    vocab_size=64_000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=4, head_dim=128, ffn_dim=11_008,
    max_positions=4096, norm_eps=1e-5, rope_theta=5_000_000.0,
)  # fmt: skip

PRESETS = {
    "llama-tiny": DecoderConfig(
        vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352, max_positions=512,
        tie_embeddings=True,
    ),
    "llama-2-7b": _LLAMA2_7B,
    "llama-2-13b": replace(_LLAMA2_7B, dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, ffn_dim=13_824),
    "llama-2-70b": replace(_LLAMA2_7B, dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28_672),
    "llama-3-8b": _LLAMA3_8B,
    "llama-3-70b": _LLAMA3_70B,
    "llama-3.1-8b": replace(_LLAMA3_8B, max_positions=131_072, rope_scaling=_LLAMA31_SCALING),
    "llama-3.1-70b": replace(_LLAMA3_70B, max_positions=131_072, rope_scaling=_LLAMA31_SCALING),
    "llama-3.2-1b": replace(_LLAMA32_3B, dim=2048, n_layers=16, n_heads=32, head_dim=64),
    "llama-3.2-3b": _LLAMA32_3B,
    "yi-6b": _YI_6B,
    "yi-9b": replace(_YI_6B, n_layers=48, rope_theta=10_000.0, norm_eps=1e-6),
    "yi-34b": replace(_YI_6B, dim=7168, n_layers=60, n_heads=56, n_kv_heads=8, ffn_dim=20_480),
}  # fmt: skip


KEYS = Keys()


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    bias = fields.get("attention_bias", False)
    sizes = read_sizes(fields, max_positions=2048)
    return replace(sizes, qkv_bias=bias, o_bias=bias, mlp_bias=fields.get("mlp_bias", False))


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }
