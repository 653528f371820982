"""The smoke preset of LLM-guided selection: labels, three classifiers, three corpora, claims from the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.llm_selection import BACKENDS, EVERYTHING, LINEAR, RANDOM, SELECTED, LLMSelection


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_smoke_run(tmp_path: Path) -> None:
    lab.run("llm_selection", "smoke", tmp_path / "run", quiet=True)
    results = {stage["name"]: stage["result"] for stage in read(tmp_path / "run" / "stages.json")}
    quality, sooner, control = read(tmp_path / "run" / "claims.json")["claims"]
    judged = results["distil/0"]
    assert quality["ours"]["0"] == judged["auc"][LINEAR]
    assert set(judged["auc"]) == set(BACKENDS)
    assert 0.7 < judged["label_accuracy"] < 0.9
    recipe = LLMSelection(**LLMSelection.presets["smoke"])
    selected, everything, random = (
        results[f"train/{arm.replace(' ', '-')}-0"] for arm in (SELECTED, EVERYTHING, RANDOM)
    )
    assert control["ours"]["0"] == selected["loss"]
    assert control["baseline"]["0"] == random["loss"]
    reached = [size for size, loss in selected["curve"] if loss <= everything["loss"]]
    assert sooner["ours"]["0"] == (reached[0] / recipe.budget if reached else 1.5)
    labels = (tmp_path / "run" / "distil" / "0" / "labels.jsonl").read_text().splitlines()
    assert len(labels) == recipe.labels
    assert "<svg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("fields", [{"accuracy": 0.5}, {"labels": 10_000}, {"order": 0}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LLMSelection(**fields)
