from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.train import Change, Phase, Plan, TrainConfig, learning_rate, tokens_until


@st.composite
def phases(draw: st.DrawFn) -> Phase:
    tokens = draw(st.integers(2, 10_000))
    schedule = draw(st.sampled_from(["constant", "linear", "cosine", "wsd", "inverse_sqrt", "step"]))
    warmup = draw(st.integers(0, tokens - 1)) if schedule != "step" else tokens // 3
    lr = draw(st.floats(1e-6, 1.0))
    least = 1e-4 if schedule == "inverse_sqrt" else 0
    return Phase(
        tokens=tokens,
        lr=lr,
        schedule=schedule,
        warmup_tokens=warmup,
        final_lr=0.0 if schedule in ("constant", "step") else lr * draw(st.floats(least, 1)),
        decay_tokens=draw(st.integers(1, tokens - warmup)) if schedule == "wsd" else 0,
        step_at=sorted(draw(st.sets(st.floats(0.4, 0.99), min_size=1, max_size=3))) if schedule == "step" else [],
        step_factor=draw(st.floats(0.1, 0.9)) if schedule == "step" else 0.5,
    )


@pytest.mark.parametrize(
    ("schedule", "extra", "expected"),  # at 0, mid warm-up, end of warm-up, 60 %, end of a phase of 1000 tokens
    [
        ("constant", {}, [0.0, 1.0, 2.0, 2.0, 2.0]),
        ("linear", {"final_lr": 0.5}, [0.0, 1.0, 2.0, 1.25, 0.5]),
        ("cosine", {"final_lr": 0.5}, [0.0, 1.0, 2.0, 1.25, 0.5]),
        ("wsd", {"final_lr": 0.5, "decay_tokens": 500}, [0.0, 1.0, 2.0, 2.0 - 1.5 * 0.2, 0.5]),
        ("wsd", {"decay_tokens": 200}, [0.0, 1.0, 2.0, 2.0, 0.0]),
        ("inverse_sqrt", {"final_lr": 0.5}, [0.0, 1.0, 2.0, 2 / math.sqrt(1 + 15 / 2), 0.5]),
        ("step", {"step_at": [0.6]}, [0.0, 1.0, 2.0, 1.0, 1.0]),  # halved once
        ("step", {"step_at": [0.5, 0.9], "step_factor": 0.316}, [0.0, 1.0, 2.0, 2 * 0.316, 2 * 0.316**2]),
    ],
)
def test_values_at_the_boundaries(schedule: str, extra: dict[str, float], expected: list[float]) -> None:
    phase = Phase(tokens=1000, lr=2.0, schedule=schedule, warmup_tokens=200, **extra)
    assert [learning_rate(phase, t) for t in (0, 100, 200, 600, 1000)] == pytest.approx(expected)


def test_cosine_is_a_cosine() -> None:
    phase = Phase(tokens=900, lr=1.0, final_lr=0.1)
    for t in range(0, 901, 50):
        assert learning_rate(phase, t) == pytest.approx(0.1 + 0.9 * math.cos(math.pi * t / 1800) ** 2)


def test_a_phase_that_only_warms_up() -> None:
    phase = Phase(tokens=100, lr=1.0, warmup_tokens=100, schedule="linear", final_lr=1.0)
    assert [learning_rate(phase, t) for t in (0, 50, 100)] == pytest.approx([0.0, 0.5, 1.0])


@settings(deadline=None, max_examples=100)
@given(phases(), st.floats(0, 1))
def test_bounds_monotone_warmup_then_never_rising_and_continuous(phase: Phase, start: float) -> None:
    grid = [phase.tokens * i / 400 for i in range(401)]
    rates = [learning_rate(phase, t, start) for t in grid]
    low, high = min(start, phase.final_lr, phase.lr), max(start, phase.lr)
    if phase.schedule == "constant":
        low = min(start, phase.lr)
    assert all(low - 1e-12 <= rate <= high + 1e-12 for rate in rates)
    rising = [r for t, r in zip(grid, rates, strict=True) if t <= phase.warmup_tokens]
    falling = [r for t, r in zip(grid, rates, strict=True) if t >= phase.warmup_tokens]
    sign = 1 if phase.lr >= start else -1
    assert all(sign * (b - a) >= -1e-12 for a, b in pairwise(rising))
    assert all(b <= a + 1e-12 for a, b in pairwise(falling))
    edges = [phase.warmup_tokens, phase.tokens - phase.decay_tokens] if phase.schedule != "step" else []
    for edge in edges:  # continuous where the pieces meet
        if edge > 0:
            before, after = learning_rate(phase, edge - 1e-7 * edge, start), learning_rate(phase, edge, start)
            assert before == pytest.approx(after, abs=1e-2 * high)


