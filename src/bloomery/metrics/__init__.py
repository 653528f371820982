"""Every score, with its definition and version in the docstring; checked against the usual library."""

from bloomery.metrics.aggregate import Estimate, SuiteScore, exponential, mean, ratio, suite_score
from bloomery.metrics.classification import PrecisionRecall, auc, precision_recall
from bloomery.metrics.core_score import CORE_V2, CoreTask, core_chances, core_score
from bloomery.metrics.text import (
    bits_per_byte,
    centered_accuracy,
    exact_match,
    nats_per_byte,
    normalise_answer,
    perplexity,
    strict_match,
    token_f1,
)

__all__ = [
    "CORE_V2",
    "CoreTask",
    "Estimate",
    "PrecisionRecall",
    "SuiteScore",
    "auc",
    "bits_per_byte",
    "centered_accuracy",
    "core_chances",
    "core_score",
    "exact_match",
    "exponential",
    "mean",
    "nats_per_byte",
    "normalise_answer",
    "perplexity",
    "precision_recall",
    "ratio",
    "strict_match",
    "suite_score",
    "token_f1",
]
