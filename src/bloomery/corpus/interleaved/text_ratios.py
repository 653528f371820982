"""The numbers behind OBELICS' text rules, of many texts at once (arXiv 2306.16527).

    words                 how many; split at space, line end and tab only, lower case, stripped of special characters
    character_repetition  occurrences of the k most frequent character n-grams / all,
                          k = min(floor(sqrt(different ones)), those that occur twice)
    word_repetition       occurrences of word n-grams that occur twice / all
    special_characters    special characters / all
    stop_words, flagged_words, common_words, spam_words      words of the list / all
    punctuation           marks / (marks and runs of letters, digits, _ and '), 1 for fewer of these than `min_tokens`

Of nothing every ratio is 0. Words and n-grams are compared by 64-bit hash. `normalized` is what a language model sees.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bloomery.corpus.words import Words, by_document, code_points, each_block, rolling

if TYPE_CHECKING:
    from bloomery.corpus.interleaved.word_lists import WordLists

CODES = 0x110000
LISTS = ("stop_words", "flagged_words", "common_words", "spam_words")
# Space characters (with the object replacement character) that become a plain space before anything else.
ODD_SPACES = "\x84\xa0\u2002\u2003\u2005\u2008\u2009\u200a\u202f\u3000\ufffc"
_PLAIN = str.maketrans(dict.fromkeys(ODD_SPACES, " "))
_NON_PRINTING = re.compile("[\x00-\x1f\x7f-\x9f]")
_NON_PRINTING_IN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIGIT = re.compile(r"\d")

Ratios = dict[str, np.ndarray]  # one float64 per text


def ratios(
    texts: Sequence[str], lists: WordLists, *, character_ngram: int = 10, word_ngram: int = 5, min_tokens: int = 0
) -> Ratios:
    """All numbers of the table above, for texts that are not null: float64 (texts,) each."""

    def of_characters(text: np.ndarray, bounds: np.ndarray) -> Ratios:
        return _of_characters(text, bounds, lists, character_ngram, min_tokens)

    def of_words(text: np.ndarray, bounds: np.ndarray) -> Ratios:
        return _of_words(_words(text, bounds, lists.special_characters), lists, word_ngram)

    lower = [text.lower() for text in texts]
    return {**_each(texts, of_characters), **_each(lower, of_words)}


def word_ratio(texts: Sequence[str], lists: WordLists, name: str) -> np.ndarray:
    """The share of the words that are in the list `name`: float64 (texts,)."""
    return np.concatenate([np.zeros(0), *(_share(w, lists, name) for w in split(texts, lists.special_characters))])


def split(texts: Sequence[str], special: str | None = None) -> Iterator[Words]:
    """The words of the rules, of blocks of texts; `special` as in `WordLists`."""
    for text, bounds in each_block(pa.array([text.lower() for text in texts], pa.string())):
        yield _words(text, bounds, special)


def plain_spaces(text: str) -> str:
    """The text with a plain space for every one of `ODD_SPACES`."""
    return text if text.isascii() else text.translate(_PLAIN)


def printing(text: str, *, keep_lines: bool = True) -> str:
    """The text without control characters; without `keep_lines`, without line ends and tabs too."""
    return (_NON_PRINTING_IN_LINES if keep_lines else _NON_PRINTING).sub("", text)


def normalized(text: str, punctuation: Mapping[str, str] | None = None) -> str:
    """The text for a language model (as in CCNet): no control characters, outer space or odd spaces, 0 for every digit.

    `punctuation` says what becomes of marks that are not ASCII, by default `ascii_punctuation()`.
    """
    table = str.maketrans(dict(ascii_punctuation() if punctuation is None else punctuation))
    text = plain_spaces(printing(text, keep_lines=False).strip())
    return _DIGIT.sub("0", text).translate(table)


@functools.cache
def ascii_punctuation() -> Mapping[str, str]:
    """An ASCII spelling of Unicode's punctuation: dashes, quotation marks, and what NFKC makes ASCII."""
    found = {}
    for code in range(0x80, CODES):
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] == "P":
            plain = unicodedata.normalize("NFKC", character)
            quotes = "'" if "SINGLE" in unicodedata.name(character, "") else '"'
            plain = {"Pd": "-", "Pi": quotes, "Pf": quotes}.get(category, plain)
            if plain.isascii():
                found[character] = plain
    return found


@functools.cache
def special_table(characters: str | None) -> np.ndarray:
    """Whether each code point is special: bool (CODES,); None = all but letters and marks."""
    if characters is None:
        categories = (unicodedata.category(chr(code))[0] not in "LM" for code in range(CODES))
        return np.fromiter(categories, dtype=bool, count=CODES)
    table = np.zeros(CODES, dtype=bool)
    table[[ord(character) for character in characters]] = True
    return table


