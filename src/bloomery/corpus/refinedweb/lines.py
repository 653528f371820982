"""Edits of single lines, and the page filter that follows them: too much removed means a page of boilerplate.

A line is what stands between two "\\n". Like the reference, every edit except `LineLength` strips the whole text, and a
page whose text is gone is dropped.
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import ConfigError, nearest
from bloomery.corpus.documents import texts, with_column, with_texts
from bloomery.corpus.refinedweb.pages import count_words
from bloomery.corpus.steps import Step, drop
from bloomery.corpus.words import code_points, each_block, split_words

LOCATIONS = ("any", "prefix", "suffix")


class _LineEdit(Step):
    """A step that gives every document a new text."""

    @abstractmethod
    def edited(self, texts: pa.StringArray) -> list[str]:
        """The new texts."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The edited text; a page without text is dropped."""
        before = texts(batch)
        after = self.edited(before)
        if after != before.to_pylist():
            batch = with_texts(batch, after)
        return drop(batch, [not text for text in after], "no text")


@dataclass(frozen=True)
class UppercaseLines(_LineEdit):
    """Drop lines in which more than `max_ratio` of the characters are upper case."""

    max_ratio: float = 0.5

    def edited(self, texts: pa.StringArray) -> list[str]:
        """The texts without shouting."""
        return _without_lines_of(texts, "isupper", self.max_ratio)


@dataclass(frozen=True)
class NumericLines(_LineEdit):
    """Drop lines in which more than `max_ratio` of the characters are digits; the default means: all of them."""

    max_ratio: float = 0.999999

    def edited(self, texts: pa.StringArray) -> list[str]:
        """The texts without lines of digits."""
        return _without_lines_of(texts, "isdigit", self.max_ratio)


@dataclass(frozen=True)
class CounterLines(_LineEdit):
    """Drop lines that are a counter of a social network: "3 likes", "1.2k followers"."""

    def edited(self, texts: pa.StringArray) -> list[str]:
        """The texts without counters."""
        maybe = pc.match_substring_regex(texts, f"(?i){COUNTED}").to_pylist()
        return [
            ("\n".join(line for line in text.split("\n") if not is_counter(line)) if possible else text).strip()
            for text, possible in zip(texts.to_pylist(), maybe, strict=True)
        ]


COUNTED = "likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers"
COUNTER = re.compile(rf"\W*\d[,.\d]*[kmb]?\s+(?:{COUNTED})\W*")


def is_counter(line: str) -> bool:
    """Whether a line is a number (with k, m or b), a counted thing, and nothing else but punctuation."""
    return COUNTER.fullmatch(line.lower()) is not None


@dataclass(frozen=True)
class LineLength(_LineEdit):
    """Drop lines with fewer than `min_length` or more than `max_length` words; empty lines stay. Does not strip."""

    min_length: int = 2
    max_length: int | None = None

    def edited(self, texts: pa.StringArray) -> list[str]:
        """The texts without those lines."""
        highest = np.inf if self.max_length is None else self.max_length

        def keep(lines: _Lines) -> np.ndarray:
            count = lines.words
            kept: np.ndarray = ((count >= self.min_length) & (count <= highest)) | (lines.starts == lines.ends)
            return kept

        return _without_lines(texts, keep, strip=False)


@dataclass(frozen=True)
class LineSubstring(_LineEdit):
    """In lines of at most `max_length` words delete `banlist` with one white-space character beside it, or the line.

    Args:
        banlist: what to delete, whatever its case.
        location: anywhere, or only as the line's "prefix" or "suffix".
        max_length: words of a line that is looked at; None for any.
        remove_substring_only: delete the substring (and a line of which nothing but white space is left), not the
            whole line.
        strict_reference: the entries are regular expressions, as in the reference, where the dots of "Read more..."
            match any three characters. By default they are plain text.
    """

    banlist: str | tuple[str, ...]
    location: Literal["any", "prefix", "suffix"] = "any"
    max_length: int | None = None
    remove_substring_only: bool = False
    strict_reference: bool = False

    def __post_init__(self) -> None:
        if self.location not in LOCATIONS:
            raise ConfigError(
                f"location={self.location!r}", where="LineSubstring", fix=nearest(self.location, LOCATIONS)
            )

    @functools.cached_property
    def _choices(self) -> str:
        entries = (self.banlist,) if isinstance(self.banlist, str) else self.banlist
        return "|".join(entry.lower() if self.strict_reference else re.escape(entry) for entry in entries)

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        around = {"any": r"\s?(?:{})", "prefix": r"^(?:{})\s?", "suffix": r"\s?(?:{})$"}[self.location]
        return re.compile(around.format(self._choices), re.IGNORECASE)

    def edited(self, texts: pa.StringArray) -> list[str]:
        """The texts without the substrings."""
        maybe = pc.match_substring_regex(texts, f"(?i){self._choices}").to_pylist()
        return [
            ("\n".join(self._lines(text)) if possible or BLANK_LINE.search(text) else text).strip()
            for text, possible in zip(texts.to_pylist(), maybe, strict=True)
        ]

    def _lines(self, text: str) -> Iterator[str]:
        for line in text.split("\n"):
            if self.max_length is None or len(line.split()) <= self.max_length:
                if self.remove_substring_only:
                    shorter = self._pattern.sub("", line)
                    if line and (not shorter or shorter.isspace()):
                        continue
                    line = shorter
                elif self._pattern.search(line):
                    continue
            yield line


