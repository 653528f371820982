"""Fuzzy duplicates by Bloom filter: DCLM's deduplication of paragraphs and documents in one pass (its "old-both").

A paragraph goes when more than `threshold` of its n-grams have been seen before, and the document when that is so of
all its n-grams together; what stays is added to the filter (arXiv 2406.11794, §4.3). Tokens are Unicode words
(`word_breaks`); a paragraph is the text from a line end, inclusive, to the next, and one of fewer than `max_ngram` but
at least `min_ngram` tokens is one n-gram. A shorter one is always kept.

    steps = [..., *bloom_dedup(), ...]        # the decision, and the step that cuts the paragraphs out

The order decides which copy stays: input order here, whatever the number of workers, where the reference shuffles its
files. Decisions are made for some thousand paragraphs at a time, exactly as if one by one but for false positives among
the n-grams of one such block, which are looked up before the block's own bits are set.

Left out of the reference's modes: "both" and "naive-both", which do not do what they say (see the reference's own
notes), and "substring" (whole repeated pieces of any text are `substring_dedup`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.core.errors import ConfigError, nearest
from bloomery.core.log import logger
from bloomery.corpus.bloom import BloomFilter, size_for
from bloomery.corpus.documents import texts, with_texts
from bloomery.corpus.interleaved.flat_parts import FlatParts
from bloomery.corpus.steps import Barrier, Plan, Step, decisions, drop, removed_parts
from bloomery.corpus.word_breaks import tokens
from bloomery.corpus.words import FACTOR, Words, hash_runs, rolling

MODES = ("both", "paragraph", "document", "exact")
CUT = "bloom_cut"  # column: the paragraphs to remove
BLOCK = 1 << 16  # n-grams that are decided about together
TOKEN_BYTES = 5  # of text per token, for estimates
OVERFULL = 1.1  # load above which the filter warns


def bloom_dedup(**fields: Any) -> list[Step | Barrier]:
    """`BloomDedup` and the step that applies it."""
    return [BloomDedup(**fields), CutParagraphs()]


@dataclass(frozen=True)
class BloomDedup(Barrier):
    """Decide which paragraphs and documents have been seen before; `CutParagraphs` must follow.

    Args:
        mode: "both" (paragraphs, then the document), "paragraph", "document" (n-grams of the whole text), or "exact"
            (the whole text as it is).
        threshold: share of n-grams seen before above which a paragraph or document goes.
        min_ngram: tokens of the shortest paragraph that is looked at.
        max_ngram: tokens of an n-gram.
        rate: false-positive rate of the filter at its design load, per n-gram.
        expected: n-grams that the filter is made for; by default exactly those there are.
        shards: parts of the corpus (by document id) that are deduplicated alone, each in memory of its own size.
            Duplicates in different shards stay, by design.
        seed: of the filter's hash functions.
    """

    mode: Literal["both", "paragraph", "document", "exact"] = "both"
    threshold: float = 0.8
    min_ngram: int = 13
    max_ngram: int = 13
    rate: float = 0.01
    expected: int | None = None
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r}", where="BloomDedup", fix=nearest(self.mode, MODES))
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ConfigError(f"min_ngram={self.min_ngram}, max_ngram={self.max_ngram}", where="BloomDedup")
        for name in ("threshold", "rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="BloomDedup", fix="above 0, up to 1")
        if self.shards < 1 or (self.expected is not None and self.expected < 1):
            raise ConfigError(f"shards={self.shards}, expected={self.expected}", where="BloomDedup", fix="1 or more")

    @property
    def reads(self) -> tuple[str, ...]:
        """Text and id."""
        return ("id", "parts")

    @property
    def writes(self) -> tuple[str, ...]:
        """The paragraphs to cut."""
        return (CUT,)

    def plan(self, documents: int, bytes: int) -> Plan:
        """The filter of one shard in memory; eight bytes per n-gram on disk."""
        grams = documents if self.mode == "exact" else max(1, bytes // TOKEN_BYTES)
        size = size_for(max(1, (self.expected or grams) // self.shards), self.rate)
        return Plan(ram_bytes=size + 64 * documents, disk_bytes=8 * grams)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """`grams`: hashes of each document's n-grams; `sizes`: how many in each paragraph; `key`: hash of the id."""
        content = texts(batch)
        keys = [xxhash.xxh3_64_intdigest((name or "").encode()) for name in batch.column("id").to_pylist()]
        if self.mode == "exact":
            whole = [xxhash.xxh3_64_intdigest((text or "").encode()) for text in content.to_pylist()]
            ones = pa.array(np.arange(len(whole) + 1))
            grams = pa.LargeListArray.from_arrays(ones, pa.array(whole, pa.uint64()))
            sizes = pa.LargeListArray.from_arrays(ones, pa.array(np.ones(len(whole), dtype=np.int32)))
        else:
            parts = [
                paragraph_ngrams(w, self.min_ngram, self.max_ngram, self.mode == "document") for w in tokens(content)
            ]
            kinds = (pa.uint64(), pa.int32())
            grams, sizes = (_lists([part[i] for part in parts], kind) for i, kind in enumerate(kinds))
        return pa.table({"grams": grams, "sizes": sizes, "key": pa.array(keys, pa.uint64())})

    def decide(self, sketches: pa.Table) -> pa.Table:
        """Drop reasons, and the paragraphs to cut from the documents that stay."""
        shard = sketches["key"].to_numpy() % self.shards
        gone = np.zeros(len(sketches), dtype=bool)
        cuts: list[list[int]] = [[] for _ in range(len(sketches))]
        notes: dict[str, Any] = {"ngrams": 0, "seen_before": 0, "paragraphs_cut": 0}
        for number in range(self.shards):
            mine = np.flatnonzero(shard == number)
            total = int(_total(sketches["sizes"], mine))
            bloom = BloomFilter(max(1, self.expected or total), self.rate, self.seed)
            for rows, sizes, owner, grams in _blocks(sketches, mine):
                removed, contained = settle(bloom, grams, sizes, self.threshold)
                notes["ngrams"] += len(grams)
                notes["seen_before"] += int(contained.sum())
                seen, of = (np.bincount(owner, weights=w, minlength=len(rows)) for w in (contained, sizes))
                if self.mode == "both":
                    gone[rows] = np.divide(seen, of, out=np.zeros(len(rows)), where=of > 0) > self.threshold
                elif self.mode != "paragraph":
                    gone[rows] = np.bincount(owner, removed, minlength=len(rows)) > 0
                first = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(rows)))])
                for unit in np.flatnonzero(removed):
                    cuts[rows[owner[unit]]].append(int(unit - first[owner[unit]]))
            if bloom.count > OVERFULL * bloom.elements:
                text = "the Bloom filter holds %.1f times what it was made for: false positives at %.1f %%"
                logger("corpus").warning(text, bloom.count / bloom.elements, 100 * bloom.rate)
        notes["paragraphs_cut"] = sum(map(len, cuts))
        reasons = pa.array(np.full(len(gone), "duplicate text"), pa.string(), mask=~gone)
        return decisions(drop=reasons, notes=notes, **{CUT: pa.array(cuts, pa.list_(pa.int32()))})


