"""The smoke preset of Ling in small: its arms, its hooks, what it leaves behind; a second start repeats nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.nn import Router
from bloomery.recipes.ling import (
    ARMS,
    CLEAN,
    DENSE,
    EXPERTS,
    HOT_NORMALISED,
    HOT_PLAIN,
    NORMALISED,
    Ling,
    distance,
    faster,
    fold_at,
    head_of,
)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; read only."""
    folder = tmp_path_factory.mktemp("ling") / "run"
    lab.run("ling", "smoke", folder, quiet=True)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results(smoke: Path) -> dict[str, Any]:
    return {stage["name"]: stage["result"] for stage in read(smoke / "stages.json")}


def test_the_arms_differ_in_what_they_are_named_after() -> None:
    recipe = Ling()
    models = {arm: recipe.model(arm, 0) for arm in ARMS}
    active = {arm: model.active_parameters() for arm, model in models.items()}
    router = recipe.depth * recipe.dim * recipe.experts
    assert active[EXPERTS] == active[DENSE] + router
    assert models[EXPERTS].num_parameters() > 2.5 * models[DENSE].num_parameters()
    assert models[DENSE].config.moe is None
    for arm in ARMS:
        moe = models[arm].config.moe
        assert models[arm].config.head_norm == ("hidden" if arm in (NORMALISED, HOT_NORMALISED) else "none")
        if moe is not None:
            assert (moe.top_k, moe.n_experts, moe.renormalise, moe.balance, moe.z_loss) == (2, 16, True, 0.015, 1e-4)
            assert moe.warmup == (0 if arm == CLEAN else recipe.warmup)
            pairs = zip(models[EXPERTS].parameters(), models[arm].parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "arms with experts begin with the same weights"


def test_routers_are_drawn_as_the_released_code_draws_them() -> None:
    recipe = Ling(dim=256, experts=64)
    routers = [module for module in recipe.model(EXPERTS, 0).modules() if isinstance(module, Router)]
    expected = nn.Linear(recipe.dim, recipe.experts, bias=False)
    nn.init.kaiming_uniform_(expected.weight, a=math.sqrt(5))
    for router in routers:
        assert router.weight.abs().max() <= recipe.dim**-0.5
        assert router.weight.std().item() == pytest.approx(expected.weight.std().item(), rel=0.02)


def test_another_seed_gives_other_weights() -> None:
    recipe = Ling()
    assert distance(recipe.model(EXPERTS, 0), recipe.model(EXPERTS, 0)) == 0.0
    assert distance(recipe.model(EXPERTS, 0), recipe.model(EXPERTS, 1)) > 0.01


def test_a_faster_weight_moves_as_adamw_would_move_it_at_that_rate() -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    slow, fast = (nn.Parameter(start.clone()) for _ in range(2))
    hook = faster(slow, 20)
    rates = ((slow, 1e-3), (fast, 2e-2))
    optimisers = [torch.optim.AdamW([weight], lr=rate, weight_decay=0.1) for weight, rate in rates]
    for step in range(30):
        for weight, optimiser in zip((slow, fast), optimisers, strict=True):
            optimiser.zero_grad()
            ((weight - target) ** 4).sum().backward()
            optimiser.step()
        hook(step, {})
    assert (slow - fast).abs().max() < 1e-10
    assert (slow - start).abs().max() > 0.2


@torch.no_grad()
def test_overwriting_keeps_the_function_and_ends_the_normalising() -> None:
    model = Ling().model(NORMALISED, 0).eval()
    tokens = torch.arange(60).view(2, 30)
    before, weight = model(tokens).logits, head_of(model).clone()
    hook = fold_at(model, 4)
    hook(2, {})
    assert torch.equal(head_of(model), weight)
    hook(3, {})
    assert model.config.head_norm == "none"
    assert (model(tokens).logits - before).abs().max() < 1e-6
    assert (head_of(model).norm(dim=0) - 1).abs().max() < 1e-5
    assert not torch.equal(head_of(model), weight)


def test_claims_are_computed_from_the_stages(smoke: Path) -> None:
    found, summary = results(smoke), read(smoke / "claims.json")
    experts, dense, clean, hot_plain, hot = (
        found[f"train/{arm.replace(' ', '-')}-0"] for arm in (EXPERTS, DENSE, CLEAN, HOT_PLAIN, HOT_NORMALISED)
    )
    gain, with_warmup, without, heads, evaluation = summary["claims"]
    assert (gain["ours"]["0"], gain["baseline"]["0"]) == (experts["loss"], dense["loss"])
    assert (with_warmup["ours"]["0"], with_warmup["baseline"]["0"]) == (max(experts["loads"][:2]), 1.5)
    assert (without["ours"]["0"], without["baseline"]["0"]) == (max(clean["loads"][:2]), 2.0)
    assert (heads["ours"]["0"], heads["baseline"]["0"]) == (hot["loss"], hot_plain["loss"])
    assert (evaluation["ours"]["0"], evaluation["baseline"]["0"]) == (0.0, 0.0)
    assert evaluation["passes"]
    assert found["evaluation"]["overwriting"]["0"] > 1e-4
    assert 3.0 < experts["loss"] < 5.0  # a byte model that knows nothing pays 5.5
    assert hot["loss"] != hot_plain["loss"]


def test_random_routing_is_balanced_where_the_router_is_not(smoke: Path) -> None:
    found = results(smoke)
    assert len(found["train/experts-0"]["loads"]) == len(found["train/no-warm-up-0"]["loads"]) == 6
    assert found["train/experts-0"]["loads"][0] < 1.5 < 2.0 < found["train/no-warm-up-0"]["loads"][0]
    assert set(found["train/dense-0"]["loads"]) == {0.0}


def test_curves_end_with_the_loss_and_pass_the_early_step(smoke: Path) -> None:
    for name, result in results(smoke).items():
        if name.startswith("train/"):
            curve = result["curve"]
            assert curve[-1] == [12 if name in ("train/experts-0", "train/dense-0") else 6, result["loss"]]
            assert dict(map(tuple, curve))[6] == result["early"]
            assert [step for step, _ in curve][:3] == [2, 4, 6]


def test_the_report_has_its_figures(smoke: Path) -> None:
    assert {path.name for path in (smoke / "figures").iterdir()} == {"loss.svg", "load.svg", "heads.svg"}
    report = (smoke / "report.html").read_text(encoding="utf-8")
    for word in (*ARMS, "rates tried", "Largest difference of a weight"):
        assert word in report


def test_a_second_start_trains_nothing(smoke: Path) -> None:
    before = read(smoke / "stages.json")
    lab.run("ling", "smoke", smoke, quiet=True)
    assert read(smoke / "stages.json") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 48}, "dim is 48"),
        ({"experts": 1}, "experts is 1"),
        ({"early": 8}, "early is 8 of 12 steps"),
        ({"early": 12}, "early is 12 of 12 steps"),
        ({"warmup": 31}, "warmup is 31"),
        ({"rates": [2e-3, 1e-3]}, "ascending"),
        ({"trials": 0}, "trials is 0"),
    ],
)
def test_values_out_of_range(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.run("ling", "smoke", tmp_path / "run", quiet=True, **changes)
