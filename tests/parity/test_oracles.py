"""Our decoder in float64 against NumPy oracles: Grok-1, AFM and NormHead, which no installed library has.

Every parameter is random, norms included, and large enough that the soft-cap and the router bite. Where a test demands
1e-10 the oracle is given our rotary tables, which are float32; that these are right is a test of its own.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bloomery.models import Decoder, DecoderConfig
from bloomery.models.config import MoEConfig
from bloomery.nn import KVCache
from bloomery.nn.head import normalised_head

sys.path.insert(0, str(Path(__file__).parent))
import oracles

EXACT, FLOAT32 = 1e-10, 2e-5
SIZES: dict[str, Any] = {"vocab_size": 61, "dim": 24, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "max_positions": 48}
GROK1 = DecoderConfig(
    **SIZES, head_dim=10, ffn_dim=14, post_norm=True, activation="gelu_tanh", softcap=30.0, tie_embeddings=True,
    embed_scale=math.sqrt(24), logit_scale=1 / math.sqrt(3), moe=MoEConfig(n_experts=8, top_k=2, expert_dim=14),
)  # fmt: skip
AFM = DecoderConfig(
    **SIZES, head_dim=6, ffn_dim=37, qk_norm="post_rope", rope_layout="interleaved", rope_theta=5e5,
    tie_embeddings=True,
)  # fmt: skip
SEQ, STEPS = 45, 64


def randomised(config: DecoderConfig, std: float = 1.5) -> Decoder:
    """A model in float64 whose weights are all random."""
    model = Decoder(config).double().eval()
    generator = torch.Generator().manual_seed(config.head_dim)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(mean=1.0, std=0.5, generator=generator)
            else:
                parameter.normal_(std=std / parameter.shape[-1] ** 0.5, generator=generator)
    return model


def array(tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()


def split(model: Decoder, layer: int) -> tuple[Any, Any, Any]:
    c, qkv = model.config, array(model.blocks[layer].attn.qkv.weight)
    return tuple(np.split(qkv, [c.n_heads * c.head_dim, (c.n_heads + c.n_kv_heads) * c.head_dim]))


def grok1_weights(model: Decoder) -> dict[str, Any]:
    """By the ports' names, taken apart by hand: independent of the key map."""
    weights = {"model.embed_tokens.weight": array(model.embed.weight), "model.norm.weight": array(model.norm.weight)}
    for i, block in enumerate(model.blocks):
        q, k, v = split(model, i)
        layer = {
            "pre_attn_norm": array(block.norm1.weight),
            "post_attn_norm": array(block.post1.weight),
            "pre_moe_norm": array(block.norm2.weight),
            "post_moe_norm": array(block.post2.weight),
            "attn.q_proj": q,
            "attn.k_proj": k,
            "attn.v_proj": v,
            "attn.o_proj": array(block.attn.out.weight),
            "moe_block.gate": array(block.ffn.router.weight),
        }
        for e in range(model.config.moe.n_experts):
            gate, up = np.split(array(block.ffn.gate_up[e]), 2)
            parts = {"linear": gate, "linear_v": up, "linear_1": array(block.ffn.down[e])}
            layer |= {f"moe_block.experts.{e}.{name}": part for name, part in parts.items()}
        weights |= {f"model.layers.{i}.{name}.weight": part for name, part in layer.items()}
    return weights


def afm_weights(model: Decoder) -> dict[str, Any]:
    weights = {"embed": array(model.embed.weight), "norm": array(model.norm.weight)}
    for i, block in enumerate(model.blocks):
        gate, up = np.split(array(block.ffn.gate_up.weight), 2)
        q, k, v = split(model, i)
        layer = {
            "norm1": array(block.norm1.weight), "norm2": array(block.norm2.weight), "q": q, "k": k, "v": v,
            "q_norm": array(block.attn.q_norm.weight), "k_norm": array(block.attn.k_norm.weight),
            "o": array(block.attn.out.weight), "gate": gate, "up": up, "down": array(block.ffn.down.weight),
        }  # fmt: skip
        weights |= {f"{i}.{name}": part for name, part in layer.items()}
    return weights


def tables(model: Decoder, positions: int) -> oracles.Tables:
    """Our cosines and sines, (positions, pairs), in the oracles' form."""
    rotary = model.rope(slice(0, positions), positions, torch.device("cpu"))
    c = model.config
    columns = slice(1, None, 2) if c.rope_layout == "interleaved" else slice(c.head_dim // 2, None)
    return array(rotary.cos[:, 0, columns]), array(rotary.sin[:, 0, columns])


CASES = {"grok1": (GROK1, grok1_weights, oracles.grok1), "afm": (AFM, afm_weights, oracles.afm)}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Decoder, dict[str, Any], Any]:
    config, weights, oracle = CASES[request.param]
    model = randomised(config)
    return model, weights(model), oracle


