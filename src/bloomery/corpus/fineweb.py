"""FineWeb's page rules (arXiv:2406.17557, §3): Gopher's and its own, as datatrove, its pipeline, applies them.

C4's are in `c4`. Steps decide as those of datatrove 0.10 do, in the same order of rules; a test runs the two side by
side. Where it has a quirk, `strict_reference=True` keeps it and the default does not; `GopherRepetition` and
`GopherQuality` are always strict, because `filters.Repetition`, `Length` and `Symbols` are those rules without quirks.

`tokenizer` says what a word is: "whitespace" (`str.split`, and a sentence ends with a word that ends in a sentence
terminal, closing quotes and brackets aside), or "spacy", spaCy's English rules, which are datatrove's default and far
slower. Characters are code points, white space included, unlike in `filters`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError, nearest, require
from bloomery.corpus.documents import texts
from bloomery.corpus.filters import STOP_WORDS, Measures, at_text, ellipses, ends_with, occurrences, ratio
from bloomery.corpus.steps import Step, drop
from bloomery.corpus.words import (
    FACTOR,
    Words,
    blocks,
    by_document,
    code_points,
    hash_spans,
    hash_words,
    rolling,
    spread,
)

Tokenizer = Literal["whitespace", "spacy"]
TOKENIZERS = ("whitespace", "spacy")

# Sentence terminals (Unicode's Sentence_Terminal) and other punctuation and controls, as ranges of code points.
TERMINALS = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 "
    "17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 "
    "2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB "
    "FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 "
    "111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 "
    "1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 "
    "16B37-16B38 16B44 16E98 1BC9F 1DA88"
)
SYMBOLS = (
    "0-8 B-1F 22-2D 2F 3A-3E 40 5B-60 7B-9F AB B4 BB 2013-2014 2019 201C-201E 2026 2236 2501 25BA 3001 3008-300D "
    "3010-3011 FF05 FF08-FF09 FF0C FF11 FF1A-FF1B FF5E"
)


def check_tokenizer(tokenizer: str, where: str) -> None:
    """Refuse a name that is none of `TOKENIZERS`."""
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"unknown tokenizer {tokenizer!r}", where=where, fix=nearest(tokenizer, TOKENIZERS))


# --------------------------------------------------------------------------------------------------------- repetition


@dataclass(frozen=True)
class GopherRepetition(Step):
    """Gopher's repetition rules with datatrove's definitions; a page is dropped above one of the bounds.

    Fractions of the page's characters, except `lines` and `paragraphs`. Only second and later copies of a line or
    paragraph count, and of the n-grams in `repeated_ngrams`, taken from left to right without overlap.

    Quirks: lines are compared with their white space, and a page that begins or ends with line ends has empty lines;
    the most frequent n-gram counts although it occurs once, which drops pages of a few words; n-grams of
    `repeated_ngrams` are compared with their words run together ("a bc" is "ab c").
    """

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top_ngrams: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    repeated_ngrams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    tokenizer: Tokenizer = "whitespace"

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer, "GopherRepetition")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages that break a rule."""
        measure = functools.partial(_repetition, top=self.top_ngrams, repeated=self.repeated_ngrams)
        found = _measure(texts(batch), self.tokenizer, measure)
        rules = [
            ("empty", 0, "no text"),
            ("paragraphs", self.paragraphs, "repeated paragraphs"),
            ("paragraph_characters", self.paragraph_characters, "characters in repeated paragraphs"),
            ("lines", self.lines, "repeated lines"),
            ("line_characters", self.line_characters, "characters in repeated lines"),
            *((f"top_{size}gram", bound, f"frequent {size}-gram") for size, bound in self.top_ngrams),
            *((f"repeated_{size}grams", bound, f"repeated {size}-grams") for size, bound in self.repeated_ngrams),
        ]
        for name, bound, reason in rules:
            batch = drop(batch, found[name] > bound, reason)
        return batch