BLANK_LINE = re.compile(r"(?:^|\n)[^\S\n]+(?:\n|$)")  # one of white space alone


@dataclass(frozen=True)
class WordCount(Step):
    """Write the number of words (`pages.count_words`) into the column `key`."""

    key: str = "previous_word_count"

    @property
    def writes(self) -> tuple[str, ...]:
        """The count."""
        return (self.key,)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the count."""
        return with_column(batch, self.key, pa.array(count_words(texts(batch)), pa.int64()))


@dataclass(frozen=True)
class RemovalRatio(Step):
    """Drop a page of which the edits since `WordCount` removed more than `max_removed_ratio` of the words."""

    key: str = "previous_word_count"
    max_removed_ratio: float = 0.05

    @property
    def reads(self) -> tuple[str, ...]:
        """The text, and the number of words it had."""
        return ("parts", self.key)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages that lost too much, and those that had no word."""
        before = batch.column(self.key).to_numpy(zero_copy_only=False)
        batch = drop(batch, before == 0, "no words")
        return drop(
            batch, removed_ratio(before, count_words(texts(batch))) > self.max_removed_ratio, "too much removed"
        )


def removed_ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Share of the words that is gone, NaN where there was none: float64 (D,)."""
    gone: np.ndarray = np.divide(before - after, before, out=np.full(len(before), np.nan), where=before != 0)
    return gone


# ------------------------------------------------------------------------------------------------- lines as arrays


class _Lines:
    """The lines of a block of documents."""

    def __init__(self, text: np.ndarray, bounds: np.ndarray) -> None:
        self.text, self.bounds = text, bounds
        newlines = np.flatnonzero(text == ord("\n"))
        # Every document has a line more than it has line ends; where a document ends, its last line does.
        order = np.sort(
            np.concatenate([2 * newlines, 2 * bounds[1:] - 1])
        )  # a document's end before its neighbour's \n
        self.ends = (order + 1) // 2
        after = self.ends + (order % 2 == 0)  # a line end is skipped, a document's end is not a character
        self.starts = np.concatenate([bounds[:1], after[:-1]])
        self.counts = np.bincount(np.searchsorted(bounds, newlines, side="right") - 1, minlength=len(bounds) - 1) + 1

    @functools.cached_property
    def words(self) -> np.ndarray:
        """Words of each line: int64 (lines,)."""
        starts = split_words(self.text, self.bounds).starts
        return np.searchsorted(starts, self.ends) - np.searchsorted(starts, self.starts)

    def characters(self, test: str) -> tuple[np.ndarray, np.ndarray]:
        """Characters of each line, and those for which `str.<test>` holds: int64 (lines,), int64 (lines,)."""
        data = np.zeros(len(self.text) + 8, dtype=np.uint8)
        data[: len(self.text)] = self.text
        found = _ascii_table(test)[data]
        wide = np.flatnonzero(data >= 0xC2)
        found[wide] = _table(test)[code_points(data, wide)]
        return self._count((data & 0xC0) != 0x80), self._count(found)

    def _count(self, mask: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        counts: np.ndarray = total[self.ends] - total[self.starts]
        return counts


def _without_lines_of(texts: pa.StringArray, test: str, max_ratio: float) -> list[str]:
    def keep(lines: _Lines) -> np.ndarray:
        size, some = lines.characters(test)
        kept: np.ndarray = some / np.maximum(size, 1) <= max_ratio
        return kept

    return _without_lines(texts, keep, strip=True)


def _without_lines(texts: pa.StringArray, keep: Callable[[_Lines], np.ndarray], strip: bool) -> list[str]:
    after: list[str] = texts.to_pylist()
    row = 0
    for text, bounds in each_block(texts):
        lines = _Lines(text, bounds)
        kept = keep(lines)
        first = np.concatenate([[0], np.cumsum(lines.counts)])
        all_kept = np.logical_and.reduceat(kept, first[:-1])
        for document in np.flatnonzero(~all_kept):
            mask = kept[first[document] : first[document + 1]]
            after[row + document] = "\n".join(compress(after[row + document].split("\n"), mask))
        row += len(bounds) - 1
    return [text.strip() for text in after] if strip else after


@functools.cache
def _table(test: str) -> np.ndarray:
    holds = getattr(str, test)
    return np.fromiter((holds(chr(code)) for code in range(0x110000)), dtype=bool, count=0x110000)


@functools.cache
def _ascii_table(test: str) -> np.ndarray:
    table = np.zeros(256, dtype=bool)
    table[:128] = _table(test)[:128]
    return table
