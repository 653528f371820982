"""DeepSeek-V2 and DeepSeek-Coder-V2 (arXiv:2405.04434, arXiv:2406.11931): latent attention and many small experts.

Layer 0 is dense. The rope is interleaved, on 64 of 192 features of a head, with YaRN. Routed weights are raw softmax
scores times a factor; with `norm_topk_prob` they are renormalised and the factor is not applied, as in the original
code (`transformers` ignores `norm_topk_prob`). The released initialiser (0.006 at 236B) and balance coefficients are
in the presets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.core.errors import ConfigError
from bloomery.models.config import DecoderConfig, MLAConfig, MoEConfig
from bloomery.models.hf_config import Fields, read_sizes, write_sizes
from bloomery.models.keys import Keys
from bloomery.nn import YarnScaling

MODEL_TYPE = "deepseek_v2"

_YARN = YarnScaling(factor=40.0, original_max_positions=4096, mscale=0.707, mscale_all_dim=0.707)
_LITE = DecoderConfig(
    vocab_size=102_400, dim=2048, n_layers=27, n_heads=16, n_kv_heads=16, head_dim=192, ffn_dim=10_944,
    max_positions=163_840, norm_eps=1e-6, rope_layout="interleaved", rope_scaling=_YARN,
    mla=MLAConfig(q_rank=None, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    moe=MoEConfig(
        n_experts=64, top_k=6, expert_dim=1408, shared_dim=2816, first_dense=1, balance=0.001, balance_scope="sequence"
    ),
)  # fmt: skip
_LARGE = replace(
    _LITE, dim=5120, n_layers=60, n_heads=128, n_kv_heads=128, ffn_dim=12_288, init_std=0.006,
    mla=MLAConfig(q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    moe=MoEConfig(
        n_experts=160, top_k=6, expert_dim=1536, shared_dim=3072, first_dense=1, scale=16.0, n_groups=8, top_groups=3,
        balance=0.003, device_balance=0.05, communication_balance=0.02, balance_scope="sequence",
    ),
)  # fmt: skip
_CHAT_YARN = replace(_YARN, mscale=1.0, mscale_all_dim=1.0)

PRESETS = {
    "deepseek-v2-tiny": DecoderConfig(
        vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=32, ffn_dim=352, max_positions=512,
        norm_eps=1e-6, rope_layout="interleaved",
        mla=MLAConfig(q_rank=None, kv_rank=32, nope_dim=16, rope_dim=16, v_dim=16),
        moe=MoEConfig(n_experts=16, top_k=4, expert_dim=64, shared_dim=64, first_dense=1, balance=0.001),
    ),
    "deepseek-v2-lite": _LITE,
    "deepseek-coder-v2-lite": _LITE,
    "deepseek-v2": _LARGE,
    "deepseek-coder-v2": replace(_LARGE, rope_scaling=_CHAT_YARN),
}  # fmt: skip

KEYS = Keys()


def read(fields: Fields) -> DecoderConfig:
    """The decoder that a `config.json` of this family describes."""
    fields.require("moe_layer_freq", 1, "every layer from first_k_dense_replace on has experts")
    fields.require("scoring_func", "softmax", "scores are softmax")
    mla = MLAConfig(
        q_rank=fields.get("q_lora_rank", 0) or None,
        kv_rank=fields.need("kv_lora_rank", int),
        nope_dim=fields.need("qk_nope_head_dim", int),
        rope_dim=fields.need("qk_rope_head_dim", int),
        v_dim=fields.need("v_head_dim", int),
    )
    n_heads = fields.need("num_attention_heads", int)
    if fields.get("num_key_value_heads", n_heads) != n_heads:
        raise ConfigError(
            f"num_key_value_heads={fields.data['num_key_value_heads']} of num_attention_heads={n_heads}",
            where=fields.where,
            fix="latent attention gives every head its own keys: the two must be equal",
        )
    method = fields.get("topk_method", "greedy")
    if method not in ("greedy", "gready", "group_limited_greedy"):
        raise ConfigError(f"topk_method={method!r}", where=fields.where, fix="known: greedy, group_limited_greedy")
    limited = method == "group_limited_greedy"
    top_k, width = fields.need("num_experts_per_tok", int), fields.need("moe_intermediate_size", int)
    renormalise = fields.get("norm_topk_prob", False) and top_k > 1
    moe = MoEConfig(
        n_experts=fields.either(("n_routed_experts", "num_experts", "num_local_experts"), None, int),
        top_k=top_k,
        expert_dim=width,
        shared_dim=width * fields.get("n_shared_experts", 0),
        first_dense=fields.get("first_k_dense_replace", 0),
        renormalise=renormalise,
        scale=1.0 if renormalise else fields.get("routed_scaling_factor", 1.0),
        n_groups=fields.get("n_group", 1) if limited else 1,
        top_groups=fields.get("topk_group", 1) if limited else 1,
    )
    bias = fields.get("attention_bias", False)
    if bias and mla.q_rank is None:
        raise ConfigError("attention_bias without q_lora_rank is not supported", where=fields.where)
    plain = Fields({**fields.data, "head_dim": mla.nope_dim + mla.rope_dim}, fields.where)  # 5.x: only the rotated part
    sizes = read_sizes(plain, max_positions=2048)
    return replace(
        sizes, mla=mla, moe=moe, rope_layout="interleaved", qkv_bias=bias, o_bias=bias,
        mlp_bias=fields.get("mlp_bias", False),
    )  # fmt: skip


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of this family for a decoder that it can express."""
    mla = config.mla or MLAConfig(q_rank=None, kv_rank=1, nope_dim=1, rope_dim=2, v_dim=1)
    moe = config.moe or MoEConfig(n_experts=1, top_k=1, expert_dim=1)
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": MODEL_TYPE,
        **write_sizes(config),
        "head_dim": mla.rope_dim,
        "q_lora_rank": mla.q_rank,
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "n_routed_experts": moe.n_experts,
        "n_shared_experts": moe.shared_dim // moe.expert_dim,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.expert_dim,
        "first_k_dense_replace": moe.first_dense,
        "moe_layer_freq": 1,
        "norm_topk_prob": moe.renormalise,
        "routed_scaling_factor": moe.scale,
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy" if moe.n_groups > 1 else "greedy",
        "n_group": moe.n_groups,
        "topk_group": moe.top_groups,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "aux_loss_alpha": moe.balance,
        "seq_aux": moe.balance_scope == "sequence",
    }
