"""The smoke preset of AutoScale: theory and practice, claims from the stages, fields checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.autoscale import (
    ARMS,
    AUTOSCALE,
    DIRECT,
    DOMAINS,
    FLOOR,
    RANDOM,
    SMALL,
    UNIFORM,
    AutoScale,
    _best,
    _first,
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_smoke_run(tmp_path: Path) -> None:
    lab.run("autoscale", "smoke", tmp_path / "run", quiet=True)
    results = {stage["name"]: stage["result"] for stage in read(tmp_path / "run" / "stages.json")}
    theory, direct, uniform, small = read(tmp_path / "run" / "claims.json")["claims"]
    assert theory["passes"]
    assert results["theory"]["exact"] < 1e-6  # without noise the path is the optimum
    plan = results["practice/0"]
    assert direct["ours"]["0"] == plan["losses"][DIRECT]["mean"]
    assert uniform["ours"]["0"] == plan["losses"][AUTOSCALE]["mean"]
    assert uniform["baseline"]["0"] == plan["losses"][UNIFORM]["mean"]
    assert small["baseline"]["0"] == plan["losses"][SMALL]["mean"]
    for arm in ARMS:
        assert sum(plan["weights"][arm].values()) == pytest.approx(1)
        assert set(plan["weights"][arm]) == set(DOMAINS)
        mean = sum(plan["losses"][arm][domain] for domain in DOMAINS) / len(DOMAINS)
        assert plan["losses"][arm]["mean"] == pytest.approx(mean)
    assert plan["runs"] >= 3 * (2 * len(DOMAINS) + 1)
    assert plan["losses"][RANDOM]["mean"] >= min(loss["mean"] for loss in plan["losses"].values())
    assert all(value >= 0 for value in plan["spread"].values())
    assert "random mixtures are within" in plan["notes"][-1]
    lines = (tmp_path / "run" / "practice" / "0" / "grid.jsonl").read_text().splitlines()
    assert len(lines) == plan["runs"]


def test_amounts_are_exact_and_repeat_what_is_short() -> None:
    assert _first(["abc", "defg"], 5) == ["abc", "de"]
    assert "".join(_first(["abc"], 8)) == "abcabcab"
    assert _first(["abc"], 0) == []


def test_domains_that_do_not_help_get_their_floor() -> None:
    curves = {"falls": [1.2, 0.9], "also": [1.1, 0.95], "turns": [1.01, 1.02], "harms": [0.98, 1.1]}
    best, floored, saturated, notes = _best({name: np.array(curve) for name, curve in curves.items()}, 1_000)
    assert sum(best.values()) == pytest.approx(len(curves))
    assert best["harms"] == FLOOR
    assert floored == ["harms"]
    assert saturated == ["turns"]
    assert FLOOR < best["turns"] < 1 < best["also"] < best["falls"]
    assert len(notes) == 1
    assert notes[0].startswith("harms at 1,000")
    nothing = _best({name: np.array([0.9, 1.1]) for name in curves}, 1_000)[0]
    assert nothing == dict.fromkeys(curves, 1.0)


@pytest.mark.parametrize(
    "fields", [{"budgets": [5, 5]}, {"budgets": [5]}, {"order": 0}, {"trials": 0}, {"repeats": 0}, {"mixtures": 0}]
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        AutoScale(**fields)
