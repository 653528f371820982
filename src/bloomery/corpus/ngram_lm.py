"""A byte-level n-gram model, interpolated as Witten and Bell do: a language model without training steps.

    p_k(b | c) = (count(c b) + T(c) p_{k-1}(b | shorter c)) / (count(c) + T(c))

with T(c) the number of different bytes that have followed the context c, and p_0 uniform over 256. It is a perplexity
filter (a `Scorer`: higher is more like the training text) and, being exact and quick, the subject of experiments on
what text to train on. Memory: 16 bytes for every different context and continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.hashing import hash64

FACTOR = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 1 << 20  # bytes measured at a time


class NGramModel:
    """Counts of all n-grams up to `order` bytes of the training text. `name` becomes the column `score_<name>`."""

    def __init__(self, texts: Sequence[str | bytes], order: int = 5, name: str = "ngram") -> None:
        if not 1 <= order <= 12:
            raise ConfigError(f"order = {order}", fix="1 to 12")
        data = _joined(texts)
        if not len(data):
            raise DataError("no text to count")
        self.order, self.name = order, name
        # For each length of context: the sorted n-grams and their counts, the sorted contexts, their counts and types.
        self._tables = [self._count(data, length) for length in range(order)]

    @staticmethod
    def _count(data: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
        contexts = _contexts(data, length)
        following = data[length:]
        keys, counts = np.unique(_grams(contexts, following), return_counts=True)
        names, totals = np.unique(contexts, return_counts=True)
        # How many different bytes follow each context: each n-gram once, at its first occurrence.
        _, first = np.unique(_grams(contexts, following), return_index=True)
        types = np.bincount(np.searchsorted(names, contexts[first]), minlength=len(names))
        return keys, counts, names, totals, types

    def nats(self, data: np.ndarray) -> np.ndarray:
        """Negative log-probability of each byte given the ones before it: float64 (bytes,)."""
        p = np.full(len(data), 1 / 256)
        for length, (keys, counts, names, totals, types) in enumerate(self._tables):
            if length >= len(data) or not len(keys):
                break
            contexts = _contexts(data, length)
            place, known = _find(names, contexts)
            total, kinds = np.where(known, totals[place], 0), np.where(known, types[place], 0)
            at, seen = _find(keys, _grams(contexts, data[length:]))
            count = np.where(seen, counts[at], 0)
            mixed = (count + kinds * p[length:]) / np.maximum(total + kinds, 1)
            p[length:] = np.where(known, mixed, p[length:])
        nats: np.ndarray = -np.log(p)
        return nats

    def loss(self, texts: Sequence[str | bytes]) -> float:
        """Mean nats per byte of the texts, each on its own."""
        total = size = 0.0
        for text in texts:
            data = _joined([text])
            total += float(self.nats(data).sum())
            size += len(data)
        return total / max(size, 1)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Minus the nats per byte of each text: float32 (texts,); an empty text is as unlikely as noise."""
        scores = np.full(len(texts), -np.log(256), dtype=np.float32)
        for i, text in enumerate(texts):
            data = _joined([text])
            if len(data):
                scores[i] = -self.nats(data[:CHUNK]).mean()
        return scores

    def fingerprint(self) -> dict[str, Any]:
        """Identity of the counts."""
        keys, counts = self._tables[-1][:2]
        return {"scorer": "ngram", "name": self.name, "order": self.order,
                "counts": hash64(keys.tobytes() + counts.tobytes())}  # fmt: skip


def _joined(texts: Sequence[str | bytes]) -> np.ndarray:
    parts = [text if isinstance(text, bytes) else text.encode("utf-8", "replace") for text in texts]
    return np.frombuffer(b"\n".join(parts), np.uint8)


def _contexts(data: np.ndarray, length: int) -> np.ndarray:
    """A number for the `length` bytes before each byte from `length` on: uint64 (bytes - length,)."""
    count = max(0, len(data) - length)
    found = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        found = found * FACTOR + data[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return found


def _grams(contexts: np.ndarray, following: np.ndarray) -> np.ndarray:
    grams: np.ndarray = contexts * FACTOR + following.astype(np.uint64) + np.uint64(1)
    return grams


def _find(sorted_keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key is, and whether it is there at all."""
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return place, sorted_keys[place] == wanted
