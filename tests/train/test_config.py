from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.config import decode, encode
from bloomery.core.errors import ConfigError
from bloomery.train import BatchGrowth, Change, Phase, TrainConfig


@st.composite
def phases(draw: st.DrawFn) -> Phase:
    tokens = draw(st.integers(2, 10**12))
    schedule = draw(st.sampled_from(["constant", "linear", "cosine", "wsd", "inverse_sqrt", "step"]))
    warmup = draw(st.integers(0, tokens - 1))
    lr = draw(st.floats(1e-8, 1.0))
    return Phase(
        tokens=tokens,
        lr=lr,
        schedule=schedule,
        warmup_tokens=warmup,
        final_lr=0.0 if schedule in ("constant", "step") else draw(st.floats(lr / 2, lr)),
        decay_tokens=draw(st.integers(1, tokens - warmup)) if schedule == "wsd" else 0,
        step_at=[(warmup / tokens + 1) / 2] if schedule == "step" else [],
        batch_size=draw(st.none() | st.integers(1, 4096)),
        changes=[Change(at_tokens=1, batch_size=draw(st.integers(1, 64)))] if draw(st.booleans()) else [],
    )


configs = st.builds(
    TrainConfig,
    phases=st.lists(phases(), min_size=1, max_size=4),
    seq_len=st.integers(1, 8192),
    micro_batch=st.none() | st.just(1),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    clip=st.floats(0, 10),
    precision=st.sampled_from(["auto", "float32", "bfloat16"]),
    compile=st.booleans(),
    seed=st.integers(0, 2**40),
)


@settings(deadline=None, max_examples=25)
@given(configs)
def test_decode_undoes_encode_through_json(config: TrainConfig) -> None:
    assert decode(TrainConfig, json.loads(json.dumps(encode(config)))) == config


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"tokens": 0}, ["tokens", "> 0"]),
        ({"lr": 0.0}, ["lr", "> 0"]),
        ({"lr": -1e-3}, ["lr", "-0.001"]),
        ({"schedule": "cosinus"}, ["schedule", "cosinus", "wsd"]),
        ({"warmup_tokens": 2000}, ["warmup_tokens", "2000"]),
        ({"final_lr": 1.0}, ["final_lr"]),
        ({"batch_size": 0}, ["batch_size"]),
        ({"schedule": "wsd"}, ["decay_tokens"]),
        ({"schedule": "wsd", "warmup_tokens": 600, "decay_tokens": 500}, ["decay_tokens", "500"]),
        ({"decay_tokens": 10}, ["decay_tokens", "wsd"]),  # it would do nothing
        ({"schedule": "constant", "final_lr": 1e-4}, ["final_lr", "constant"]),
        ({"schedule": "step"}, ["step_at", "[]"]),
        ({"schedule": "step", "step_at": [0.9, 0.8]}, ["step_at", "rising"]),
        ({"schedule": "step", "step_at": [1.0]}, ["step_at", "warm-up and 1"]),
        ({"schedule": "step", "step_at": [0.5], "step_factor": 1.0}, ["step_factor"]),
        ({"schedule": "step", "step_at": [0.5], "final_lr": 1e-4}, ["final_lr", "step"]),
        ({"step_at": [0.5]}, ["step_at", "schedule is step"]),
        ({"schedule": "inverse_sqrt"}, ["final_lr", "> 0"]),
        ({"changes": [Change(at_tokens=1000, batch_size=2)]}, ["changes", "1000"]),
        ({"changes": [Change(at_tokens=5, batch_size=2), Change(at_tokens=5, batch_size=4)]}, ["changes", "in order"]),
        ({"changes": [Change(at_lr=0.1, batch_size=2), Change(at_lr=0.5, batch_size=4)]}, ["changes", "in order"]),
        ({"schedule": "constant", "changes": [Change(at_lr=0.5, batch_size=2)]}, ["at_lr", "falls to 1 of lr"]),
        ({"final_lr": 3e-4, "changes": [Change(at_lr=0.2, batch_size=2)]}, ["at_lr is 0.2", "falls to 0.3"]),
        ({"changes": [Change(at_tokens=5, data="qa")]}, ["data", "None"]),
    ],
)
def test_a_bad_phase_is_refused(change: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Phase(**({"tokens": 1000, "lr": 1e-3} | change))
    assert all(name in str(caught.value) for name in names)


def ramp(*sizes: int) -> Phase:
    changes = [Change(at_tokens=100 * i, batch_size=size) for i, size in enumerate(sizes[1:], start=1)]
    return Phase(tokens=1000, lr=1e-3, batch_size=sizes[0], changes=changes)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"phases": []}, ["phases"]),
        ({"seq_len": 0}, ["seq_len"]),
        ({"batch_size": -1}, ["batch_size"]),
        ({"micro_batch": 0}, ["micro_batch"]),
        ({"betas": (0.9, 1.0)}, ["betas"]),
        ({"eps": 0.0}, ["eps"]),
        ({"clip": -1.0}, ["clip"]),
        ({"precision": "float16"}, ["precision", "float16"]),
        ({"keep_last": 0}, ["keep_last"]),
        ({"micro_batch": 3, "phases": [ramp(6, 8)]}, ["changes.batch_size 8", "multiple of micro_batch 3"]),
        ({"micro_batch": 4, "phases": [ramp(6, 8)]}, ["phases[0].batch_size 6", "micro_batch 4"]),
        ({"growth": BatchGrowth(sizes=[48]), "micro_batch": 32}, ["growth: batch_size 48", "micro_batch 32"]),
        ({"growth": BatchGrowth(max_batch_size=32)}, ["cannot grow from 32", "limit is 32"]),
        ({"growth": BatchGrowth(max_batch_size=64), "phases": [ramp(6, 8)]}, ["phases", "beside `growth`"]),
        ({"phases": [Phase(tokens=1, lr=1.0, data="a"), Phase(tokens=1, lr=1.0)]}, ["data"]),
    ],
)
def test_a_bad_run_is_refused(change: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**({"phases": [Phase(tokens=1000, lr=1e-3)]} | change))
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "given",
    [{}, {"at_tokens": 5}, {"at_tokens": 5, "at_lr": 0.5, "data": "a"}, {"at_tokens": 0, "data": "a"},
     {"at_lr": 1.0, "data": "a"}, {"at_lr": 0.0, "data": "a"}, {"at_tokens": 5, "batch_size": 0}],
)  # fmt: skip
def test_a_bad_change_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"accepted: "):
        Change(**given)


