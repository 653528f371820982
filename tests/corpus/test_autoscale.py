"""AutoScale's mathematics: the notebooks' numbers, exact optima, the path, its guard rails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.autoscale import PowerLaw, fit_power_law, on_path, optimal_amounts, predict


def rows(golden_root: Path, name: str) -> list[dict[str, Any]]:
    file = golden_root / "autoscale" / name
    if not file.exists():
        pytest.skip(f"no {file}")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_fits_equal_the_notebook(golden_root: Path) -> None:
    tolerance = json.loads((golden_root / "autoscale" / "meta.json").read_text())["tolerances"]["fit_relative"]
    for row in rows(golden_root, "ddo_fit.jsonl"):
        law = fit_power_law(row["x"], row["y"])
        for key in "abc":
            assert getattr(law, key) == pytest.approx(row["out"][key], rel=tolerance), (row["domain"], key)


def test_the_fits_follow_from_the_matrix(golden_root: Path) -> None:
    matrix = json.loads((golden_root / "autoscale" / "ddo_matrix.json").read_text())
    for row in rows(golden_root, "ddo_fit.jsonl"):
        case = matrix[row["case"]]
        mean = dict(zip(case["rows"], np.array(case["ppl"])[:, case["cols"].index("mean")], strict=True))
        runs = [f"reduced:{row['domain']}", "base", f"tripled:{row['domain']}"]
        assert [mean[run] / mean["base"] for run in runs] == pytest.approx(row["y"])


def gradient_steps(laws: list[PowerLaw], row: dict[str, Any]) -> np.ndarray:
    """The notebook's solver: steps against the gradient, projected so that the sum stays."""
    m = len(laws)
    x = np.full(m, float(row["start"]))
    for _ in range(row["iterations"]):
        gradient = np.array([law.slope(value) for law, value in zip(laws, x, strict=True)])
        x = x - row["step"] * (m * gradient - gradient.sum()) / (m - 1)
    return x


def test_optima_equal_the_notebook(golden_root: Path) -> None:
    tolerance = json.loads((golden_root / "autoscale" / "meta.json").read_text())["tolerances"]["solve_absolute"]
    converged = 0
    for row in rows(golden_root, "ddo_solve.jsonl"):
        laws = [PowerLaw(a, b, 0.0) for a, b in zip(row["a"], row["b"], strict=True)]
        assert gradient_steps(laws, row) == pytest.approx(row["out"]["x"], abs=tolerance)
        if row["iterations"] >= 10_000:
            converged += 1
            exact = optimal_amounts(dict(zip(row["free"], laws, strict=True)), row["total"], floor=0.2)
            assert list(exact.values()) == pytest.approx(row["out"]["x"], abs=2 * tolerance)
    assert converged


def test_the_path_equals_the_notebook(golden_root: Path) -> None:
    for row in rows(golden_root, "predict.jsonl"):
        n1, n2 = np.array(row["n1"]), np.array(row["n2"])
        amounts = on_path(n1, n2, row["t"])
        assert amounts == pytest.approx(row["out"]["n"], rel=1e-12)
        if row["t"] >= 1:  # the same point, asked for by its budget
            names = [str(i) for i in range(len(n1))]
            first, second = dict(zip(names, n1, strict=True)), dict(zip(names, n2, strict=True))
            found = predict(first, second, row["out"]["total"], max_t=10, max_rate=10)
            assert found.t == pytest.approx(row["t"])
            assert list(found.weights.values()) == pytest.approx(row["out"]["weights"], rel=1e-9)


laws = st.builds(PowerLaw, a=st.floats(0.1, 5), b=st.floats(0.2, 3), c=st.floats(0, 2))


