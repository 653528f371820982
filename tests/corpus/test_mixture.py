"""Mixtures: exact shares, each source in its own order, pure functions of the row number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.mixture import BLOCK, Mixture, load_weights, normalize


class Counting:
    """A source whose row k is [offset + k, offset + k, …]."""

    def __init__(self, offset: int = 0, extra: str = "documents") -> None:
        self.offset, self.extra = offset, extra

    def rows(self, numbers: np.ndarray, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        tokens = np.repeat(numbers[:, None] + self.offset, seq_len + 1, axis=1)
        return {"tokens": tokens, self.extra: tokens * 0}


def two(a: float = 3, b: float = 1) -> Mixture:
    return Mixture({"a": Counting(), "b": Counting(10**9)}, {"a": a, "b": b})


WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(0, 5))
def test_shares_are_exact_in_every_block(weights: list[float], seed: int) -> None:
    names = [f"s{i}" for i in range(len(weights))]
    mixture = Mixture({name: Counting() for name in names}, dict(zip(names, weights, strict=True)))
    source, _ = mixture.assign(np.arange(BLOCK), seed)
    shares = np.bincount(source, minlength=len(names)) / BLOCK
    assert np.abs(shares - np.array(list(mixture.weights.values()))).max() <= 1 / BLOCK


def test_short_runs_have_about_the_right_shares() -> None:
    source, _ = two().assign(np.arange(4000), seed=1)
    assert abs((source == 0).mean() - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


def test_each_source_is_read_in_order_without_repetition() -> None:
    mixture = two()
    rows = mixture.rows(np.arange(BLOCK - 500, BLOCK + 500), seq_len=1, seed=0)  # across a block boundary
    before, _ = mixture.assign(np.arange(BLOCK - 500), seed=0)
    for index, offset in enumerate((0, 10**9)):
        mine = rows["tokens"][rows["source"] == index, 0]
        first = offset + (before == index).sum()
        assert mine.tolist() == list(range(first, first + len(mine)))


@given(st.integers(0, 50), st.integers(1, 40), st.integers(0, 3))
def test_batches_are_pieces_of_one_sequence(step: int, size: int, seed: int) -> None:
    mixture = two()
    batch = mixture.batch(step, size, 2, seed)
    for i in range(size):
        single = mixture.batch(step * size + i, 1, 2, seed)
        assert all((batch[key][i] == single[key][0]).all() for key in ("tokens", "documents", "source"))


def test_seeds_differ_and_mixtures_nest() -> None:
    outer = Mixture({"inner": two(), "c": Counting(2 * 10**9)}, {"inner": 1, "c": 1})
    rows = outer.batch(0, 1000, 3, seed=0)
    assert rows["tokens"].shape == (1000, 4)
    kinds = rows["tokens"][:, 0] // 10**9
    assert ((kinds == 2) == (rows["source"] == 1)).all()
    assert 0.65 < (kinds[kinds < 2] == 0).mean() < 0.85
    assert (two().assign(np.arange(100), 0)[0] != two().assign(np.arange(100), 1)[0]).any()


@given(st.lists(st.sampled_from([1, 7, 1000, BLOCK - 1, BLOCK, BLOCK + 5]), min_size=2, max_size=3), st.integers(0, 2))
def test_a_mixture_goes_on_where_another_one_stopped(lengths: list[int], seed: int) -> None:
    """Blends follow each other on the same sources: every row of each source is read once, in order."""
    sources = {"a": Counting(), "b": Counting(10**9)}
    starts: dict[str, int] = {}
    read: dict[int, list[int]] = {0: [], 1: []}
    for length, share in zip(lengths, (0.9, 0.6, 0.2), strict=False):
        mixture = Mixture(sources, {"a": share, "b": 1 - share}, starts)
        rows = mixture.rows(np.arange(length), 1, seed)
        for index, offset in enumerate((0, 10**9)):
            read[index] += (rows["tokens"][rows["source"] == index, 0] - offset).tolist()
        starts = mixture.given(length, seed)
    assert read == {0: list(range(starts["a"])), 1: list(range(starts["b"]))}
    assert sum(starts.values()) == sum(lengths)
    paused = Mixture({"a": Counting()}, {"a": 1}, starts)
    assert paused.given(5, seed) == {"a": starts["a"] + 5, "b": starts["b"]}


def test_weights_round_trip(tmp_path: Path) -> None:
    mixture = two()
    mixture.save(tmp_path / "weights.json")
    assert load_weights(tmp_path / "weights.json") == mixture.weights == {"a": 0.75, "b": 0.25}
    (tmp_path / "weights.json").write_text("[1]")
    with pytest.raises(DataError, match="object"):
        load_weights(tmp_path / "weights.json")


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, True, "1"])
def test_bad_weights(weight: object) -> None:
    with pytest.raises(ConfigError, match=r"weights\.web"):
        normalize({"web": weight})


def test_bad_mixtures() -> None:
    with pytest.raises(ConfigError, match=r"no such source .*'code'"):
        Mixture({"code": Counting()}, {"cod": 1})
    with pytest.raises(ConfigError, match="no weight for the source 'code'"):
        Mixture({"code": Counting(), "web": Counting()}, {"web": 1})
    with pytest.raises(ConfigError, match="without weights"):
        Mixture({}, {})
    with pytest.raises(ConfigError, match=r"starts\.a = -1"):
        Mixture({"a": Counting()}, {"a": 1}, {"a": -1})
    with pytest.raises(ConfigError, match="least share"):
        two(1, 1e-9)
    with pytest.raises(DataError, match="'b' gives"):
        Mixture({"a": Counting(), "b": Counting(extra="loss_mask")}, {"a": 1, "b": 1}).batch(0, 64, 1, 0)
