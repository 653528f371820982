"""Filters that look at a whole page: length, word length, symbols, bullets, ellipses, letters, stop words, repetition.

The rules are Gopher's (arXiv:2112.11446, Table A1) as DCLM applies them; they differ from `corpus.filters` and from
datatrove's in the details each docstring names. A page exactly at a bound is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError
from bloomery.corpus.documents import texts
from bloomery.corpus.filters import STOP_WORDS, ngram_fractions
from bloomery.corpus.steps import Step, drop
from bloomery.corpus.word_breaks import alphanumeric, tokens
from bloomery.corpus.words import Words, blocks, by_document, fasttext_words, hash_runs, hash_spans, hash_words

TOP_NGRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
REPEATED_NGRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
SYMBOLS = ("#", "...", ". . .", "…")
BULLETS = ("●", "•", "*", "-")
ELLIPSES = ("...", ". . .", "…")


def count_words(texts: pa.StringArray) -> np.ndarray:
    """fastText tokens that begin with a letter or digit, by document: int64 (D,)."""
    return _concatenated(alphanumeric(words).counts for words in fasttext_words(texts))


@dataclass(frozen=True)
class PageLength(Step):
    """Between `min_length` and `max_length` words (`count_words`)."""

    min_length: int = 50
    max_length: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= self.min_length <= self.max_length:
            raise ConfigError(f"min_length={self.min_length}, max_length={self.max_length}", where="PageLength")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages that are too short or too long."""
        found = count_words(texts(batch))
        return drop(drop(batch, found < self.min_length, "too few words"), found > self.max_length, "too many words")


@dataclass(frozen=True)
class WordLength(Step):
    """Mean length of the words (split at white space) between `min_length` and `max_length` characters."""

    min_length: float = 3
    max_length: float = 10

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages whose words are too short or too long, and those without words."""
        found = mean_word_length(texts(batch))
        batch = drop(batch, np.isnan(found), "no words")
        return drop(drop(batch, found < self.min_length, "words too short"), found > self.max_length, "words too long")


def mean_word_length(texts: pa.StringArray) -> np.ndarray:
    """Characters per word, NaN without words: float64 (D,)."""
    return _concatenated(_ratio(words.per_document(words.characters), words.counts) for words in blocks(texts))


@dataclass(frozen=True)
class SymbolRatio(Step):
    """At most `max_symbol_to_word_ratio` symbols per word: "#", "...", ". . ." and "…" counted together."""

    max_symbol_to_word_ratio: float = 0.1

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages with too many symbols, and those without words."""
        found = symbol_ratio(texts(batch))
        return drop(drop(batch, np.isnan(found), "no words"), found > self.max_symbol_to_word_ratio, "too many symbols")


def symbol_ratio(texts: pa.StringArray) -> np.ndarray:
    """Symbols per word, NaN without words: float64 (D,)."""
    symbols = [sum(map(text.count, SYMBOLS)) for text in texts.to_pylist()]
    words = _concatenated(words.counts for words in blocks(texts))
    return _ratio(np.array(symbols, dtype=np.int64), words)


@dataclass(frozen=True)
class BulletLines(Step):
    """At most `max_bullet_start_ratio` of the lines begin with one of ● • * -. Lines without words do not count."""

    max_bullet_start_ratio: float = 0.9

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages with too many bullet lines."""
        count, lines = line_matches(texts(batch), _begins_with_bullet)
        return drop(batch, count > self.max_bullet_start_ratio * lines, "too many bullet lines")


@dataclass(frozen=True)
class EllipsisLines(Step):
    """At most `max_ellipsis_end_ratio` of the lines end with "...", ". . ." or "…"."""

    max_ellipsis_end_ratio: float = 0.3

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages where too many lines end in an ellipsis."""
        count, lines = line_matches(texts(batch), _ends_with_ellipsis)
        return drop(batch, count > self.max_ellipsis_end_ratio * lines, "too many lines end in an ellipsis")


