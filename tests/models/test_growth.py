"""Depth up-scaling: plans, the layer report, growing in memory, growing a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bloomery.core import weight_files
from bloomery.core.errors import BloomeryError, CheckpointError, ConfigError, EmptyError, StorageError
from bloomery.models import (
    Decoder,
    DecoderConfig,
    MLAConfig,
    MoEConfig,
    load_pretrained,
    preset,
    presets,
    pretrained,
    save_pretrained,
)
from bloomery.models.growth import (
    GrowthPlan,
    best_layers,
    best_window,
    branch_ends,
    grow,
    layer_similarity,
    preview,
    window_losses,
)
from bloomery.models.growth_folder import grow_pretrained
from bloomery.nn import KVCache

BASE = DecoderConfig(
    vocab_size=61, dim=24, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=6, ffn_dim=40, max_positions=64
)
EXPERTS = MoEConfig(n_experts=4, top_k=2, expert_dim=16, shared_dim=8, first_dense=1)
CONFIGS = {
    "llama": BASE,
    "biases": replace(BASE, qkv_bias=True, o_bias=True, mlp_bias=True, tie_embeddings=True),
    "nemotron": replace(BASE, norm="ln1p", activation="relu2", gated=False),
    "experts": replace(BASE, moe=EXPERTS),
    "latent": replace(
        BASE, n_kv_heads=4, moe=EXPERTS, mla=MLAConfig(q_rank=None, kv_rank=8, nope_dim=4, rope_dim=2, v_dim=4)
    ),
    "sandwich": replace(BASE, post_norm=True, softcap=20.0),
}
TOKENS = torch.arange(40).reshape(2, 20) % 61


def randomised(config: DecoderConfig) -> Decoder:
    """A decoder with every weight drawn at random, norms and biases too, in evaluation mode."""
    model, generator = Decoder(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=0.5 if parameter.dim() == 1 else 0.0, std=0.3, generator=generator)
    return model.eval()


@pytest.fixture(params=CONFIGS)
def base(request: pytest.FixtureRequest) -> Decoder:
    return randomised(CONFIGS[request.param])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(randomised(BASE), tmp_path / "base", shard_bytes=9000)
    return tmp_path / "base"


# --- plans -----------------------------------------------------------------------------------------------------------


def test_yi_9b() -> None:
    plan = GrowthPlan.block(32, 12, 28)
    assert plan.sources == (*range(28), *range(12, 28), *range(28, 32))
    assert (plan.n_layers, plan.copies) == (48, tuple(range(28, 44)))
    assert plan.runs() == [
        (range(28), range(28), False),
        (range(28, 44), range(12, 28), True),
        (range(44, 48), range(28, 32), False),
    ]


def test_interleaving_puts_each_copy_behind_its_layer() -> None:
    plan = GrowthPlan.interleave(4, [2, 0])
    assert plan.sources == (0, 0, 1, 2, 2, 3)
    assert plan.copies == (1, 4)


@given(st.integers(1, 40), st.data())
def test_a_block_is_the_base_with_a_window_twice(layers: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, layers - 1))
    stop = data.draw(st.integers(start + 1, layers))
    plan = GrowthPlan.block(layers, start, stop)
    assert plan.n_layers == layers + stop - start
    assert [plan.sources[i] for i in plan.copies] == list(range(start, stop))
    kept = [source for i, source in enumerate(plan.sources) if i not in plan.copies]
    assert kept == list(range(layers))
    assert list(chain(*(old for _, old, _ in plan.runs()))) == list(plan.sources)
    assert list(chain(*(new for new, _, _ in plan.runs()))) == list(range(plan.n_layers))
    assert json.loads(json.dumps(plan.to_dict()))["sources"] == list(plan.sources)


@given(st.integers(2, 40), st.data())
def test_solar_is_a_block_with_the_window_in_the_middle(layers: int, data: st.DataObject) -> None:
    half = data.draw(st.integers(layers // 2 + 1, layers))
    solar = GrowthPlan.solar(layers, 2 * half)
    assert solar.sources == (*range(half), *range(layers - half, layers))
    assert solar.sources == GrowthPlan.block(layers, layers - half, half).sources


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrowthPlan.block(32, 20, 40), r"\[20, 40\) does not lie within the base.*stop <= 32"),
        (lambda: GrowthPlan.block(32, -1, 4), r"\[-1, 4\) does not lie within"),
        (lambda: GrowthPlan.block(32, 5, 5), r"\[5, 5\) is empty.*start below stop"),
        (lambda: GrowthPlan.block(32, 9, 5), r"\[9, 5\) is empty"),
        (lambda: GrowthPlan.interleave(4, []), "4 layers do not grow a base of 4"),
        (lambda: GrowthPlan.interleave(4, [1, 1]), "chosen twice"),
        (lambda: GrowthPlan.interleave(4, [1, 4]), r"layer 4 does not exist.*0 to 3"),
        (lambda: GrowthPlan.solar(32, 47), "two equal parts of 32 layers cannot make 47"),
        (lambda: GrowthPlan.solar(32, 66), "cannot make 66"),
        (lambda: GrowthPlan.solar(32, 24), "cannot make 24.*from 33 to 64"),
        (lambda: GrowthPlan(4, (0, 1, 2)), "3 layers do not grow a base of 4"),
        (lambda: GrowthPlan(4, (0, 2, 1, 2, 3)), "leave out or reorder"),
        (lambda: GrowthPlan(4, (0, 1, 2, 2, 2)), "leave out or reorder"),
        (lambda: GrowthPlan.block(4, 1, 2, alpha=1.5), r"alpha=1\.5"),
        (lambda: GrowthPlan.block(4, 1, 2, alpha=float("nan")), "alpha=nan"),
    ],
)
def test_impossible_plans(make: Callable[[], GrowthPlan], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- choosing --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.data())
def test_the_best_window_and_layers(cosine: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(cosine)))
    start, stop = best_window(cosine, count)
    assert stop - start == count
    sums = [sum(cosine[i : i + count]) for i in range(len(cosine) - count + 1)]
    assert sums[start] == max(sums)
    chosen = best_layers(cosine, count)
    assert list(chosen) == sorted(set(chosen))
    rest = [c for i, c in enumerate(cosine) if i not in chosen]
    assert len(chosen) == count
    assert min(cosine[i] for i in chosen) >= max(rest, default=-1)


@pytest.mark.parametrize("count", [0, 5, -1])
@pytest.mark.parametrize("choose", [best_window, best_layers])
def test_more_layers_than_there_are(choose: Any, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"{count} layers to run twice.*1 to 4"):
        choose([0.1, 0.2, 0.3, 0.4], count)


@pytest.mark.parametrize("layout", ["block", "interleave"])
@torch.no_grad()
def test_window_losses_measure_the_grown_models(layout: Any) -> None:
    model = randomised(BASE)

    def loss(grown: Decoder) -> float:
        return grown(TOKENS).logits.square().mean().item()

    losses = window_losses(model, 3, loss, layout)
    makers = {"block": GrowthPlan.block, "interleave": lambda n, a, b: GrowthPlan.interleave(n, range(a, b))}
    plans = [makers[layout](4, 0, 3), makers[layout](4, 1, 4)]
    assert losses == {plan: loss(grow(model, plan)) for plan in plans}
    assert losses[plans[0]] != losses[plans[1]]


# --- the layer report ------------------------------------------------------------------------------------------------


@torch.no_grad()
def streams(model: Decoder, tokens: Tensor) -> list[Tensor]:
    """The residual stream before the first layer and after each, run by hand."""
    caught: list[Tensor] = []
    first = model.blocks[0].register_forward_hook(lambda _, inputs, output: caught.extend([inputs[0], output]))
    others = [b.register_forward_hook(lambda _, inputs, output: caught.append(output)) for b in model.blocks[1:]]
    model(tokens)
    for handle in [first, *others]:
        handle.remove()
    return caught


def test_similarity_is_the_mean_cosine_of_each_layer(base: Decoder) -> None:
    stream = [h.double() for h in streams(base, TOKENS)]
    report = layer_similarity(base, [{"tokens": TOKENS}])
    for layer in range(4):
        before, after = stream[layer], stream[layer + 1]
        cosines = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert report.cosine[layer] == pytest.approx(cosines.mean().item(), abs=1e-6)
        assert report.without_first[layer] == pytest.approx(cosines[:, 1:].mean().item(), abs=1e-6)
    assert report.tokens == 38


def test_padding_does_not_count(base: Decoder) -> None:
    padded = torch.cat([torch.full((1, 7), 5), TOKENS[:1, :13]], dim=1)
    batch = {"tokens": torch.cat([padded, TOKENS[1:]]), "padding": torch.tensor([7, 0])}
    together = layer_similarity(base, [batch])
    apart = layer_similarity(base, [{"tokens": TOKENS[:1, :13]}, {"tokens": TOKENS[1:]}])
    assert together.cosine == pytest.approx(apart.cosine, abs=1e-6)
    assert together.without_first == pytest.approx(apart.without_first, abs=1e-6)
    assert together.tokens == apart.tokens == 12 + 19


def test_a_layer_that_adds_nothing_is_parallel() -> None:
    model = grow(randomised(BASE), GrowthPlan.block(4, 1, 3, alpha=0.0))
    report = layer_similarity(model, [{"tokens": TOKENS}])
    for layer in range(6):
        assert (abs(report.cosine[layer] - 1) < 1e-6) == (layer in (3, 4))


def test_the_report_leaves_the_model_as_it_was() -> None:
    model = randomised(BASE).train()
    layer_similarity(model, [{"tokens": TOKENS}])
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_breaks_is_named() -> None:
    model = randomised(BASE)
    with torch.no_grad():
        model.blocks[2].attn.out.weight[0, 0] = torch.nan
    with pytest.raises(BloomeryError, match="layer 2 gives values that are not finite"):
        layer_similarity(model, [{"tokens": TOKENS}])
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("batches", [[], [{"tokens": TOKENS[:, :1]}]])
def test_a_report_on_nothing(batches: list[dict[str, Tensor]]) -> None:
    with pytest.raises(EmptyError, match="no sequence of two tokens"):
        layer_similarity(randomised(BASE), batches)


# --- growing in memory -----------------------------------------------------------------------------------------------

PLANS = [GrowthPlan.block(4, 1, 3), GrowthPlan.interleave(4, [1, 3]), GrowthPlan.solar(4, 6)]


@pytest.mark.parametrize("plan", PLANS)
def test_grown_layers_equal_their_sources_and_share_nothing(base: Decoder, plan: GrowthPlan) -> None:
    grown = grow(base, plan)
    assert grown.config == replace(base.config, n_layers=6)
    for layer, source in enumerate(plan.sources):
        ours, theirs = grown.blocks[layer].state_dict(), base.blocks[source].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    memories = [p.data_ptr() for p in [*grown.parameters(), *base.parameters()]]
    assert len(set(memories)) == len(memories)
    assert (grown.head is None) == base.config.tie_embeddings
    assert grown.num_parameters() == Decoder(grown.config).num_parameters()
    assert not grown.training


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_copies_without_effect_leave_the_function_exactly_as_it_was(base: Decoder, plan: GrowthPlan) -> None:
    plain, silent = grow(base, plan), grow(base, replace(plan, alpha=0.0))
    before = base(TOKENS).logits
    assert torch.equal(silent(TOKENS).logits, before)
    assert not torch.allclose(plain(TOKENS).logits, before, atol=1e-3)


@torch.no_grad()
def layer_inputs(model: Decoder) -> tuple[Any, ...]:
    """What the decoder calls its third layer with."""
    caught: list[tuple[Any, ...]] = []
    handle = model.blocks[2].register_forward_pre_hook(lambda _, inputs: caught.append(inputs))
    model(TOKENS)
    handle.remove()
    return caught[0]


@torch.no_grad()
def test_alpha_scales_what_a_copy_adds(base: Decoder) -> None:
    """Run the copy's two branches by hand, from the source's own output: x + alpha · branch(x), twice."""
    plan = GrowthPlan.interleave(4, [1], alpha=0.25)
    copy, source, inputs = grow(base, plan).blocks[2], base.blocks[1], layer_inputs(base)
    branches: list[Tensor] = []

    def quarter(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        branches.append(output)
        return output / 4

    handles = [part.register_forward_hook(quarter) for part in (source.post1, source.post2)]
    expected = source(*inputs)
    for handle in handles:
        handle.remove()
    assert len(branches) == 2
    torch.testing.assert_close(copy(*inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_preview_shares_the_weights_and_computes_the_same(base: Decoder) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for plan in (PLANS[0], replace(PLANS[0], alpha=0.5)):
        shown = preview(base, plan)
        with torch.no_grad():
            assert torch.equal(shown(TOKENS).logits, grow(base, plan)(TOKENS).logits)
        shared = [shown.blocks[i] is base.blocks[source] for i, source in enumerate(plan.sources)]
        assert shared == [plan.alpha == 1 or i not in plan.copies for i in range(6)]
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


@torch.no_grad()
def test_a_grown_model_decodes_with_a_cache(base: Decoder) -> None:
    grown = grow(base, PLANS[0])
    cache = KVCache(grown.config, batch=2, max_len=20)
    parts = [grown(part, cache=cache).logits for part in TOKENS.split([12, 1, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), grown(TOKENS).logits, atol=2e-5, rtol=1e-4)


def test_copies_learn_for_themselves(base: Decoder) -> None:
    grown = grow(base, PLANS[0]).train()
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    grown(TOKENS).logits.square().mean().backward()
    optimizer.step()
    source, copy = (grown.blocks[i].attn.out.weight for i in (1, 3))
    assert not torch.equal(source, base.blocks[1].attn.out.weight)
    assert not torch.equal(source, copy)


def test_dtype_training_mode_and_frozen_weights_stay() -> None:
    model = randomised(BASE).to(torch.bfloat16).train()
    model.blocks[2].requires_grad_(False)
    grown = grow(model, PLANS[0])
    assert {p.dtype for p in grown.parameters()} == {torch.bfloat16}
    assert grown.training
    assert [block.attn.out.weight.requires_grad for block in grown.blocks] == [True, True, False, True, False, True]


def test_yi_6b_grows_to_the_published_size_of_yi_9b() -> None:
    with torch.device("meta"):
        base, published = Decoder(preset("yi-6b")), Decoder(preset("yi-9b"))
        grown = grow(base, GrowthPlan.block(32, 12, 28))
    assert grown.num_parameters() == published.num_parameters() == 8_829_407_232
    assert grown.config == replace(base.config, n_layers=48)  # rope base and eps are the base's, not the relative's


def test_dense_layers_must_stay_where_the_configuration_has_them() -> None:
    model = Decoder(CONFIGS["experts"])
    with pytest.raises(ConfigError, match=r"layer 1 would be made from layer 0.*first 1 layers are dense.*from 1 on"):
        grow(model, GrowthPlan.interleave(4, [0]))
    with pytest.raises(ConfigError, match=r"layer 2 would be made from layer 0.*choose layers from 1 on"):
        grow(model, GrowthPlan.block(4, 0, 2))
    assert grow(model, GrowthPlan.block(4, 1, 4)).config.moe == EXPERTS


def test_models_that_cannot_be_grown() -> None:
    with pytest.raises(ConfigError, match="grows a base of 32 layers, this one has 4"):
        grow(Decoder(BASE), GrowthPlan.block(32, 12, 28))
    looped = Decoder(BASE)
    looped.blocks[3] = looped.blocks[2]
    with pytest.raises(ConfigError, match="share their weights"):
        grow(looped, PLANS[0])
    with pytest.raises(ConfigError, match="a Linear cannot be grown"):
        grow(nn.Linear(2, 2), PLANS[0])  # type: ignore[arg-type]
    odd = Decoder(replace(BASE, post_norm=True, norm="ln1p"))
    with pytest.raises(ConfigError, match=r"LayerNorm1p.*use alpha 1"):
        grow(odd, replace(PLANS[0], alpha=0.5))
    assert grow(odd, PLANS[0]).config.n_layers == 6


def test_branch_ends_are_all_that_writes_to_the_stream(base: Decoder) -> None:
    """With them at zero a layer is the identity."""
    block = base.blocks[2]
    with torch.no_grad():
        for end in branch_ends(block):
            end.zero_()
        inputs = layer_inputs(base)
        assert torch.equal(block(*inputs), inputs[0])


# --- growing a folder ------------------------------------------------------------------------------------------------


def same(a: Decoder, b: Decoder) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


FOLDERS = [name for name in presets() if name.endswith("-tiny")]


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_folders_of_all_families_grow_as_their_models_do(name: str, alpha: float, tmp_path: Path) -> None:
    model, plan = randomised(preset(name, vocab_size=64)), GrowthPlan.block(4, 1, 3, alpha)
    save_pretrained(model, tmp_path / "base", shard_bytes=500_000)
    parameters = grow_pretrained(tmp_path / "base", tmp_path / "grown", plan, shard_bytes=500_000, quiet=True)
    grown, base = load_pretrained(tmp_path / "grown"), load_pretrained(tmp_path / "base")
    assert same(grown, grow(base, plan))
    assert grown.config == replace(base.config, n_layers=6)
    assert parameters == grown.num_parameters()
    assert len(list((tmp_path / "grown").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"qkv_bias": True, "o_bias": True, "mlp_bias": True}]
)
def test_a_bfloat16_folder_grows_bit_for_bit(alpha: float, changes: dict[str, Any], tmp_path: Path) -> None:
    model, plan = randomised(replace(BASE, **changes)).to(torch.bfloat16), GrowthPlan.interleave(4, [0, 3], alpha)
    save_pretrained(model, tmp_path / "base")
    grow_pretrained(tmp_path / "base", tmp_path / "grown", plan, quiet=True)
    assert same(load_pretrained(tmp_path / "grown"), grow(model, plan))


def test_a_tied_head_that_is_stored_all_the_same_stays(tmp_path: Path) -> None:
    save_pretrained(randomised(replace(BASE, tie_embeddings=True)), tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    grow_pretrained(tmp_path / "base", tmp_path / "grown", PLANS[0], quiet=True)
    assert "lm_head.weight" in load_file(tmp_path / "grown" / "model.safetensors")
    assert load_pretrained(tmp_path / "grown").config.tie_embeddings


def test_the_record_says_what_was_done(folder: Path, tmp_path: Path) -> None:
    plan = GrowthPlan.interleave(4, [2, 3])
    grow_pretrained(folder, tmp_path / "grown", plan, notes={"cosine": [0.5, 0.9, 1.0, 1.0]}, quiet=True)
    record = json.loads((tmp_path / "grown" / "growth.json").read_text())
    assert record == {
        "layout": "interleave", "alpha": 1.0, "base_layers": 4, "layers": 6, "sources": [0, 1, 2, 2, 3, 3],
        "copies": [3, 5], "cosine": [0.5, 0.9, 1.0, 1.0],
    }  # fmt: skip


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_all_other_fields_of_the_configuration_stay(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, rope_theta=5e6, future_field={"a": [1]}, layer_types=["w", "x", "y", "z"], mlp_only_layers=[])
    before = json.loads((folder / "config.json").read_text())
    grow_pretrained(folder, tmp_path / "grown", GrowthPlan.block(4, 1, 3), quiet=True)
    after = json.loads((tmp_path / "grown" / "config.json").read_text())
    types = ["w", "x", "y", "x", "y", "z"]
    assert after == before | {"num_hidden_layers": 6, "layer_types": types}
    assert list(after) == list(before)


def test_lists_that_name_layers_otherwise_are_refused(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, mlp_only_layers=[0])
    with pytest.raises(CheckpointError, match=r"config\.json: mlp_only_layers has 1 entries for 4 layers"):
        grow_pretrained(folder, tmp_path / "grown", PLANS[0], quiet=True)
    assert not (tmp_path / "grown").exists()


def test_companions_travel_and_optimiser_state_does_not(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_text(f"{{}}{name}")
    for name in ("optimizer.safetensors", "optimizer.pt", "state.json"):
        (folder / name).write_text("moments")
    grow_pretrained(folder, tmp_path / "grown", PLANS[0], quiet=True)
    written = {file.name for file in (tmp_path / "grown").iterdir()}
    assert written == {
        "config.json", "growth.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja",
        "generation_config.json",
    }  # fmt: skip
    assert (tmp_path / "grown" / "chat_template.jinja").read_text() == "{}chat_template.jinja"


def test_one_tensor_at_a_time_is_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files of one tensor each, every write has read exactly one."""
    events: list[str] = []
    read, write = pretrained._Stored.tensor, weight_files.save_file

    def spy_read(stored: Any, name: str) -> Tensor:
        events.append("read")
        return read(stored, name)

    def spy_write(*args: Any, **kwargs: Any) -> None:
        events.append("write")
        write(*args, **kwargs)

    monkeypatch.setattr(pretrained._Stored, "tensor", spy_read)
    monkeypatch.setattr(weight_files, "save_file", spy_write)
    grow_pretrained(folder, tmp_path / "grown", PLANS[0], shard_bytes=1, quiet=True)
    assert events == ["read", "write"] * (6 * 9 + 3)


