"""When the batch grows: the rule against its definition, and the loop that follows it, killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import CheckpointError, ConfigError
from bloomery.train import BatchGrowth, Phase, Plan, TrainConfig, growths, train
from bloomery.train.plateau import Watch


def by_definition(losses: list[float], window: int, epsilon: float, cooldown: int) -> list[int]:
    """Steps after which the loss counts as flat, from the weights of the moving average written out."""
    averages, fired = [], []
    for t in range(1, len(losses) + 1):
        weights = (1 - 1 / window) ** np.arange(t)[::-1]
        averages.append(float(np.average(losses[:t], weights=weights)))
        if t <= window or (fired and t - fired[-1] < cooldown):
            continue
        before = averages[t - 1 - window]
        if before - averages[-1] < epsilon * abs(before):
            fired.append(t)
    return fired


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.1, 5), max_size=60),
    st.integers(1, 8),
    st.sampled_from([0.0, 1e-3, 0.05]),
    st.none() | st.integers(1, 12),
)
def test_the_rule_is_its_definition(losses: list[float], window: int, epsilon: float, cooldown: int | None) -> None:
    rule = BatchGrowth(window=window, epsilon=epsilon, cooldown=cooldown, max_batch_size=10**30)
    expected = by_definition(losses, window, epsilon, window if cooldown is None else cooldown)
    assert growths(losses, rule, 1) == [(step, 2 ** (i + 1)) for i, step in enumerate(expected)]


def test_it_waits_for_a_falling_loss_and_fires_on_a_flat_one() -> None:
    rule = BatchGrowth(window=20, epsilon=0.01, max_batch_size=16)
    noise = np.random.default_rng(0).normal(0, 0.005, 300)
    falling = [4 * 0.98**t for t in range(300)]
    assert growths(falling, rule, 4) == []
    knee = [max(4 * 0.98**t, 1.2) + noise[t] for t in range(300)]  # flat from step 60 on
    (first, eight), (second, sixteen) = growths(knee, rule, 4)
    assert 60 < first < 60 + 8 * 20
    assert second >= first + 20
    assert (eight, sixteen) == (8, 16)  # and then the limit


def test_a_list_of_sizes_and_a_limit_that_is_no_multiple() -> None:
    assert BatchGrowth(sizes=[6, 24, 64]).sizes_from(4) == [6, 24, 64]
    assert BatchGrowth(sizes=[6, 24, 64]).sizes_from(7) == [24, 64]
    assert BatchGrowth(factor=3, max_batch_size=40).sizes_from(4) == [12, 36, 40]
    flat = [1.0] * 100
    assert growths(flat, BatchGrowth(window=10, sizes=[6, 24, 64]), 4) == [(11, 6), (21, 24), (31, 64)]
    assert growths(flat, BatchGrowth(window=10, cooldown=3, sizes=[6, 24, 64]), 4) == [(11, 6), (14, 24), (17, 64)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"window": 0}, "window is 0"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"factor": 1}, "factor"),
        ({"cooldown": 0}, "cooldown"),
        ({"sizes": [8, 16]}, "either sizes or max_batch_size"),
        ({"max_batch_size": None}, "either sizes or max_batch_size"),
        ({"max_batch_size": None, "sizes": [8, 8]}, "each larger"),
    ],
)
def test_a_bad_rule_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        BatchGrowth(**({"max_batch_size": 64} | change))


@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=40), st.integers(0, 39))
def test_a_watch_goes_on_from_its_json(losses: list[float], cut: int) -> None:
    rule = BatchGrowth(window=4, epsilon=0.02, max_batch_size=64)
    straight, resumed = Watch(), Watch()
    for i, loss in enumerate(losses):
        if i == cut:
            resumed = Watch(**json.loads(json.dumps(asdict(resumed))))
        assert straight.plateau(loss, rule) == resumed.plateau(loss, rule)
    assert straight == resumed


# ---- in the loop ----

RULE = BatchGrowth(window=6, epsilon=0.02, max_batch_size=16)


def config(**changes: Any) -> TrainConfig:
    phases = [Phase(tokens=3000, lr=0.02, schedule="constant"), Phase(tokens=1500, lr=0.01, schedule="constant")]
    return TrainConfig(**({"phases": phases, "seq_len": 8, "batch_size": 4, "seed": 5, "growth": RULE} | changes))


@pytest.fixture
def run(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> Callable[..., Any]:
    """Train a fresh toy; returns (model, result)."""

    def run(config: TrainConfig, **kwargs: Any) -> Any:
        model = toy(dropout=0.1)
        options = {"objective": toy_objective, "data": affine, "quiet": True} | kwargs
        return model, train(model, options.pop("objective"), options.pop("data"), config, **options)

    return run


def test_the_loop_follows_the_rule(run: Callable[..., Any]) -> None:
    seen: list[dict[str, float]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    settings = config(log_every=10**9)
    _, result = run(
        settings,
        after_step=[lambda step, values: seen.append(dict(values))],
        log=lambda step, **values: logged.append((step, values)),
    )
    assert [size for _, size in result.growth] == [8, 16]
    first = next(i for i, values in enumerate(seen) if values["tokens"] >= 3000)  # last step of the first phase
    phases = [seen[: first + 1], seen[first + 1 :]]
    expected: list[tuple[int, int]] = []
    size = 4
    for steps in phases:  # watching begins anew; the last step of a phase is not watched
        for done, larger in growths([values["loss"] for values in steps[:-1]], RULE, size):
            expected.append((int(steps[done - 1]["tokens"]), larger))
            size = larger
    assert result.growth == expected
    for values, following in pairwise(seen):
        grown = dict(result.growth).get(int(values["tokens"]), values["batch_size"])
        assert following["batch_size"] == grown
    announced = [values["batch_size"] for _, values in logged if values.keys() == {"batch_size"}]
    assert announced == [8, 16]
    assert {values["lr"] for values in phases[0]} == {0.02}  # not rescaled
    assert result.tokens == Plan(settings, result.growth).tokens == sum(v["batch_size"] for v in seen) * 8


def test_a_larger_batch_is_more_passes_of_the_same_size(run: Callable[..., Any], toy_objective: Any) -> None:
    sizes: list[int] = []

    def objective(model: Any, batch: Any, generator: torch.Generator) -> Any:
        sizes.append(len(batch["tokens"]))
        return toy_objective(model, batch, generator)

    _, result = run(config(), objective=objective)
    assert [size for _, size in result.growth] == [8, 16]
    assert set(sizes) == {4}


class Rows:
    """Row k is made from k alone; remembers which rows were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> Mapping[str, torch.Tensor]:
        numbers = range(step * batch_size, (step + 1) * batch_size)
        self.asked += numbers
        tokens = torch.tensor([[(k * 7 + 5 * i) % 13 for i in range(seq_len + 1)] for k in numbers])
        return {"tokens": tokens, "keep": torch.ones_like(tokens)}


