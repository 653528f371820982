"""Words, lines, paragraphs and n-grams of many documents at once, as NumPy arrays over their UTF-8 bytes.

Definitions (everything in `filters` and `dedup` is stated in these terms):

* white space: what `str.split()` splits on (all Unicode white space);
* word: a longest run of characters that are not white space; it never crosses a document's end;
* line: the words between two newlines ("\\n"); a line without words does not count;
* paragraph: consecutive lines without a wordless line between them;
* characters: Unicode code points of words; white space is never counted;
* two words, lines, paragraphs or n-grams of one document are equal when their words are (compared by 64-bit hash).

Arrays are per block of about a megabyte of text, so that they stay in the processor's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

BLOCK_BYTES = 1 << 20
LONG = 64  # bytes; longer words are rare and are hashed one by one
WIDTHS = np.uint64((1 << 64) - 1) >> (np.uint64(8) * (np.uint64(8) - np.arange(1, 9, dtype=np.uint64)))
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; multiplies the hash of what came before
MIX1, MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

# White space that is not ASCII, as (bytes before the last, last bytes):
# U+0085, 00A0, 1680, 2000-200A, 2028, 2029, 202F, 205F, 3000.
WIDE_SPACES = (
    (b"\xc2", (0x85, 0xA0)),
    (b"\xe1\x9a", (0x80,)),
    (b"\xe2\x80", (*range(0x80, 0x8B), 0xA8, 0xA9, 0xAF)),
    (b"\xe2\x81", (0x9F,)),
    (b"\xe3\x80", (0x80,)),
)


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a block of documents; D documents, W words, B bytes."""

    data: np.ndarray  # (B + 8,) uint8: the text of all documents, then padding
    bounds: np.ndarray  # (D + 1,) int64: where each document begins in `data`
    starts: np.ndarray  # (W,) int64: first byte of each word
    ends: np.ndarray  # (W,) int64: byte after each word
    first: np.ndarray  # (D + 1,) int64: index of each document's first word

    @property
    def documents(self) -> int:
        """D."""
        return len(self.bounds) - 1

    @property
    def counts(self) -> np.ndarray:
        """Words of each document: int64 (D,)."""
        return np.diff(self.first)

    @functools.cached_property
    def document(self) -> np.ndarray:
        """The document of each word: int32 (W,)."""
        return np.repeat(np.arange(self.documents, dtype=np.int32), self.counts)

    @functools.cached_property
    def is_ascii(self) -> bool:
        """Whether one byte is one character everywhere."""
        return not bool((self.data & 0x80).any())

    @functools.cached_property
    def characters(self) -> np.ndarray:
        """Characters of each word: int64 (W,)."""
        size: np.ndarray = self.ends - self.starts
        return size if self.is_ascii else size - self.count((self.data & 0xC0) == 0x80)

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """A hash of each word's bytes: uint64 (W,)."""
        return hash_spans(self.data, self.starts, self.ends)

    def count(self, mask: np.ndarray) -> np.ndarray:
        """How many bytes of each word are set in `mask` (B + 8,): int32 (W,)."""
        total = np.zeros(len(mask) + 1, dtype=np.int32)
        np.cumsum(mask, dtype=np.int32, out=total[1:])
        counts: np.ndarray = total[self.ends] - total[self.starts]
        return counts

    def per_document(self, values: np.ndarray, owner: np.ndarray | None = None) -> np.ndarray:
        """Sum of integers by document (`owner` of each value; by default one value per word): (D,)."""
        if owner is not None:
            return np.bincount(owner, values, minlength=self.documents)
        total = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum(values, out=total[1:])
        sums: np.ndarray = total[self.first[1:]] - total[self.first[:-1]]
        return sums

    @functools.cached_property
    def newlines_before(self) -> np.ndarray:
        """Newlines between each word and the one before it in the block: int64 (W,)."""
        newlines = np.flatnonzero(self.data == ord("\n"))
        return np.bincount(np.searchsorted(self.starts, newlines), minlength=len(self.starts) + 1)[: len(self.starts)]

    def runs(self, newlines: int) -> np.ndarray:
        """The first word of each line (`newlines=1`) or paragraph (`newlines=2`): int64 (runs,)."""
        begins = self.newlines_before >= newlines
        begins[self.first[:-1][self.counts > 0]] = True
        return np.flatnonzero(begins)

    def contains_alphabetic(self) -> np.ndarray:
        """Whether each word has an alphabetic character: bool (W,)."""
        return self.count(self.alphabetic()) > 0

    def alphabetic(self) -> np.ndarray:
        """Whether an alphabetic character (`str.isalpha`) begins at each byte: bool (B + 8,)."""
        mask = _between(self.data | 0x20, "a", "z")
        if not self.is_ascii:
            lead = np.flatnonzero(self.data >= 0xC2)
            mask[lead] = _alphabetic_table()[code_points(self.data, lead)]
        return mask


