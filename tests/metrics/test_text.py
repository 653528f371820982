from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.metrics import (
    bits_per_byte,
    centered_accuracy,
    exact_match,
    nats_per_byte,
    normalise_answer,
    perplexity,
    token_f1,
)


def test_a_uniform_guess_over_bytes_costs_eight_bits() -> None:
    text = "naïve"
    n_bytes = len(text.encode())
    nats = -n_bytes * math.log(1 / 256)
    assert bits_per_byte(nats, n_bytes) == pytest.approx(8)
    assert nats_per_byte(nats, n_bytes) == pytest.approx(8 * math.log(2))


def test_perplexity_is_the_inverse_geometric_mean() -> None:
    p = np.array([0.5, 0.1, 0.9, 0.01])
    assert perplexity(-np.log(p).sum(), 4) == pytest.approx(np.prod(p) ** (-1 / 4))
    assert perplexity(1e6, 1) == math.inf


@pytest.mark.parametrize("score", [nats_per_byte, bits_per_byte, perplexity])
def test_an_average_over_nothing_is_refused(score: object) -> None:
    with pytest.raises(ValueError, match="is 0"):
        score(1.0, 0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\n sat!", "cat sat"),
        ("an A-team's anthem", "ateams anthem"),  # punctuation goes first, as in SQuAD's script
        ("theatre", "theatre"),
        ("¿Qué?", "¿qué"),  # only ASCII punctuation
        ("the", ""),
        ("", ""),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


def test_exact_match_against_any_reference() -> None:
    assert exact_match("The Eiffel Tower.", ["Louvre", "eiffel tower"]) == 1.0
    assert exact_match("Eiffel", ["Louvre", "eiffel tower"]) == 0.0
    assert exact_match("42", "42") == 1.0
    assert exact_match("4", "42") == 0.0  # a string is one reference, not a list of characters


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("big red dog", "red dog", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("dog dog", "dog", 2 * 0.5 * 1 / 1.5),  # a repeated word is matched once
        ("cat", "dog", 0.0),
        ("the", "a", 1.0),
        ("the", "dog", 0.0),
    ],
)
def test_token_f1(prediction: str, reference: str, f1: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(f1)
    assert token_f1(prediction, ["xyzzy plugh", reference]) == pytest.approx(f1)


words = st.text("ab c,", max_size=12)


@settings(deadline=None, max_examples=50)
@given(words, words)
def test_f1_is_symmetric_and_one_exactly_for_equal_bags(a: str, b: str) -> None:
    assert token_f1(a, b) == pytest.approx(token_f1(b, a))
    same_bag = sorted(normalise_answer(a).split()) == sorted(normalise_answer(b).split())
    assert (token_f1(a, b) == 1.0) == same_bag
    assert exact_match(a, b) <= token_f1(a, b)


def test_centered_accuracy() -> None:
    assert centered_accuracy(0.25, 0.25) == 0
    assert centered_accuracy(1.0, 0.25) == 1
    assert centered_accuracy(0.0, 0.5) == -1
    assert centered_accuracy(0.7, 0.0) == 0.7
    with pytest.raises(ValueError, match="chance is 1"):
        centered_accuracy(0.5, 1.0)
