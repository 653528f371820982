"""The decoder: invariants, counts, and one test that walks every small preset."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloomery.core.errors import ConfigError, DataError
from bloomery.models import (
    Decoder,
    DecoderConfig,
    MLAConfig,
    MoEConfig,
    load_pretrained,
    preset,
    presets,
    save_pretrained,
)
from bloomery.nn import Documents, KVCache, LinearScaling, Llama3Scaling, linear_cross_entropy

TINY = [name for name in presets() if name.endswith("-tiny")]
SMALL = DecoderConfig(
    vocab_size=37, dim=20, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=6, ffn_dim=28, max_positions=16,
    qkv_bias=True, o_bias=True, mlp_bias=True,
)  # fmt: skip
PUBLISHED = {  # parameters of the released checkpoints
    "dclm-400m": 411_616_256 + 24 * 2 * 1024,  # the published count leaves the scales of queries and keys out
    "dclm-1b": 1_439_795_200 + 24 * 2 * 2048,
    "dclm-3b": 2_795_932_160 + 32 * 2 * 2560,
    "dclm-7b": 6_889_410_560 + 32 * 2 * 4096,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "yi-6b": 6_061_035_520,
    "yi-9b": 8_829_407_232,
    "yi-34b": 34_388_917_248,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-coder-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-coder-v2": 235_741_434_880,
}
# Announced in round numbers: (billions in all, billions a token meets, as printed); what they count differs.
ANNOUNCED = {
    "grok-1": ("314.9", "83.8"),  # "314B", without the embedding; a token meets "86B" by other counts
    "nemotron-4-15b": ("15.6", "15.6"),  # 3.1 of embeddings + 12.5
    "nemotron-4-340b": ("341.0", "341.0"),  # 9.4 of embeddings + 331.6
    "minitron-4b": ("4.2", "4.2"),
    "ling-lite": ("16.8", "2.75"),
    "ling-plus": ("290.6", "29.0"),  # "290B", "28.8B": 28.3 with one of its two embedding matrices, 29.0 with both
    "afm-85m": ("0.1227", "0.1227"),
    "afm-on-device": ("2.738", "2.738"),  # 2.587 and the embedding's 0.151
    "afm-on-device-32k": ("2.738", "2.738"),
}


def randomised(config: DecoderConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    """A decoder in which biases and norms matter too."""
    model, generator = Decoder(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.to(dtype)


def tokens(*shape: int, vocab: int = 37, seed: int = 0) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return randomised(SMALL)


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(place=st.integers(0, 11), other=st.integers(1, 36))
def test_a_token_changes_nothing_before_it(model: Decoder, place: int, other: int) -> None:
    before = tokens(2, 12)
    after = before.clone()
    after[:, place] = (after[:, place] + other) % 37
    a, b = model(before).logits, model(after).logits
    assert torch.equal(a[:, :place], b[:, :place])
    assert not torch.isclose(a[:, place:], b[:, place:]).all(-1).any(), "every later position must notice"


def test_gradients_flow_backwards_only(model: Decoder) -> None:
    embeds = model.embed(tokens(1, 9)).detach().requires_grad_()
    model(embeds=embeds).logits[:, 4].sum().backward()
    assert embeds.grad is not None
    reached = embeds.grad.abs().sum(-1)[0] > 0
    assert reached.tolist() == [True] * 5 + [False] * 4


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_packed_documents_do_not_see_each_other(model: Decoder, lengths: list[int], seed: int) -> None:
    """Rotary positions are relative, so a packed document equals the document alone wherever it lies."""
    packed = tokens(1, sum(lengths), seed=seed)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    ours = model(packed, mask=Documents(ids)).logits
    alone = [model(part).logits for part in packed.split(lengths, dim=1)]
    torch.testing.assert_close(ours, torch.cat(alone, dim=1), rtol=0, atol=1e-5)


@torch.no_grad()
@settings(deadline=None, max_examples=30)
@given(data=st.data(), seed=st.integers(0, 99))
def test_any_chunking_through_the_cache_equals_the_whole(model: Decoder, data: st.DataObject, seed: int) -> None:
    chunks = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    padding = torch.tensor(data.draw(st.lists(st.integers(0, chunks[0] - 1), min_size=2, max_size=2)))
    batch = tokens(2, sum(chunks), seed=seed)
    cache = KVCache(SMALL, batch=2, max_len=30, dtype=torch.float64)
    parts = [
        model(part, cache=cache, padding=padding if i == 0 else None).logits
        for i, part in enumerate(batch.split(chunks, dim=1))
    ]
    assert cache.length == sum(chunks)
    together = torch.cat(parts, dim=1)
    for row, pad in enumerate(padding.tolist()):
        alone = model(batch[row : row + 1, pad:]).logits
        torch.testing.assert_close(together[row : row + 1, pad:], alone, rtol=0, atol=1e-9)


@torch.no_grad()
def test_rows_leave_and_move_in_the_cache(model: Decoder) -> None:
    batch = tokens(3, 8)
    cache = KVCache(SMALL, batch=3, max_len=10, dtype=torch.float64)
    model(batch[:, :7], cache=cache, padding=torch.tensor([0, 3, 1]))
    cache.keep(torch.tensor([1, 0]))
    step = model(batch[[1, 0], 7:], cache=cache).logits
    torch.testing.assert_close(step[0, -1], model(batch[1:2, 3:]).logits[0, -1])
    torch.testing.assert_close(step[1, -1], model(batch[0:1]).logits[0, -1])


@torch.no_grad()
def test_a_full_cache_is_refused_before_it_is_touched(model: Decoder) -> None:
    cache = KVCache(SMALL, batch=1, max_len=4, dtype=torch.float64)
    model(tokens(1, 3), cache=cache)
    with pytest.raises(DataError, match=r"3 \+ 2 positions do not fit a cache of 4"):
        model(tokens(1, 2), cache=cache)
    assert cache.length == 3


@torch.no_grad()
def test_positions_given_or_counted(model: Decoder) -> None:
    batch = tokens(2, 7)
    counted = model(batch).logits
    shifted = torch.arange(7).expand(2, 7) + torch.tensor([[0], [40]])
    torch.testing.assert_close(model(batch, positions=shifted).logits, counted, rtol=0, atol=1e-4)
    spread = model(batch, positions=torch.arange(7).expand(2, 7) * 2).logits
    assert not torch.allclose(spread, counted, atol=1e-2)
    with pytest.raises(ValueError, match="either tokens or embeds"):
        model()


def test_counts_equal_the_published_ones() -> None:
    assert PUBLISHED.keys() | ANNOUNCED.keys() == set(presets()) - set(TINY)
    for name, published in PUBLISHED.items():
        with torch.device("meta"):
            assert Decoder(preset(name)).num_parameters() == published, name


def billions(number: int, like: str) -> str:
    return f"{number / 1e9:.{len(like.partition('.')[2])}f}"


def test_counts_round_to_the_announced_ones() -> None:
    for name, (total, active) in ANNOUNCED.items():
        with torch.device("meta"):
            model = Decoder(preset(name))
        whole = model.num_parameters(embeddings=name != "grok-1")
        assert billions(whole, total) == total, name
        assert billions(model.active_parameters(), active) == active, name
    with torch.device("meta"):
        large, lite = Decoder(preset("deepseek-v2")), Decoder(preset("deepseek-v2-lite"))
        nemotron = [Decoder(preset(f"nemotron-4-{size}")) for size in ("15b", "340b")]
        ling = Decoder(preset("ling-plus"))
        afm = Decoder(preset("afm-on-device"))
    assert billions(large.active_parameters(), "21") == "21"
    table = lite.config.vocab_size * lite.config.dim
    assert billions(lite.active_parameters() - table, "2.4") in ("2.4", "2.5")  # 2.45 without the look-up table
    assert [billions(m.num_parameters(embeddings=False), "12.5") for m in nemotron] == ["12.5", "331.6"]
    assert billions(ling.active_parameters() - ling.config.vocab_size * ling.config.dim, "28.3") == "28.3"
    assert afm.num_parameters(embeddings=False) == 2_586_744_320


MIXED = DecoderConfig(
    vocab_size=37, dim=20, n_layers=4, n_heads=6, n_kv_heads=6, head_dim=6, ffn_dim=28, max_positions=16,
    mla=MLAConfig(q_rank=7, kv_rank=5, nope_dim=4, rope_dim=2, v_dim=3), rope_layout="interleaved",
    moe=MoEConfig(n_experts=6, top_k=2, expert_dim=9, shared_dim=11, first_dense=1, balance=0.01),
)  # fmt: skip


def test_counts_of_latent_attention_and_experts_equal_the_closed_form() -> None:
    c = MIXED
    with torch.device("meta"):
        model = Decoder(c)
    attention = c.dim * (7 + 5 + 2) + 7 * 6 * 6 + 5 * 6 * (4 + 3) + 6 * 3 * c.dim
    dense, expert, shared, router = 3 * c.dim * 28, 3 * c.dim * 9, 3 * c.dim * 11, c.dim * 6
    norms = c.n_layers * (2 * c.dim + 7 + 5) + c.dim
    inner = c.n_layers * attention + dense + 3 * (6 * expert + shared + router) + norms
    assert model.num_parameters() == inner + 2 * c.vocab_size * c.dim
    assert model.active_parameters(embeddings=False) == inner - 3 * 4 * expert
    met = c.n_layers * attention + dense + 3 * (2 * expert + shared + router) + c.vocab_size * c.dim
    assert model.flops_per_token(9) == 6 * met + 3 * c.n_layers * 6 * (6 + 3) * 10


def test_auxiliary_losses_are_there_in_training_only() -> None:
    model = randomised(MIXED)
    batch = tokens(2, 12)
    with torch.no_grad():
        assert not model.eval()(batch).aux
    output = model.train()(batch)
    assert set(output.aux) == {"balance", "device_balance", "communication_balance", "z"}
    torch.testing.assert_close(output.aux_loss, 0.01 * output.aux["balance"])
    assert output.loads is not None
    torch.testing.assert_close(output.loads.sum(-1), torch.ones(3))


@torch.no_grad()
def test_the_normalised_head_has_unit_columns_or_rows_and_is_never_changed() -> None:
    for axis, dim in (("hidden", 0), ("vocab", 1)):
        model = randomised(DecoderConfig(**SMALL.to_dict() | {"head_norm": axis, "rope_scaling": None}))
        assert model.head is not None
        before = model.head.weight.clone()
        norms = model.head_weight.norm(dim=dim)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)
        model.eval()(tokens(1, 3)).logits.sum()
        assert torch.equal(model.head.weight, before)
        assert model.head_weight is model.head_weight, "normalised once"
        model.head.weight.mul_(torch.rand(model.head.weight.shape) + 1)
        norms = model.head_weight.norm(dim=dim)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)
        moved = copy.deepcopy(model)
        moved.head.weight.zero_()
        assert not moved.head_weight.any(), "a copy does not answer from the original's memory"


@pytest.mark.parametrize("config", [SMALL, preset("llama-tiny"), preset("qwen2-tiny"), preset("llama-3.2-1b")])
def test_counts_equal_the_closed_form(config: DecoderConfig) -> None:
    c = config
    with torch.device("meta"):
        model = Decoder(c)
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    matrices = c.n_layers * (c.dim * (2 * q + 2 * kv) + 3 * c.dim * c.ffn_dim)
    biases = c.qkv_bias * (q + 2 * kv) + c.o_bias * c.dim + c.mlp_bias * (2 * c.ffn_dim + c.dim)
    tables = c.vocab_size * c.dim * (1 if c.tie_embeddings else 2)
    inner = matrices + c.n_layers * (biases + 2 * c.dim) + c.dim
    assert model.num_parameters() == inner + tables
    assert model.num_parameters(embeddings=False) == inner
    dense = 6 * (matrices + c.vocab_size * c.dim)
    assert model.flops_per_token(1) == dense + 12 * c.n_layers * q
    assert model.flops_per_token(1023) == dense + 12 * c.n_layers * q * 512


def test_flops_of_the_matrices_equal_what_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = preset("llama-tiny", tie_embeddings=False)
    batch, seq = 2, 16
    with torch.device("meta"):
        model = Decoder(config)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.zeros(batch, seq, dtype=torch.int64)).logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    attention = 12 * config.n_layers * config.n_heads * config.head_dim
    assert products == batch * seq * (model.flops_per_token(1) - attention)


def test_initialisation_follows_its_table() -> None:
    config = preset("llama-tiny", dim=256, n_layers=8, tie_embeddings=False, qkv_bias=True)
    model = Decoder(config, torch.Generator().manual_seed(1))
    residual = 0.02 / 4  # 1 / sqrt(2 · 8)
    block = model.blocks[5]
    for weight, std in [
        (model.embed.weight, 0.02),
        (model.head.weight, 0.02),
        (block.attn.qkv.weight, 0.02),
        (block.ffn.gate_up.weight, 0.02),
        (block.attn.out.weight, residual),
        (block.ffn.down.weight, residual),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(weight.mean().item()) < std / 20
    assert not block.attn.qkv.bias.any()
    assert (model.norm.weight == 1).all()
    assert (block.norm2.weight == 1).all()
    again = Decoder(config, torch.Generator().manual_seed(1))
    other = Decoder(config, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.embed.weight, other.embed.weight)
    assert torch.equal(Decoder(config).embed.weight, Decoder(config).embed.weight)


def test_state_dict_names_are_an_interface() -> None:
    block = ["norm1.weight", "attn.qkv.weight", "attn.out.weight", "norm2.weight", "ffn.gate_up.weight"]
    block += ["ffn.down.weight"]
    expected = ["embed.weight", *(f"blocks.0.{name}" for name in block), "norm.weight"]
    assert list(Decoder(preset("llama-tiny", n_layers=1)).state_dict()) == expected
    untied = Decoder(preset("llama-tiny", n_layers=1, tie_embeddings=False))
    assert list(untied.state_dict()) == [*expected, "head.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 4}, "n_heads=6 is not a multiple of n_kv_heads=4"),
        ({"head_dim": 5}, "head_dim=5"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"norm_eps": float("nan")}, "norm_eps=nan"),
        ({"rope_theta": 0.0}, "rope_theta=0.0"),
        ({"vocabsize": 4}, "did you mean 'vocab_size'"),
        ({"dim": "wide"}, "dim: expected int, got 'wide'"),
        ({"rope_scaling": {"kind": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_dim": 3}, "rope_dim=3"),
        ({"rope_dim": 8}, "rope_dim=8 of head_dim=6"),
        ({"softcap": -1.0}, "softcap=-1.0"),
        ({"head_norm": "hidden", "tie_embeddings": True}, "head_norm with tie_embeddings"),
        (
            {"mlp_bias": False, "moe": {"n_experts": 8, "top_k": 9, "expert_dim": 4}},
            "top_k=9, but a token can reach 8 experts",
        ),
        ({"moe": {"n_experts": 8, "top_k": 1, "expert_dim": 4, "n_groups": 3}}, "n_experts=8 does not divide"),
        (
            {"mlp_bias": False, "moe": {"n_experts": 8, "top_k": 1, "expert_dim": 4, "first_dense": 3}},
            "first_dense=3 of n_layers=3",
        ),
        ({"gated": False, "moe": {"n_experts": 8, "top_k": 1, "expert_dim": 4}}, "needs gated=True"),
        (
            {"mla": {"q_rank": None, "kv_rank": 4, "nope_dim": 4, "rope_dim": 2, "v_dim": 3}},
            "latent attention with head_dim=6, n_kv_heads=2",
        ),
        ({"mla": {"q_rank": None, "kv_rank": 4, "nope_dim": 3, "rope_dim": 3, "v_dim": 3}}, "rope_dim=3"),
    ],
)
def test_a_bad_configuration_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoderConfig.from_dict(SMALL.to_dict() | changes)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling(factor=2.5),
        Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=8192),
    ],
)
def test_configurations_survive_json(scaling: Any) -> None:
    config = preset("qwen2-tiny", rope_scaling=scaling)
    assert DecoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3-8b'"):
        preset("llama3-8b")


@pytest.mark.parametrize("name", TINY)
def test_every_small_preset(name: str, tmp_path: Any) -> None:
    """Build, forward, backward, learn, save, load, copy, bfloat16."""
    config = preset(name, vocab_size=96)
    small_logits = config.init == "normal" and config.head_norm == "none"  # at the start
    model = Decoder(config)
    batch = tokens(4, 17, vocab=96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = linear_cross_entropy(model(batch[:, :-1]).hidden, model.head_weight, batch[:, 1:])
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(96.0).log().item(), abs=0.3 if small_logits else 3.0)
    assert losses[-1] < losses[0] - 0.5
    with torch.no_grad():
        logits = model(batch).logits
        save_pretrained(model, tmp_path / name)
        loaded = load_pretrained(tmp_path / name)
        assert loaded.config == config
        assert torch.equal(loaded(batch).logits, logits)
        assert torch.equal(copy.deepcopy(model)(batch).logits, logits)
        half = load_pretrained(tmp_path / name, dtype="bfloat16")
        assert half(batch).logits.dtype == torch.bfloat16
        off = (half(batch).logits.float() - logits).abs() > 0.1 + 0.1 * logits.abs()
        # rounding sends a token near a tie to another expert; without experts nothing is far off
        assert off.float().mean() <= (0.02 if config.moe is not None else 0)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch[:, :-1])
        linear_cross_entropy(out.hidden, model.head_weight, batch[:, 1:]).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_small_preset_compiles(name: str) -> None:
    model = Decoder(preset(name, vocab_size=96, n_layers=2))
    batch = tokens(2, 16, vocab=96)

    def loss(run: Any) -> Tensor:
        return linear_cross_entropy(run(batch[:, :-1]).hidden, model.head_weight, batch[:, 1:])

    plain, compiled = loss(model), loss(torch.compile(model))
    torch.testing.assert_close(compiled, plain)
    wanted = torch.autograd.grad(plain, list(model.parameters()))
    for a, b in zip(torch.autograd.grad(compiled, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_training_compiles_once(packed: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    model = Decoder(preset("llama-tiny", vocab_size=96, n_layers=1))
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for _ in range(3):
        mask = Documents(torch.zeros(2, 16, dtype=torch.int64)) if packed else None
        compiled(tokens(2, 16, vocab=96), mask=mask).hidden.sum().backward()
    assert counter.frame_count == 1


def test_padding_and_a_mask_exclude_each_other() -> None:
    model = Decoder(preset("llama-tiny", vocab_size=96, n_layers=1))
    with pytest.raises(ValueError, match="either padding or a mask"):
        model(tokens(2, 4, vocab=96), mask=Documents(torch.zeros(2, 4)), padding=torch.tensor([0, 1]))


def test_logits_of_the_last_position_alone() -> None:
    model = Decoder(preset("llama-tiny", vocab_size=96, n_layers=1))
    out = model(tokens(2, 5, vocab=96))
    torch.testing.assert_close(model.logits(out.hidden[:, -1]), out.logits[:, -1])
