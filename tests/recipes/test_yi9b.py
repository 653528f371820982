"""What the smoke preset of Yi-9B's growth leaves behind, and that its arms are what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.corpus.bytes_stream import EDGE
from bloomery.models import load_pretrained
from bloomery.models.growth import GrowthPlan
from bloomery.recipes.yi9b import GROWN, PROBLEMS, Yi9B, problems

SMALL: dict[str, Any] = {"tokens": 3_000, "continued": 3_200, "test_bytes": 2_000}
COSINE = [0.3, 0.9, 0.95, 0.9, 0.8, 0.5, 0.98, 0.4]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; read only."""
    folder = tmp_path_factory.mktemp("yi9b") / "run"
    lab.run(Yi9B, "smoke", folder, quiet=True, **SMALL)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results(run: Path) -> dict[str, Any]:
    return {stage["name"]: stage["result"] for stage in read(run / "stages.json")}


def test_claims_are_the_measured_numbers(run: Path) -> None:
    found, (exact, init, centred, after, last) = results(run), read(run / "claims.json")["claims"]
    arm = {name: found[f"continue/{name}-0"] for name in (*GROWN, "base")}
    assert exact["ours"]["0"] == abs(arm["zero-init"]["init"] - arm["base"]["init"])
    assert exact["passes"]
    assert init["ours"]["0"] == max(arm["block"]["init"], arm["interleave"]["init"])
    assert init["baseline"]["0"] == arm["lowest"]["init"]
    for claim, key in ((centred, "init"), (after, "final")):
        assert (claim["ours"]["0"], claim["baseline"]["0"]) == (arm["block"][key], arm["SOLAR"][key])
    assert (last["ours"]["0"], last["baseline"]["0"]) == (arm["block"]["final"], arm["lowest"]["final"])
    assert all(0.5 < value["final"] < value["init"] < 5.6 for value in arm.values())


def test_plans_follow_the_cosines(run: Path) -> None:
    report = results(run)["layers/0"]
    assert len(report["cosine"]) == 4
    assert report["plans"] == {
        arm: list(Yi9B.configure("smoke", SMALL).plan(arm, report["cosine"]).sources) for arm in GROWN
    }
    assert set(report["windows"]) == {"0", "1", "2"}
    block = GrowthPlan(4, tuple(report["plans"]["block"]))
    assert report["alphas"]["1.0"] == report["windows"][str(block.sources[block.copies[0]])]
    assert report["alphas"]["0.0"] != report["alphas"]["1.0"]


def test_arms() -> None:
    recipe = Yi9B.configure("cpu")
    assert recipe.plan("block", COSINE) == GrowthPlan.block(8, 1, 5)
    assert recipe.plan("interleave", COSINE) == GrowthPlan.interleave(8, [1, 2, 3, 6])
    assert recipe.plan("lowest", COSINE) == GrowthPlan.interleave(8, [0, 4, 5, 7])
    assert recipe.plan("SOLAR", COSINE).sources == GrowthPlan.block(8, 2, 6).sources
    assert recipe.plan("zero-init", COSINE) == replace(recipe.plan("block", COSINE), alpha=0.0)
    assert recipe.plan("random", COSINE) == recipe.plan("block", COSINE)


def test_random_layers_are_new_and_the_rest_is_the_base(run: Path, tmp_path: Path) -> None:
    recipe, base = Yi9B.configure("smoke", SMALL), run / "base" / "0" / "model"
    plan = recipe.plan("random", COSINE[:4])
    drawn, copied, before = (
        recipe.grow("random", COSINE[:4], 0, base, tmp_path / "a"),
        recipe.grow("block", COSINE[:4], 0, base, tmp_path / "b"),
        load_pretrained(base),
    )
    for layer, source in enumerate(plan.sources):
        new, copy, old = (
            model.blocks[i].attn.out.weight for model, i in ((drawn, layer), (copied, layer), (before, source))
        )
        assert torch.equal(copy, old)
        assert torch.equal(new, old) == (layer not in plan.copies)


def test_every_arm_trains_on_as_many_operations(run: Path) -> None:
    recipe, found = Yi9B.configure("smoke", SMALL), results(run)
    assert 1.2 < recipe.longer() < 1.5
    step = 4 * recipe.batch_size * recipe.seq_len  # each of the two phases is rounded up to whole steps
    for arm in (*GROWN, "base"):
        wanted = recipe.continued * (recipe.longer() if arm == "base" else 1)
        assert wanted - 2 <= found[f"continue/{arm}-0"]["tokens"] <= wanted + 2 * step


def test_the_batch_grows_on_a_plateau(run: Path) -> None:
    """A window of four steps finds one; the sizes double and stop at four times the first."""
    for arm in (*GROWN, "base"):
        sizes = [size for _, size in results(run)[f"continue/{arm}-0"]["batches"]]
        assert sizes in ([4, 8], [4, 8, 16])


def test_two_stages_at_one_rate() -> None:
    config = Yi9B.configure("cpu").continuation(64_000, 2)
    first, second = config.phases
    assert (first.data, second.data) == ("general", "emphasis")
    assert first.tokens + second.tokens == 64_000
    assert first.lr == second.lr
    assert {first.schedule, second.schedule} == {"constant"}
    assert first.warmup_tokens == 20 * 8 * 96


def test_problems_of_the_test_are_not_taught() -> None:
    recipe = Yi9B.configure("smoke", SMALL)
    texts = recipe.texts()
    tokens = texts.unseen.tokens.astype(np.int64)
    asked = [
        bytes(part[part < EDGE].astype(np.uint8)).decode().partition("?")[0]
        for part in np.split(tokens, np.flatnonzero(tokens == EDGE))
        if (part < EDGE).any()
    ]
    taught = {question.partition("?")[0] for question in problems(0, PROBLEMS)}
    assert len(asked) == texts.unseen.n_documents > 100
    assert taught.isdisjoint(question for question in asked if question.startswith("What"))


def test_the_report_draws_what_was_measured(run: Path) -> None:
    assert {file.stem for file in (run / "figures").glob("*.svg")} == {"cosine", "init_loss", "final_loss", "continued"}
    tables = {item["name"]: item for item in read(run / "content.json") if item["kind"] == "table"}
    assert set(tables) == {"losses", "windows", "alphas", "plans", "batches"}
    assert [row[0] for row in tables["losses"]["rows"]] == [*GROWN, "base"]
    found = results(run)["continue/block-0"]
    assert tables["losses"]["rows"][0][1] == f"{found['init']:.4f}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grown": 11}, "grown is 11 and depth 8"),
        ({"grown": 8}, "grown even, above depth"),
        ({"grown": 16}, "below twice as much"),
        ({"dim": 48}, "dim is 48"),
        ({"trials": 0}, "trials is 0"),
        ({"window": -1}, "window is -1"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Yi9B.configure("cpu", fields)