@dataclass(frozen=True)
class CutParagraphs(Step):
    """Remove the paragraphs that `BloomDedup` decided about; a document of white space alone is dropped.

    Images stay, in their places between the texts.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """Text, and the numbers of the paragraphs to remove."""
        return ("parts", CUT)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without those paragraphs and without the column."""
        cuts = batch.column(CUT)
        flat = FlatParts.of(batch)
        if flat.is_image.any() or not (flat.count(flat.is_text) == 1).all():
            batch = _cut_parts(batch, flat, cuts.to_pylist())
        elif pc.any(pc.greater(pc.list_value_length(cuts), 0), min_count=0).as_py():
            content = texts(batch)
            after = [
                without_paragraphs(text, cut) if cut else text
                for text, cut in zip(content.to_pylist(), cuts.to_pylist(), strict=True)
            ]
            batch = with_texts(batch, after)
            batch = drop(batch, [not text.strip() for text in after], "duplicate text")
        return batch.drop_columns([CUT])


def _cut_parts(batch: pa.RecordBatch, flat: FlatParts, cuts: Sequence[Sequence[int] | None]) -> pa.RecordBatch:
    """The same where documents have several parts: each loses its paragraphs, one of white space alone goes.

    Paragraphs are numbered in the text parts joined by blank lines, where the line between two parts is one as well.
    """
    numbers = [set(cut or ()) for cut in cuts]
    line = np.zeros(flat.documents, dtype=np.int64)
    before, after = flat.texts, flat.texts
    several = np.bincount(flat.owner, minlength=flat.documents) > 1
    keep = np.ones(len(before), dtype=bool)
    reasons: list[tuple[int, str]] = []
    for part, text in enumerate(before):
        if text is None:
            continue
        document, first = flat.owner[part], int(line[flat.owner[part]])
        lines = text.count("\n") + 1
        cut = [n - first for n in range(first, first + lines) if n in numbers[document]]
        line[document] += lines + 1
        if cut:
            left = without_paragraphs(text, cut)
            after[part] = left.strip("\n") if several[document] else left
            keep[part] = bool(left.strip()) or not several[document]
            reasons += [(part, "duplicate paragraph")] * len(cut)
    had = np.array([bool(numbers[document]) for document in range(flat.documents)], dtype=bool)
    says = np.array([bool(text and text.strip()) for text in after], dtype=bool)
    batch = removed_parts(flat.replaced(batch, keep, after), flat.by_document(reasons))
    return drop(batch, had & (flat.count(says) == 0), "duplicate text")


