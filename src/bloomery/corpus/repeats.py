"""Everything that stands twice in a corpus, in pieces of `length` units or more, exactly and without a suffix array.

Lee et al. 2022 (arXiv 2107.06499, §4.1) sort all suffixes and remove what neighbours share. Which units go needs less:
a shared piece is a run of *windows* of exactly `length` units that occur twice, so the repeated windows, joined, are
the repeated pieces. They are found in three steps, whose memory does not grow with the text:

* anchor: of the short grams in a window, the first of those with the smallest hash. Equal windows have equal anchors,
  and windows in a row mostly share one (Schleimer et al. 2003, winnowing), so an anchor is kept every few dozen units;
* only windows whose anchor's hash occurs twice can be equal: these are hashed whole and sorted, part by part, all
  windows with the same anchor in one part;
* windows of equal hash are compared unit by unit, neighbours in a run at the cost of one unit each.

A unit is a byte (uint8) or the number of a token (uint32). A text is a run of units; windows never cross its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bloomery.core.seeds import rng
from bloomery.corpus.words import FACTOR, MIX1, MIX2, ranges, rolling

Keep = Literal["first", "none"]

BLOCK = 1 << 16  # windows hashed at a time: they stay in the processor's cache
PART = 1 << 22  # units whose windows are settled together; more only where one anchor has more
CHAIN = 1 << 16  # windows in a run that are compared as one
COMPARED = 1 << 21  # units compared at a time
GRAM = 32  # units of an anchor, a third of a window at most

_BYTE_CODES = rng(0, "repeats").integers(1, 1 << 63, 256, dtype=np.uint64)


@dataclass(frozen=True)
class Chunk:
    """Some texts in a row: T texts, U units, A anchors."""

    units: np.ndarray  # (U,) uint8 or uint32
    offsets: np.ndarray  # (T + 1,) int64: where each text begins in `units`, from 0
    anchors: np.ndarray  # (A,) uint64 hashes, see `anchors`
    begins: np.ndarray  # (A,) uint32: first window of each anchor, counted from the begin of its text
    counts: np.ndarray  # (T,) int64: anchors of each text


def anchors(units: np.ndarray, offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The anchors of texts: hashes uint64 (A,), first window of each in its text uint32 (A,), number of each text (T,).

    An anchor has the windows from its first up to the next anchor's first, or to the last of the text.
    """
    gram = max(1, min(GRAM, length // 3))
    width = length - gram + 1  # grams of a window
    low = np.uint64((1 << (BLOCK + width).bit_length()) - 1)  # room for a place in the block
    hashes, begins, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(units) - length + 1, BLOCK):
        grams = _hash(units[start : start + BLOCK + length - 1], gram)
        lowest = _sliding_minimum(grams & ~low | np.arange(len(grams), dtype=np.uint64), width)
        place = (lowest & low).astype(np.int64)
        first = np.flatnonzero(np.diff(place, prepend=-1))
        hashes.append(grams[place[first]])
        begins.append(first + start)
        places.append(place[first] + start)
    begin, place = np.concatenate(begins), np.concatenate(places)
    # Windows across the end of a text belong to none, and a text's first window begins an anchor's share of its own.
    sizes = np.maximum(np.diff(offsets) - length + 1, 0)  # windows of each text
    long = np.flatnonzero(sizes)
    heads = offsets[:-1][long]
    at = np.searchsorted(begin, heads, side="right") - 1  # the anchor that a text's first window has
    every = np.concatenate([begin, heads])
    source = np.concatenate([np.arange(len(begin)), at])
    order = np.argsort(every, kind="stable")
    every, source = every[order], source[order]
    text = np.searchsorted(offsets, every, side="right") - 1
    inside = (every - offsets[text]) < sizes[text]
    same = np.zeros(
        len(every), bool
    )  # the place of the entry before, in the same text: the border of a block, or twice
    same[1:] = (place[source[1:]] == place[source[:-1]]) & (text[1:] == text[:-1])
    chosen = inside & ~same
    found = np.concatenate(hashes)[source[chosen]]
    text = text[chosen]
    return found, (every[chosen] - offsets[text]).astype(np.uint32), np.bincount(text, minlength=len(offsets) - 1)


def repeats(chunks: Sequence[Chunk], length: int, keep: Keep = "first") -> tuple[np.ndarray, np.ndarray]:
    """The repeated pieces of all texts together: begins and ends, int64, in order, counted over all units.

    With keep="first" a window counts as repeated when an equal one ends before it begins (so that one whole copy
    stays also of a text that repeats itself); with "none", when there is an equal one anywhere, as in the paper.
    """
    corpus = _Corpus(chunks, length)
    lows, highs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begins, sizes in corpus.parts():
        windows = _settle(corpus, begins, sizes, length, keep)
        first = np.flatnonzero(np.diff(windows, prepend=-2) != 1)
        lows.append(windows[first])
        highs.append(windows[np.append(first[1:], len(windows))[: len(first)] - 1] + length)
    low, high = np.concatenate(lows), np.concatenate(highs)
    order = np.argsort(low)
    low, high = low[order], np.maximum.accumulate(high[order]) if len(high) else high
    text = np.searchsorted(corpus.starts, low, side="right")
    new = np.ones(len(low), bool)
    new[1:] = (low[1:] > high[:-1]) | (text[1:] != text[:-1])
    last = np.append(np.flatnonzero(new)[1:], len(low))[: int(new.sum())] - 1
    return low[new], high[last]


class _Corpus:
    """All texts: units counted through, and the windows that may be repeated."""

    def __init__(self, chunks: Sequence[Chunk], length: int) -> None:
        self._chunks, self._length = chunks, length
        self._bases = np.cumsum([0, *(len(chunk.units) for chunk in chunks)])
        starts = [chunk.offsets[:-1] + base for chunk, base in zip(chunks, self._bases, strict=False)]
        self.starts = np.concatenate([np.zeros(0, np.int64), *starts])  # of each text

    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Runs of windows (first one, how many), in order, of about `PART` units; equal windows are in one part."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *(chunk.anchors for chunk in self._chunks)])
        order = np.argsort(hashes)
        hashes = hashes[order]
        new = np.ones(len(hashes) + 1, bool)
        new[1:-1] = hashes[1:] != hashes[:-1]
        several = ~(new[:-1] & new[1:])
        order, group = order[several], np.cumsum(new[:-1])[several]
        del hashes, new, several
        begins, sizes = self._windows(order)
        units = np.cumsum(sizes + self._length - 1)
        last = np.flatnonzero(np.diff(group, append=-1))  # of each group
        start = 0
        while start < len(order):
            before = units[start - 1] if start else 0
            fits = np.searchsorted(units[last], before + PART, side="right") - 1
            stop = max(last[max(fits, 0)], last[np.searchsorted(last, start)]) + 1
            place = np.argsort(begins[start:stop])
            yield begins[start:stop][place], sizes[start:stop][place]
            start = stop

    def _windows(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First window and number of windows of these anchors."""
        begins, sizes = np.zeros(len(chosen), np.int64), np.zeros(len(chosen), np.int64)
        order = np.argsort(chosen)
        firsts = np.cumsum([0, *(len(chunk.anchors) for chunk in self._chunks)])
        edges = np.searchsorted(chosen[order], firsts)
        for number, (chunk, base) in enumerate(zip(self._chunks, self._bases, strict=False)):
            mine = order[edges[number] : edges[number + 1]]
            if not len(mine):
                continue
            text = np.repeat(np.arange(len(chunk.counts)), chunk.counts)
            begin = chunk.offsets[text] + chunk.begins
            end = chunk.offsets[text + 1] - self._length + 1
            end[:-1] = np.where(text[1:] == text[:-1], begin[1:], end[:-1])
            at = chosen[mine] - firsts[number]
            begins[mine], sizes[mine] = begin[at] + base, (end - begin)[at]
        return begins, sizes

    def gather(self, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The units of these ranges (in order, none across chunks), one after the other."""
        edges = np.searchsorted(begins, self._bases).tolist()
        found = [np.zeros(0, self._chunks[0].units.dtype)]
        for number, chunk in enumerate(self._chunks):
            mine = slice(edges[number], edges[number + 1])
            found.append(chunk.units[ranges(begins[mine] - self._bases[number], lengths[mine])])
        return np.concatenate(found)


def _settle(corpus: _Corpus, begins: np.ndarray, sizes: np.ndarray, length: int, keep: Keep) -> np.ndarray:
    """Those of the windows in these runs that are repeated: places, int64, rising."""
    joined = np.ones(len(begins), bool)  # runs that begin where the one before ends are one
    joined[1:] = begins[1:] != begins[:-1] + sizes[:-1]
    sizes = np.add.reduceat(sizes, np.flatnonzero(joined))
    begins = begins[joined]
    spans = sizes + length - 1
    units = corpus.gather(begins, spans)
    window = ranges(np.cumsum(spans) - spans, sizes)  # place of each window in `units`
    total = len(window)
    bits = np.uint64(max(total - 1, 1).bit_length())  # of the sort key, for the window's number; the rest is its hash
    keys = np.empty(len(units) - length + 1, np.uint64)
    for start in range(0, len(keys), BLOCK):
        keys[start : start + BLOCK] = _hash(units[start : start + BLOCK + length - 1], length)
    keys = keys[window]
    keys >>= bits
    keys <<= bits
    keys |= np.arange(total, dtype=np.uint64)
    keys.sort()
    order = (keys & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int64)
    keys >>= bits
    new = np.ones(total, bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    del keys
    heads = np.flatnonzero(new)
    leader = np.empty(total, np.int64)  # the first window that equals it, of each window
    leader[order] = np.repeat(order[heads], np.diff(heads, append=total))
    before = np.full(total, -1)
    later = np.flatnonzero(~new)
    before[order[later]] = order[later - 1]
    wrong = _different(units, window, before, length)
    if len(wrong):  # different windows of one hash
        for head in np.unique(leader[wrong]):
            first: dict[bytes, int] = {}
            for member in np.flatnonzero(leader == head):
                content = units[window[member] : window[member] + length].tobytes()
                leader[member] = first.setdefault(content, int(member))
    place = ranges(begins, sizes)
    several = np.bincount(leader, minlength=total)[leader] > 1
    found: np.ndarray = place[several if keep == "none" else place - place[leader] >= length]
    return found


def _different(units: np.ndarray, window: np.ndarray, before: np.ndarray, length: int) -> np.ndarray:
    """The windows that differ from the one `before` them in the order of hashes (-1: there is none)."""
    late = np.flatnonzero(before >= 0)
    here, there = window[late], window[before[late]]
    begin = np.ones(len(late), bool)  # of a chain: windows in a row whose predecessors are in a row
    begin[1:] = (np.diff(here) != 1) | (np.diff(there) != 1)
    begin[::CHAIN] = True
    chains = np.flatnonzero(begin)
    sizes = np.diff(chains, append=len(late)) + length - 1
    ends = np.cumsum(sizes)
    wrong = []
    start = 0
    while start < len(chains):
        limit = (ends[start - 1] if start else 0) + COMPARED
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        some = slice(start, stop)
        at = [units[ranges(place[chains[some]], sizes[some])] for place in (here, there)]
        unequal = np.flatnonzero(at[0] != at[1])
        if len(unequal):
            seen = np.concatenate([[0], np.cumsum(at[0] != at[1])])
            first = ranges(np.cumsum(sizes[some]) - sizes[some], sizes[some] - length + 1)  # of each window's units
            members = ranges(chains[some], sizes[some] - length + 1)
            wrong.append(late[members[seen[first + length] > seen[first]]])
        start = stop
    return np.concatenate(wrong) if wrong else late[:0]


def _hash(units: np.ndarray, size: int) -> np.ndarray:
    """A hash of every `size` units in a row: uint64 (units - size + 1,)."""
    if units.dtype == np.uint8:
        codes = _BYTE_CODES[units]
    else:
        codes = (units.astype(np.uint64) + np.uint64(1)) * MIX1
        codes ^= codes >> np.uint64(32)
        codes *= MIX2
    hashes = rolling(codes, size)
    mixed: np.ndarray = (hashes ^ hashes >> np.uint64(32)) * FACTOR
    return mixed


def _sliding_minimum(values: np.ndarray, width: int) -> np.ndarray:
    """The smallest of every `width` values in a row: (n - width + 1,), by doubling."""
    covered = 1
    while covered < width:
        step = min(covered, width - covered)
        values = np.minimum(values[:-step], values[step:])
        covered += step
    return values
