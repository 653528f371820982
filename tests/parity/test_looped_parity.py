"""Looped depth against independent implementations: PyTorch's encoder layers, matrices in full, transformers' Llama.

RingFormer and ITT are in no library. At the start (A = 0) a ring is a stack of clones of one encoder layer; with
random A and B it is a stack whose projections have been changed by A and B multiplied out; and ITT with one thinking
step is the plain decoder. The routed steps have their oracle, written without gathering, in tests/models.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bloomery.models import Decoder, DecoderConfig, LoopedDecoder, inner_thinking, ringformer

LEVELS, SEQ, DIM, HEADS = 4, 13, 32, 4


def ring_config(norm_place: str, biases: bool, signal_input: str = "raw") -> Any:
    decoder = DecoderConfig(
        vocab_size=19, dim=DIM, n_layers=1, n_heads=HEADS, n_kv_heads=HEADS, head_dim=DIM // HEADS, ffn_dim=52,
        norm="ln1p", norm_eps=1e-5, activation="gelu", gated=False, qkv_bias=biases, o_bias=biases, mlp_bias=biases,
    )  # fmt: skip
    return ringformer(decoder, LEVELS, 5, signal_input=signal_input, norm_place=norm_place)  # type: ignore[arg-type]


@torch.no_grad()
def randomised(model: nn.Module, seed: int, skip: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not (skip and skip in name):
            std = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.normal_(std=std, generator=generator)


def encoder_layer(ring: LoopedDecoder, level: int, norm_first: bool, biases: bool) -> nn.TransformerEncoderLayer:
    """PyTorch's layer with the weights that the ring has at this level."""
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, 52, dropout=0.0, activation="gelu", norm_first=norm_first, batch_first=True, bias=biases
    )
    block = ring.stacks[0].blocks[0]
    pairs = [
        (layer.self_attn.in_proj_weight, block.attn.qkv.weight),
        (layer.self_attn.out_proj.weight, block.attn.out.weight),
        (layer.linear1.weight, block.ffn.up.weight),
        (layer.linear2.weight, block.ffn.down.weight),
        (layer.norm1.weight, 1 + block.norm1[level].weight),
        (layer.norm2.weight, 1 + block.norm2[level].weight),
    ]
    if biases:
        pairs += [
            (layer.self_attn.in_proj_bias, block.attn.qkv.bias),
            (layer.self_attn.out_proj.bias, block.attn.out.bias),
            (layer.linear1.bias, block.ffn.up.bias),
            (layer.linear2.bias, block.ffn.down.bias),
            (layer.norm1.bias, block.norm1[level].bias),
            (layer.norm2.bias, block.norm2[level].bias),
        ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return layer


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_a_fresh_ring_is_a_stack_of_cloned_encoder_layers(norm_first: bool, biases: bool, record_property: Any) -> None:
    ring = LoopedDecoder(ring_config("pre" if norm_first else "post", biases))
    randomised(ring, seed=1, skip="signals.")  # A stays 0, B as drawn
    if not biases:  # PyTorch's layer then has no biases in its norms either
        with torch.no_grad():
            for name, parameter in ring.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
    x = torch.randn(3, SEQ, DIM, generator=torch.Generator().manual_seed(2))
    causal = nn.Transformer.generate_square_subsequent_mask(SEQ)
    theirs = x
    for level in range(LEVELS):  # every level has its own norms
        theirs = encoder_layer(ring, level, norm_first, biases)(theirs, src_mask=causal, is_causal=True)
    if norm_first:
        theirs = nn.functional.layer_norm(theirs, (DIM,), 1 + ring.norm.weight, ring.norm.bias)
    still = torch.zeros(3, SEQ, dtype=torch.int64)  # rotary angles of position 0: PyTorch's layer knows no positions
    ours = ring(embeds=x, positions=still).hidden
    error = (ours - theirs).abs().max().item()
    record_property("hidden", error)
    assert error <= 1e-6 * max(1.0, theirs.abs().max().item())
    assert theirs.std() > 0.3


@pytest.mark.parametrize("norm_place", ["pre", "post"])
def test_low_rank_signals_equal_the_matrices_written_out(norm_place: str, record_property: Any) -> None:
    """M_X = (B_Xᵀ A_X)ᵀ built in full, and the projections of x and of norm(x) taken apart."""
    ring = LoopedDecoder(ring_config(norm_place, True))
    randomised(ring, seed=3)
    x = torch.randn(2, SEQ, DIM, generator=torch.Generator().manual_seed(4))
    block, y = ring.stacks[0].blocks[0], x
    for level, signal in enumerate(block.signals):
        b_q, b_k, b_v, b_f = signal.b.chunk(4)
        a_q, a_k, a_v, a_f = signal.a.chunk(4, dim=1)
        m = torch.cat([a_q.T @ b_q, a_k.T @ b_k, a_v.T @ b_v])  # (3 dim, dim)
        m_f = a_f.T @ b_f
        norm1, norm2 = block.norm1[level], block.norm2[level]
        h = norm1(y) if norm_place == "pre" else y
        qkv = h @ block.attn.qkv.weight.T + block.attn.qkv.bias + y @ m.T
        q, k, v = (t.view(2, SEQ, HEADS, -1).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        scores = (q @ k.transpose(-1, -2)) / (DIM // HEADS) ** 0.5
        scores = scores.masked_fill(torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, SEQ, DIM)
        y = y + mixed @ block.attn.out.weight.T + block.attn.out.bias
        y = y if norm_place == "pre" else norm1(y)
        u = y + y @ m_f.T
        y = y + block.ffn(norm2(u) if norm_place == "pre" else u)
        y = y if norm_place == "pre" else norm2(y)
    theirs = ring.norm(y)
    ours = ring(embeds=x, positions=torch.zeros(2, SEQ, dtype=torch.int64)).hidden
    error = (ours - theirs).abs().max().item()
    record_property("hidden", error)
    assert error <= 1e-5
    other = copy.deepcopy(ring)
    for signal in other.stacks[0].blocks[0].signals:
        signal.a.data.zero_()
    assert (other(embeds=x, positions=torch.zeros(2, SEQ, dtype=torch.int64)).hidden - ours).abs().max() > 0.1


def test_one_thinking_step_is_llama(tmp_path: Any, record_property: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    from bloomery.models import load_pretrained

    sizes: dict[str, Any] = {
        "vocab_size": 101, "hidden_size": 48, "intermediate_size": 90, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": False,
    }  # fmt: skip
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    randomised(theirs, seed=5)
    theirs.save_pretrained(tmp_path / "llama")
    decoder = load_pretrained(tmp_path / "llama")
    assert isinstance(decoder, Decoder)
    tokens = torch.randint(101, (3, 21), generator=torch.Generator().manual_seed(6))
    wanted = theirs(tokens).logits

    def error(model: LoopedDecoder) -> float:
        model.load_decoder(decoder)
        logits: Tensor = model(tokens).logits
        return (logits - wanted).abs().max().item()

    plain = error(LoopedDecoder(inner_thinking(decoder.config, [1, 1, 1, 1])).eval())
    thinking = LoopedDecoder(inner_thinking(decoder.config, [1, 3, 1, 3])).eval()
    thinking.set_effort(times=[1, 1, 1, 1])
    one_step = error(thinking)
    muted = error(LoopedDecoder(inner_thinking(decoder.config, [1, 3, 1, 3], fraction=None, alpha=0.0)).eval())
    record_property("logits", max(plain, one_step, muted))
    assert max(plain, one_step, muted) <= 1e-5 * max(1.0, wanted.abs().max().item())
    loud = error(LoopedDecoder(inner_thinking(decoder.config, [1, 3, 1, 3], fraction=None)).eval())
    assert loud > 0.1