def blocks(texts: pa.StringArray, lower: bool = False) -> Iterator[Words]:
    """The words of all documents, in blocks of whole documents; `lower` turns A-Z into a-z first."""
    for data, bounds in each_block(texts):
        yield split_words(data, bounds, lower)


def each_block(texts: pa.StringArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The text of whole documents, about a megabyte at a time: uint8 (B,), and where each begins: int64 (D + 1,)."""
    if len(texts) == 0:
        return
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    buffer = texts.buffers()[2]
    data = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, dtype=np.uint8)
    begin = 0
    while begin < len(texts):
        end = int(np.searchsorted(offsets, offsets[begin] + BLOCK_BYTES, side="right")) - 1
        end = min(max(end, begin + 1), len(texts))
        yield data[offsets[begin] : offsets[end]], offsets[begin : end + 1] - offsets[begin]
        begin = end


def split_words(text: np.ndarray, bounds: np.ndarray, lower: bool = False) -> Words:
    """Find the words in UTF-8 bytes `text` (B,) of documents that begin at `bounds` (D + 1,)."""
    data = np.empty(len(text) + 8, dtype=np.uint8)
    data[len(text) :] = 0
    if lower:
        upper = _between(text, "A", "Z").view(np.uint8)
        upper *= np.uint8(32)  # which "a" is on from "A"
        np.add(text, upper, out=data[: len(text)])
    else:
        data[: len(text)] = text
    space = np.ones(len(text) + 1, dtype=bool)  # there is a space before the first byte and after the last
    np.bitwise_or(_between(text, "\t", "\r"), _between(text, "\x1c", " "), out=space[:-1])
    _mark_wide_spaces(data, space[:-1])
    return _between_spaces(data, bounds, space)


def fasttext_words(texts: pa.StringArray) -> Iterator[Words]:
    """The words as fastText splits text: at ASCII white space and NUL only. (It also counts line ends; we do not.)"""
    for text, bounds in each_block(texts):
        data = np.zeros(len(text) + 8, dtype=np.uint8)
        data[: len(text)] = text
        space = np.ones(len(text) + 1, dtype=bool)
        space[:-1] = _between(text, "\t", "\r") | (text == ord(" ")) | (text == 0)
        yield _between_spaces(data, bounds, space)


def _between_spaces(data: np.ndarray, bounds: np.ndarray, space: np.ndarray) -> Words:
    """The runs of bytes that are not `space` (B + 1,), cut where a document ends."""
    change = np.empty(len(space), dtype=bool)
    change[:1] = ~space[:1]
    np.not_equal(space[1:], space[:-1], out=change[1:])
    edges = np.flatnonzero(change)
    starts, ends = edges[0::2], edges[1::2]
    # A word that crosses a document's end is two words.
    crossed = np.unique(bounds[1:-1])
    crossed = crossed[(crossed > 0) & (crossed < len(space) - 1)]
    crossed = crossed[~space[crossed - 1] & ~space[crossed]]
    if len(crossed):
        starts = np.insert(starts, np.searchsorted(starts, crossed), crossed)
        ends = np.insert(ends, np.searchsorted(ends, crossed), crossed)
    return Words(data, bounds, starts, ends, np.searchsorted(starts, bounds))


def _between(data: np.ndarray, low: str, high: str) -> np.ndarray:
    """Whether each byte is one of the ASCII characters `low` to `high` (lower ones wrap around)."""
    shifted = data - np.uint8(ord(low))
    found: np.ndarray = shifted.view(bool)
    np.less_equal(shifted, np.uint8(ord(high) - ord(low)), out=found)
    return found


def _mark_wide_spaces(data: np.ndarray, space: np.ndarray) -> None:
    """Set `space` (B,) on every byte of the white space that is not ASCII."""
    lead = np.flatnonzero((data[: len(space)] == 0xC2) | ((data[: len(space)] >= 0xE1) & (data[: len(space)] <= 0xE3)))
    if not len(lead):
        return
    for prefix, lasts in WIDE_SPACES:
        found = lead
        for offset, byte in enumerate(prefix):
            found = found[data[found + offset] == byte]
        found = found[np.isin(data[found + len(prefix)], lasts)]
        for offset in range(len(prefix) + 1):
            space[found + offset] = True


def hash_spans(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """64-bit hash of `data[start:end]` for every span; `data` has 8 bytes of padding: uint64 (spans,)."""
    lengths = ends - starts
    eight = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))  # the 8 bytes from every position
    head = eight[starts] & WIDTHS[np.clip(lengths, 1, 8) - 1]
    head ^= lengths.astype(np.uint64) * FACTOR
    hashes = spread(head)
    longer = np.flatnonzero(lengths > 8)
    size = lengths[longer]
    rest = longer[size <= LONG]
    place, left = starts[rest] + 8, lengths[rest] - 8
    while len(rest):
        chunk = eight[place] & WIDTHS[np.minimum(left, 8) - 1]
        chunk += hashes[rest] * FACTOR
        hashes[rest] = spread(chunk)
        more = np.flatnonzero(left > 8)
        rest, place, left = rest[more], place[more] + 8, left[more] - 8
    for index in longer[size > LONG]:
        hashes[index] = xxhash.xxh3_64_intdigest(data[starts[index] : ends[index]].data)
    return hashes


def hash_words(words: Sequence[str]) -> np.ndarray:
    """The hashes that `Words.hashes` gives to these words: uint64 (words,)."""
    encoded = [word.encode() for word in words]
    bounds = np.cumsum([0, *map(len, encoded)])
    data = np.frombuffer(b"".join(encoded) + bytes(8), np.uint8)
    return hash_spans(data, bounds[:-1], bounds[1:])


def hash_runs(hashes: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Hash of each run of words that begins at `begins` and ends where the next begins: uint64 (runs,)."""
    if not len(begins):
        return np.zeros(0, dtype=np.uint64)
    lengths = np.diff(begins, append=len(hashes))
    place = np.arange(len(hashes)) - np.repeat(begins, lengths)
    powers = np.full(int(lengths.max()), FACTOR)
    powers[0] = 1
    runs: np.ndarray = np.add.reduceat(hashes * np.cumprod(powers)[place], begins)
    return runs


def rolling(hashes: np.ndarray, size: int) -> np.ndarray:
    """A hash of every `size` values in a row: uint64 (n - size + 1,), by doubling."""
    found: np.ndarray | None = None
    covered, block, width, power = 0, hashes, 1, FACTOR  # `block` hashes runs of `width` values
    while True:
        if size & width:
            if found is None:
                found, covered = block, width
            else:
                length = len(block) - covered
                found = found[:length] * power + block[covered:]
                covered += width
        width *= 2
        if width > size:
            assert found is not None
            return found[: len(hashes) - size + 1]
        block = block[: len(block) - width // 2] * power + block[width // 2 :]
        power = np.uint64(int(power) ** 2 & 0xFFFFFFFFFFFFFFFF)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The integers of every range [start, start + length), one after the other: int64."""
    ends = np.cumsum(lengths)
    numbers: np.ndarray = np.arange(ends[-1] if len(ends) else 0)
    numbers += np.repeat(starts - (ends - lengths), lengths)
    return numbers


def by_document(hashes: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Make equal hashes of different documents different: uint64."""
    salts = spread(np.arange(1, int(document.max(initial=0)) + 2, dtype=np.uint64))
    salted: np.ndarray = hashes ^ salts[document]
    return salted


def spread(values: np.ndarray) -> np.ndarray:
    """Spread every input bit over the output (the finaliser of splitmix64); works in place."""
    values ^= values >> np.uint64(30)
    values *= MIX1
    values ^= values >> np.uint64(27)
    values *= MIX2
    values ^= values >> np.uint64(31)
    return values


def code_points(data: np.ndarray, lead: np.ndarray) -> np.ndarray:
    """Code points of the characters whose first (non-ASCII) byte is at `lead`: int32, like `lead`."""
    first = data[lead].astype(np.int32)
    one, two, three = (data[lead + k].astype(np.int32) & 0x3F for k in (1, 2, 3))
    return np.select(
        [first < 0xE0, first < 0xF0],
        [(first & 0x1F) << 6 | one, (first & 0x0F) << 12 | one << 6 | two],
        (first & 0x07) << 18 | one << 12 | two << 6 | three,
    )


@functools.cache
def _alphabetic_table() -> np.ndarray:
    return np.fromiter((chr(code).isalpha() for code in range(0x110000)), dtype=bool, count=0x110000)