def _repetition(
    words: Words, tokens: Words, top: tuple[tuple[int, float], ...], repeated: tuple[tuple[int, float], ...]
) -> Measures:
    """The fractions of `GopherRepetition`; one of `repeated_ngrams` may be 0 instead of anything at most at its bound,
    and after a size above its own."""
    before = _characters_before(words.data)
    total = before[words.bounds[1:]] - before[words.bounds[:-1]]
    found: Measures = {"empty": total == 0}
    text = words.bounds[:-1], words.bounds[1:]
    for name, spans in (("paragraph", _split(words, 2, *_stripped(words))), ("line", _split(words, 1, *text))):
        owner, copies = spans.owner, spans.copies(words.data)
        size = before[spans.ends] - before[spans.starts]
        count = np.bincount(owner, minlength=words.documents)
        found[f"{name}s"] = ratio(np.bincount(owner[copies], minlength=words.documents), count)
        found[f"{name}_characters"] = ratio(words.per_document(size[copies], owner[copies]), total)
    size_before = np.concatenate([[0], np.cumsum(tokens.characters)])
    for n, _ in top:
        at = _ngrams(tokens, n)
        most = np.zeros(words.documents, dtype=np.int64)
        earliest = np.full(words.documents, len(tokens.starts))
        if len(at):
            _, first, count = np.unique(
                by_document(rolling(tokens.hashes, n)[at], tokens.document[at]), return_index=True, return_counts=True
            )
            owner = tokens.document[at[first]]
            np.maximum.at(most, owner, count)
            best = count == most[owner]
            np.minimum.at(earliest, owner[best], at[first[best]])
        has = np.flatnonzero(most)
        size = np.zeros(words.documents, dtype=np.int64)
        size[has] = size_before[earliest[has] + n] - size_before[earliest[has]] + n - 1  # with a space between words
        found[f"top_{n}gram"] = ratio(size * most, total)
    hash_before, unshift = _prefix_hashes(tokens)
    left = np.ones(words.documents, dtype=bool)
    for n, bound in top:
        left &= found[f"top_{n}gram"] <= bound
    for n, bound in repeated:
        at = _ngrams(tokens, n)
        at = at[left[tokens.document[at]]]
        keys = by_document((hash_before[at + n] - hash_before[at]) * unshift[at], tokens.document[at])
        size = size_before[at + n] - size_before[at]
        found[f"repeated_{n}grams"] = ratio(_copied(tokens, n, at, keys, size, bound * total), total)
        left &= found[f"repeated_{n}grams"] <= bound
    return found


def _ngrams(tokens: Words, n: int) -> np.ndarray:
    """Where `n` tokens of one document begin."""
    document = tokens.document
    return np.flatnonzero(document[n - 1 :] == document[: max(len(document) - n + 1, 0)])


def _prefix_hashes(tokens: Words) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all bytes before each token, and what takes their place out: two uint64 (W + 1,), modulo 2^64.

    (h[j] - h[i]) · u[i] is a polynomial in the bytes of the tokens i to j - 1, wherever they stand and are cut.
    """
    inside = np.zeros(len(tokens.data) + 1, dtype=np.int8)
    inside[tokens.starts] += 1
    inside[tokens.ends] -= 1  # no two tokens end at one place; one may begin where another ends
    run = tokens.data[np.cumsum(inside[:-1]) > 0]
    powers, inverses = (
        np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(len(run), factor)]))
        for factor in (FACTOR, np.uint64(pow(int(FACTOR), -1, 1 << 64)))
    )
    values = spread(np.arange(1, 257, dtype=np.uint64))[run] * powers[:-1]
    place = np.concatenate([[0], np.cumsum(tokens.ends - tokens.starts)])
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])[place], inverses[place]


def _copied(tokens: Words, n: int, at: np.ndarray, keys: np.ndarray, size: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Characters in n-grams seen before, left to right without overlap, by document; 0 where surely not above `bound`.

    What is counted lies in words covered by n-grams that occur twice: only where those exceed the bound is it done.
    """
    result = np.zeros(tokens.documents)
    if not len(at):
        return result
    _, which, count = np.unique(keys, return_inverse=True, return_counts=True)
    again = at[count[which] > 1]
    edges = np.zeros(len(tokens.starts) + 1, dtype=np.int64)
    edges[again] += 1
    np.subtract.at(edges, again + n, 1)
    covered = tokens.per_document(tokens.characters * (np.cumsum(edges[:-1]) > 0))
    cuts = np.searchsorted(at, tokens.first)
    for document in np.flatnonzero(covered > bound):
        begin, end = cuts[document : document + 2]
        grams, sizes = which[begin:end].tolist(), size[begin:end].tolist()
        seen: set[int] = set()
        i = copied = 0
        while i < len(grams):
            if grams[i] in seen:
                copied += sizes[i]
                i += n
            else:
                seen.add(grams[i])
                i += 1
        result[document] = copied
    return result


