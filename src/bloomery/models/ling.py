"""Ling (Bailing MoE, arXiv:2503.05139 §2.1): fine-grained experts in every layer beside a shared one, NormHead.

Two spellings of the expert counts are published (base and chat checkpoints); both are read, and two that differ are an
error. The dropout fields of the published files are never applied by the released code and not here either. Balance
and z losses, of which that code has none, are in the presets with the paper's coefficients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.models.config import DecoderConfig, MoEConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys

MODEL_TYPE = "bailing_moe"

_LITE = DecoderConfig(
    vocab_size=126_464, dim=2048, n_layers=28, n_heads=16, n_kv_heads=4, head_dim=128, ffn_dim=5632,
    max_positions=16_384, norm_eps=1e-5, rope_theta=600_000.0, init_std=0.006,
    moe=MoEConfig(
        n_experts=64, top_k=6, expert_dim=1408, shared_dim=2816, renormalise=True, balance=0.015, z_loss=1e-4
    ),
)  # fmt: skip

PRESETS = {
    "ling-tiny": replace(
        _LITE, vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352,
        max_positions=512, rope_theta=10_000.0, init_std=0.02, head_norm="hidden",
        moe=MoEConfig(
            n_experts=16, top_k=4, expert_dim=64, shared_dim=64, renormalise=True, balance=0.015, z_loss=1e-4
        ),
    ),
    "ling-lite": _LITE,
    "ling-plus": replace(
        _LITE, dim=5376, n_layers=88, n_heads=56, n_kv_heads=8, head_dim=96, ffn_dim=12_288, norm_eps=1e-6,
        head_norm="hidden",
        moe=MoEConfig(
            n_experts=64, top_k=4, expert_dim=3072, shared_dim=3072, renormalise=True, balance=0.015, z_loss=1e-4
        ),
    ),
}  # fmt: skip

KEYS = Keys(embed="model.word_embeddings", attn="attention.", qkv=("query_key_value",), out="dense")
EXPERTS, SHARED = ("num_experts", "n_routed_experts"), ("num_shared_experts", "n_shared_experts")


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    sizes = read_sizes(fields, max_positions=16_384, default_eps=1e-5)
    top_k, width = fields.need("num_experts_per_tok", int), fields.need("moe_intermediate_size", int)
    moe = MoEConfig(
        n_experts=fields.either(EXPERTS, None, int),
        top_k=top_k,
        expert_dim=width,
        shared_dim=width * fields.either(SHARED, 0, int),
        first_dense=fields.get("first_k_dense_replace", 0),
        renormalise=fields.get("norm_topk_prob", True) and top_k > 1,  # a single weight stays the raw probability
    )
    return replace(
        sizes, moe=moe, head_norm="hidden" if fields.get("norm_head", False) else "none",
        qkv_bias=fields.get("use_qkv_bias", False), o_bias=fields.get("use_bias", False),
    )  # fmt: skip


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    moe = config.moe or MoEConfig(n_experts=1, top_k=1, expert_dim=1)
    return {
        "architectures": ["BailingMoeForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "moe_intermediate_size": moe.expert_dim,
        "num_experts": moe.n_experts,
        "num_shared_experts": moe.shared_dim // moe.expert_dim,
        "num_experts_per_tok": moe.top_k,
        "first_k_dense_replace": moe.first_dense,
        "norm_topk_prob": moe.renormalise,
        "norm_head": config.head_norm == "hidden",
        "use_qkv_bias": config.qkv_bias,
        "use_bias": config.o_bias,
    }