def test_a_later_phase_warms_up_from_where_the_one_before_ended() -> None:
    config = TrainConfig(
        phases=[
            Phase(tokens=1000, lr=1.0, schedule="linear", final_lr=0.2, warmup_tokens=100),
            Phase(tokens=1000, lr=0.8, schedule="constant", warmup_tokens=500),
        ],
        seq_len=1,
        batch_size=1,
    )
    plan = Plan(config)
    assert plan.at(999).lr == pytest.approx(0.2, abs=1e-3)
    assert plan.at(1000).lr == pytest.approx(0.2, abs=1e-3)
    assert plan.at(1250).lr == pytest.approx(0.5, abs=1e-3)
    assert plan.at(1999).lr == 0.8
    jumps = [abs(plan.at(i + 1).lr - plan.at(i).lr) for i in range(plan.steps - 1)]
    assert max(jumps) < 0.011


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    config = TrainConfig(phases=[Phase(tokens=64, lr=1.0, warmup_tokens=32)], seq_len=4, batch_size=4)
    plan = Plan(config)
    assert plan.steps == 4
    assert all(plan.at(step).lr > 0 for step in range(4))
    one = Plan(TrainConfig(phases=[Phase(tokens=3, lr=1.0, schedule="linear")], seq_len=512, batch_size=32))
    assert (one.steps, one.at(0).lr) == (1, 0.5)  # one step that is far larger than its phase


def test_inverse_sqrt_is_the_usual_law() -> None:
    """lr · sqrt(warm-up / tokens), as in the first Transformer, is the case that ends at lr · sqrt(warm-up / all)."""
    phase = Phase(tokens=10_000, lr=1e-3, schedule="inverse_sqrt", warmup_tokens=400, final_lr=1e-3 * math.sqrt(0.04))
    for t in range(400, 10_001, 300):
        assert learning_rate(phase, t) == pytest.approx(1e-3 * math.sqrt(400 / t))


@settings(deadline=None, max_examples=100)
@given(phases(), st.floats(0.05, 0.95))
def test_tokens_until_is_the_first_token_at_which_the_rate_is_low_enough(phase: Phase, fraction: float) -> None:
    low = [t for t in range(phase.warmup_tokens, phase.tokens + 1) if learning_rate(phase, t) <= phase.lr * fraction]
    if low:
        assert abs(tokens_until(phase, fraction) - low[0]) <= 1  # a rounding apart
    else:
        with pytest.raises(ConfigError, match="at_lr"):
            tokens_until(phase, fraction * (1 - 1e-6))


def test_the_data_changes_when_the_rate_has_fallen_to_a_fifth() -> None:
    """The switch of arXiv:2407.07263: a cosine to 1/100, the second blend from a fifth of the rate on."""
    change = Change(at_lr=0.2, data="questions")
    phase = Phase(tokens=100_000, lr=4.5e-5, final_lr=4.5e-7, data="general", changes=[change])
    plan = Plan(TrainConfig(phases=[phase], seq_len=10, batch_size=10))
    at = [plan.at(step) for step in range(plan.steps)]
    assert len(at) == 1000
    for position in at:
        falling = learning_rate(phase, position.tokens) > 0.2 * 4.5e-5 * (1 + 1e-9)  # when the step begins
        assert position.source == ("general" if falling else "questions")
    assert [position.lr for position in at] == sorted((p.lr for p in at), reverse=True)  # one schedule goes through
    switch = next(i for i, p in enumerate(at) if p.source == "questions")
    assert switch / 1000 == pytest.approx(math.acos(2 * (0.2 - 0.01) / 0.99 - 1) / math.pi, abs=2e-3)


def same_order(parts: list[tuple[int, int, str]], plan: Plan, seq_len: int) -> None:
    """Every source's rows come one after the other, none twice and none left out, and tokens add up."""
    seen, rows = 0, {"a": 0, "b": 0}
    for step in range(plan.steps):
        at = plan.at(step)
        assert at.tokens == seen
        assert at.source is not None
        assert at.row == rows[at.source]
        rows[at.source] += at.batch_size
        seen += at.batch_size * seq_len
        assert plan.tokens_after(step + 1) == seen
    assert seen == plan.tokens
    assert {name: plan.rows[name] for name in rows} == rows
    assert sum(t for t, _, _ in parts) <= seen < sum(t + b * seq_len for t, b, _ in parts)
    with pytest.raises(IndexError):
        plan.at(plan.steps)


