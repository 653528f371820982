"""Heuristic filters: language, length, symbols, repetition. Thresholds follow Gopher (arXiv:2112.11446, Table A1).

Words, lines, paragraphs and characters are those of `words`. Each filter measures (a function you can call on texts)
and compares; the reason of a dropped document is the first rule it breaks, in the order of the fields.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError, require
from bloomery.corpus.documents import texts, with_column
from bloomery.corpus.steps import Step, drop, drop_reasons
from bloomery.corpus.words import FACTOR, Words, blocks, by_document, hash_runs, hash_words

Measures = dict[str, np.ndarray]  # one float64 value per document

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's eight


@dataclass(frozen=True)
class Length(Step):
    """Words per document and their mean length in characters (Gopher: 50 to 100,000 words of 3 to 10 characters)."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_length: float = 3.0
    max_mean_length: float = 10.0

    def __post_init__(self) -> None:
        for low, high in (("min_words", "max_words"), ("min_mean_length", "max_mean_length")):
            if not 0 <= getattr(self, low) <= getattr(self, high):
                given = f"{low}={getattr(self, low)}, {high}={getattr(self, high)}"
                raise ConfigError(given, where="Length", fix=f"0 <= {low} <= {high}")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents that break a rule."""
        found = measure_length(texts(batch))
        batch = drop(batch, found["words"] < self.min_words, "too few words")
        batch = drop(batch, found["words"] > self.max_words, "too many words")
        batch = drop(batch, found["mean_length"] < self.min_mean_length, "words too short")
        return drop(batch, found["mean_length"] > self.max_mean_length, "words too long")


def measure_length(texts: pa.StringArray) -> Measures:
    """`words` and `mean_length` (characters per word; 0 without words)."""
    return _measure(texts, _length)


def _length(words: Words) -> Measures:
    return {"words": words.counts, "mean_length": ratio(_characters(words), words.counts)}


@dataclass(frozen=True)
class Symbols(Step):
    """Signs of text that is not prose (Gopher's quality rules, and curly braces for code).

    - `max_hashes`, `max_ellipses`: "#" per word, "..." or "…" per word
    - `max_bullet_lines`: fraction of lines that begin with one of • ● * -
    - `max_ellipsis_lines`: fraction of lines that end with "..." or "…"
    - `min_alphabetic`: fraction of words with an alphabetic character
    - `min_stop_words`: how many different ones of `stop_words` occur as words, A-Z taken as a-z
    - `max_braces`: "{" and "}" per word
    """

    max_hashes: float = 0.1
    max_ellipses: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    max_braces: float = 0.1
    stop_words: tuple[str, ...] = STOP_WORDS

    def __post_init__(self) -> None:
        if not 0 <= self.min_stop_words <= len(set(self.stop_words)):
            given = f"min_stop_words={self.min_stop_words} of {len(set(self.stop_words))} stop words"
            raise ConfigError(given, where="Symbols", fix="ask for at most as many as there are")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents that break a rule."""
        found = measure_symbols(texts(batch), self.stop_words)
        batch = drop(batch, found["hashes"] > self.max_hashes, "too many #")
        batch = drop(batch, found["ellipses"] > self.max_ellipses, "too many ellipses")
        batch = drop(batch, found["bullet_lines"] > self.max_bullet_lines, "too many bullet lines")
        batch = drop(batch, found["ellipsis_lines"] > self.max_ellipsis_lines, "too many lines end in an ellipsis")
        batch = drop(batch, found["alphabetic"] < self.min_alphabetic, "too few alphabetic words")
        batch = drop(batch, found["stop_words"] < self.min_stop_words, "too few stop words")
        return drop(batch, found["braces"] > self.max_braces, "too many braces")


def measure_symbols(texts: pa.StringArray, stop_words: Sequence[str] = STOP_WORDS) -> Measures:
    """The seven quantities of `Symbols`; every ratio is 0 for a document without words."""
    return _measure(texts, functools.partial(_symbols, stop_words=tuple(stop_words)), lower=True)


def _symbols(words: Words, stop_words: tuple[str, ...]) -> Measures:
    data, count = words.data, words.counts
    dots = ellipses(data, words.bounds)
    lines = words.runs(newlines=1)
    line_document = words.document[lines]
    head = words.starts[lines]
    tail = words.ends[np.append(lines[1:], len(words.ends))[: len(lines)] - 1]  # the end of each line's last word
    bullet = (data[head] == ord("-")) | (data[head] == ord("*")) | at_text(data, head, "•") | at_text(data, head, "●")
    ellipsis = ends_with(data, head, tail, "...") | ends_with(data, head, tail, "…")
    n_lines = np.bincount(line_document, minlength=words.documents)
    stops = np.zeros(words.documents)
    for stop in hash_words(sorted(set(stop_words))):
        stops += np.bincount(words.document[words.hashes == stop], minlength=words.documents) > 0
    return {
        "hashes": ratio(occurrences(words, data == ord("#")), count),
        "ellipses": ratio(dots, count),
        "bullet_lines": ratio(words.per_document(bullet, line_document), n_lines),
        "ellipsis_lines": ratio(words.per_document(ellipsis, line_document), n_lines),
        "alphabetic": ratio(words.per_document(words.contains_alphabetic()), count),
        "stop_words": stops,
        "braces": ratio(occurrences(words, (data == ord("{")) | (data == ord("}"))), count),
    }


def occurrences(words: Words, mask: np.ndarray) -> np.ndarray:
    """Set bytes of `mask` (B + 8,) in each document."""
    counts: np.ndarray = np.diff(np.searchsorted(np.flatnonzero(mask), words.bounds))
    return counts


def at_text(data: np.ndarray, positions: np.ndarray, text: str) -> np.ndarray:
    """Whether `text` stands at each position (the padding of `data` allows for three bytes)."""
    found = np.ones(len(positions), dtype=bool)
    for offset, byte in enumerate(text.encode()):
        found &= data[positions + offset] == byte
    return found


def ends_with(data: np.ndarray, head: np.ndarray, tail: np.ndarray, text: str) -> np.ndarray:
    """Whether `data[head:tail]` ends with `text`."""
    size = len(text.encode())
    found: np.ndarray = (tail - head >= size) & at_text(data, np.maximum(tail - size, 0), text)
    return found


def ellipses(data: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Occurrences of "..." (not overlapping) and "…" in each document: float64 (D,)."""
    dots = np.flatnonzero(data == ord("."))
    breaks = np.empty(len(dots), dtype=bool)
    breaks[:1] = True
    np.greater(np.diff(dots), 1, out=breaks[1:])
    owner = np.searchsorted(bounds, dots, side="right") - 1
    breaks[1:] |= owner[1:] != owner[:-1]
    begins = np.flatnonzero(breaks)
    threes = np.diff(begins, append=len(dots)) // 3
    total = np.bincount(owner[begins], threes, minlength=len(bounds) - 1)
    lead = np.flatnonzero(data == 0xE2)
    signs = lead[at_text(data, lead, "…")]
    found: np.ndarray = total + np.diff(np.searchsorted(signs, bounds))
    return found


@dataclass(frozen=True)
class Repetition(Step):
    """Gopher's repetition rules. A document is dropped when one of these fractions is above its bound.

        lines, paragraphs                        copies of an earlier one / all                    0.30  0.30
        line_characters, paragraph_characters    characters in such copies / all characters        0.20  0.20
        top_ngrams: 2, 3, 4 words                characters in the most frequent n-gram x its
                                                 count / all characters                            0.20  0.18  0.16
        repeated_ngrams: 5 to 10 words           characters of words covered by any n-gram that    0.15  0.14  0.13
                                                 occurs more than once, each word once / all       0.12  0.11  0.10

    Of several most frequent n-grams the longest counts, and one that occurs once counts as 0. Occurrences of an n-gram
    may overlap, so a `top_ngrams` fraction can exceed 1.

    `repeated_ngrams` counts every occurrence, the first too, and no character twice, as Gopher's and DCLM's do (the
    reimplementation in datatrove leaves the first occurrence out and so drops less). Our words end at white space
    only; DCLM takes the alphanumeric tokens of Unicode word breaking. Reference documentation repeats the same
    parameter descriptions over and over and loses a fifth of its pages to these six bounds: raise them for such text.
    """

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top_ngrams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    repeated_ngrams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

    def __post_init__(self) -> None:
        for size, _ in (*self.top_ngrams, *self.repeated_ngrams):
            if size < 2:
                raise ConfigError(f"n-grams of {size} words", where="Repetition", fix="use 2 or more")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents that break a rule."""
        top, repeated = dict(self.top_ngrams), dict(self.repeated_ngrams)
        found = measure_repetition(texts(batch), tuple(top), tuple(repeated))
        rules = [
            ("lines", self.lines, "repeated lines"),
            ("paragraphs", self.paragraphs, "repeated paragraphs"),
            ("line_characters", self.line_characters, "characters in repeated lines"),
            ("paragraph_characters", self.paragraph_characters, "characters in repeated paragraphs"),
            *((f"top_{size}gram", bound, f"frequent {size}-gram") for size, bound in top.items()),
            *((f"repeated_{size}grams", bound, f"repeated {size}-grams") for size, bound in repeated.items()),
        ]
        for name, bound, reason in rules:
            batch = drop(batch, found[name] > bound, reason)
        return batch


def measure_repetition(
    texts: pa.StringArray, top: Sequence[int] = (2, 3, 4), repeated: Sequence[int] = (5, 6, 7, 8, 9, 10)
) -> Measures:
    """The fractions of `Repetition`: `lines`, …, `top_2gram`, …, `repeated_5grams`, …; 0 for an empty document."""
    return _measure(texts, functools.partial(_repetition, top=tuple(top), repeated=tuple(repeated)))


def _repetition(words: Words, top: tuple[int, ...], repeated: tuple[int, ...]) -> Measures:
    total = _characters(words)
    found: Measures = {}
    for name, newlines in (("line", 1), ("paragraph", 2)):
        begins = words.runs(newlines)
        owner = words.document[begins]
        size = np.add.reduceat(words.characters, begins) if len(begins) else begins
        keys = by_document(hash_runs(words.hashes, begins), owner)
        order = np.argsort(keys)
        copies = order[1:][keys[order[1:]] == keys[order[:-1]]]
        count = np.bincount(owner, minlength=words.documents)
        found[f"{name}s"] = ratio(np.bincount(owner[copies], minlength=words.documents), count)
        found[f"{name}_characters"] = ratio(words.per_document(size[copies], owner[copies]), total)
    found.update(ngram_fractions(words, total, top, repeated))
    return found


def ngram_fractions(words: Words, total: np.ndarray, top: tuple[int, ...], repeated: tuple[int, ...]) -> Measures:
    """Grow n-grams word by word; only where both (n-1)-grams inside occur twice can the n-gram occur twice."""
    found: Measures = {}
    n_words = len(words.starts)
    document = words.document
    size_before = np.concatenate([[0], np.cumsum(words.characters)])  # characters before each word: (W + 1,)
    hashes = by_document(words.hashes, document)
    at = np.flatnonzero(document[1:] == document[:-1])  # where a candidate n-gram begins
    grams = hashes[at]
    for n in range(2, max((*top, *repeated, 1)) + 1):
        grams = grams * FACTOR + hashes[at + n - 1]
        order = np.argsort(grams)
        ranked = grams[order]
        begins = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else order
        counts = np.diff(begins, append=len(ranked))
        many = counts > 1
        if n in top:
            found[f"top_{n}gram"] = ratio(_top(at[order[begins[many]]], counts[many], n, words, size_before), total)
        again = np.zeros(len(at), dtype=bool)
        again[order] = np.repeat(many, counts)
        at, grams = at[again], grams[again]
        if n in repeated:
            covered = np.zeros(n_words + 1, dtype=np.int64)
            covered[at] += 1
            covered[at + n] -= 1
            inside = np.cumsum(covered[:-1]) > 0
            found[f"repeated_{n}grams"] = ratio(words.per_document(words.characters * inside), total)
        follows = np.flatnonzero(np.diff(at) == 1)  # the n-gram one word further on occurs twice as well
        at, grams = at[follows], grams[follows]
    return found


def _top(at: np.ndarray, counts: np.ndarray, n: int, words: Words, size_before: np.ndarray) -> np.ndarray:
    """Characters in the most frequent n-gram times its count, by document; `at` is one place of each n-gram."""
    owner, size = words.document[at], size_before[at + n] - size_before[at]
    most = np.zeros(words.documents, dtype=np.int64)
    np.maximum.at(most, owner, counts)
    best = counts == most[owner]
    longest = np.zeros(words.documents, dtype=np.int64)
    np.maximum.at(longest, owner[best], size[best])
    characters: np.ndarray = most * longest
    return characters


@dataclass(frozen=True)
class Language(Step):
    """Keep documents in the languages `keep` (ISO 639-1 codes) with at least `threshold` probability.

    Writes `lang` and `lang_score`. The classifier is py3langid (its model is inside the package). It sees the first
    `prefix` bytes of the text: 500 are enough to tell 50 languages apart, and its time is proportional to them. A
    document without a letter has no language and is dropped.
    """

    keep: str | tuple[str, ...] = ("en",)
    threshold: float = 0.65
    prefix: int = 500

    writes = ("lang", "lang_score")

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}", where="Language", fix="0 to 1")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents that break a rule."""
        found, scores = identify_language(texts(batch), self.prefix)
        languages = pa.array(found, pa.string())
        batch = with_column(batch, "lang", languages)
        batch = with_column(batch, "lang_score", pa.array(scores, pa.float32()))
        reasons = [
            "no language" if name is None else f"language {name}" if name not in self.keep else "language uncertain"
            for name in found
        ]
        wanted = np.isin(np.array(found, dtype=object), self.keep) & (scores >= self.threshold)
        return drop_reasons(batch, pa.array(reasons, pa.string(), mask=wanted))


def identify_language(texts: pa.StringArray, prefix: int = 500) -> tuple[list[str | None], np.ndarray]:
    """Language code (None without a letter) and probability in [0, 1], float32, of the first `prefix` bytes."""
    identifier = _language_identifier()
    languages: list[str | None] = []
    scores = np.zeros(len(texts), dtype=np.float32)
    for row, text in enumerate(texts.to_pylist()):
        head = text[:prefix].encode()[:prefix].decode(errors="ignore")  # cut at a whole character
        if not any(map(str.isalpha, head)):
            languages.append(None)
            continue
        language, scores[row] = identifier.classify(head)
        languages.append(language)
    return languages, scores


@functools.cache
def _language_identifier() -> Any:
    langid = require("py3langid.langid", "web")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


# --------------------------------------------------------------------------------------------------------- measuring


def _measure(texts: pa.StringArray, measure: Any, lower: bool = False) -> Measures:
    """`measure` of every block, put together; for no documents, of an empty block."""
    parts = [measure(words) for words in blocks(texts, lower)]
    if not parts:
        parts = [measure(Words(np.zeros(8, dtype=np.uint8), *(np.zeros(n, dtype=np.int64) for n in (1, 0, 0, 1))))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _characters(words: Words) -> np.ndarray:
    return words.per_document(words.characters)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, and 0 where `whole` is 0: float64."""
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)
    return ratio
