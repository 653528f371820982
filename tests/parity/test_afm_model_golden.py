"""Apple's AFM against vectors computed with AXLearn: attention in both orders, a whole model, gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bloomery.models import Decoder, DecoderConfig
from bloomery.nn import IGNORE, Causal, GQAttention, Rope, linear_cross_entropy

CPU = torch.device("cpu")


def cases(golden_root: Path, prefix: str) -> list[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    found = sorted((golden_root / "apple-afm").glob(f"{prefix}*.json"))
    if not found:
        pytest.skip(f"no case {prefix}* in {golden_root / 'apple-afm'}")
    return [(p.stem, json.loads(p.read_text()), load_file(p.with_suffix(".safetensors"))) for p in found]


def near(ours: Tensor, expected: Tensor, share: float, what: str) -> None:
    error, scale = (ours - expected).abs().max().item(), expected.abs().max().item()
    assert error <= share * scale, f"{what}: {error:.2e} of {scale:.2e}"


def rows(weight: Tensor) -> Tensor:
    """Theirs (dim, heads, head_dim), as the rows (heads · head_dim, dim) of ours."""
    return weight.flatten(1).T


def test_attention(golden_root: Path) -> None:
    for name, case, t in cases(golden_root, "attention_"):
        c = case["config"]
        order = next(kind for kind in ("pre_rope", "post_rope", "none") if kind in name or kind == "none")
        attn = GQAttention(c["dim"], c["heads"], c["kv_heads"], c["head_dim"], qk_norm=order, norm_eps=c["rms_eps"])
        prefix = "i_proj/" if order == "pre_rope" else ""
        named = {"i_proj/i_proj/qkv_proj/weight": attn.qkv.weight, "o_proj/weight": attn.out.weight}
        if order != "none":
            named[f"{prefix}scale_query/norm/scale"] = attn.q_norm.weight
            named[f"{prefix}scale_key/norm/scale"] = attn.k_norm.weight
        with torch.no_grad():
            for key, parameter in named.items():
                parameter.copy_(as_ours(key, t[f"w.{key}"]))
        x = t["in.x"].requires_grad_()
        rotary = Rope(c["head_dim"], c["theta"], 64, layout="interleaved")(slice(0, x.shape[1]), x.shape[1], CPU)
        y = attn(x, rotary, Causal())
        near(y, t["out.y"], 1e-5, name)
        (y * t["in.grad_out"]).sum().backward()
        assert x.grad is not None
        near(x.grad, t["out.grad_x"], 1e-4, f"{name} gradient of x")
        for key, parameter in named.items():
            assert parameter.grad is not None
            near(parameter.grad, as_ours(key, t[f"out.grad.{key}"]), 1e-4, f"{name} gradient of {key}")


def as_ours(key: str, tensor: Tensor) -> Tensor:
    """Their tensor in our layout."""
    if key.endswith("qkv_proj/weight"):
        return rows(tensor)
    return tensor.flatten(1) if key.endswith("o_proj/weight") else tensor


def test_whole_model(golden_root: Path) -> None:
    for name, case, t in cases(golden_root, "model"):
        c = case["config"]
        config = DecoderConfig(
            vocab_size=c["vocab_size"], dim=c["hidden_dim"], n_layers=c["num_layers"], n_heads=c["num_heads"],
            n_kv_heads=c["num_kv_heads"], head_dim=c["hidden_dim"] // c["num_heads"], ffn_dim=c["ffn_dim"],
            norm_eps=c["rms_eps"], qk_norm="post_rope", rope_theta=c["theta"], rope_layout="interleaved",
            tie_embeddings=c["tied_embedding"], init="fan_in", z_loss=c["z_loss_scale"],
        )  # fmt: skip
        model = Decoder(config)
        with torch.no_grad():
            for parameter, weight in places(model, t, "w."):
                parameter.copy_(weight)
        output = model(t["in.input_ids"].long())
        near(output.logits, t["out.logits"], 2e-5, f"{name} logits")
        targets = t["in.target_labels"].long()
        targets = targets.masked_fill(targets < 0, IGNORE)
        loss = linear_cross_entropy(output.hidden, model.head_weight, targets, z_loss=config.z_loss)
        assert abs(loss.item() / t["out.loss"].item() - 1) <= 1e-5
        loss.backward()
        for parameter, expected in places(model, t, "out.grad."):
            assert parameter.grad is not None
            near(parameter.grad, expected, 1e-4, f"{name} gradient")


def places(model: Decoder, t: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """Every parameter of ours beside the reference tensor of that prefix."""

    def their(name: str) -> Tensor:
        return t[f"{prefix}decoder/{name}"]

    pairs = [(model.embed.weight, their("emb/token_emb/weight")), (model.norm.weight, their("output_norm/scale"))]
    for i, block in enumerate(model.blocks):
        attn, ffn = f"transformer/layer{i}/self_attention/", f"transformer/layer{i}/feed_forward/"
        gate, up = their(f"{ffn}linear1_0/weight"), their(f"{ffn}linear1_1/weight")
        pairs += [
            (block.norm1.weight, their(f"{attn}norm/scale")),
            (block.attn.qkv.weight, rows(their(f"{attn}attention/i_proj/i_proj/qkv_proj/weight"))),
            (block.attn.out.weight, their(f"{attn}attention/o_proj/weight").flatten(1)),
            (block.attn.q_norm.weight, their(f"{attn}attention/scale_query/norm/scale")),
            (block.attn.k_norm.weight, their(f"{attn}attention/scale_key/norm/scale")),
            (block.norm2.weight, their(f"{ffn}norm/scale")),
            (block.ffn.gate_up.weight, torch.cat([gate.T, up.T])),
            (block.ffn.down.weight, their(f"{ffn}linear2/weight").T),
        ]
    return pairs
