"""The n-gram model: probabilities sum to one, equal a plain implementation, and prefer text like its own."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.ngram_lm import NGramModel


def plain(data: bytes, order: int, context: bytes, byte: int) -> float:
    p = 1 / 256
    for length in range(min(order, len(context) + 1)):
        before = context[len(context) - length :]
        grams = Counter(data[i : i + length + 1] for i in range(len(data) - length))
        followers = {gram: n for gram, n in grams.items() if gram[:-1] == before}
        total, kinds = sum(followers.values()), len(followers)
        if total:
            p = (followers.get(before + bytes([byte]), 0) + kinds * p) / (total + kinds)
    return p


@given(st.text(alphabet="abc ", min_size=1, max_size=30), st.text(alphabet="abcd", min_size=1, max_size=8))
def test_equal_to_the_formula(train: str, test: str) -> None:
    data, asked = train.encode(), test.encode()
    found = NGramModel([train], order=3).nats(np.frombuffer(asked, np.uint8))
    expected = [-math.log(plain(data, 3, asked[:i], byte)) for i, byte in enumerate(asked)]
    assert found == pytest.approx(expected)


def test_probabilities_sum_to_one() -> None:
    model = NGramModel(["the cat sat on the mat", "a dog"], order=4)
    total = sum(math.exp(-model.nats(np.frombuffer(b"the " + bytes([b]), np.uint8))[-1]) for b in range(256))
    assert total == pytest.approx(1.0)


def test_it_scores_text_like_its_own_higher() -> None:
    model = NGramModel(["all happy families are alike " * 20])
    likely, unlikely, nothing = model.score(["happy families", "zqx#9!", ""])
    assert likely > unlikely
    assert nothing == pytest.approx(-math.log(256))
    assert model.loss(["happy families"]) == pytest.approx(-likely, rel=1e-6)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="order"):
        NGramModel(["a"], order=0)
    with pytest.raises(DataError, match="no text"):
        NGramModel([])