PARTS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 9), st.sampled_from("ab")), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(PARTS, st.integers(1, 7))
def test_phases_take_every_row_once(parts: list[tuple[int, int, str]], seq_len: int) -> None:
    phases = [Phase(tokens=t, lr=1.0, batch_size=b, data=name) for t, b, name in parts]
    plan = Plan(TrainConfig(phases=phases, seq_len=seq_len))
    same_order(parts, plan, seq_len)
    for step in range(plan.steps):
        at = plan.at(step)
        assert (at.source, at.batch_size) == (parts[at.phase][2], parts[at.phase][1])


@settings(deadline=None, max_examples=50)
@given(PARTS, st.integers(1, 7))
def test_changes_inside_a_phase_take_every_row_once(parts: list[tuple[int, int, str]], seq_len: int) -> None:
    (_, batch_size, data), changes, place = parts[0], [], 0
    for (before, _, _), (_, size, name) in pairwise(parts):
        place += before
        changes.append(Change(at_tokens=place, batch_size=size, data=name))
    tokens = sum(t for t, _, _ in parts)
    phase = Phase(tokens=tokens, lr=1.0, batch_size=batch_size, data=data, changes=changes, schedule="linear")
    plan = Plan(TrainConfig(phases=[phase], seq_len=seq_len))
    same_order(parts, plan, seq_len)
    rates = [plan.at(step).lr for step in range(plan.steps)]
    assert all(b < a for a, b in pairwise(rates))
    edges = [0, *phase.edges(), tokens]
    for step in range(plan.steps):  # a step is made as the last place that it begins at or after says
        at = plan.at(step)
        part = max(i for i in range(len(parts)) if edges[i] <= at.tokens)
        assert (at.source, at.batch_size) == (parts[part][2], parts[part][1])


def test_a_ramp_by_tokens() -> None:
    """The first stages of Nemotron-4 15B: 384, 768, then 1,152 sequences of 4,096, changed every 200B tokens."""
    billion = 10**9
    ramp = [Change(at_tokens=200 * billion, batch_size=768), Change(at_tokens=400 * billion, batch_size=1152)]
    phase = Phase(tokens=8000 * billion, lr=4.5e-4, final_lr=4.5e-5, batch_size=384, changes=ramp)
    plan = Plan(TrainConfig(phases=[phase], seq_len=4096, micro_batch=4))
    constant = Plan(TrainConfig(phases=[replace(phase, batch_size=1152, changes=[])], seq_len=4096))
    stages = [math.ceil(200e9 / (384 * 4096)), math.ceil(200e9 / (768 * 4096)), math.ceil(7600e9 / (1152 * 4096))]
    assert plan.steps == pytest.approx(sum(stages), abs=2)
    for i, size in enumerate((384, 768, 1152)):
        assert {plan.at(sum(stages[:i]) + j).batch_size for j in (1, 1000, stages[i] - 3)} == {size}
    for share in (0.01, 0.04, 0.3, 0.9):  # the rate depends on tokens, not on steps
        here, there = (p.at(bisect(p, share * 8e12)) for p in (plan, constant))
        assert here.lr == pytest.approx(there.lr, rel=1e-4)


def bisect(plan: Plan, tokens: float) -> int:
    """The step that is being done when so many tokens have been seen."""
    return bisect_right(range(plan.steps), tokens, key=lambda step: plan.at(step).tokens) - 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from([8, 12, 32])), max_size=3))
def test_growth_leaves_what_has_been_done_and_holds_in_later_phases(events: list[tuple[int, int]]) -> None:
    phases = [Phase(tokens=640, lr=1.0, data="a"), Phase(tokens=640, lr=0.5, data="b")]
    config = TrainConfig(phases=phases, seq_len=4, batch_size=4)
    growth: list[tuple[int, int]] = []
    plan = Plan(config)
    step = size = 0
    for steps, size in events:  # decided after so many steps more, as the loop does
        before, step = [plan.at(i) for i in range(min(step + steps, plan.steps))], min(step + steps, plan.steps)
        growth.append((plan.tokens_after(step), size))
        plan = Plan(config, growth)
        for then, now in zip(before, map(plan.at, range(step)), strict=True):
            assert replace(then, lr=0) == replace(now, lr=0)
        if step < plan.steps:
            assert plan.at(step).batch_size == size
    if events and step < plan.steps:
        assert plan.at(plan.steps - 1).batch_size == size
    same_order([(640, 40, "a"), (640, 40, "b")], plan, 4)