@given(laws, st.lists(st.floats(-0.003, 0.003), min_size=5, max_size=5))
def test_fits_are_as_good_as_scipys(law: PowerLaw, noise: list[float]) -> None:
    least_squares = pytest.importorskip("scipy.optimize").least_squares
    x = np.array([0.2, 1 / 3, 1.0, 2.0, 3.0])
    y = law(x) + np.array(noise)
    try:
        found = fit_power_law(x, y)
    except DataError:  # a loss that rises, or a start from which neither finds a law
        return
    theirs = least_squares(lambda p: np.maximum(x + p[0], 1e-9) ** -p[1] + p[2] - y, np.ones(3), method="lm")
    assert found.residual <= np.sqrt(np.mean(theirs.fun**2)) * 1.001 + 1e-9


@given(st.lists(laws, min_size=2, max_size=6), st.floats(0, 0.9))
def test_no_exchange_between_two_domains_lowers_the_optimum(found: list[PowerLaw], floor: float) -> None:
    named = {str(i): law for i, law in enumerate(found)}
    best = optimal_amounts(named, total=len(found), floor=floor)
    assert sum(best.values()) == pytest.approx(len(found))
    assert min(best.values()) >= floor

    def loss(amounts: dict[str, float]) -> float:
        return sum(float(named[name](x)) for name, x in amounts.items())

    for giver in best:
        for taker in best:
            step = min(1e-3, best[giver] - floor)
            if giver != taker and step > 0:
                moved = best | {giver: best[giver] - step, taker: best[taker] + step}
                assert loss(moved) >= loss(best) - 1e-9


@given(st.lists(st.tuples(st.floats(0.15, 0.6), st.floats(0.5, 3)), min_size=2, max_size=7), st.floats(1.3, 100))
def test_the_path_is_exact_where_the_paper_says(domains: list[tuple[float, float]], target: float) -> None:
    """Losses beta N^-gamma without offset: the best amounts at any budget lie on the path of two others."""

    def best(budget: float) -> dict[str, float]:
        low, high = -60.0, 60.0
        for _ in range(200):
            middle = (low + high) / 2
            n = [(beta * gamma / np.exp(middle)) ** (1 / (gamma + 1)) for gamma, beta in domains]
            low, high = (middle, high) if sum(n) > budget else (low, middle)
        return {str(i): float(amount) for i, amount in enumerate(n)}

    found = predict(best(0.3), best(1.2), target, max_t=1e9, max_rate=10)
    assert list(found.amounts.values()) == pytest.approx(list(best(target).values()), rel=1e-6)


def test_guard_rails() -> None:
    first, second = {"a": 0.28, "b": 0.012, "c": 0.108}, {"a": 0.6, "b": 0.288, "c": 0.312}
    free = predict(first, second, 4.0, max_rate=100, max_t=100)
    held = predict(first, second, 4.0)
    assert free.weights["b"] > 0.55 > 0.45 > held.weights["b"]
    assert any("b grew" in warning for warning in held.warnings)
    kept = predict(first, second, 4.0, floored=["b"])
    assert kept.weights["b"] == pytest.approx(second["b"] / 1.2)
    far = predict(first, second, 1e6, floored=["b"])
    near = predict(first, second, 1.2 * 3**2, floored=["b"])
    assert any("t =" in warning for warning in far.warnings)
    assert far.weights["a"] == pytest.approx(near.weights["a"], abs=0.05)
    assert sum(far.amounts.values()) == pytest.approx(1e6)
    capped = predict(first, second, 4.0, caps={"a": 0.9})
    assert capped.amounts["a"] == 0.9
    assert sum(capped.amounts.values()) == pytest.approx(4.0)


@given(st.floats(0.001, 0.3), st.floats(0, 0.3))
def test_a_budget_is_spent_where_losses_fall(fall: float, rise: float) -> None:
    """How much a loss rises beyond its lowest point does not matter: no budget is spent there."""
    x = [1 / 3, 1.0, 3.0]
    law = fit_power_law(x, [1 + fall, 1.0, 1.0 + rise], allow_negative_transfer=True)
    flat = fit_power_law(x, [1 + fall, 1.0, 1.0])
    assert (law.a, law.b, law.c) == (flat.a, flat.b, flat.c)
    assert law.saturated
    assert not flat.saturated
    assert law(np.array(x)) == pytest.approx([1 + fall, 1.0, 1.0], abs=0.1 * fall)


