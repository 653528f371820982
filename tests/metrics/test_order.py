"""Agreement of orders against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.metrics.order import common_subsequence, kendall_tau


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12))
def test_tau_counts_pairs(ranks: list[int]) -> None:
    pairs = list(combinations(ranks, 2))
    expected = (sum(a < b for a, b in pairs) - sum(a > b for a, b in pairs)) / len(pairs)
    assert kendall_tau(ranks) == pytest.approx(expected, abs=1e-12)


def test_tau_of_one_thing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        kendall_tau([1])


@given(st.text("ab", max_size=7), st.text("ab", max_size=7))
def test_the_longest_common_subsequence(one: str, other: str) -> None:
    def inside(part: tuple[str, ...], whole: str) -> bool:
        letters = iter(whole)
        return all(letter in letters for letter in part)

    longest = max(
        size for size in range(len(one) + 1) for part in combinations(one, size) if inside(part, other)
    )  # fmt: skip
    assert common_subsequence(one, other) == longest
