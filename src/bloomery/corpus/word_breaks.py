"""Unicode words (UAX #29, Unicode 16.0) of many documents at once, as NumPy arrays over their UTF-8 bytes.

The default word boundaries cut text into segments: "can't" and "3.14" are one segment, each punctuation mark is one, a
run of spaces is one. A *token* here is a segment that is not white space alone: what Bloom-filter deduplication makes
n-grams of. The tokens whose first character is a letter or digit are the words that DCLM's repetition filter counts.

The rules look at most at two characters before a boundary and one after it, once the characters that attach to their
predecessor (Extend, Format, ZWJ: rule WB4) are set aside; so all boundaries of a block are found by comparing arrays
with shifted copies of themselves. Only flags (pairs of regional indicators, WB15-16) need a count.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pyarrow as pa

from bloomery.corpus.words import Words, code_points, each_block

# One bit per property: a rule about a union of properties is one `&`.
CR, LF, NEWLINE, EXTEND, FORMAT, ZWJ, REGIONAL, KATAKANA = (1 << bit for bit in range(8))
HEBREW, ALETTER, SINGLE_QUOTE, DOUBLE_QUOTE, MID_NUM_LET, MID_LETTER, MID_NUM, NUMERIC = (
    1 << bit for bit in range(8, 16)
)
EXTEND_NUM_LET, SPACE, PICTOGRAPHIC, WHITE, ALNUM = (1 << bit for bit in range(16, 21))

PROPERTIES = {
    "CR": CR, "LF": LF, "Newline": NEWLINE, "Extend": EXTEND, "Format": FORMAT, "ZWJ": ZWJ,
    "Regional_Indicator": REGIONAL, "Katakana": KATAKANA, "Hebrew_Letter": HEBREW, "ALetter": ALETTER,
    "Single_Quote": SINGLE_QUOTE, "Double_Quote": DOUBLE_QUOTE, "MidNumLet": MID_NUM_LET, "MidLetter": MID_LETTER,
    "MidNum": MID_NUM, "Numeric": NUMERIC, "ExtendNumLet": EXTEND_NUM_LET, "WSegSpace": SPACE,
    "Extended_Pictographic": PICTOGRAPHIC,
}  # fmt: skip
LETTER = ALETTER | HEBREW
WORD = LETTER | NUMERIC
BREAKS = CR | LF | NEWLINE
ATTACHES = EXTEND | FORMAT | ZWJ
QUOTE = MID_NUM_LET | SINGLE_QUOTE
RARE = CR | ZWJ | HEBREW | QUOTE | DOUBLE_QUOTE | MID_LETTER | MID_NUM | KATAKANA | EXTEND_NUM_LET
# White_Space of Unicode. (`str.isspace` also has U+001C to U+001F.)
WHITE_SPACE = (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)


def tokens(texts: pa.StringArray) -> Iterator[Words]:
    """The segments that are not white space alone, in blocks of whole documents."""
    for data, bounds in each_block(texts):
        yield split_tokens(data, bounds)


def split_tokens(text: np.ndarray, bounds: np.ndarray) -> Words:
    """The tokens of UTF-8 bytes `text` (B,) of documents that begin at `bounds` (D + 1,)."""
    data = np.zeros(len(text) + 8, dtype=np.uint8)
    data[: len(text)] = text
    lead, flags = _flags(data, len(text))
    document = np.zeros(len(flags) + 1, dtype=bool)  # whether a document begins at this character (WB1)
    document[bounds if lead is None else np.searchsorted(lead, bounds)] = True
    begins = _boundaries(flags, document[:-1])
    edges = np.append(np.flatnonzero(begins), len(flags))
    # A segment with white space in it is nothing else, but for what attaches to it (a combining mark after a space).
    blank = has(flags[edges[:-1]], WHITE)
    if has(flags, ATTACHES).any():
        blank &= has(flags[edges[1:] - 1], WHITE)
    positions = edges if lead is None else np.append(lead, len(text))[edges]
    starts, ends = positions[:-1][~blank], positions[1:][~blank]
    return Words(data, bounds, starts, ends, np.searchsorted(starts, bounds))


def alphanumeric(words: Words) -> Words:
    """Only the words whose first character is a letter or digit (`str.isalnum`)."""
    first = words.data[words.starts].astype(np.int32)
    wide = np.flatnonzero(first >= 0xC2)
    first[wide] = code_points(words.data, words.starts[wide])
    keep = has(_table()[first], ALNUM)
    starts, ends = words.starts[keep], words.ends[keep]
    return replace(words, starts=starts, ends=ends, first=np.searchsorted(starts, words.bounds))


def _flags(data: np.ndarray, size: int) -> tuple[np.ndarray | None, np.ndarray]:
    """First byte of each character, int64 (C,), or None where every byte is one; and its properties, uint32 (C,)."""
    text = data[:size]
    if not (text & 0x80).any():
        return None, _table()[:128].take(text)
    lead = np.flatnonzero((text & 0xC0) != 0x80)
    points = text[lead].astype(np.int32)
    wide = np.flatnonzero(points >= 0xC2)
    points[wide] = code_points(data, lead[wide])
    return lead, _table().take(points)


def _boundaries(flags: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Whether there is a boundary before each character: bool (C,)."""
    attached = np.zeros(len(flags), dtype=bool)  # WB4; nothing attaches to a line break or the start of the text
    attached[1:] = has(flags[1:], ATTACHES) & ~has(flags[:-1], BREAKS)
    attached &= ~document
    if not attached.any():
        apart: np.ndarray = ~_joined(flags, document) | document
        return apart
    base = np.flatnonzero(~attached)
    joined = _joined(flags[base], document[base])
    # WB3c and WB3d come before WB4: they look at the very character before, attached or not.
    before = np.zeros(len(base), dtype=flags.dtype)
    before[1:] = flags[base[1:] - 1]
    joined &= ~has(flags[base], SPACE) | has(before, SPACE)
    joined |= has(flags[base], PICTOGRAPHIC) & has(before, ZWJ)
    result = np.zeros(len(flags), dtype=bool)
    result[base] = ~joined | document[base]
    return result