def without_paragraphs(text: str, numbers: Sequence[int]) -> str:
    """The text without the paragraphs of these numbers; each paragraph but the first begins with its line end."""
    left_out = set(numbers)
    lines = text.split("\n")
    kept = [("\n" if i else "") + line for i, line in enumerate(lines) if i not in left_out]
    return "".join(kept)


def paragraph_ngrams(
    words: Words, min_ngram: int, max_ngram: int, whole: bool = False
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """n-gram hashes of a block's documents and paragraphs.

    Returns ((hashes, how many of each document), (n-grams of each paragraph, paragraphs of each document)); with
    `whole` a document is one paragraph.
    """
    newlines = np.zeros(0, dtype=np.int64) if whole else np.flatnonzero(words.data[: words.bounds[-1]] == ord("\n"))
    per_document = np.bincount(np.searchsorted(words.bounds, newlines, side="right") - 1, minlength=words.documents) + 1
    # A paragraph's number in the block: documents before (each has one more than line ends) and line ends before.
    unit = words.document + np.searchsorted(newlines, words.starts)
    count = np.bincount(unit, minlength=int(per_document.sum()))  # tokens of each paragraph
    begins = np.concatenate([[0], np.cumsum(count)[:-1]])
    hashes = words.hashes
    long = count >= max_ngram
    sizes = np.where(long, count - max_ngram + 1, (count >= min_ngram) & (count > 0)).astype(np.int32)
    at = (
        np.flatnonzero(unit[: len(unit) - max_ngram + 1] == unit[max_ngram - 1 :])
        if len(unit) >= max_ngram
        else unit[:0]
    )
    grams = rolling(hashes, max_ngram)[at] if len(at) else hashes[:0]
    short = np.flatnonzero((sizes > 0) & ~long)
    if len(short):
        runs = hash_runs(hashes, begins[count > 0])[np.cumsum(count > 0)[short] - 1]
        runs = (runs ^ count[short].astype(np.uint64)) * FACTOR  # a short paragraph never equals an n-gram
        order = np.argsort(np.concatenate([unit[at], short]), kind="stable")
        grams = np.concatenate([grams, runs])[order]
    owner = np.repeat(np.arange(words.documents), per_document)
    of_document = np.bincount(owner, sizes, minlength=words.documents).astype(np.int64)
    return (grams, of_document), (sizes, per_document)


def settle(bloom: BloomFilter, grams: np.ndarray, sizes: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which paragraphs of a block go, and how many of each one's n-grams have been seen: bool (units,), int64 (units,).

    As if one by one, in order: a paragraph that stays adds its n-grams before the next is looked at. Whether one stays
    can depend on earlier ones of the block, but only through n-grams that occur in several. So: bound from below (only
    paragraphs known to stay have added theirs) and from above (all not known to go have), decide where both agree,
    and repeat; the first undecided paragraph is decided in every turn.
    """
    units = len(sizes)
    unit = np.repeat(np.arange(units), sizes)
    old = bloom.contains(grams)
    seen = np.bincount(unit, old, minlength=units).astype(np.int64)
    low = high = contained = seen
    repeated, group, count = _repeats(grams, unit, ~old)
    stays = goes = np.zeros(units, dtype=bool)
    while True:
        if len(repeated):
            low = seen + _added(repeated, group, count, stays[repeated], units)
            high = seen + _added(repeated, group, count, ~goes[repeated], units)
        goes = _above(low, sizes, threshold)
        stays = ~_above(high, sizes, threshold)
        if (goes | stays).all():
            break
    if len(repeated):
        contained = seen + _added(repeated, group, count, stays[repeated], units)
    bloom.add(grams[stays[unit]])
    return goes, contained


def _above(seen: np.ndarray, sizes: np.ndarray, threshold: float) -> np.ndarray:
    share = np.divide(seen, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    above: np.ndarray = share > threshold
    return above


def _repeats(grams: np.ndarray, unit: np.ndarray, fresh: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The paragraphs of n-grams that are new and occur in several of them, ordered by n-gram and paragraph.

    Returns (paragraphs, number of the n-gram of each, how many n-grams).
    """
    at = np.flatnonzero(fresh)
    order = at[np.argsort(grams[at], kind="stable")]
    if not len(order):
        return order, order, 0
    begins = np.flatnonzero(np.concatenate([[True], grams[order[1:]] != grams[order[:-1]]]))
    group = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(order)))
    last = np.append(begins[1:], len(order)) - 1
    several = (unit[order[begins]] != unit[order[last]])[group]
    _, renumbered = np.unique(group[several], return_inverse=True)
    return unit[order[several]], renumbered, int(renumbered.max(initial=-1)) + 1


