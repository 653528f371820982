"""Latent attention: absorbed equals expanded, the cache is as small as the formula says, masks do not leak."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery.models import Decoder, DecoderConfig, MLAConfig, preset
from bloomery.nn import Causal, KVCache, MLAttention, Rope

CPU = torch.device("cpu")


def attention(heads: int, q_rank: int | None, kv_rank: int, nope: int, rope: int, v: int) -> MLAttention:
    torch.manual_seed(1)
    return MLAttention(20, heads, q_rank=q_rank, kv_rank=kv_rank, nope_dim=nope, rope_dim=rope, v_dim=v)


@given(
    heads=st.integers(1, 5), q_rank=st.sampled_from([None, 7]), kv_rank=st.integers(1, 9), nope=st.integers(1, 6),
    rope=st.sampled_from([2, 4, 6]), v=st.integers(1, 9), seq=st.integers(1, 6), behind=st.integers(0, 5),
)  # fmt: skip
@torch.no_grad()
def test_absorbed_equals_expanded(
    heads: int, q_rank: int | None, kv_rank: int, nope: int, rope: int, v: int, seq: int, behind: int
) -> None:
    layer = attention(heads, q_rank, kv_rank, nope, rope, v)
    q_nope, q_rope = torch.randn(2, seq, heads, nope), torch.randn(2, seq, heads, rope)
    memory = torch.randn(2, 1, seq + behind, kv_rank + rope)
    mask = Causal(torch.tensor([0, min(2, behind)]))
    expanded = layer.expanded(q_nope, q_rope, memory, mask)
    absorbed = layer.absorbed(q_nope, q_rope, memory, mask)
    assert expanded.shape == (2, seq, heads, v)
    assert (expanded - absorbed).abs().max() <= 1e-5 * max(1, expanded.abs().max())


@torch.no_grad()
def test_decoding_takes_the_absorbed_form_and_prefill_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder(preset("deepseek-v2-tiny"))
    taken: list[str] = []
    for form in ("absorbed", "expanded"):
        plain = getattr(MLAttention, form)
        monkeypatch.setattr(MLAttention, form, lambda *a, f=form, p=plain: (taken.append(f), p(*a))[1])
    cache = KVCache(model.config, 1, 64)
    model(torch.arange(40)[None], cache=cache)
    assert set(taken) == {"expanded"}
    taken.clear()
    model(torch.arange(1)[None], cache=cache)
    assert set(taken) == {"absorbed"}


@pytest.mark.parametrize("name", ["deepseek-v2-tiny", "deepseek-v2-lite", "deepseek-v2"])
def test_cache_bytes_equal_the_closed_form(name: str) -> None:
    config = preset(name)
    mla = config.mla
    assert mla is not None
    cache = KVCache(config, batch=3, max_len=50, dtype=torch.bfloat16, device="meta")
    assert cache.nbytes == 3 * 50 * config.n_layers * (mla.kv_rank + mla.rope_dim) * 2
    if name == "deepseek-v2":
        assert (mla.kv_rank + mla.rope_dim) * config.n_layers == 34_560  # elements per token, as published
        per_head = KVCache(
            DecoderConfig(**config.to_dict() | {"mla": None, "moe": None}), 3, 50, torch.bfloat16, "meta"
        )
        assert cache.nbytes / per_head.nbytes < 0.02


def test_the_scale_carries_yarns_factor() -> None:
    config = preset("deepseek-v2")
    assert config.attention_scale == pytest.approx(192**-0.5 * 1.5896, rel=1e-4)
    model = Decoder(preset("deepseek-v2-tiny"))
    assert model.blocks[0].attn.scale == pytest.approx(32**-0.5)


@torch.no_grad()
def test_a_token_changes_nothing_before_it() -> None:
    config = DecoderConfig(
        vocab_size=31, dim=20, n_layers=2, n_heads=3, n_kv_heads=3, head_dim=6, ffn_dim=16, rope_layout="interleaved",
        mla=MLAConfig(q_rank=5, kv_rank=4, nope_dim=4, rope_dim=2, v_dim=3),
    )  # fmt: skip
    model = Decoder(config, torch.Generator().manual_seed(3)).double()
    before = torch.arange(9)[None]
    for place in range(9):
        after = before.clone()
        after[0, place] = 30
        changed = (model(before).logits != model(after).logits).any(-1)[0]
        assert not changed[:place].any()
        assert changed[place:].all()


def test_interleaved_rope_is_the_half_layout_permuted() -> None:
    x = torch.randn(1, 7, 2, 8)
    from bloomery.nn import rotate

    half = Rope(8, 100.0, 16)(slice(0, 7), 7, CPU)
    woven = Rope(8, 100.0, 16, layout="interleaved")(slice(0, 7), 7, CPU)
    order = torch.arange(8).view(2, 4).T.flatten()  # half-layout place of each interleaved feature
    torch.testing.assert_close(rotate(x[..., order], woven), rotate(x, half)[..., order])
