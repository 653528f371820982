"""Looped decoders: caches, causality, the routed steps against a form without gathering, counts, effort, bad input."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.models import (
    DecoderConfig,
    Loop,
    LoopedConfig,
    LoopedDecoder,
    LowRank,
    MLAConfig,
    Thinking,
    inner_thinking,
    ringformer,
)
from bloomery.nn import Causal, Documents, KVCache, linear_cross_entropy

VOCAB, DIM = 23, 20


def sizes(blocks: int, **changes: Any) -> DecoderConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "dim": DIM, "n_layers": blocks, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6,
        "ffn_dim": 28, "max_positions": 64, "qkv_bias": True, "qk_norm": "pre_rope",
    }  # fmt: skip
    return DecoderConfig(**values | changes)


EVERYTHING = LoopedConfig(  # a window of two that thinks, with signals and norms of its own per step, between others
    decoder=sizes(4),
    loops=(
        Loop(),
        Loop(
            blocks=2,
            times=3,
            norms="per_level",
            signals=LowRank(rank=3, input="normed", std=0.1),
            thinking=Thinking(fraction=0.5),
        ),
        Loop(times=2, signals=LowRank(rank=2, std=0.1)),
    ),
)
CONFIGS = {
    "universal": LoopedConfig(decoder=sizes(1), loops=(Loop(times=4),)),
    "ring-pre": ringformer(sizes(2), 3, 4, norm_place="pre"),
    "ring-post": ringformer(sizes(1, norm="ln1p", gated=False, activation="gelu"), 4, 5),
    "itt": inner_thinking(sizes(3), [1, 3, 2], 0.4),
    "itt-all": inner_thinking(sizes(2), [3, 1], None),
    "everything": EVERYTHING,
}
ROUTED = [name for name, config in CONFIGS.items() if any(x.thinking and x.thinking.fraction for x in config.loops)]


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def made(name: str, seed: int = 0) -> LoopedDecoder:
    """A random model in float64 and evaluation mode, its routers calibrated as training does it."""
    model = LoopedDecoder(CONFIGS[name]).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            std = 0.5 if "routers" in key else 0.3  # weights that spread over 0 … 1
            parameter.normal_(mean=float(key.endswith("encodings")), std=std, generator=generator)
    for batch in range(20):
        model(tokens(4, 16, seed=batch))
    return model.eval()


MODELS = {name: made(name) for name in CONFIGS}


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- what must hold for every input ----------------------------------------------------------------------------------


@torch.no_grad()
@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(list(CONFIGS)), seed=st.integers(0, 999), place=st.integers(1, 15), more=st.integers(0, 6))
def test_logits_depend_on_the_prefix_only(name: str, seed: int, place: int, more: int) -> None:
    """In evaluation mode: what follows may change, be cut off or grow longer."""
    model, long = MODELS[name], tokens(2, 16 + more, seed=seed)
    other = torch.cat([long[:, :place], tokens(2, 16 + more - place, seed=seed + 1000)], dim=1)
    logits = model(long).logits
    torch.testing.assert_close(model(other).logits[:, :place], logits[:, :place], rtol=0, atol=1e-9)
    torch.testing.assert_close(model(long[:, :place]).logits, logits[:, :place], rtol=0, atol=1e-9)


@torch.no_grad()
@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(list(CONFIGS)), data=st.data(), seed=st.integers(0, 999))
def test_any_chunking_through_the_cache_equals_the_whole(name: str, data: st.DataObject, seed: int) -> None:
    model = MODELS[name]
    chunks = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    padding = torch.tensor(data.draw(st.lists(st.integers(0, chunks[0] - 1), min_size=2, max_size=2)))
    batch = tokens(2, sum(chunks), seed=seed)
    cache = KVCache(model.config, batch=2, max_len=30, dtype=torch.float64)
    assert len(cache.slots) == model.config.executions
    parts = [
        model(part, cache=cache, padding=padding if i == 0 else None).logits
        for i, part in enumerate(batch.split(chunks, dim=1))
    ]
    assert all(slot.length == sum(chunks) for slot in cache.slots)
    together = torch.cat(parts, dim=1)
    for row, pad in enumerate(padding.tolist()):
        alone = model(batch[row : row + 1, pad:]).logits
        torch.testing.assert_close(together[row : row + 1, pad:], alone, rtol=0, atol=1e-9)


@torch.no_grad()
@settings(deadline=None, max_examples=25)
@given(name=st.sampled_from(list(CONFIGS)), lengths=st.lists(st.integers(1, 7), min_size=2, max_size=4))
def test_packed_documents_do_not_see_each_other(name: str, lengths: list[int]) -> None:
    model, packed = MODELS[name], tokens(1, sum(lengths), seed=sum(lengths))
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    ours = model(packed, mask=Documents(ids)).logits
    alone = [model(part).logits for part in packed.split(lengths, dim=1)]
    torch.testing.assert_close(ours, torch.cat(alone, dim=1), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ROUTED)
def test_routing_by_fraction_looks_ahead(name: str) -> None:
    """Why decoding needs a threshold: in training mode the same prefix is routed differently before another end."""
    model = copy.deepcopy(MODELS[name]).train()
    changed = 0
    for seed in range(20):
        long = tokens(1, 16, seed=seed)
        other = torch.cat([long[:, :8], tokens(1, 8, seed=seed + 100)], dim=1)
        changed += not torch.allclose(model(long).logits[:, :8], model(other).logits[:, :8], atol=1e-6)
    assert changed > 5


# --- thinking steps --------------------------------------------------------------------------------------------------


class Mixed:
    """A cache slot of the oracle: every token brings keys and values, those not chosen are overruled by the first."""

    def __init__(self, first: tuple[Tensor, ...] | None, chosen: Tensor | None) -> None:
        self.first, self.chosen = first, chosen

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        self.new = new
        if self.first is None or self.chosen is None:
            return new
        keep = self.chosen[:, None, :, None]
        return tuple(torch.where(keep, x, old) for x, old in zip(new, self.first, strict=True))


def dense(model: LoopedDecoder, ids: Tensor) -> Tensor:
    """Thinking stacks with every step computed for every token and masked afterwards; other stacks as they are."""
    x, mask, seq = model.embed(ids), Causal(), ids.shape[1]
    rotary = model.rope(slice(0, seq), seq, ids.device)
    for stack in model.stacks:
        if stack.thinking is None:
            x = stack(x, rotary, mask, [None] * (stack.loop.blocks * stack.loop.times), [])
            continue
        firsts, z = [], x
        for block in stack.blocks:
            firsts.append(Mixed(None, None))
            z = block(z, 0, rotary, mask, firsts[-1])
        y = z * stack.encodings[0]
        for step in range(1, stack.loop.times):
            w = torch.sigmoid(stack.routers[step - 1].score(y * y.square().mean(-1, keepdim=True).rsqrt()))[..., 0]
            count = max(1, round(stack.effort.fraction * seq))
            bar = w.sort(dim=1, descending=True).values[:, count - 1 : count]
            if not model.training:
                bar = stack.routers[step - 1].quantiles.quantile(1 - stack.effort.fraction) * (
                    stack.effort.fraction < 1
                )
            chosen, z = w >= bar, y
            for block, first in zip(stack.blocks, firsts, strict=True):
                z = block(z, step, rotary, mask, Mixed(first.new, chosen))
            y = y + (chosen * stack.alpha * w)[..., None] * z * stack.encodings[step]
        x = y
    return model.logits(model.norm(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_routed_steps_equal_the_dense_form(training: bool, seed: int) -> None:
    model = copy.deepcopy(MODELS["itt"]).train(training)
    model.set_effort(fraction=[None, [0.4, 0.15, 1.0][seed], [0.6, 0.3, 1.0][seed]])
    ids = tokens(3, 14, seed=seed)
    ours, theirs = model(ids).logits, dense(model, ids)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)  # PyTorch's fused kernel and its masked one differ more
    weights = torch.randn_like(ours)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours_grad = torch.autograd.grad((ours * weights).sum(), parameters)
    theirs_grad = torch.autograd.grad((theirs * weights).sum(), parameters)
    for key, a, b in zip(names, ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)
        assert a.abs().max() > 0, key


def test_open_routers_give_the_closed_form() -> None:
    """fraction 1, w = 1, φ = 1: y ← y + α f(y)."""
    model = LoopedDecoder(inner_thinking(sizes(1), [4], 1.0, alpha=0.3)).double()
    with torch.no_grad():
        for router in model.stacks[0].routers:
            router.score.weight.zero_()
            router.score.bias.fill_(60.0)
    ids, mask = tokens(2, 9), Causal()
    rotary, block = model.rope(slice(0, 9), 9, ids.device), model.stacks[0].blocks[0]
    y = block(model.embed(ids), 0, rotary, mask)
    for _ in range(3):
        y = y + 0.3 * block(y, 0, rotary, mask)
    torch.testing.assert_close(model(ids).logits, model.logits(model.norm(y)), rtol=0, atol=1e-10)
    free = LoopedDecoder(inner_thinking(sizes(1), [4], None, alpha=0.3)).double()
    free.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(ids).logits, free(ids).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("fraction", "seq", "count"), [(0.5, 10, 5), (0.7, 10, 7), (0.01, 10, 1), (1.0, 7, 7)])
def test_training_routes_the_fraction_and_at_least_one(fraction: float, seq: int, count: int) -> None:
    model = LoopedDecoder(inner_thinking(sizes(2), [1, 3], fraction))
    routes = model(tokens(3, seq)).routes
    assert [(r.loop, r.step) for r in routes] == [(1, 1), (1, 2)]
    for route in routes:
        assert route.chosen.sum(1).tolist() == [count] * 3
        least = route.weights.masked_fill(~route.chosen, 2).min(1).values
        most = route.weights.masked_fill(route.chosen, -1).max(1).values
        assert (least >= most).all()


def test_the_calibrated_threshold_passes_the_fraction() -> None:
    model = copy.deepcopy(MODELS["itt"])
    for fraction in (0.4, 0.2, 0.5, 0.9):
        model.set_effort(fraction=[None, fraction, fraction])
        first, *later = (r.chosen.double().mean().item() for r in model(tokens(64, 16, seed=77)).routes)
        assert first == pytest.approx(fraction, abs=0.06)
        if fraction == 0.4:  # as in training; with another fraction, what reaches the later routers changes
            assert later == pytest.approx([fraction] * len(later), abs=0.08)


def test_calibration_is_training_s_and_survives_a_checkpoint() -> None:
    model = copy.deepcopy(MODELS["itt"])
    router = model.stacks[1].routers[0]
    before = router.quantiles.clone()
    model(tokens(2, 8))
    model.train()
    with torch.no_grad():
        model(tokens(2, 8))
    assert torch.equal(router.quantiles, before)
    model(tokens(2, 8))
    assert not torch.equal(router.quantiles, before)
    assert (router.quantiles.diff() >= 0).all()
    again = LoopedDecoder(model.config).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(tokens(2, 8)).logits, model.eval()(tokens(2, 8)).logits)


# --- depth as a dial -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fewer_levels_are_the_first_levels() -> None:
    model = copy.deepcopy(MODELS["ring-pre"])
    model.set_effort(times=[2])
    short = LoopedDecoder(ringformer(sizes(2), 2, 4, norm_place="pre")).double()
    short.load_state_dict({k: v for k, v in model.state_dict().items() if k in short.state_dict()})
    assert torch.equal(model(tokens(2, 9)).logits, short(tokens(2, 9)).logits)
    assert model.flops_per_token(9) == short.flops_per_token(9)


@torch.no_grad()
def test_shared_levels_go_on_beyond_training() -> None:
    model = copy.deepcopy(MODELS["universal"])
    model.set_effort(times=[7])
    longer = LoopedDecoder(LoopedConfig(decoder=sizes(1), loops=(Loop(times=7),))).double()
    longer.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens(2, 9)).logits, longer(tokens(2, 9)).logits)
    with pytest.raises(ConfigError, match="7 levels in loop 0, but a cache has slots for 4"):
        model(tokens(1, 3), cache=KVCache(model.config, 1, 8, torch.float64))


@torch.no_grad()
def test_effort_by_loop() -> None:
    model = copy.deepcopy(MODELS["itt"])
    whole = model(tokens(2, 9)).logits
    model.set_effort(times=[None, 1, 1])
    assert model(tokens(2, 9)).routes == []
    cache = KVCache(model.config, 2, 12, torch.float64)
    parts = [model(part, cache=cache).logits for part in tokens(2, 9).split([5, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens(2, 9)).logits, rtol=0, atol=1e-9)
    model.set_effort(times=[1, 3, 2])
    assert torch.equal(model(tokens(2, 9)).logits, whole)
    with pytest.raises(ConfigError, match="begun with fewer levels"):
        model(tokens(2, 1), cache=cache)
    model.set_effort(threshold=[None, 2.0, 0.0])
    assert [r.chosen.float().mean().item() for r in model(tokens(2, 9)).routes] == [0.0, 0.0, 1.0]
    model.set_effort(fraction=[None, 0.4, 0.4])
    assert torch.equal(model(tokens(2, 9)).logits, whole)


# --- counts and initialisation ---------------------------------------------------------------------------------------


def test_parameters_equal_the_closed_form() -> None:
    """12 d² for the block and d²/2 for each level's signals at rank d/16, as the paper counts, and the norms."""
    d, levels = 64, 6
    plain = sizes(1, dim=d, n_heads=4, n_kv_heads=4, head_dim=16, ffn_dim=4 * d, gated=False, qkv_bias=False)
    plain = DecoderConfig.from_dict(plain.to_dict() | {"qk_norm": "none", "norm": "ln1p"})
    with torch.device("meta"):
        ring = LoopedDecoder(ringformer(plain, levels))
        tied = LoopedDecoder(LoopedConfig(decoder=plain, loops=(Loop(times=levels),), norm_place="post"))
        vanilla = LoopedDecoder(
            inner_thinking(DecoderConfig.from_dict(plain.to_dict() | {"n_layers": levels}), [1] * 6)
        )
    norms = 2 * 2 * d
    assert tied.num_parameters(embeddings=False) == 12 * d * d + norms
    assert ring.num_parameters(embeddings=False) == 12 * d * d + levels * (d * d // 2 + norms)
    assert vanilla.num_parameters(embeddings=False) == levels * (12 * d * d + norms) + 2 * d
    assert ring.num_parameters() == ring.num_parameters(embeddings=False) + 2 * VOCAB * d
    extra = 6 * levels * (d * d // 2)
    assert ring.flops_per_token(9) == tied.flops_per_token(9) + extra == vanilla.flops_per_token(9) + extra


@pytest.mark.parametrize("name", ["universal", "ring-pre", "ring-post", "itt-all"])
def test_flops_of_the_matrices_equal_what_pytorch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = CONFIGS[name]
    with torch.device("meta"):
        model = LoopedDecoder(config)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.zeros(2, 16, dtype=torch.int64)).logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    attention = 12 * config.executions * config.decoder.n_heads * config.decoder.head_dim
    assert products == 2 * 16 * (model.flops_per_token(1) - attention)


def test_routed_steps_cost_their_fraction() -> None:
    def cost(times: list[int], fraction: float | None) -> int:
        return LoopedDecoder(inner_thinking(sizes(2), times, fraction)).flops_per_token(32)

    one_more = cost([1, 2], None) - cost([1, 1], None)
    assert cost([1, 3], 0.25) - cost([1, 1], None) == pytest.approx(2 * 0.25 * one_more + 2 * 6 * DIM, abs=1)


def test_initialisation() -> None:
    config = ringformer(sizes(1, dim=256, n_heads=8, head_dim=32, ffn_dim=512, tie_embeddings=True), 8, 64)
    model = LoopedDecoder(config, torch.Generator().manual_seed(1))
    block = model.stacks[0].blocks[0]
    for weight, std in [
        (model.embed.weight, 0.02),
        (block.attn.qkv.weight, 0.02),
        (block.attn.out.weight, 0.02 / 4),  # levels count as depth: 1 / sqrt(2 · 8)
        (block.ffn.down.weight, 0.02 / 4),
        (block.signals[3].b, 1e-6),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert not any(signal.a.any() for signal in block.signals)
    assert all((norm.weight == 1).all() for norm in block.norm1)
    again = LoopedDecoder(config, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = LoopedDecoder(config, torch.Generator().manual_seed(2))
    assert not torch.equal(model.embed.weight, other.embed.weight)
    thinking = LoopedDecoder(inner_thinking(sizes(1), [3]))
    assert (thinking.stacks[0].encodings == 1).all()
    assert all((route.weights == 0.5).all() for route in thinking(tokens(2, 8)).routes)


def test_every_layout_learns(name: str) -> None:
    """Forward, backward, learn, copy, JSON, bfloat16."""
    config = LoopedConfig.from_dict(json.loads(json.dumps(CONFIGS[name].to_dict())))
    assert config == CONFIGS[name]
    model, batch = LoopedDecoder(config), tokens(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = linear_cross_entropy(model(batch[:, :-1]).hidden, model.head_weight, batch[:, 1:])
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    model.eval()
    assert torch.equal(copy.deepcopy(model)(batch).logits, model(batch).logits)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()
        linear_cross_entropy(model(batch[:, :-1]).hidden, model.head_weight, batch[:, 1:]).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Loop(times=0), "times=0"),
        (lambda: Loop(blocks=0), "blocks=0"),
        (lambda: LowRank(rank=0), "rank=0"),
        (lambda: LowRank(rank=2, std=0.0), r"std=0\.0"),
        (lambda: Thinking(fraction=0.0), r"fraction=0\.0"),
        (lambda: Thinking(fraction=1.5), r"fraction=1\.5"),
        (lambda: Thinking(alpha=float("nan")), "alpha=nan"),
        (lambda: ringformer(sizes(1), 0), "times=0"),
        (lambda: ringformer(sizes(1), 3, DIM + 1), f"rank={DIM + 1} exceeds dim={DIM}"),
        (lambda: inner_thinking(sizes(3), [1, 2]), "2 numbers of steps for 3 blocks"),
        (lambda: LoopedConfig(decoder=sizes(3), loops=(Loop(times=2),)), "n_layers=3, but the loops run over 1"),
        (lambda: LoopedConfig(decoder=sizes(1, post_norm=True), loops=(Loop(),)), "post_norm is set"),
        (
            lambda: LoopedConfig(
                decoder=sizes(1, n_kv_heads=4, qk_norm="none", qkv_bias=False,
                              mla=MLAConfig(q_rank=None, kv_rank=4, nope_dim=4, rope_dim=2, v_dim=4)),
                loops=(Loop(),),
            ),
            "mla is set",
        ),
        (lambda: LoopedConfig.from_dict({**CONFIGS["itt"].to_dict(), "loop": []}), "did you mean 'loops'"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ({"times": [1, 2]}, "times has 2 entries.*3 loops"),
        ({"times": [1, 4, 2]}, "loop 1: times=4.*from 1 to 3"),
        ({"times": [1, 0, 2]}, "loop 1: times=0"),
        ({"fraction": [0.5, 0.5, 0.5]}, r"loop 0: fraction=0\.5, but it has no router"),
        ({"fraction": [None, 0.5, 1.2]}, r"fraction=1\.2"),
        ({"threshold": [0.5, None, None]}, "loop 0: threshold"),
    ],
)
def test_impossible_effort_changes_nothing(effort: dict[str, Any], message: str) -> None:
    model = MODELS["itt"]
    before = [stack.effort for stack in model.stacks]
    with pytest.raises(ConfigError, match=message):
        model.set_effort(**effort)
    assert [stack.effort for stack in model.stacks] == before


@torch.no_grad()
def test_decoding_needs_a_threshold() -> None:
    model = LoopedDecoder(CONFIGS["itt"])
    cache = KVCache(model.config, 1, 8)
    with pytest.raises(ValueError, match=r"call eval\(\) before decoding"):
        model(tokens(1, 4), cache=cache)
    model.eval()
    with pytest.raises(BloomeryError, match=r"no threshold yet.*set_effort"):
        model(tokens(1, 4), cache=cache)
    model.set_effort(threshold=[None, 0.5, 0.5])
    assert model(tokens(1, 4)).logits.isfinite().all()
    with pytest.raises(ValueError, match="either tokens or embeds"):
        model()


def test_weights_of_another_layout_are_refused() -> None:
    from bloomery.models import Decoder

    with pytest.raises(ConfigError, match="layout"):
        LoopedDecoder(CONFIGS["itt"]).load_decoder(Decoder(sizes(3, dim=24)))
    with pytest.raises(ConfigError, match="layout"):
        LoopedDecoder(CONFIGS["ring-post"]).load_decoder(Decoder(CONFIGS["ring-post"].decoder))
