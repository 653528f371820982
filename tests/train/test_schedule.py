from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.train import Phase, Plan, TrainConfig, learning_rate


@st.composite
def phases(draw: st.DrawFn) -> Phase:
    tokens = draw(st.integers(2, 10_000))
    schedule = draw(st.sampled_from(["constant", "linear", "cosine", "wsd"]))
    warmup = draw(st.integers(0, tokens - 1))
    lr = draw(st.floats(1e-6, 1.0))
    return Phase(
        tokens=tokens,
        lr=lr,
        schedule=schedule,
        warmup_tokens=warmup,
        final_lr=0.0 if schedule == "constant" else lr * draw(st.floats(0, 1)),
        decay_tokens=draw(st.integers(1, tokens - warmup)) if schedule == "wsd" else 0,
    )


@pytest.mark.parametrize(
    ("schedule", "extra", "expected"),  # at 0, mid warm-up, end of warm-up, 60 %, end of a phase of 1000 tokens
    [
        ("constant", {}, [0.0, 1.0, 2.0, 2.0, 2.0]),
        ("linear", {"final_lr": 0.5}, [0.0, 1.0, 2.0, 1.25, 0.5]),
        ("cosine", {"final_lr": 0.5}, [0.0, 1.0, 2.0, 1.25, 0.5]),
        ("wsd", {"final_lr": 0.5, "decay_tokens": 500}, [0.0, 1.0, 2.0, 2.0 - 1.5 * 0.2, 0.5]),
        ("wsd", {"decay_tokens": 200}, [0.0, 1.0, 2.0, 2.0, 0.0]),
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
    edges = [phase.warmup_tokens, phase.tokens - phase.decay_tokens]
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


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 9), st.sampled_from("ab")), min_size=1, max_size=5),
    st.integers(1, 7),
)
def test_the_plan_counts_tokens_and_never_reads_a_window_twice(parts: list[tuple[int, int, str]], seq_len: int) -> None:
    config = TrainConfig(
        phases=[Phase(tokens=t, lr=1.0, batch_size=b, data=name) for t, b, name in parts], seq_len=seq_len
    )
    plan = Plan(config)
    seen = 0
    windows: dict[str | None, list[int]] = {"a": [], "b": []}
    for step in range(plan.steps):
        at = plan.at(step)
        assert at.tokens == seen
        assert (at.source, at.batch_size) == (parts[at.phase][2], parts[at.phase][1])
        seen += at.batch_size * seq_len
        windows[at.source] += range(at.data_step * at.batch_size, (at.data_step + 1) * at.batch_size)
    assert seen == plan.tokens
    assert sum(t for t, _, _ in parts) <= seen < sum(t + b * seq_len for t, b, _ in parts)
    for name, read in windows.items():
        assert read == sorted(set(read))
        largest = max((b for _, b, n in parts if n == name), default=0)
        assert all(later - earlier <= largest for earlier, later in pairwise(read))  # less than a batch is skipped
    with pytest.raises(IndexError):
        plan.at(plan.steps)
