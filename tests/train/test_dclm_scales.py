"""DCLM's scales: the sheet's figures, and the decoder they train against a plain implementation of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import yaml

from bloomery.cli.train import _scaled
from bloomery.core.errors import ConfigError
from bloomery.models import Decoder, preset
from bloomery.train.dclm_scales import SCALES, scale

TABLE = {  # layers, width, heads, parameters, tokens in billions, lr, decay, warm-up, sequences, z-loss
    "dclm-400m-1x": (24, 1024, 8, 411_616_256, 8.23, 3e-3, 0.033, 2_000, 512, 1e-4),
    "dclm-1b-1x": (24, 2048, 16, 1_439_795_200, 28.8, 3e-3, 0.033, 5_000, 256, 1e-4),
    "dclm-3b-1x": (32, 2560, 32, 2_795_932_160, 55.9, 3e-3, 0.033, 5_000, 256, 1e-4),
    "dclm-7b-1x": (32, 4096, 32, 6_889_410_560, 137.8, 2e-3, 0.05, 5_000, 2_048, 5e-6),
    "dclm-7b-2x": (32, 4096, 32, 6_889_410_560, 275.6, 2e-3, 0.05, 5_000, 2_048, 5e-6),
}


@pytest.mark.parametrize("name", SCALES)
def test_figures(name: str) -> None:
    layers, width, heads, parameters, tokens, lr, decay, warmup, batch, z_loss = TABLE[name]
    found, model = scale(name), preset(scale(name).model)
    assert (model.n_layers, model.dim, model.n_heads, model.z_loss) == (layers, width, heads, z_loss)
    assert (model.vocab_size, model.tie_embeddings, model.max_positions) == (50_432, False, 2048)
    with torch.device("meta"):
        decoder = Decoder(model)
    scales = sum(p.numel() for name, p in decoder.named_parameters() if "q_norm" in name or "k_norm" in name)
    assert scales == 2 * layers * width
    assert decoder.num_parameters() - scales == parameters == found.params
    assert found.tokens % (20 * parameters) == 0
    assert round(found.tokens / 1e9, 2 if tokens < 10 else 1) == tokens
    config = found.config()
    (phase,) = config.phases
    assert (phase.lr, phase.final_lr, config.weight_decay, config.batch_size) == (lr, 3e-5, decay, batch)
    assert phase.warmup_tokens == warmup * batch * 2048 < phase.tokens
    assert (config.betas, config.clip, config.optimizer, config.seq_len) == ((0.9, 0.95), 1.0, "adamw", 2048)


def test_the_table_is_complete() -> None:
    assert TABLE.keys() == SCALES.keys()


def plain_forward(model: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """OpenLM's decoder in a few lines: logits (batch, seq, vocab)."""
    c, weights = model.config, dict(model.named_parameters())
    x = weights["embed.weight"][tokens]
    batch, seq, dim = x.shape
    angles = torch.arange(seq)[:, None] * 10_000.0 ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
    cos, sin = (torch.cat([f(angles)] * 2, dim=1).to(x.dtype) for f in (torch.cos, torch.sin))

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(values, (dim,), weights[f"{name}.weight"], None, 1e-5)

    def turn(values: torch.Tensor) -> torch.Tensor:
        first, second = values.chunk(2, dim=-1)
        return values * cos + torch.cat([-second, first], dim=-1) * sin

    for layer in range(c.n_layers):
        at = f"blocks.{layer}."
        q, k, v = (norm(x, at + "norm1") @ weights[at + "attn.qkv.weight"].T).chunk(3, dim=-1)
        q, k = norm(q, at + "attn.q_norm"), norm(k, at + "attn.k_norm")
        q, k, v = (part.view(batch, seq, c.n_heads, -1).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + mixed.transpose(1, 2).reshape(batch, seq, dim) @ weights[at + "attn.out.weight"].T
        gate, up = (norm(x, at + "norm2") @ weights[at + "ffn.gate_up.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ weights[at + "ffn.down.weight"].T
    return norm(x, "norm") @ weights["head.weight"].T


def test_the_decoder_is_open_lms() -> None:
    model = Decoder(preset("dclm-tiny", n_layers=2), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    tokens = torch.randint(0, 2048, (2, 17), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(tokens).logits, plain_forward(model, tokens), rtol=0, atol=1e-5)


def test_weights_start_as_open_lms() -> None:
    model = Decoder(preset("dclm-tiny"), torch.Generator().manual_seed(0))
    shrink = 0.98658  # standard deviation of a normal cut at three of them
    for layer, block in enumerate(model.blocks, start=1):
        for matrix, inputs, part in (
            (block.attn.qkv.weight, 128, 1.0),
            (block.attn.out.weight, 128, 1 / math.sqrt(2 * layer)),
            (block.ffn.gate_up.weight, 128, 1.0),
            (block.ffn.down.weight, 352, 1 / math.sqrt(2 * layer)),
        ):
            wanted = part / math.sqrt(inputs)
            assert matrix.std().item() == pytest.approx(shrink * wanted, rel=0.03)
            assert matrix.abs().max() <= 3.001 * wanted
    assert model.embed.weight.std().item() == pytest.approx(shrink / math.sqrt(128), rel=0.01)


def test_a_training_file_names_a_scale() -> None:
    values = _scaled(yaml.safe_load("{scale: dclm-1b-1x, data: packed, model: {n_layers: 2}, train: {seed: 3}}"))
    assert values["model"] == {"preset": "dclm-1b", "vocab_size": 50_432, "n_layers": 2}
    assert values["train"]["seed"] == 3
    assert values["train"]["phases"][0]["tokens"] == 20 * 1_439_795_200
    assert values["data"] == "packed"
    with pytest.raises(ConfigError, match="did you mean 'dclm-7b-1x'"):
        _scaled({"scale": "dclm-7b-1"})
    with pytest.raises(ConfigError, match="mapping"):
        _scaled({"scale": "dclm-7b-1x", "model": "llama-tiny"})