Matches = Callable[[Words, np.ndarray, np.ndarray], np.ndarray]


def line_matches(texts: pa.StringArray, matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """How many lines of each document match, and how many it has: int64 (D,), int64 (D,)."""
    counts, lines = [], []
    for words in blocks(texts):
        begins = words.runs(newlines=1)
        head = words.starts[begins]
        tail = words.ends[np.append(begins[1:], len(words.ends))[: len(begins)] - 1]
        owner = words.document[begins]
        counts.append(np.bincount(owner, matches(words, head, tail), minlength=words.documents).astype(np.int64))
        lines.append(np.bincount(owner, minlength=words.documents))
    return _concatenated(counts), _concatenated(lines)


def _begins_with_bullet(words: Words, head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    found = np.zeros(len(head), dtype=bool)
    for bullet in BULLETS:
        found |= _stands_at(words.data, head, bullet)
    return found


def _ends_with_ellipsis(words: Words, head: np.ndarray, tail: np.ndarray) -> np.ndarray:
    found = np.zeros(len(head), dtype=bool)
    for ellipsis in ELLIPSES:
        size = len(ellipsis.encode())
        found |= (tail - head >= size) & _stands_at(words.data, np.maximum(tail - size, 0), ellipsis)
    return found


def _stands_at(data: np.ndarray, positions: np.ndarray, text: str) -> np.ndarray:
    found = np.ones(len(positions), dtype=bool)
    for offset, byte in enumerate(text.encode()):  # at most 5 bytes, for which `data` has padding
        found &= data[positions + offset] == byte
    return found


@dataclass(frozen=True)
class AlphabeticWords(Step):
    """At most `max_ratio` of the words have no alphabetic character."""

    max_ratio: float = 0.2

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages with too many words without a letter, and those without words."""
        found = without_letters(texts(batch))
        return drop(drop(batch, np.isnan(found), "no words"), found > self.max_ratio, "too few alphabetic words")


def without_letters(texts: pa.StringArray) -> np.ndarray:
    """Share of the words without a letter, NaN without words: float64 (D,)."""
    return _concatenated(
        _ratio(words.per_document(~words.contains_alphabetic()), words.counts) for words in blocks(texts)
    )


@dataclass(frozen=True)
class StopWords(Step):
    """At least `min_stop_word` of Gopher's eight stop words, whatever their case.

    Occurrences count, so one word twice is enough; with `count_unique` different words do.
    """

    min_stop_word: int = 2
    count_unique: bool = False

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages with too few stop words."""
        found = stop_words(texts(batch), self.count_unique)
        return drop(batch, found < self.min_stop_word, "too few stop words")


def stop_words(texts: pa.StringArray, count_unique: bool = False) -> np.ndarray:
    """Occurrences of stop words, or how many different ones occur: int64 (D,)."""
    parts = []
    for words in blocks(texts, lower=True):
        found = np.zeros(words.documents, dtype=np.int64)
        for stop in hash_words(STOP_WORDS):
            count = words.per_document(words.hashes == stop)
            found += count > 0 if count_unique else count
        parts.append(found)
    return _concatenated(parts)


@dataclass(frozen=True)
class MassiveRepetition(Step):
    """Gopher's repetition rules; the share of lines, paragraphs, characters or n-grams that are repeated.

    - Lines and paragraphs (separated by an empty line) are compared stripped, inner white space included. Every
      occurrence of one that is seen more than once counts, the first too; a page with a single one passes.
    - n-grams are made of the Unicode words that begin with a letter or digit, and so are the denominators. For 2 to 4
      words: characters of the most frequent n-gram (the longest of several) times its count. For 5 to 10: characters of
      all words covered by an n-gram that occurs more than once.
    """

    skip_paragraph: bool = False

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the repetitive pages, and the empty ones."""
        found = repetition(texts(batch))
        batch = drop(batch, found["lines"] == 0, "no text")
        kinds = ("line",) if self.skip_paragraph else ("line", "paragraph")
        for kind in kinds:
            batch = drop(batch, found[f"{kind}/count"] > 0.3, f"repeated {kind}s")
        for kind in kinds:
            batch = drop(batch, found[f"{kind}/chars"] > 0.2, f"characters in repeated {kind}s")
        for size, bound in TOP_NGRAMS:
            batch = drop(batch, found[f"{size}gram"] > bound, f"frequent {size}-gram")
        for size, bound in REPEATED_NGRAMS:
            batch = drop(batch, found[f"{size}gram"] > bound, f"repeated {size}-grams")
        return batch


def repetition(texts: pa.StringArray) -> dict[str, np.ndarray]:
    """`lines` (how many), `line/count`, `line/chars`, `paragraph/…`, `2gram` to `10gram`: one value per document (D,).

    A fraction is 0 where the rule does not apply.
    """
    parts = [{**_repeated_lines(words), **_ngrams(alphanumeric(by_break))} for words, by_break in _both(texts)]
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names} or _nothing()


def _both(texts: pa.StringArray) -> Iterator[tuple[Words, Words]]:
    """The words of each block as `str.split` and as Unicode see them (both cut the text into the same blocks)."""
    return zip(blocks(texts), tokens(texts), strict=True)


def _nothing() -> dict[str, np.ndarray]:
    names = ["lines", "line/count", "line/chars", "paragraph/count", "paragraph/chars"]
    return {name: np.zeros(0) for name in (*names, *(f"{size}gram" for size in range(2, 11)))}


def _repeated_lines(words: Words) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    characters = np.concatenate([[0], np.cumsum((words.data & 0xC0) != 0x80)])  # before each byte
    newlines = np.flatnonzero(words.data == ord("\n"))
    doubled = newlines[:-1][np.diff(newlines) == 1]
    begins_paragraph = np.zeros(len(words.starts) + 1, dtype=bool)
    begins_paragraph[np.searchsorted(words.starts, doubled)] = True
    begins_paragraph[words.first[:-1]] = True
    for kind, begins in (("line", words.runs(newlines=1)), ("paragraph", np.flatnonzero(begins_paragraph[:-1]))):
        last = np.append(begins[1:], len(words.ends))[: len(begins)] - 1
        head, tail = words.starts[begins], words.ends[last]
        # A word is hashed with the white space up to the next, the last word of a segment without.
        upto = np.append(words.starts[1:], words.ends[-1:])
        upto[last] = tail
        owner = words.document[begins]
        keys = by_document(hash_runs(hash_spans(words.data, words.starts, upto), begins), owner)
        _, which, count = np.unique(keys, return_inverse=True, return_counts=True)
        again = count[which] > 1
        size = characters[tail] - characters[head]
        total = np.bincount(owner, minlength=words.documents)
        found[f"{kind}/count"] = _fraction(np.bincount(owner[again], minlength=words.documents), total)
        found[f"{kind}/chars"] = _fraction(
            words.per_document(size[again], owner[again]), words.per_document(size, owner)
        )
        found.setdefault("lines", total)
    return found


def _ngrams(words: Words) -> dict[str, np.ndarray]:
    top, repeated = tuple(size for size, _ in TOP_NGRAMS), tuple(size for size, _ in REPEATED_NGRAMS)
    found = ngram_fractions(words, words.per_document(words.characters), top, repeated)
    return {name.removeprefix("top_").removeprefix("repeated_").removesuffix("s"): part for name, part in found.items()}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where `whole` is 0."""
    ratio: np.ndarray = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)
    return ratio


def _fraction(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, 0 where `whole` is 0."""
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)
    return ratio


def _concatenated(parts: Iterator[np.ndarray] | list[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.concatenate(found) if found else np.zeros(0)