def test_every_stage_of_a_ramp_must_divide_over_the_ranks_before_training_starts() -> None:
    config = TrainConfig(phases=[ramp(8, 12, 24)], micro_batch=2)
    config.check_ranks(2)
    with pytest.raises(ConfigError, match=r"changes\.batch_size 12 does not divide over 8 ranks"):
        TrainConfig(phases=[ramp(8, 12, 24)]).check_ranks(8)
    with pytest.raises(ConfigError, match=r"batch_size 12 is not a multiple of micro_batch 2 times 4 ranks"):
        config.check_ranks(4)
    TrainConfig(phases=[ramp(6)], micro_batch=4).check_ranks(3)  # one size alone may be cut unevenly


def test_a_typo_in_a_file_names_its_place_and_the_nearest_field() -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml\.phases\[0\].*warmup_token'.*'warmup_tokens'"):
        decode(TrainConfig, {"phases": [{"tokens": 10, "lr": 1e-3, "warmup_token": 1}]}, where="run.yaml")
    with pytest.raises(ConfigError, match=r"phases\[0\]: lr is 0"):
        decode(TrainConfig, {"phases": [{"tokens": 10, "lr": 0}]})


def test_the_trajectory_ignores_what_does_not_touch_the_weights() -> None:
    first, second = Phase(tokens=10, lr=1.0), Phase(tokens=20, lr=0.5)
    short = TrainConfig(phases=[first])
    longer = TrainConfig(phases=[first, second], log_every=1, keep_last=9, micro_batch=2, checkpoint_every=5)
    assert short.trajectory(1) == longer.trajectory(1)
    assert short.trajectory(1) != longer.trajectory(2)
    assert short.trajectory(1) != TrainConfig(phases=[first], clip=0.5).trajectory(1)
