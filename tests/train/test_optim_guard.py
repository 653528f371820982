from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery.checkpoint import Checkpoints, read_manifest
from bloomery.train import Phase, TrainConfig, TrainError, train
from bloomery.train.guard import Guard

NORMS = st.lists(st.floats(0, 1e6) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=40)


@given(norms=NORMS, limit=st.floats(0.1, 1e5), multiple=st.none() | st.floats(1.1, 50))
def test_what_is_refused_leaves_no_trace_but_the_count(
    norms: list[float], limit: float, multiple: float | None
) -> None:
    guard = Guard()
    for norm in norms:
        before = asdict(guard)
        taken = guard.admits(norm, limit=limit, multiple=multiple)
        below = norm < limit and (multiple is None or norm < multiple * before["mean"])
        assert taken == below
        if not taken:
            kept = {"skipped": before["skipped"] + 1, "in_a_row": before["in_a_row"] + 1}
            assert asdict(guard) == before | kept
    assert guard.admitted + guard.skipped == len(norms)


@given(norms=st.lists(st.floats(0.01, 100), min_size=1, max_size=60), decay=st.floats(0, 0.999))
def test_the_mean_weighs_recent_norms_more_and_sums_to_one(norms: list[float], decay: float) -> None:
    """After n norms, the norm k steps ago has the weight decay^k over the sum of all weights."""
    guard = Guard()
    for norm in norms:
        assert guard.admits(norm, decay=decay)
    weights = [decay ** (len(norms) - 1 - i) for i in range(len(norms))]
    expected = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    assert guard.mean == pytest.approx(expected, rel=1e-6)


def config(**changes: Any) -> TrainConfig:
    phases = [Phase(tokens=32 * 12, lr=0.02, warmup_tokens=64, final_lr=0.001)]
    return TrainConfig(**({"phases": phases, "seq_len": 8, "batch_size": 4, "optimizer": "adastar"} | changes))


@pytest.mark.parametrize("optimizer", ["adamw", "adastar"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_a_skipped_step_changes_neither_weights_nor_state(
    optimizer: str, bad: float, toy: Callable[..., Any], toy_objective: Any, affine: Any, tmp_path: Any
) -> None:
    """Step 5's gradient is blown up: what training makes of the run is what it makes of one without that step."""
    seen: list[list[torch.Tensor]] = []
    skipped: list[float] = []
    model = toy()

    def objective(model: Any, batch: Any, generator: Any) -> Any:
        loss, metrics = toy_objective(model, batch, generator)
        return (loss * bad if len(seen) == 5 else loss), metrics

    def watch(step: int, values: Any) -> None:
        seen.append([p.detach().clone() for p in model.parameters()])
        skipped.append(values["skipped"])

    setting = config(optimizer=optimizer, skip_norm=1000.0, checkpoint_every=1, keep_last=20)
    result = train(model, objective, affine, setting, out=tmp_path, after_step=[watch], quiet=True)
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in pairwise(seen)]
    assert same == [step == 4 for step in range(len(seen) - 1)]
    assert skipped == [0.0] * 5 + [1.0] * 7
    assert (result.guard.skipped, result.guard.admitted, result.steps) == (1, 11, 12)
    tables = [read_manifest(Checkpoints(tmp_path / "checkpoints").at(step)) for step in (5, 6, 7)]
    states = [
        {(m.tensors[t].name, int(c)) for t, c in zip(m.chunks.tensor, m.chunks.checksum, strict=True)} for m in tables
    ]
    assert states[0] == states[1] != states[2]


def test_the_multiple_follows_what_gradients_are_like(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> None:
    """A gradient 30 times the usual is skipped although far below any fixed limit; the run starts well above 1."""
    count = 0

    def objective(model: Any, batch: Any, generator: Any) -> Any:
        nonlocal count
        count += 1
        loss, metrics = toy_objective(model, batch, generator)
        return loss * (30.0 if count == 9 else 1.0), metrics

    result = train(toy(), objective, affine, config(skip_multiple=8.0), quiet=True)
    assert (result.guard.skipped, result.guard.in_a_row) == (1, 0)


def test_without_a_guard_a_broken_gradient_is_an_error(
    toy: Callable[..., Any], toy_objective: Any, affine: Any
) -> None:
    def objective(model: Any, batch: Any, generator: Any) -> Any:
        loss, metrics = toy_objective(model, batch, generator)
        return loss * math.nan, metrics

    with pytest.raises(TrainError, match="the first gradient that is not finite is"):
        train(toy(), objective, affine, config(), quiet=True)


def test_a_run_that_skips_everything_gives_up(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> None:
    phases = [Phase(tokens=32 * 150, lr=0.02)]
    with pytest.raises(TrainError, match=r"step 99: 100 steps in a row.*running mean of 1 \(raise skip_norm"):
        train(toy(), toy_objective, affine, config(phases=phases, skip_norm=1e-6), quiet=True)