@pytest.mark.parametrize("cut", [3, 20, 30, 45, 60])
def test_killed_and_resumed_it_takes_the_same_decisions(run: Callable[..., Any], tmp_path: Path, cut: int) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, values: Mapping[str, float]) -> None:
        if step == cut:
            raise Stop

    settings = config(checkpoint_every=7)
    straight, expected = run(settings, data=Rows())
    with pytest.raises(Stop):
        run(settings, data=Rows(), out=tmp_path, after_step=[stop])
    model, result = run(settings, data=Rows(), out=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), model.parameters(), strict=True))
    assert result.growth == expected.growth
    assert (result.steps, result.tokens, result.watch) == (expected.steps, expected.tokens, expected.watch)
    with pytest.raises(CheckpointError, match="growth was"):
        run(replace(settings, growth=replace(RULE, window=9)), data=Rows(), out=tmp_path)


def test_rows_are_read_once_and_in_order_whatever_the_batch(run: Callable[..., Any]) -> None:
    data = Rows()
    _, result = run(config(), data=data)
    assert len(result.growth) == 2
    trained = result.tokens // 8
    seen = list(dict.fromkeys(data.asked))  # a batch that was read ahead is read again in its new size
    assert seen == list(range(len(seen)))
    assert len(seen) == trained