# ------------------------------------------------------------------------------------------------------------- quality


@dataclass(frozen=True)
class GopherQuality(Step):
    """Gopher's quality rules with datatrove's definitions. Words of punctuation alone are no words for the first two.

    Quirks: stop words are compared with their case ("The" is none); a line ends wherever `str.splitlines` ends one, and
    empty lines count; bullets are • and - only.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_length: float = 3.0
    max_mean_length: float = 10.0
    max_symbols: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    tokenizer: Tokenizer = "whitespace"

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer, "GopherQuality")
        if self.min_words < 1:
            raise ConfigError(f"min_words={self.min_words}", where="GopherQuality", fix="1 or more")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages that break a rule."""
        found = _measure(texts(batch), self.tokenizer, _quality)
        batch = drop(batch, found["words"] < self.min_words, "too few words")
        batch = drop(batch, found["words"] > self.max_words, "too many words")
        batch = drop(batch, found["mean_length"] < self.min_mean_length, "words too short")
        batch = drop(batch, found["mean_length"] > self.max_mean_length, "words too long")
        batch = drop(batch, found["hashes"] > self.max_symbols, "too many #")
        batch = drop(batch, found["ellipses"] > self.max_symbols, "too many ellipses")
        batch = drop(batch, found["bullet_lines"] > self.max_bullet_lines, "too many bullet lines")
        batch = drop(batch, found["ellipsis_lines"] > self.max_ellipsis_lines, "too many lines end in an ellipsis")
        batch = drop(batch, found["alphabetic"] < self.min_alphabetic, "too few alphabetic words")
        return drop(batch, found["stop_words"] < self.min_stop_words, "too few stop words")


def _quality(words: Words, tokens: Words) -> Measures:
    data, count = words.data, tokens.counts
    real = tokens.count(~_marked(words, _punctuation()) & ((data & 0xC0) != 0x80)) > 0
    breaks, lines = _line_ends(words)
    begins = np.bincount(np.searchsorted(words.starts, breaks), minlength=len(words.starts) + 1)[:-1] > 0
    begins[words.first[:-1][words.counts > 0]] = True
    heads = np.flatnonzero(begins)
    owner = words.document[heads]
    tails = np.append(heads[1:], len(words.starts))[: len(heads)] - 1
    head, tail = words.starts[tails], words.ends[tails]  # of the line's last word
    bullet = (data[words.starts[heads]] == ord("-")) | at_text(data, words.starts[heads], "•")
    ellipsis = ends_with(data, head, tail, "...") | ends_with(data, head, tail, "…")
    stops = np.zeros(words.documents)
    for stop in hash_words(STOP_WORDS):
        stops += tokens.per_document(tokens.hashes == stop) > 0
    return {
        "words": tokens.per_document(real),
        "mean_length": ratio(tokens.per_document(tokens.characters * real), tokens.per_document(real)),
        "hashes": ratio(occurrences(words, data == ord("#")), count),
        "ellipses": ratio(ellipses(data, words.bounds), count),
        "bullet_lines": ratio(words.per_document(bullet, owner), lines),
        "ellipsis_lines": ratio(words.per_document(ellipsis, owner), lines),
        "alphabetic": ratio(tokens.per_document(tokens.contains_alphabetic()), count),
        "stop_words": stops,
    }


