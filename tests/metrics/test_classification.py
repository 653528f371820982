from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.metrics import auc, precision_recall

samples = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=60)


@settings(deadline=None, max_examples=100)
@given(samples)
def test_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs]) / 4
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        assert math.isnan(auc(labels, scores))
        return
    difference = positive[:, None] - negative[None, :]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert auc(labels, scores) == pytest.approx(expected)
    assert auc(~labels, scores) == pytest.approx(1 - expected)
    assert auc(labels, np.exp(scores)) == pytest.approx(expected)  # only the order counts


def test_auc_of_known_orders() -> None:
    assert auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auc([0, 1], [3, 3]) == 0.5
    assert auc([1, 0], [np.inf, -np.inf]) == 1.0
    assert math.isnan(auc([1, 0], [np.nan, 0]))


@settings(deadline=None, max_examples=50)
@given(samples, st.integers(-4, 4))
def test_precision_and_recall_by_counting(pairs: list[tuple[bool, int]], threshold: int) -> None:
    result = precision_recall([p[0] for p in pairs], [p[1] for p in pairs], threshold)
    chosen = [label for label, score in pairs if score >= threshold]
    positives = [score for label, score in pairs if label]
    assert result.precision == pytest.approx(np.mean(chosen) if chosen else 0.0)
    assert result.recall == pytest.approx(np.mean(np.array(positives) >= threshold) if positives else 0.0)
    p, r = result.precision, result.recall
    assert result.f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


def test_predictions_can_be_zero_or_one() -> None:
    result = precision_recall([1, 1, 0, 0], [1, 0, 1, 0])
    assert (result.true_positives, result.false_positives, result.false_negatives) == (1, 1, 1)


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [([0, 2], [1, 1], "0 or 1"), ([0, 1], [1], "one length"), ([[0]], [[1]], "one length")],
)
def test_bad_input(labels: list[int], scores: list[float], says: str) -> None:
    for score in (auc, precision_recall):
        with pytest.raises(ValueError, match=says):
            score(labels, scores)
