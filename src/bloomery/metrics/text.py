"""Scores of language models and of short answers."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def nats_per_byte(total_nats: float, n_bytes: int) -> float:
    """Negative log-likelihood in nats over the UTF-8 bytes of the text: comparable between tokenizers."""
    return total_nats / _positive(n_bytes, "n_bytes")


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """`nats_per_byte` in bits: what an ideal compressor driven by the model would spend on a byte."""
    return nats_per_byte(total_nats, n_bytes) / math.log(2)


def perplexity(total_nats: float, n_tokens: int) -> float:
    """exp(nats per token); depends on the tokenizer. inf when it exceeds the range of a float."""
    mean = total_nats / _positive(n_tokens, "n_tokens")
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def normalise_answer(text: str) -> str:
    """The normalisation of SQuAD's evaluation (arXiv:1606.05250), in its order.

    Lower case; ASCII punctuation removed; the words a, an, the removed; runs of white space become one space.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: str | Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised references, else 0.0."""
    return float(normalise_answer(prediction) in {normalise_answer(r) for r in _as_list(references)})


def strict_match(prediction: str, references: str | Sequence[str]) -> float:
    """1.0 when the prediction equals a reference but for white space at either end, else 0.0: signs and case count."""
    return float(prediction.strip() in {reference.strip() for reference in _as_list(references)})


def token_f1(prediction: str, references: str | Sequence[str]) -> float:
    """F1 of the normalised prediction's words against the best reference, words counted with multiplicity (SQuAD).

    Where prediction or reference normalises to nothing, it is 1.0 if both do and 0.0 otherwise.
    """
    return max(_f1(normalise_answer(prediction).split(), normalise_answer(r).split()) for r in _as_list(references))


def centered_accuracy(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance), all in 0 … 1: 0 for guessing, 1 for perfect (DCLM, arXiv:2406.11794)."""
    if not 0 <= chance < 1:
        raise ValueError(f"chance is {chance}; it must lie in 0 … 1, below 1")
    return (accuracy - chance) / (1 - chance)


def _f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    shared = (Counter(prediction) & Counter(reference)).total()
    return 2 * shared / (len(prediction) + len(reference))


def _as_list(references: str | Sequence[str]) -> Sequence[str]:
    return [references] if isinstance(references, str) else references


def _positive(count: int, name: str) -> int:
    if count <= 0:
        raise ValueError(f"{name} is {count}; there must be something to average over")
    return count