def _added(units: np.ndarray, group: np.ndarray, count: int, adds: np.ndarray, total: int) -> np.ndarray:
    """How many n-grams of each paragraph an earlier one of those that add theirs has added."""
    first = np.full(count, total)
    np.minimum.at(first, group[adds], units[adds])
    return np.bincount(units[first[group] < units], minlength=total)


def _lists(parts: list[tuple[np.ndarray, np.ndarray]], kind: pa.DataType) -> pa.LargeListArray:
    """Lists from (values, how many in each) of every block."""
    values = np.concatenate([part[0] for part in parts] or [np.zeros(0, dtype=np.int32)])
    sizes = np.concatenate([np.zeros(1, dtype=np.int64), *(part[1] for part in parts)])
    return pa.LargeListArray.from_arrays(pa.array(np.cumsum(sizes)), pa.array(values, kind))


def _total(column: pa.ChunkedArray, rows: np.ndarray) -> int:
    """Sum of the numbers in the lists of these rows."""
    total, start = 0, 0
    for chunk in column.chunks:
        mine = rows[(rows >= start) & (rows < start + len(chunk))] - start
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy()
        sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        total += int((sums[offsets[1:]] - sums[offsets[:-1]])[mine].sum())
        start += len(chunk)
    return total


def _blocks(sketches: pa.Table, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Whole documents with about `BLOCK` n-grams: (rows, n-grams of each paragraph, its document, n-grams)."""
    start = 0
    for batch in sketches.select(["grams", "sizes"]).to_batches():
        mine = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
        grams, sizes = batch.column("grams"), batch.column("sizes")
        lengths = np.diff(grams.offsets.to_numpy())[mine]
        ends = np.cumsum(lengths)
        begin = 0
        while begin < len(mine):
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + BLOCK, side="right")))
            some = pa.array(mine[begin:end])
            flat, units = grams.take(some), sizes.take(some)
            owner = np.repeat(np.arange(end - begin), np.diff(units.offsets.to_numpy()))
            yield mine[begin:end] + start, units.flatten().to_numpy(), owner, flat.flatten().to_numpy()
            begin = end
        start += batch.num_rows