def _line_ends(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """First bytes of all that ends a line for `str.splitlines`, and how many lines each document has: int64 (D,)."""
    data, bounds = words.data, words.bounds
    single = ((data >= 0x0A) & (data <= 0x0D)) | ((data >= 0x1C) & (data <= 0x1E))
    found = [np.flatnonzero(single[: bounds[-1]])]
    for lead, text in ((0xC2, "\u0085"), (0xE2, "\u2028"), (0xE2, "\u2029")):
        places = np.flatnonzero(data[: bounds[-1]] == lead)
        found.append(places[at_text(data, places, text)])
    breaks = np.sort(np.concatenate(found))
    owner = np.searchsorted(bounds, breaks, side="right") - 1
    after = breaks + 1 + (data[breaks] == 0xC2) + 2 * (data[breaks] == 0xE2)
    joined = (data[breaks] == ord("\n")) & (data[breaks - 1] == ord("\r")) & (breaks > bounds[owner])  # one "\r\n"
    lines = np.bincount(owner[~joined], minlength=words.documents)
    ended = np.bincount(owner[after == bounds[owner + 1]], minlength=words.documents) > 0
    return breaks, lines + ((np.diff(bounds) > 0) & ~ended)


# ------------------------------------------------------------------------------------------------------------- FineWeb


@dataclass(frozen=True)
class FineWebQuality(Step):
    """FineWeb's own rules, about the lines of a page (empty ones aside).

    - `min_terminated`: share of the lines that end in a sentence terminal (`TERMINALS`)
    - `max_short_lines`: share of the lines of at most `short_line` characters
    - `max_repeated`: characters in second and later copies of a line / all but the line ends
    - `max_newlines`: line ends per word
    - `strict_reference`: take lines with the white space around them, as datatrove does: a line that ends in a space,
      and every line of a page with "\\r\\n", is then not terminated. By default lines are stripped.
    """

    min_terminated: float = 0.12
    short_line: int = 30
    max_short_lines: float = 0.67
    max_repeated: float = 0.01
    max_newlines: float = 0.3
    tokenizer: Tokenizer = "whitespace"
    strict_reference: bool = False

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer, "FineWebQuality")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages that break a rule."""
        measure = functools.partial(_line_shape, short=self.short_line, strict=self.strict_reference)
        found = _measure(texts(batch), self.tokenizer, measure)
        batch = drop(batch, found["lines"] == 0, "no text")
        batch = drop(batch, found["terminated"] < self.min_terminated, "too few terminated lines")
        batch = drop(batch, found["short_lines"] > self.max_short_lines, "too many short lines")
        batch = drop(batch, found["repeated"] > self.max_repeated, "characters in repeated lines")
        return drop(batch, found["newlines"] > self.max_newlines, "too few words per line")


def _line_shape(words: Words, tokens: Words, short: int, strict: bool) -> Measures:
    data, bounds = words.data, words.bounds
    lines = _split(words, 1, bounds[:-1], bounds[1:], runs=False)
    first, after = np.searchsorted(words.starts, lines.starts), np.searchsorted(words.starts, lines.ends)
    full = np.flatnonzero(after > first)
    starts, ends = lines.starts[full], lines.ends[full]
    if not strict:
        starts, ends = words.starts[first[full]], words.ends[after[full] - 1]
    lines = _Spans(starts, ends, lines.owner[full])
    last = ends - 1
    for _ in range(3):
        last = np.where((data[last] & 0xC0) == 0x80, last - 1, last)
    before = _characters_before(data)
    size = before[ends] - before[starts]
    newlines = occurrences(words, data == ord("\n"))
    copies, count = lines.copies(data), np.bincount(lines.owner, minlength=words.documents)
    return {
        "lines": count,
        "terminated": ratio(words.per_document(_marked(words, _terminals())[last], lines.owner), count),
        "short_lines": ratio(words.per_document(size <= short, lines.owner), count),
        "repeated": ratio(
            words.per_document(size[copies], lines.owner[copies]), before[bounds[1:]] - before[bounds[:-1]] - newlines
        ),
        "newlines": ratio(newlines, tokens.counts),
    }


# --------------------------------------------------------------------------------------------------- spans, characters


@dataclass(frozen=True, eq=False)
class _Spans:
    """Pieces of a block's text: their first bytes, the bytes after them, their documents."""

    starts: np.ndarray
    ends: np.ndarray
    owner: np.ndarray

    def copies(self, data: np.ndarray) -> np.ndarray:
        """Which pieces equal an earlier one of their document."""
        keys = hash_spans(data, self.starts, self.ends)
        keys[self.starts == self.ends] = 0
        keys = by_document(keys, self.owner)
        order = np.argsort(keys, kind="stable")
        copies: np.ndarray = order[1:][keys[order[1:]] == keys[order[:-1]]]
        return copies


