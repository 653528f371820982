"""Drop pages that share text with a benchmark, as DeepSeekMath does (arXiv 2402.03300, §2.1).

A page goes when it holds ten words in a row of a benchmark text; a benchmark text of three to nine words must occur as
a whole. Shorter ones say nothing. Words are split at white space and taken in lower case.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError
from bloomery.core.hashing import digest
from bloomery.corpus.documents import texts
from bloomery.corpus.steps import Step, drop
from bloomery.corpus.words import FACTOR, Words, blocks

NGRAM, SHORTEST = 10, 3


@dataclass(frozen=True)
class Decontaminate(Step):
    """Drop the documents that share `ngram` words in a row with one of `benchmark`, or the whole of a shorter one."""

    benchmark: Sequence[str] = field(repr=False)
    ngram: int = NGRAM
    shortest: int = SHORTEST

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.ngram:
            raise ConfigError(f"shortest={self.shortest}, ngram={self.ngram}", where="Decontaminate")
        if not self._grams:
            raise ConfigError("no benchmark text is long enough", where="Decontaminate", fix="leave the step out")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the contaminated documents."""
        found = [self._is_contaminated(words) for words in blocks(texts(batch), lower=True)]
        return drop(batch, np.concatenate(found) if found else np.zeros(0, dtype=bool), "in a benchmark")

    def _is_contaminated(self, words: Words) -> np.ndarray:
        marked = np.zeros(words.documents, dtype=bool)
        for size, grams in self._grams.items():
            at, hashes = ngrams(words, size)
            marked[words.document[at[np.isin(hashes, grams)]]] = True
        return marked

    @functools.cached_property
    def _grams(self) -> dict[int, np.ndarray]:
        """By number of words, the hashes of the n-grams to look for."""
        found: dict[int, list[np.ndarray]] = {}
        for words in blocks(pa.array(list(self.benchmark), pa.string()), lower=True):
            counts = words.counts
            for size in range(self.shortest, self.ngram + 1):
                at, hashes = ngrams(words, size)
                length = counts[words.document[at]] if len(at) else at
                whole = length >= size if size == self.ngram else length == size
                if whole.any():
                    found.setdefault(size, []).append(hashes[whole])
        return {size: np.unique(np.concatenate(parts)) for size, parts in found.items()}

    def fingerprint(self) -> dict[str, Any]:
        """The benchmark by its hash."""
        return {**super().fingerprint(), "benchmark": digest(list(self.benchmark))}


def ngrams(words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first word of every run of `size` words in one document, int64 (n,), and its hash, uint64 (n,)."""
    if len(words.starts) < size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    last = len(words.starts) - size + 1
    at = np.flatnonzero(words.document[:last] == words.document[size - 1 :])
    hashes = np.zeros(len(at), dtype=np.uint64)
    for offset in range(size):
        hashes = hashes * FACTOR + words.hashes[at + offset]
    return at, hashes