def _joined(flags: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Whether each character continues the segment of the one before it, by rules WB3 and WB3c to WB16: bool (C,).

    What crosses a document's start is wrong here, and the caller breaks there.
    """
    joined = np.zeros(len(flags), dtype=bool)
    word, space = has(flags, WORD), has(flags, SPACE)
    joined[1:] = (word[1:] & word[:-1]) | (space[1:] & space[:-1])  # WB5, 8, 9, 10 and WB3d
    # Every other rule needs a rarer character on one side of the boundary.
    near = has(flags, RARE)
    near[1:] |= near[:-1]
    at = np.flatnonzero(near)
    if len(at):
        joined[at] |= _joined_at(at, flags, document)
    regional = has(flags, REGIONAL)
    if regional.any():  # WB15, 16: the second of each pair, counted from where the run (or its document) begins
        begins = regional & document
        begins[1:] |= regional[1:] & ~regional[:-1]
        begins[:1] |= regional[:1]
        place = np.arange(len(flags))
        run = np.maximum.accumulate(np.where(begins, place, 0))
        joined |= regional & ((place - run) % 2 == 1)
    return joined


def _joined_at(at: np.ndarray, flags: np.ndarray, document: np.ndarray) -> np.ndarray:
    """The rules for the characters at `at` (N,) whose own property or that of the one before is rare: bool (N,)."""
    around = np.zeros(len(flags) + 3, dtype=flags.dtype)
    around[2:-1] = flags
    two, one, this, after = (around[at + offset] for offset in range(4))
    two[document[at - 1]] = 0  # do not look across a document's start (at 0 nothing stands before anyway)
    after[np.append(document, True)[at + 1]] = 0
    joined: np.ndarray = has(one, CR) & has(this, LF)  # WB3
    joined |= has(one, ZWJ) & has(this, PICTOGRAPHIC)  # WB3c
    middle = MID_LETTER | QUOTE
    joined |= has(one, LETTER) & has(this, middle) & has(after, LETTER)  # WB6
    joined |= has(two, LETTER) & has(one, middle) & has(this, LETTER)  # WB7
    joined |= has(one, HEBREW) & has(this, SINGLE_QUOTE)  # WB7a
    joined |= has(one, HEBREW) & has(this, DOUBLE_QUOTE) & has(after, HEBREW)  # WB7b
    joined |= has(two, HEBREW) & has(one, DOUBLE_QUOTE) & has(this, HEBREW)  # WB7c
    middle = MID_NUM | QUOTE
    joined |= has(two, NUMERIC) & has(one, middle) & has(this, NUMERIC)  # WB11
    joined |= has(one, NUMERIC) & has(this, middle) & has(after, NUMERIC)  # WB12
    joined |= has(one, KATAKANA) & has(this, KATAKANA)  # WB13
    joined |= has(one, WORD | KATAKANA | EXTEND_NUM_LET) & has(this, EXTEND_NUM_LET)  # WB13a
    joined |= has(one, EXTEND_NUM_LET) & has(this, WORD | KATAKANA)  # WB13b
    return joined


def has(flags: np.ndarray, properties: int) -> np.ndarray:
    """Whether each character has one of the properties: bool, like `flags`."""
    found: np.ndarray = (flags & np.uint32(properties)) != 0
    return found


@functools.cache
def _table() -> np.ndarray:
    """The properties of every code point: uint32 (0x110000,)."""
    table = np.zeros(0x110000, dtype=np.uint32)
    for line in files("bloomery.corpus").joinpath("word_break_16.txt").read_text(encoding="ascii").splitlines():
        name, *ranges = line.split()
        if name == "#":
            continue
        for item in ranges:
            low, _, high = item.partition("-")
            table[int(low, 16) : int(high or low, 16) + 1] |= PROPERTIES[name]
    table[list(WHITE_SPACE)] |= WHITE
    table[np.fromiter((chr(code).isalnum() for code in range(len(table))), dtype=bool, count=len(table))] |= ALNUM
    return table
