"""Grok-1 (the open weights of 2024, no paper): sandwich norms, capped scores, scaled embeddings, 8 experts.

This is the format of the ports to Hugging Face; `grok1_checkpoint` reads the original one. Deviations of known ports
(capped router logits, renormalised gates, exact gelu) are on the system's page; none of them is followed here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.core.errors import ConfigError
from bloomery.models.config import DecoderConfig, MoEConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys

MODEL_TYPE = "grok-1"

_314B = DecoderConfig(
    vocab_size=131_072, dim=6144, n_layers=64, n_heads=48, n_kv_heads=8, head_dim=128, ffn_dim=32_768,
    max_positions=8192, norm_eps=1e-5, post_norm=True, embed_scale=78.38367176906169, logit_scale=0.5773502691896257,
    softcap=30.0, activation="gelu_tanh", tie_embeddings=True, init="fan_in",
    moe=MoEConfig(n_experts=8, top_k=2, expert_dim=32_768),
)  # fmt: skip

PRESETS = {
    "grok-1-tiny": replace(
        _314B, vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352,
        max_positions=512, embed_scale=128**0.5, moe=MoEConfig(n_experts=8, top_k=2, expert_dim=352, balance=0.01),
    ),
    "grok-1": _314B,
}  # fmt: skip

KEYS = Keys(
    norm1="pre_attn_norm", norm2="pre_moe_norm", post1="post_attn_norm", post2="post_moe_norm", attn="attn.",
    moe="moe_block.", expert_gate="linear", expert_up="linear_v", expert_down="linear_1",
    renamed=(("norm.scale", "norm.weight"),),
)  # fmt: skip


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    sizes = read_sizes(fields, max_positions=8192, default_eps=1e-5, activation="gelu_pytorch_tanh")
    caps = ("max_attn_value", "attn_logit_softcapping")
    if fields.data.get("router_logit_softcapping") not in (None, 0, 0.0):
        raise ConfigError("capped router logits are a port's addition", where=fields.where, fix="remove the field")
    moe = MoEConfig(
        n_experts=fields.either(("num_experts", "num_local_experts"), 8, int),
        top_k=fields.get("num_experts_per_tok", 2),
        expert_dim=sizes.ffn_dim,
    )
    scale = fields.get("attn_output_multiplier", sizes.head_dim**-0.5)  # despite its name it scales the scores
    return replace(
        sizes, moe=moe, post_norm=True, softcap=fields.either(caps, 30.0, float), init="fan_in",
        softmax_scale=None if abs(scale * sizes.head_dim**0.5 - 1) < 1e-6 else scale,
        embed_scale=fields.get("embedding_multiplier_scale", 1.0),
        logit_scale=fields.get("output_multiplier_scale", 1.0),
        tie_embeddings=fields.get("tie_word_embeddings", True),
    )  # fmt: skip


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    moe = config.moe or MoEConfig(n_experts=1, top_k=1, expert_dim=config.ffn_dim)
    scale = config.head_dim**-0.5 if config.softmax_scale is None else config.softmax_scale
    return {
        "architectures": ["Grok1ModelForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "intermediate_size": moe.expert_dim,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "max_attn_value": config.softcap,
        "attn_output_multiplier": scale,
        "embedding_multiplier_scale": config.embed_scale,
        "output_multiplier_scale": config.logit_scale,
    }
