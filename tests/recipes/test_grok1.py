"""The smoke preset of Grok-1 in small: its arms, what it leaves behind, and that a second start repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.models import Decoder
from bloomery.recipes.grok1 import ARMS, BARE, DENSE, EXPERTS, RENORMALISED, Grok1


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grok1") / "run"
    lab.run("grok1", "smoke", folder, quiet=True)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_arms_differ_in_what_they_are_named_after() -> None:
    recipe = Grok1()
    models = {arm: Decoder(recipe.config(arm)) for arm in ARMS}
    active = {arm: model.active_parameters() for arm, model in models.items()}
    router = recipe.depth * recipe.dim * 8
    norms = 2 * recipe.depth * recipe.dim
    assert active[EXPERTS] == active[RENORMALISED] == active[DENSE] + router == active[BARE] + norms
    assert models[EXPERTS].num_parameters() > 2.5 * models[DENSE].num_parameters()
    config = models[EXPERTS].config
    assert (config.softcap, config.activation, config.tie_embeddings) == (30.0, "gelu_tanh", True)
    assert config.embed_scale == pytest.approx(recipe.dim**0.5)
    assert config.logit_scale == pytest.approx(3**-0.5)
    assert config.moe is not None
    assert not config.moe.renormalise


def test_claims_are_computed_from_the_stages(smoke: Path) -> None:
    summary = read(smoke / "claims.json")
    results = {stage["name"]: stage["result"] for stage in read(smoke / "stages.json")}
    experts, dense, bare = (results[f"train/{arm}-0"] for arm in ("8-experts", "dense", "no-post-norms"))
    gain, share, early = summary["claims"]
    assert (gain["ours"]["0"], gain["baseline"]["0"]) == (experts["loss"], dense["loss"])
    assert share["ours"]["0"] == min(map(min, experts["loads"]))
    assert share["baseline"]["0"] == 0.02
    assert (early["ours"]["0"], early["baseline"]["0"]) == (experts["early"], bare["early"])
    for claim in summary["claims"]:
        assert claim["passes"] == (claim["gain"] >= claim["margin"] and claim["gain"] > 0)
    assert 3.0 < experts["loss"] < 5.5  # a byte model that knows nothing pays 5.5
    assert dense["loads"] == []
    for layer in experts["loads"]:
        assert len(layer) == 8
        assert sum(layer) == pytest.approx(1.0, abs=1e-5)


def test_curves_end_with_the_loss_and_pass_the_early_step(smoke: Path) -> None:
    results = {stage["name"]: stage["result"] for stage in read(smoke / "stages.json")}
    for arm, last in (("8-experts", 12), ("dense", 12), ("gates-sum-to-1", 8), ("no-post-norms", 8)):
        curve = results[f"train/{arm}-0"]["curve"]
        assert curve[-1] == [last, results[f"train/{arm}-0"]["loss"]]
        assert dict(map(tuple, curve))[8] == results[f"train/{arm}-0"]["early"]


def test_the_report_has_its_figures(smoke: Path) -> None:
    assert {path.name for path in (smoke / "figures").iterdir()} == {"loss.svg", "experts.svg"}
    report = (smoke / "report.html").read_text(encoding="utf-8")
    for word in (*ARMS, "Each expert's share", "rates tried"):
        assert word.replace("'", "&#x27;") in report or word in report


def test_a_second_start_trains_nothing(smoke: Path) -> None:
    before = read(smoke / "stages.json")
    lab.run("grok1", "smoke", smoke, quiet=True)
    assert read(smoke / "stages.json") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 48}, "dim is 48"),
        ({"early": 12}, "early is 12 of 12 steps"),
        ({"rates": [2e-3, 1e-3]}, "ascending"),
        ({"trials": 0}, "trials is 0"),
    ],
)
def test_values_out_of_range(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.run("grok1", "smoke", tmp_path / "run", quiet=True, **changes)
