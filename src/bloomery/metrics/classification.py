"""Scores of binary classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting one half.

    `labels` are 0/1 or booleans. nan when one class is absent, or when a score is nan.
    """
    positive, score = _checked(labels, scores)
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative or np.isnan(score).any():
        return float("nan")
    _, place, size = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[place]  # 1-based; equal scores share their mean rank
    above = rank[positive].sum() - n_positive * (n_positive + 1) / 2  # Mann-Whitney U
    return float(above / (n_positive * n_negative))


@dataclass(frozen=True)
class PrecisionRecall:
    """Counts of a thresholded classifier and the ratios made of them; a ratio over nothing is 0.0."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        """Share of the predicted positives that are positive."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the positives that are predicted."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def precision_recall(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> PrecisionRecall:
    """Precision and recall of predicting positive where score >= threshold (0/1 predictions work with the default)."""
    positive, score = _checked(labels, scores)
    predicted = score >= threshold
    return PrecisionRecall(
        true_positives=int((predicted & positive).sum()),
        false_positives=int((predicted & ~positive).sum()),
        false_negatives=int((~predicted & positive).sum()),
    )


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if label.shape != score.shape or label.ndim != 1:
        raise ValueError(f"labels {label.shape} and scores {score.shape} must be of one length")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return label.astype(bool), score


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