def is_in(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are in `known`, which is sorted: bool, like `values`."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    found: np.ndarray = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


# --------------------------------------------------------------------------------------------------------- measuring


def _each(texts: Sequence[str], measure: Callable[[np.ndarray, np.ndarray], Ratios]) -> Ratios:
    parts = [measure(text, bounds) for text, bounds in each_block(pa.array(texts, pa.string()))]
    parts = parts or [measure(np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int64))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_characters(text: np.ndarray, bounds: np.ndarray, lists: WordLists, size: int, min_tokens: int) -> Ratios:
    codes = (
        text if text.max(initial=0) < 0x80 else np.frombuffer(text.tobytes().decode().encode("utf-32-le"), np.uint32)
    )
    first = np.concatenate([[0], np.cumsum((text & 0xC0) != 0x80)])[bounds]  # (D + 1,) in characters
    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(first))

    def count(mask: np.ndarray) -> np.ndarray:
        counts: np.ndarray = np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int32)])[first])
        return counts

    in_run = _run_table()[codes]
    marks = np.isin(codes, [ord(mark) for mark in lists.punctuation]) & ~in_run
    begins = in_run.copy()
    begins[1:] &= ~in_run[:-1] | (owner[1:] != owner[:-1])
    tokens = count(begins) + count(marks)
    counts, document = _ngram_counts(_code_hashes()[codes], owner, size)
    return {
        "character_repetition": _most_frequent(counts, document, len(bounds) - 1),
        "special_characters": _ratio(count(special_table(lists.special_characters)[codes]), np.diff(first)),
        "punctuation": np.where((tokens > 0) & (tokens < min_tokens), 1.0, _ratio(count(marks), tokens)),
    }


def _of_words(words: Words, lists: WordLists, size: int) -> Ratios:
    counts, document = _ngram_counts(words.hashes, words.document, size)
    again, total = (np.bincount(document, w, words.documents) for w in (np.where(counts > 1, counts, 0), counts))
    shares = {name: _share(words, lists, name) for name in LISTS}
    return {"words": words.counts.astype(np.float64), "word_repetition": _ratio(again, total), **shares}


def _share(words: Words, lists: WordLists, name: str) -> np.ndarray:
    return _ratio(words.per_document(is_in(words.hashes, lists.hashes[name])), words.counts)


def _ngram_counts(values: np.ndarray, owner: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each different n-gram of each text occurs, and whose it is: int64 (n-grams,) each."""
    last = len(values) - size + 1
    if last <= 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    at = np.flatnonzero(owner[:last] == owner[size - 1 :])
    grams = by_document(rolling(values, size)[at], owner[at])
    order = np.argsort(grams)
    ranked = grams[order]
    begins = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(at) else order
    return np.diff(begins, append=len(at)), owner[at[order[begins]]]


def _most_frequent(counts: np.ndarray, document: np.ndarray, documents: int) -> np.ndarray:
    """Occurrences of the k most frequent n-grams of each text / all: float64 (documents,)."""
    different = np.bincount(document, minlength=documents)
    several = np.flatnonzero(counts > 1)
    several = several[np.lexsort((-counts[several], document[several]))]
    of = document[several]
    first = np.searchsorted(of, np.arange(documents))
    chosen = np.arange(len(of)) - first[of] < np.sqrt(different).astype(np.int64)[of]
    top = np.bincount(of[chosen], counts[several[chosen]], documents)
    return _ratio(top, np.bincount(document, counts, documents))


def _words(text: np.ndarray, bounds: np.ndarray, special: str | None) -> Words:
    """Words in UTF-8 bytes (B,): from the first to the last character that is not special, between two spaces."""
    data = np.zeros(len(text) + 8, dtype=np.uint8)
    data[: len(text)] = text
    table = special_table(special)
    space = (text == ord(" ")) | (text == ord("\n")) | (text == ord("\t"))
    inside = np.append(~table[:0x80], np.zeros(0x80, dtype=bool))[text] & ~space
    wide = np.flatnonzero(text >= 0xC2)
    inside[wide] = ~table[code_points(data, wide)]
    at = np.flatnonzero(inside)
    # Spaces and texts before each character: differs between any two words, and nowhere inside one.
    gap = (np.cumsum(space, dtype=np.int32) + np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)))[at]
    edge = np.flatnonzero(np.diff(gap)) + 1
    begins = np.concatenate([np.zeros(min(1, len(at)), dtype=np.int64), edge])
    starts, last = at[begins], at[np.append(edge, len(at))[: len(begins)] - 1]
    ends = last + 1 + (data[last] >= 0xC2) + (data[last] >= 0xE0) + (data[last] >= 0xF0)
    return Words(data, bounds, starts, ends, np.searchsorted(starts, bounds))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)
    return ratio


@functools.cache
def _run_table() -> np.ndarray:
    """What runs of a word's characters consist of, as Python's [\\w'] sees it: bool (CODES,)."""
    return np.fromiter((chr(c).isalnum() or chr(c) in "_'" for c in range(CODES)), dtype=bool, count=CODES)


@functools.cache
def _code_hashes() -> np.ndarray:
    """A number for each code point that looks random: uint64 (CODES,)."""
    return by_document(np.zeros(CODES, dtype=np.uint64), np.arange(CODES))