@torch.no_grad()
def test_logits(case: tuple[Decoder, dict[str, Any], Any]) -> None:
    model, weights, oracle = case
    tokens = torch.randint(61, (3, SEQ), generator=torch.Generator().manual_seed(1))
    expected = np.stack([oracle(weights, model.config, row.numpy(), tables(model, SEQ)) for row in tokens])
    logits = model(tokens).logits
    assert expected.std() > 0.5
    assert np.abs(logits.numpy() - expected).max() <= EXACT
    assert np.abs(model.float()(tokens).logits.numpy() - expected).max() <= FLOAT32 * max(1.0, np.abs(expected).max())


@torch.no_grad()
def test_exact_angles_change_logits_by_float32_rounding_only(case: tuple[Decoder, dict[str, Any], Any]) -> None:
    model, weights, oracle = case
    c = model.config
    exact = oracles.angles(SEQ, c.head_dim, c.rope_theta)
    for ours, theirs in zip(tables(model, SEQ), exact, strict=True):
        assert np.abs(ours - theirs).max() <= 2e-7 * SEQ
    tokens = torch.randint(61, (1, SEQ), generator=torch.Generator().manual_seed(2))
    expected = oracle(weights, c, tokens[0].numpy(), exact)
    assert np.abs(model(tokens).logits[0].numpy() - expected).max() <= 1e-4


@torch.no_grad()
def test_greedy_tokens_with_and_without_a_cache(case: tuple[Decoder, dict[str, Any], Any]) -> None:
    model, weights, oracle = case
    rope = tables(model, 5 + STEPS)
    theirs = plain = cached = [3, 14, 15, 9, 26]
    cache = KVCache(model.config, 1, 5 + STEPS, dtype=torch.float64)
    new = cached
    for _ in range(STEPS):
        theirs = [*theirs, int(oracle(weights, model.config, np.array(theirs), rope)[-1].argmax())]
        plain = [*plain, int(model(torch.tensor([plain])).logits[0, -1].argmax())]
        new = [int(model(torch.tensor([new]), cache=cache).logits[0, -1].argmax())]
        cached = [*cached, *new]
    assert plain == theirs
    assert cached == theirs
    assert len(set(theirs)) > 5


@torch.no_grad()
def test_the_weights_make_every_part_of_grok1_matter() -> None:
    """An oracle that leaves a part out must be far from the model: otherwise agreement would say nothing."""
    model = randomised(GROK1)
    weights, tokens = grok1_weights(model), torch.arange(SEQ) % 61
    logits, rope = model(tokens[None]).logits[0].numpy(), tables(model, SEQ)

    def distance(weights: dict[str, Any], **options: Any) -> float:
        return float(np.abs(oracles.grok1(weights, model.config, tokens.numpy(), rope, **options) - logits).max())

    assert distance(weights) <= EXACT
    assert distance(weights, cap=None) > 1e-3
    for name in [name for name in weights if "layers" not in name or "layers.1." in name]:
        assert distance(weights | {name: np.roll(weights[name], 1, -1)}) > 1e-3, name


@pytest.mark.parametrize("axis", ["hidden", "vocab"])
def test_norm_head_and_its_gradients(axis: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    hidden, weight, grad = (
        torch.randn(n, generator=generator, dtype=torch.float64) for n in ((7, 5), (11, 5), (7, 11))
    )
    hidden.requires_grad_()
    weight.requires_grad_()
    before = weight.detach().clone()
    logits = hidden @ normalised_head(weight, axis).T
    logits.backward(grad)
    theirs = oracles.norm_head(array(hidden), array(weight), axis, array(grad))
    assert hidden.grad is not None
    assert weight.grad is not None
    for ours, expected in zip((logits, hidden.grad, weight.grad), theirs, strict=True):
        assert np.abs(array(ours) - expected).max() <= EXACT
    assert torch.equal(weight, before)


@pytest.mark.parametrize("axis", ["hidden", "vocab"])
def test_norm_head_in_a_decoder(axis: Any) -> None:
    sizes = SIZES | {"n_layers": 1}
    model = randomised(DecoderConfig(**sizes, head_dim=6, ffn_dim=20, head_norm=axis))
    output = model(torch.arange(9)[None])
    expected, *_ = oracles.norm_head(array(output.hidden[0]), array(model.head.weight), axis, np.zeros((9, 61)))
    assert np.abs(array(output.logits[0]) - expected).max() <= EXACT