def _split(words: Words, least: int, head: np.ndarray, tail: np.ndarray, runs: bool = True) -> _Spans:
    """Cut `head` to `tail` of every document (D,) at runs of `least` newlines or more, or at every newline."""
    newlines = np.flatnonzero(words.data[: words.bounds[-1]] == ord("\n"))
    owner = np.searchsorted(words.bounds, newlines, side="right") - 1
    apart = np.ones(len(newlines) + 1, dtype=bool)
    if runs:
        apart[1:-1] = (np.diff(newlines) > 1) | (np.diff(owner) > 0)
    first = np.flatnonzero(apart[:-1])
    begins, stops, owner = newlines[first], newlines[np.flatnonzero(apart[1:])] + 1, owner[first]
    cuts = (stops - begins >= least) & (begins >= head[owner]) & (stops <= tail[owner])
    counts = np.bincount(owner[cuts], minlength=words.documents) + 1
    starts, ends = np.sort(np.concatenate([head, stops[cuts]])), np.sort(np.concatenate([begins[cuts], tail]))
    return _Spans(starts, ends, np.repeat(np.arange(words.documents, dtype=np.int32), counts))


def _stripped(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Where each document's first word begins and its last one ends; an empty span without words."""
    head, tail = words.bounds[:-1].copy(), words.bounds[:-1].copy()
    some = words.counts > 0
    head[some], tail[some] = words.starts[words.first[:-1][some]], words.ends[words.first[1:][some] - 1]
    return head, tail


def _characters_before(data: np.ndarray) -> np.ndarray:
    """Characters before each byte: int64 (B + 9,)."""
    return np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])


def points(ranges: str) -> Iterator[int]:
    """The code points of ranges like "21 2E-30"."""
    for part in ranges.split():
        low, _, high = part.partition("-")
        yield from range(int(low, 16), int(high or low, 16) + 1)


def _marked(words: Words, table: np.ndarray) -> np.ndarray:
    """Whether a character of the table (0x110000,) begins at each byte: bool (B + 8,)."""
    mask: np.ndarray = table[:256][words.data & 0x7F] & (words.data < 0x80)
    if not words.is_ascii:
        lead = np.flatnonzero(words.data >= 0xC2)
        mask[lead] = table[code_points(words.data, lead)]
    return mask


@functools.cache
def _terminals() -> np.ndarray:
    table = np.zeros(0x110000, dtype=bool)
    table[list(points(TERMINALS))] = True
    return table


@functools.cache
def _punctuation() -> np.ndarray:
    table = _terminals().copy()
    table[list(points(SYMBOLS))] = True
    return table


# --------------------------------------------------------------------------------------------------------------- words


def _measure(texts: pa.StringArray, tokenizer: Tokenizer, measure: Callable[[Words, Words], Measures]) -> Measures:
    """`measure` of the white-space words and the tokenizer's words of every block, put together."""
    padding = pa.array([""], pa.string())  # so that there is a block
    found = [measure(words, _spacy_words(words) if tokenizer == "spacy" else words) for words in blocks(texts)]
    found = found or [measure(words, words) for words in blocks(padding)]
    return {name: np.concatenate([part[name] for part in found])[: len(texts)] for name in found[0]}


@functools.cache
def spacy_english() -> Any:
    """spaCy's rules for English words and sentences, without a model."""
    nlp = require("spacy", "spacy").blank("en")
    nlp.add_pipe("sentencizer")
    return nlp


def _spacy_words(words: Words) -> Words:
    """spaCy's tokens of a block, white space stripped from them, those of white space alone left out."""
    nlp = spacy_english()
    starts, ends, first = [], [], [0]
    for begin, end in pairwise(words.bounds):
        source = words.data[begin:end]
        at = np.append(np.flatnonzero((source & 0xC0) != 0x80), len(source)) + begin  # byte of each character
        text = source.tobytes().decode()
        with nlp.memory_zone():
            for token in nlp.tokenizer(text):
                if stripped := token.text.strip():
                    head = token.idx + len(token.text) - len(token.text.lstrip())
                    starts.append(at[head])
                    ends.append(at[head + len(stripped)])
        first.append(len(starts))
    return Words(words.data, words.bounds, *(np.array(column, dtype=np.int64) for column in (starts, ends, first)))
