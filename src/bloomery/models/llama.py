"""Llama 2 (arXiv:2307.09288), Llama 3 (arXiv:2407.21783) and Yi (arXiv:2403.04652): RMSNorm, GQA, RoPE, SwiGLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bloomery.core.errors import ConfigError
from bloomery.models.decoder import Block, Decoder, DecoderConfig
from bloomery.models.hf_config import Fields, read_rope, write_rope
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


def fits(config: DecoderConfig) -> bool:
    """Whether the published format can express this decoder: attention has biases everywhere or nowhere."""
    return config.qkv_bias == config.o_bias


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    bias = fields.get("attention_bias", False)
    sizes = read_sizes(fields, max_positions=2048)
    return replace(sizes, qkv_bias=bias, o_bias=bias, mlp_bias=fields.get("mlp_bias", False))


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder that `fits`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def read_sizes(fields: Fields, *, max_positions: int) -> DecoderConfig:
    """The fields that Llama's relatives share; `max_positions` is the family's default."""
    fields.require("hidden_act", "silu", "the feed-forward layer is SwiGLU")
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
        ffn_dim=fields.need("intermediate_size", int),
        max_positions=fields.get("max_position_embeddings", max_positions),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
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
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config.rope_theta, config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
    }


def tensors(model: Decoder) -> dict[str, Tensor]:
    """The key map: published name → its place in our memory.

    Every value is a view. Copying into it imports a tensor, reading it exports one; the matrices that we keep fused
    (q, k, v and gate, up) appear as row ranges, so neither direction needs a conversion.
    """
    table = {"model.embed_tokens.weight": model.embed.weight.detach()}
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        table.update((f"model.layers.{i}.{name}", view) for name, view in _block_tensors(block).items())
    table["model.norm.weight"] = model.norm.weight.detach()
    if model.head is not None:
        table["lm_head.weight"] = model.head.weight.detach()
    return table


def _block_tensors(block: Block) -> dict[str, Tensor]:
    attn, ffn = block.attn, block.ffn
    q, kv, hidden = attn.n_heads * attn.head_dim, attn.n_kv_heads * attn.head_dim, ffn.down.in_features
    return {
        "input_layernorm.weight": block.norm1.weight.detach(),
        **_rows(attn.qkv, {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv}),
        **_rows(attn.out, {"self_attn.o_proj": attn.out.out_features}),
        "post_attention_layernorm.weight": block.norm2.weight.detach(),
        **_rows(ffn.gate_up, {"mlp.gate_proj": hidden, "mlp.up_proj": hidden}),
        **_rows(ffn.down, {"mlp.down_proj": ffn.down.out_features}),
    }


def _rows(linear: nn.Linear, heights: dict[str, int]) -> dict[str, Tensor]:
    """The weight (and bias, if there is one) of a linear layer as named row ranges of the given heights."""
    rows = {}
    for kind, fused in linear.named_parameters():
        for name, view in zip(heights, torch.split(fused.detach(), list(heights.values())), strict=True):
            rows[f"{name}.{kind}"] = view
    return rows
