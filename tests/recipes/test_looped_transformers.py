"""The smoke preset of looped transformers: what it leaves behind, and what its arms have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes._looped_tasks import closing, examined, made
from bloomery.recipes.looped_transformers import HOP_ARMS, TEXT_ARMS, THINKING_ARMS, LoopedTransformers
from bloomery.worlds.pointer_chase import PointerChase


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looped") / "smoke"
    lab.run("looped_transformers", "smoke", out=folder, quiet=True)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results(folder: Path) -> dict[str, Any]:
    return {stage["name"]: stage["result"] for stage in read(folder / "stages.json")}


def test_every_arm_is_a_stage_and_is_not_done_twice(smoke: Path) -> None:
    stages = read(smoke / "stages.json")
    assert len(stages) == len(TEXT_ARMS) + len(HOP_ARMS) + len(THINKING_ARMS)
    assert all((stage["state"], stage["attempts"]) == ("done", 1) for stage in stages)
    before = read(smoke / "claims.json")["claims"]
    again = lab.run("looped_transformers", "smoke", out=smoke, quiet=True)
    assert read(smoke / "stages.json") == stages
    assert [claim.to_dict() for claim in again.claims] == before


def test_claims_are_computed_from_what_was_measured(smoke: Path) -> None:
    claims, found = read(smoke / "claims.json")["claims"], results(smoke)
    assert len(claims) == 8
    share, better, *_ = claims
    ring, tied, untied = (found[f"text/{arm}"]["losses"]["0"] for arm in ("ring", "tied", "untied"))
    assert share["ours"]["0"] == better["ours"]["0"] == ring
    assert share["baseline"]["0"] == pytest.approx(tied - 0.4 * (tied - untied))
    assert share["passes"] == (ring < share["baseline"]["0"])
    hard = found["thinking/thinking"]["ends"]["0"]["hard"]
    assert claims[5]["ours"]["0"] == hard
    assert claims[5]["passes"] == (claims[5]["baseline"]["0"] - hard >= 0.1)


def test_the_figures_and_tables_are_there(smoke: Path) -> None:
    content = {(item["kind"], item["name"]) for item in read(smoke / "content.json")}
    figures = {"text_loss", "text_final", "hops", "thinking", "routes"}
    assert {("figure", name) for name in figures} <= content
    assert {("table", name) for name in ("text", "hops", "thinking", "effort")} <= content
    assert all((smoke / "figures" / f"{name}.svg").stat().st_size > 1_000 for name in figures)


def test_the_baselines_match_in_parameters_or_in_operations() -> None:
    from bloomery.models import LoopedDecoder

    recipe = LoopedTransformers.configure("cpu")
    models = {arm: LoopedDecoder(recipe.text_config(arm)) for arm in TEXT_ARMS}
    blocks = {arm: sum(p.numel() for p in model.stacks.parameters()) for arm, model in models.items()}
    flops = {arm: model.flops_per_token(recipe.seq_len) for arm, model in models.items()}
    assert blocks["ring"] <= 0.3 * blocks["untied"]
    assert blocks["ring"] <= blocks["two blocks"] <= 1.4 * blocks["ring"]
    assert flops["tied"] == flops["tied + norms"] == flops["untied"] <= flops["ring"] <= 1.1 * flops["untied"]


def test_trials_of_different_arms_begin_alike() -> None:
    recipe = LoopedTransformers.configure("smoke")
    tied, ring = (made(recipe.text_config(arm), 0, 1) for arm in ("tied", "ring"))
    assert torch.equal(tied.embed.weight, ring.embed.weight)
    assert not torch.equal(tied.embed.weight, made(recipe.text_config("tied"), 0, 2).embed.weight)


def test_routers_open_first_and_choose_later() -> None:
    from bloomery.models import inner_thinking
    from bloomery.recipes._looped_tasks import decoder

    model = made(inner_thinking(decoder(20, 16, 2, 2, 8), [1, 3], 0.25), 0, 0)
    hook, shares, learning = closing(model, 100), [], []
    for step in (0, 29, 30, 50, 60, 70, 99):
        assert hook(step, "batch") == "batch"
        shares.append({r.chosen.float().mean().item() for r in model(torch.zeros(2, 8, dtype=torch.int64)).routes})
        learning.append(all(p.requires_grad for p in model.stacks[1].routers.parameters()))
    assert shares == [{1.0}, {1.0}, {1.0}, {1.0}, {0.625}, {0.25}, {0.25}]
    assert learning == [False, False, True, True, True, True, True]


def test_examination_by_hand() -> None:
    """A model whose logits are all alike says label 0 and pays the logarithm of the vocabulary."""
    from bloomery.models import inner_thinking
    from bloomery.recipes._looped_tasks import TEST_ROWS, decoder

    world = PointerChase(labels=4, depth=3, reach=4, fillers=0.3)
    model = made(inner_thinking(decoder(world.vocab_size, 16, 2, 2, 16), [1, 2], 0.5), 0, 0)
    model(torch.zeros(2, 16, dtype=torch.int64))  # every weight a half: so is every threshold, and all tokens pass
    with torch.no_grad():
        model.head.weight.zero_()
    end = examined(model, world, 16, seed=0)
    batch = world.batch(0, TEST_ROWS, 16, 1_000_003)
    for depth, accuracy in end["accuracy"].items():
        assert accuracy == pytest.approx((batch["targets"][batch["depth"] == int(depth)] == 0).mean(), abs=1e-6)
    assert end["hard"] == pytest.approx(np.log(world.vocab_size), abs=1e-5)
    assert end["routes"][0]["share"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"dim": 40}, "dim is 40.*multiple of 32"),
        ({"fraction": 0.0}, "fraction is 0"),
        ({"rates": []}, "rates are"),
        ({"task_rates": [4e-3, 2e-3]}, "task_rates are"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoopedTransformers(**changes)
