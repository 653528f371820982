"""Ling against `transformers`' GraniteMoeShared, which computes the same function when its multipliers are 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bloomery.models import load_pretrained, save_pretrained

transformers = pytest.importorskip("transformers", reason="parity needs transformers")

DIM, HEADS, KV, HEAD, WIDTH, SHARED, EXPERTS = 48, 6, 2, 8, 22, 44, 7


def ours_from(theirs: nn.Module, folder: Path) -> None:
    """Their weights as a published Ling folder, written key by key."""
    table: dict[str, Tensor] = {}
    state = theirs.state_dict()
    table["model.word_embeddings.weight"] = state["model.embed_tokens.weight"]
    table["model.norm.weight"], table["lm_head.weight"] = state["model.norm.weight"], state["lm_head.weight"]
    for i in range(3):
        their, our = f"model.layers.{i}.", f"model.layers.{i}."
        qkv = [state[f"{their}self_attn.{name}_proj.weight"] for name in "qkv"]
        table[f"{our}attention.query_key_value.weight"] = torch.cat(qkv)
        table[f"{our}attention.dense.weight"] = state[f"{their}self_attn.o_proj.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            table[f"{our}{norm}.weight"] = state[f"{their}{norm}.weight"]
        moe = f"{their}block_sparse_moe."
        table[f"{our}mlp.gate.weight"] = state[f"{moe}router.weight"]
        packed = state[f"{moe}experts.gate_up_proj"], state[f"{moe}experts.down_proj"]
        for e in range(EXPERTS):
            gate, up = packed[0][e].chunk(2)
            for name, weight in (("gate", gate), ("up", up), ("down", packed[1][e])):
                table[f"{our}mlp.experts.{e}.{name}_proj.weight"] = weight.clone()
        gate, up = state[f"{their}shared_mlp.input_linear.weight"].chunk(2)
        down = state[f"{their}shared_mlp.output_linear.weight"]
        for name, weight in (("gate", gate), ("up", up), ("down", down)):
            table[f"{our}mlp.shared_experts.{name}_proj.weight"] = weight.clone()
    config = {
        "model_type": "bailing_moe", "vocab_size": 61, "hidden_size": DIM, "intermediate_size": 99,
        "num_hidden_layers": 3, "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HEAD,
        "moe_intermediate_size": WIDTH, "num_experts": EXPERTS, "num_shared_experts": SHARED // WIDTH,
        "num_experts_per_tok": 3, "norm_topk_prob": True, "rms_norm_eps": 1e-5, "rope_theta": 6e5,
        "max_position_embeddings": 32,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in table.items()}, folder / "model.safetensors")


@torch.no_grad()
def test_logits_equal_granite_with_shared_experts(tmp_path: Path) -> None:
    config = transformers.GraniteMoeSharedConfig(
        vocab_size=61, hidden_size=DIM, intermediate_size=WIDTH, shared_intermediate_size=SHARED, num_hidden_layers=3,
        num_attention_heads=HEADS, num_key_value_heads=KV, num_local_experts=EXPERTS, num_experts_per_tok=3,
        embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=HEAD**-0.5,
        rms_norm_eps=1e-5, max_position_embeddings=32, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 6e5},
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        mean, std = (1.0, 0.5) if parameter.dim() == 1 else (0.0, 1.2 / parameter.shape[-1] ** 0.5)
        parameter.normal_(mean=mean, std=std, generator=generator)
    ours_from(theirs, tmp_path)
    ours = load_pretrained(tmp_path)
    tokens = torch.randint(61, (3, 45), generator=generator)  # beyond max_position_embeddings
    expected = theirs(tokens).logits
    assert expected.std() > 1
    assert (ours(tokens).logits - expected).abs().max() <= 2e-5
    save_pretrained(ours, tmp_path / "again")
    assert torch.equal(load_pretrained(tmp_path / "again")(tokens).logits, ours(tokens).logits)
