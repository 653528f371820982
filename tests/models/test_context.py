"""Stretching a decoder's context: what changes, what must not, and that it pays on longer text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bloomery.core.errors import ConfigError
from bloomery.models import Decoder, DecoderConfig, MLAConfig, extend_context
from bloomery.nn import LinearScaling, YarnScaling

PLAIN = DecoderConfig(
    vocab_size=31, dim=24, n_layers=2, n_heads=3, n_kv_heads=3, head_dim=8, ffn_dim=40, max_positions=64, init_std=0.3
)
LATENT = replace(PLAIN, head_dim=12, mla=MLAConfig(q_rank=None, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8))


def some_tokens(length: int) -> torch.Tensor:
    return torch.randint(31, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "config", [PLAIN, replace(LATENT, rope_layout="interleaved"), replace(PLAIN, tie_embeddings=True)]
)
def test_the_weights_are_shared_and_the_rope_is_that_of_the_configuration(config):
    model = Decoder(config).train()
    longer = extend_context(model, 8)
    assert longer.training
    assert (longer.config.max_positions, longer.config.rope_scaling.factor) == (512, 8)
    assert replace(longer.config, max_positions=64, rope_scaling=None) == config
    ours = dict(model.named_parameters())
    for name, parameter in longer.named_parameters():
        assert parameter is ours[name]
    fresh = Decoder(longer.config)  # built with that configuration from the start
    fresh.load_state_dict(model.state_dict())
    tokens = some_tokens(200)
    assert torch.equal(longer(tokens).logits, fresh(tokens).logits)
    assert not torch.allclose(longer(tokens).logits, model(tokens).logits, atol=1e-2)
    assert model.config == config  # the model given is as it was


def test_the_factor_one_changes_nothing():
    tokens = some_tokens(50)
    for config in (PLAIN, LATENT):
        model = Decoder(config)
        assert torch.allclose(extend_context(model, 1)(tokens).logits, model(tokens).logits, atol=1e-5)


def test_latent_attention_sharpens_its_scores_by_the_published_factor():
    longer = extend_context(Decoder(LATENT), 40)
    assert longer.config.attention_scale == pytest.approx(12**-0.5 * 1.5896, rel=1e-4)
    assert longer.config.rope_scaling.table_factor == 1.0
    assert longer.blocks[0].attn.scale == longer.config.attention_scale
    plain = extend_context(Decoder(PLAIN), 40).config
    assert plain.attention_scale is None
    assert plain.rope_scaling.table_factor == pytest.approx(1.3689, rel=1e-4)


def test_stretching_twice_counts_from_the_original_context():
    twice = extend_context(extend_context(Decoder(LATENT), 8), 32)
    once = extend_context(Decoder(LATENT), 32)
    assert twice.config == once.config
    assert twice.config.rope_scaling == YarnScaling(
        factor=32, original_max_positions=64, mscale=0.707, mscale_all_dim=0.707
    )
    with pytest.raises(ConfigError, match=r"factor=4, but the context is 8.* times as long"):
        extend_context(extend_context(Decoder(PLAIN), 8), 4)


def test_other_scalings_and_factors_below_one_are_refused():
    with pytest.raises(ConfigError, match="stretched by LinearScaling"):
        extend_context(Decoder(replace(PLAIN, rope_scaling=LinearScaling(factor=2))), 4)
    with pytest.raises(ConfigError, match=r"factor=0.5"):
        extend_context(Decoder(PLAIN), 0.5)


def test_it_moves_and_trains():
    longer = extend_context(Decoder(LATENT), 4).to(torch.float64)
    longer(some_tokens(100)).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in longer.parameters())
