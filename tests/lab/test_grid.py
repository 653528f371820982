"""Runs of a grid: each configuration once, across starts, whatever a kill left of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bloomery.lab.grid import RunGrid


def test_each_configuration_is_trained_once(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def train(**configuration: Any) -> dict[str, Any]:
        calls.append(configuration)
        return {"loss": configuration["x"] ** 2}

    grid = RunGrid(tmp_path / "runs" / "grid.jsonl", train)
    assert grid.fill([{"x": 2, "name": "a"}, {"x": 3, "name": "a"}, {"name": "a", "x": 2}]) == [
        {"loss": 4}, {"loss": 9}, {"loss": 4},
    ]  # fmt: skip
    assert len(calls) == len(grid) == 2
    again = RunGrid(tmp_path / "runs" / "grid.jsonl", train)
    assert again(x=3, name="a") == {"loss": 9}
    assert len(calls) == 2


def test_a_line_cut_short_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "grid.jsonl"
    grid = RunGrid(path, lambda x: {"y": x})
    grid(x=1)
    grid(x=2)
    path.write_text(path.read_text()[:-10])
    again = RunGrid(path, lambda x: {"y": x})
    assert len(again) == 1
    assert again(x=2) == {"y": 2}

    def never(x: int) -> dict[str, int]:
        raise AssertionError(x)

    assert RunGrid(path, never)(x=2) == {"y": 2}  # kept, though it follows half a line


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    def fail(x: int) -> dict[str, int]:
        raise ValueError(x)

    grid = RunGrid(tmp_path / "grid.jsonl", fail)
    with pytest.raises(ValueError, match="5"):
        grid(x=5)
    assert len(RunGrid(tmp_path / "grid.jsonl", fail)) == 0
