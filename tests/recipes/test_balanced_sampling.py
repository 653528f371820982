"""The smoke preset of balanced sampling: every method chooses the wanted number, claims come from the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.balanced_sampling import ARMS, FLAT, RESAMPLED, BalancedSampling, _file, shapes
from bloomery.worlds.rings import rings


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_smoke_run(tmp_path: Path) -> None:
    lab.run("balanced_sampling", "smoke", tmp_path / "run", quiet=True)
    results = {stage["name"]: stage["result"] for stage in read(tmp_path / "run" / "stages.json")}
    recipe = BalancedSampling(**BalancedSampling.presets["smoke"])
    for arm in ARMS:
        result = results[f"rings/{_file(arm)}-0"]
        assert len(set(result["chosen"])) == recipe.target == sum(result["rings"])
    half = read(tmp_path / "run" / "claims.json")["claims"][0]
    assert half["ours"]["0"] == results[f"rings/{_file(RESAMPLED)}-0"]["kl"]
    assert half["baseline"]["0"] == results[f"rings/{_file(FLAT)}-0"]["kl"] / 2
    assert "<svg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_evenness() -> None:
    world = rings(seed=1, scale=0.05)
    everything = np.arange(len(world.points))
    spread = world.uniformity(everything)
    assert spread > 0.4  # most points are on one ring
    low, high = world.points.min(axis=0), world.points.max(axis=0)
    cell = ((world.points - low) / (high - low) * (20 - 1e-9)).astype(int) @ [20, 1]
    _, one_each = np.unique(cell, return_index=True)
    assert world.uniformity(one_each) == pytest.approx(0, abs=1e-12)
    assert np.array_equal(rings(seed=1, scale=0.05).points, world.points)


def test_shapes_are_unevenly_frequent() -> None:
    images, label = shapes(0, 200)
    assert images.shape == (len(label), 64)
    counts = np.bincount(label)
    assert counts[:5].min() == 200
    assert counts[5:].max() == 4


@pytest.mark.parametrize("fields", [{"target": 0}, {"lower": 10}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BalancedSampling(**fields)
