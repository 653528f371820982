"""Every score, with its definition and version in the docstring; checked against the usual library."""

from bloomery.metrics.classification import PrecisionRecall, auc, precision_recall
from bloomery.metrics.text import (
    bits_per_byte,
    centered_accuracy,
    exact_match,
    nats_per_byte,
    normalise_answer,
    perplexity,
    token_f1,
)

__all__ = [
    "PrecisionRecall",
    "auc",
    "bits_per_byte",
    "centered_accuracy",
    "exact_match",
    "nats_per_byte",
    "normalise_answer",
    "perplexity",
    "precision_recall",
    "token_f1",
]