def test_a_grown_folder_grows_again(folder: Path, tmp_path: Path) -> None:
    grow_pretrained(folder, tmp_path / "one", PLANS[0], quiet=True)
    grow_pretrained(tmp_path / "one", tmp_path / "two", GrowthPlan.block(6, 0, 6), quiet=True)
    assert load_pretrained(tmp_path / "two").config.n_layers == 12


def test_a_failure_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise pretrained.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weight_files, "save_file", full)
    with pytest.raises(StorageError, match="disk is full"):
        grow_pretrained(folder, tmp_path / "grown", PLANS[0], quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_folders_that_cannot_be_grown(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="grows a base of 32 layers, this one has 4"):
        grow_pretrained(folder, tmp_path / "grown", GrowthPlan.block(32, 12, 28), quiet=True)
    with pytest.raises(ConfigError, match="is the base itself"):
        grow_pretrained(folder, folder, PLANS[0], quiet=True)
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        grow_pretrained(tmp_path / "nowhere", tmp_path / "grown", PLANS[0], quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(StorageError, match=r"would delete thesis\.tex"):
        grow_pretrained(folder, tmp_path / "mine", PLANS[0], quiet=True)
    sorted(folder.glob("*.safetensors"))[2].unlink()
    with pytest.raises(CheckpointError, match=r"1 of \d+ shards are missing"):
        grow_pretrained(folder, tmp_path / "grown", PLANS[0], quiet=True)
