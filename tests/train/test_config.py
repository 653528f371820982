from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.config import decode, encode
from bloomery.core.errors import ConfigError
from bloomery.train import Phase, TrainConfig


@st.composite
def phases(draw: st.DrawFn) -> Phase:
    tokens = draw(st.integers(2, 10**12))
    schedule = draw(st.sampled_from(["constant", "linear", "cosine", "wsd"]))
    warmup = draw(st.integers(0, tokens - 1))
    lr = draw(st.floats(1e-8, 1.0))
    return Phase(
        tokens=tokens,
        lr=lr,
        schedule=schedule,
        warmup_tokens=warmup,
        final_lr=0.0 if schedule == "constant" else draw(st.floats(0, lr)),
        decay_tokens=draw(st.integers(1, tokens - warmup)) if schedule == "wsd" else 0,
        batch_size=draw(st.none() | st.integers(1, 4096)),
    )


configs = st.builds(
    TrainConfig,
    phases=st.lists(phases(), min_size=1, max_size=4),
    seq_len=st.integers(1, 8192),
    micro_batch=st.none() | st.integers(1, 64),
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
    ],
)
def test_a_bad_phase_is_refused(change: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Phase(**({"tokens": 1000, "lr": 1e-3} | change))
    assert all(name in str(caught.value) for name in names)


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
        ({"phases": [Phase(tokens=1, lr=1.0, data="a"), Phase(tokens=1, lr=1.0)]}, ["data"]),
    ],
)
def test_a_bad_run_is_refused(change: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**({"phases": [Phase(tokens=1000, lr=1e-3)]} | change))
    assert all(name in str(caught.value) for name in names)


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