def test_saturated_domains_keep_their_share() -> None:
    law = fit_power_law([1 / 3, 1, 3], [1.006, 1.0, 1.005], allow_negative_transfer=True)
    assert law.saturated
    best = optimal_amounts({"u": law, "v": PowerLaw(2.0, 2.5, 0.0), "w": PowerLaw(2.5, 2.0, 0.0)}, 3.0, floor=0.1)
    assert 0.1 < best["u"] < 1.0 < best["v"]  # no more of it than helps, and it is not left out
    first, second = {"u": 0.1, "v": 0.2, "w": 0.2}, {"u": 0.2, "v": 0.9, "w": 0.7}
    found = predict(first, second, 8.0, saturated=["u"])
    assert found.weights["u"] == pytest.approx(0.2 / 1.8)
    assert found.warnings == ["u had saturated: its share is kept"]


def test_noise_of_the_optima_is_carried_to_the_target() -> None:
    first, second = {"a": 0.1, "b": 0.1, "c": 0.1}, {"a": 0.3, "b": 0.4, "c": 0.5}
    none, little, much = (
        predict(first, second, 8.0, noise=dict.fromkeys(first, noise)) for noise in (0.0, 0.02, 0.4)
    )  # fmt: skip
    assert none.spread == pytest.approx(dict.fromkeys(first, 0.0), abs=1e-12)
    assert all(0 < little.spread[name] < much.spread[name] for name in first)
    assert not little.warnings
    assert any("the noise leaves its share" in warning for warning in much.warnings)
    assert none.amounts == little.amounts == much.amounts  # noise says how far to trust them, and changes nothing
    # To first order: log N3 = 2 log N2 - log N1, where the target is one step on.
    step = predict(first, second, 0.9 + 1.6 + 2.5, noise={"c": 0.01})
    share = 2.5 / 5.0
    assert step.spread["c"] == pytest.approx(share * (1 - share) * 0.01 * 5**0.5, rel=0.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: fit_power_law([1, 3], [1, 0.9]), "2 points"),
        (lambda: fit_power_law([1, 1, 3], [1, 1, 0.9]), "points"),
        (lambda: fit_power_law([1 / 3, 1, 3], [0.9, 1, 1.1]), "rises"),
        (lambda: fit_power_law([1 / 3, 1, 3], [0.9, 1, 1.1], allow_negative_transfer=True), "rises"),
        (lambda: fit_power_law([1 / 3, 1, 3], [1.1, float("nan"), 0.9]), "finite"),
        (lambda: optimal_amounts({"a": PowerLaw(1, 1, 0)}, 1, floor=2), "floors"),
        (lambda: optimal_amounts({"a": PowerLaw(1, 1, 0)}, 1, caps={"a": 0.5}), "caps"),
        (lambda: predict({"a": 1}, {"b": 2}, 3), "differ"),
        (lambda: predict({"a": 1}, {"a": 1}, 3), "larger"),
        (lambda: predict({"a": 1}, {"a": 2}, 0.5), "below"),
        (lambda: predict({"a": 1, "b": 1}, {"a": 0.5, "b": 3}, 9), "falls"),
        (lambda: predict({"a": 1, "b": 1}, {"a": 2, "b": 3}, 9, floored=["a", "b"]), "every domain"),
        (lambda: predict({"a": 1, "b": 1}, {"a": 2, "b": 3}, 9, floored=["a"], saturated=["b"]), "every domain"),
        (lambda: predict({"a": 1, "b": 1}, {"a": 2, "b": 3}, 90, caps={"a": 1, "b": 1}), "caps"),
    ],
)
def test_what_cannot_be_done_is_said(call: Any, match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        call()
