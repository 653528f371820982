"""Pointer chasing: answers against a plain walk along the pointers, and the shares of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.worlds.pointer_chase import FILLER, PointerChase

WORLDS = st.builds(
    PointerChase,
    labels=st.integers(2, 7),
    depth=st.integers(1, 9),
    reach=st.integers(1, 12),
    roots=st.sampled_from([0.0, 0.1, 0.5]),
    fillers=st.sampled_from([0.0, 0.3, 0.8]),
)


def walk(world: PointerChase, tokens: list[int], place: int) -> tuple[int, int]:
    """(answer, depth) of a place, from the tokens alone."""
    first_filler, steps = world.labels + world.reach, 0
    while world.labels <= tokens[place] < first_filler:
        place, steps = place - (tokens[place] - world.labels + 1), steps + 1
        assert place >= 0
        assert tokens[place] < first_filler, "nobody points to a filler"
    if tokens[place] >= first_filler:
        return tokens[place] - first_filler, FILLER
    return tokens[place], steps


@settings(deadline=None, max_examples=60)
@given(world=WORLDS, seq_len=st.integers(1, 24), seed=st.integers(0, 99))
def test_answers_are_where_the_pointers_lead(world: PointerChase, seq_len: int, seed: int) -> None:
    batch = world.batch(3, 4, seq_len, seed)
    assert all(values.shape == (4, seq_len) for values in batch.values())
    assert batch["tokens"].max() < world.vocab_size
    assert batch["depth"].max() <= world.depth
    for tokens, targets, depths in zip(*(batch[n].tolist() for n in ("tokens", "targets", "depth")), strict=True):
        assert [walk(world, tokens, i) for i in range(seq_len)] == list(zip(targets, depths, strict=True))


def test_a_row_depends_on_its_number_only() -> None:
    world = PointerChase()
    rows = world.batch(1, 12, 16, 1)["tokens"]  # 12 … 23
    assert np.array_equal(world.batch(5, 3, 16, 1)["tokens"], rows[3:6])
    assert len(np.unique(rows, axis=0)) == 12
    assert not np.array_equal(world.batch(1, 12, 16, 2)["tokens"], rows)


def test_shares_and_even_answers() -> None:
    world = PointerChase(labels=6, depth=6, reach=8, roots=0.1, fillers=0.5)
    batch = world.batch(0, 500, 64, 0)
    depth, targets = batch["depth"], batch["targets"]
    assert (np.sort(batch["tokens"][:, :6], axis=1) == np.arange(6)).all()
    assert (depth[:, 6:] == FILLER).mean() == pytest.approx(0.5, abs=0.02)
    assert (depth[:, 6:] == 0).sum() / (depth[:, 6:] != FILLER).sum() > 0.1  # those without a target in reach as well
    for deep in range(7):
        here = targets[depth == deep]
        assert len(here) > 300, "every depth must occur"
        assert np.bincount(here, minlength=6) / len(here) == pytest.approx(np.full(6, 1 / 6), abs=0.07)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"labels": 1}, "labels=1"), ({"depth": 0}, "depth=0"), ({"reach": 0}, "reach=0"), ({"roots": 1.0}, r"roots=1\.0"),
     ({"fillers": -0.1}, r"fillers=-0\.1")],
)  # fmt: skip
def test_nonsense_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PointerChase(**changes)  # type: ignore[arg-type]
