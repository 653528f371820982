"""Learning rates that carry over from narrow to wide models: how the best one is found, and the smoke run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.lab import RunResult
from bloomery.recipes.apple_afm import AppleAFM, best_rate, moves, transferred

GRID = [0.005 * 2**i for i in range(5)]


def valley(centre: float, grid: list[float], floor: float = 2.0, steep: float = 0.1) -> dict[str, float]:
    """Losses on a parabola over log2 of the rate."""
    return {str(rate): floor + steep * (math.log2(rate) - centre) ** 2 for rate in grid}


@given(at=st.floats(0.6, 3.4), factor=st.floats(1.2, 4), steep=st.floats(0.01, 10), floor=st.floats(-5, 5))
def test_the_bottom_of_a_parabola_is_found_between_grid_points(
    at: float, factor: float, steep: float, floor: float
) -> None:
    grid = [0.005 * factor**i for i in range(5)]
    centre = math.log2(0.005) + at * math.log2(factor)
    assert best_rate(valley(centre, grid, floor, steep)) == pytest.approx(centre, abs=1e-4)


@given(losses=st.lists(st.floats(0.5, 6), min_size=5, max_size=5))
def test_the_best_rate_stays_within_half_a_step_of_the_best_grid_point(losses: list[float]) -> None:
    found = best_rate(dict(zip(map(str, GRID), losses, strict=True)))
    nearest = math.log2(GRID[losses.index(min(losses))])
    assert abs(found - nearest) <= 0.5 + 1e-9
    assert math.log2(GRID[0]) <= found <= math.log2(GRID[-1])


def test_what_the_claims_compare() -> None:
    """The middle width does not count; each trial is compared with itself."""
    at = [math.log2(rate) for rate in GRID]
    sweeps = {
        48: {0: valley(at[3], GRID), 1: valley(at[2], GRID, steep=0.2)},
        96: {0: valley(at[0], GRID), 1: valley(at[0], GRID)},
        192: {0: valley(at[1], GRID, 1.0), 1: valley(at[2], GRID, 1.5)},
    }
    assert moves(sweeps) == {0: pytest.approx(2.0), 1: pytest.approx(0.0, abs=1e-9)}
    # at width 48, 0.02 gives 2.1 and 2.0, 0.04 gives 2.0 and 2.2: 0.02 is tuned, at which the widest are compared
    assert transferred(sweeps) == {0: pytest.approx(1.0 + 0.1), 1: pytest.approx(1.5)}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("widths", [48], "two or more"),
        ("widths", [96, 48], "rising"),
        ("widths", [48, 100], "holds 100.*multiples of 48"),
        ("rates", [0.01, 0.02], "three or more"),
        ("rates", [0.01, 0.02, 0.03], "same multiple"),
        ("rates", [0.0, 0.02, 0.04], "same multiple"),
        ("trials", 0, "trials is 0"),
        ("held_out_bytes", 0, "held_out_bytes is 0"),
    ],
)
def test_settings_that_make_no_experiment_are_refused(field: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AppleAFM(**{field: value})


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return lab.run("apple_afm", preset="smoke", out=tmp_path_factory.mktemp("afm") / "run", quiet=True)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_smoke_run_sweeps_every_arm(smoke: RunResult) -> None:
    results = {stage["name"]: stage["result"] for stage in read(smoke.folder / "stages.json")}
    assert list(results) == ["base-48-0", "adamw-48-0", "mup-96-0", "plain-96-0"]
    for losses in results.values():
        assert list(losses) == ["0.01", "0.04", "0.16"]
        assert all(2 < loss < 6.5 for loss in losses.values())
    # the same weights, data and rates: only the scaling, or the optimiser, tells the arms apart
    assert results["mup-96-0"] != results["plain-96-0"]
    assert results["adamw-48-0"] != results["base-48-0"]


def test_the_claims_and_the_figure_come_from_the_sweeps(smoke: RunResult) -> None:
    results = {stage["name"]: stage["result"] for stage in read(smoke.folder / "stages.json")}
    shift, transfer = smoke.claims
    base = results["base-48-0"]
    assert shift.ours[0] == pytest.approx(abs(best_rate(results["mup-96-0"]) - best_rate(base)))
    assert shift.baseline[0] == pytest.approx(abs(best_rate(results["plain-96-0"]) - best_rate(base)))
    rate = min(base, key=base.__getitem__)
    assert transfer.ours[0] == results["mup-96-0"][rate]
    assert transfer.baseline[0] == results["plain-96-0"][rate]
    behind = min(base.values()) - min(results["adamw-48-0"].values())
    assert f"is {behind:+.3f} from AdamW" in (smoke.folder / "report.html").read_text(encoding="utf-8")
    figure = (smoke.folder / "figures" / "learning_rates.svg").read_text(encoding="utf-8")
    for label in ("with simple muP", "one rate for all weights", "width 48", "width 96", "peak learning rate"):
        assert label in figure


def test_a_killed_run_goes_on_with_the_sweep_it_was_in(
    smoke: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third sweep, taken up again: the first two are not trained again, the numbers are the same."""
    train: Callable[..., float] = AppleAFM.train
    trained: list[tuple[int, float, Any]] = []

    def counted(self: AppleAFM, run: Any, corpus: Any, width: int, trial: int, lr: float, options: Any) -> float:
        if len(trained) == 7:
            raise KeyboardInterrupt
        trained.append((width, lr, dict(options)))
        return train(self, run, corpus, width, trial, lr, options)

    monkeypatch.setattr(AppleAFM, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        lab.run("apple_afm", preset="smoke", out=tmp_path / "run", quiet=True)
    del trained[:]
    again = lab.run("apple_afm", preset="smoke", out=tmp_path / "run", quiet=True)
    assert [width for width, _, _ in trained] == [96] * 6
    assert [claim.to_dict() for claim in again.claims] == [claim.to_dict() for claim in smoke.claims]
