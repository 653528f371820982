from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import DataError, EmptyError
from bloomery.corpus.examples import PAD_DOCUMENT, PackedExamples

example = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 99), min_size=n, max_size=n), st.lists(st.integers(0, 1), min_size=n, max_size=n)
    )
)


@given(st.lists(example, min_size=1, max_size=20), st.integers(4, 20))
def test_every_example_lies_whole_in_one_row_and_is_learned_once(examples: list, seq_len: int) -> None:
    packed = PackedExamples(examples)
    expected = {i: (ids[: seq_len + 1], mask[: seq_len + 1]) for i, (ids, mask) in enumerate(examples)}
    expected = {i: (ids, mask) for i, (ids, mask) in expected.items() if any(mask[1:])}
    if not expected:
        with pytest.raises(EmptyError):
            list(packed.windows(seq_len))
        return
    found = {}
    for row in packed.windows(seq_len):
        assert len(row["tokens"]) == seq_len + 1
        for i in set(row["documents"].tolist()) - {PAD_DOCUMENT}:
            here = row["documents"] == i
            assert i not in found, "in two rows"
            assert np.diff(np.flatnonzero(here)).max(initial=1) == 1
            found[i] = (row["tokens"][here].tolist(), row["loss_mask"][here].tolist())
        assert not row["loss_mask"][row["documents"] == PAD_DOCUMENT].any()
    assert found == {i: (ids, [0, *mask[1:]]) for i, (ids, mask) in expected.items()}
    assert packed.n_skipped == len(examples) - len(expected)


def test_batches_are_a_function_of_the_step_and_cover_an_epoch() -> None:
    packed = PackedExamples([([1, i + 2], [0, 1]) for i in range(12)])
    rows = [packed.batch(step, 2, 3, seed=5)["tokens"] for step in range(3)]  # 6 rows of two examples
    assert np.array_equal(rows[1], PackedExamples(packed.examples).batch(1, 2, 3, seed=5)["tokens"])
    assert sorted(np.concatenate(rows)[:, [1, 3]].ravel()) == list(range(2, 14))
    assert not np.array_equal(rows[0], packed.batch(3, 2, 3, seed=5)["tokens"])


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="example 1: 2 tokens but 1 mask"):
        PackedExamples([([1, 2], [0, 1]), ([1, 2], [1])])
