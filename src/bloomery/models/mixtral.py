"""Mixtral (arXiv:2401.04088): Llama's decoder whose feed-forward layers are 8 experts, 2 per token, renormalised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.models.config import DecoderConfig, MoEConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys

MODEL_TYPE = "mixtral"

_8X7B = DecoderConfig(
    vocab_size=32_000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, ffn_dim=14_336,
    max_positions=32_768, norm_eps=1e-5, rope_theta=1_000_000.0,
    moe=MoEConfig(n_experts=8, top_k=2, expert_dim=14_336, renormalise=True, balance=0.02),
)  # fmt: skip

PRESETS = {
    "mixtral-tiny": DecoderConfig(
        vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=176, max_positions=512,
        moe=MoEConfig(n_experts=8, top_k=2, expert_dim=176, renormalise=True, balance=0.02),
    ),
    "mixtral-8x7b": _8X7B,
    "mixtral-8x22b": replace(
        _8X7B, vocab_size=32_768, dim=6144, n_layers=56, n_heads=48, ffn_dim=16_384, max_positions=65_536,
        moe=MoEConfig(n_experts=8, top_k=2, expert_dim=16_384, renormalise=True, balance=0.02),
    ),
}  # fmt: skip

KEYS = Keys(moe="block_sparse_moe.", expert_gate="w1", expert_up="w3", expert_down="w2")


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    fields.require("sliding_window", None, "sliding-window attention is left out")
    sizes = read_sizes(fields, max_positions=131_072, default_eps=1e-5)
    moe = MoEConfig(
        n_experts=fields.either(("num_local_experts", "num_experts"), 8, int),
        top_k=fields.get("num_experts_per_tok", 2),
        expert_dim=sizes.ffn_dim,
        renormalise=True,
    )
    return replace(sizes, moe=moe)


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    moe = config.moe or MoEConfig(n_experts=1, top_k=1, expert_dim=config.ffn_dim)
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "intermediate_size": moe.expert_dim,
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance,
        "sliding_window": None,
    }
