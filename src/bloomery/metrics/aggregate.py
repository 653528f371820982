"""From scores of single questions to one number with its standard error, and from tasks to one number of a suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bloomery.metrics.text import centered_accuracy


@dataclass(frozen=True)
class Estimate:
    """A value measured on a sample of questions, and its standard error (nan where one question is all there is)."""

    value: float
    error: float


def mean(values: Sequence[float]) -> Estimate:
    """The mean; its error is the sample's standard deviation over √n, questions taken as independent draws."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{x.shape} values; there must be something to average over")
    return Estimate(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan)


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    """Sum of the parts over sum of the wholes, such as nats over bytes of several documents.

    The error is that of the ratio estimator, from how far each document's part lies from what its whole predicts:
    √(n / (n - 1) · Σ (part - ratio · whole)²) / Σ whole. Equal to that of `mean` where all wholes are 1.
    """
    x, y = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not y.sum() > 0:
        raise ValueError(f"parts {x.shape} over wholes {y.shape} that sum to {y.sum()}")
    value, n = x.sum() / y.sum(), len(x)
    error = math.sqrt(n / (n - 1) * float(((x - value * y) ** 2).sum())) / y.sum() if n > 1 else math.nan
    return Estimate(float(value), float(error))


def exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate, its error carried over to first order; inf when it exceeds the range of a float."""
    try:
        value = math.exp(estimate.value)
    except OverflowError:
        return Estimate(math.inf, math.inf)
    return Estimate(value, value * estimate.error)


@dataclass(frozen=True)
class SuiteScore:
    """What a suite of tasks comes to. `score` is None as long as tasks are missing: no mean over a part is given."""

    suite: str
    score: float | None
    centred: dict[str, float]  # of the tasks that are there
    missing: tuple[str, ...]
    unknown: tuple[str, ...]  # results that the suite does not ask for


def suite_score(suite: str, chances: Mapping[str, float], accuracies: Mapping[str, float]) -> SuiteScore:
    """Mean centred accuracy over the tasks of `chances` (name -> accuracy of guessing), all in 0 … 1."""
    for name, accuracy in accuracies.items():
        if not 0 <= accuracy <= 1:
            raise ValueError(f"the accuracy of {name} is {accuracy}; it must lie in 0 … 1")
    centred = {name: centered_accuracy(accuracies[name], chances[name]) for name in chances if name in accuracies}
    missing = tuple(name for name in chances if name not in accuracies)
    score = None if missing else float(np.mean(list(centred.values())))
    return SuiteScore(suite, score, centred, missing, tuple(name for name in accuracies if name not in chances))
