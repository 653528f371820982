"""Duplicates: documents with the same text, and documents that share most of their word n-grams. The first one stays.

Both are barriers. `ExactDedup` compares 128-bit hashes. `NearDedup` is MinHash with banding, whose candidate pairs are
then verified on the shingles themselves, so that a chance match never costs a document; pairs are joined to clusters by
union-find. The report gets the number of clusters and the size of the largest: chains of near-duplicates can swallow a
source, and one should see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import rng
from bloomery.corpus.documents import texts
from bloomery.corpus.steps import Barrier, Plan, decisions
from bloomery.corpus.words import FACTOR, Words, blocks

SHINGLE_BLOCK = 65_536  # shingles hashed at a time, 8 bytes each: they and their hashes stay in the processor's cache


@dataclass(frozen=True)
class ExactDedup(Barrier):
    """Drop a document whose text, in lower case and with all white space as single spaces, has come before.

    Compared by 128-bit hash. Empty documents are duplicates of each other.
    """

    def plan(self, documents: int, bytes: int) -> Plan:
        """16 bytes per document on disk, about 64 in memory while deciding."""
        return Plan(ram_bytes=64 * documents, disk_bytes=16 * documents)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """The hash in two halves: uint64 `high`, `low`."""
        digests = b"".join(
            xxhash.xxh3_128_digest(" ".join(text.lower().split()).encode()) for text in texts(batch).to_pylist()
        )
        halves = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
        return pa.table({"high": halves[:, 0], "low": halves[:, 1]})

    def decide(self, sketches: pa.Table) -> pa.Table:
        """Drop all but the first of equal hashes."""
        high, low = sketches["high"].to_numpy(), sketches["low"].to_numpy()
        order = np.lexsort((low, high))  # stable: equal hashes stay in input order
        new = np.ones(len(order), dtype=bool)
        new[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
        sizes = np.diff(np.flatnonzero(new), append=len(order))
        copies = np.zeros(len(order), dtype=bool)
        copies[order] = ~new
        return decisions(drop=_reason(copies, "exact duplicate"), notes=_cluster_notes(sizes))


@dataclass(frozen=True)
class NearDedup(Barrier):
    """Drop a document that is linked to an earlier one by pairs with Jaccard similarity of at least `threshold`.

    Similarity is that of the sets of `ngram`-word shingles (words as in `words`, A-Z taken as a-z); a shorter document
    is one shingle, an empty one has no duplicates. Candidate pairs agree in all minima of at least one band. The bands
    are chosen from `hashes` and `threshold` (see `bands_and_rows`) so that a pair exactly at the threshold becomes a
    candidate with probability `recall` or more. A candidate is a duplicate if the exact Jaccard similarity of its
    32-bit shingle hashes reaches the threshold.

    MinHash i of a document is the minimum over its shingle hashes x of (a_i x + b_i mod 2^64) >> 32 with odd 64-bit a_i
    and 64-bit b_i from the seed: multiply-shift hashing, 2-universal on 32-bit x (Dietzfelbinger 1996).
    """

    threshold: float = 0.8
    ngram: int = 5
    hashes: int = 128
    recall: float = 0.98
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("threshold", 0.1, 1.0), ("recall", 0.5, 0.9999)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)}", where="NearDedup", fix=f"{low} to {high}")
        for name in ("ngram", "hashes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="NearDedup", fix="1 or more")

    def plan(self, documents: int, bytes: int) -> Plan:
        """Signatures in memory; shingles (one of 4 bytes per word, a word taken as 6 bytes) stay on disk."""
        signatures = 4 * self.hashes * documents
        return Plan(ram_bytes=signatures + 64 * documents, disk_bytes=signatures + 4 * bytes // 6)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """`shingles`: sorted distinct uint32 hashes; `signature`: `hashes` uint32 minima."""
        shingles, offsets = _shingles(texts(batch), self.ngram)
        signatures = minhash(shingles, offsets, *permutations(self.hashes, self.seed))
        flat = pa.array(signatures.ravel(), pa.uint32())
        return pa.table(
            {
                "shingles": pa.LargeListArray.from_arrays(offsets, pa.array(shingles, pa.uint32())),
                "signature": pa.FixedSizeListArray.from_arrays(flat, self.hashes),
            }
        )

    def decide(self, sketches: pa.Table) -> pa.Table:
        """Drop all but the first document of every cluster."""
        shingles = _Shingles(sketches["shingles"])
        signatures = _rows(sketches["signature"], self.hashes)
        bands, rows = bands_and_rows(self.threshold, self.hashes, self.recall)
        clusters = _Clusters(len(sketches))
        candidates = verified = 0
        for band in range(bands):
            for bucket in _buckets(signatures[:, band * rows : (band + 1) * rows], shingles.sizes > 0):
                for first, others in clusters.open_pairs(bucket):
                    similar = others[shingles.jaccard(first, others) >= self.threshold]
                    clusters.join(first, similar)
                    candidates += len(others)
                    verified += len(similar)
        roots = clusters.find(np.arange(len(sketches)))
        sizes = np.bincount(roots, minlength=len(roots))[np.unique(roots)]
        notes = {"bands": bands, "rows": rows, "candidate_pairs": candidates, "duplicate_pairs": verified}
        copies = roots != np.arange(len(roots))
        return decisions(drop=_reason(copies, "near duplicate"), notes=notes | _cluster_notes(sizes))


def bands_and_rows(threshold: float, hashes: int, recall: float) -> tuple[int, int]:
    """The most rows per band for which a pair at the threshold still meets in some band with probability `recall`.

    With similarity s, rows r and bands b the probability is 1 - (1 - s^r)^b; more rows mean fewer false candidates.
    """
    best = 1
    for rows in range(2, hashes + 1):
        if 1 - (1 - threshold**rows) ** (hashes // rows) >= recall:
            best = rows
    return hashes // best, best


def permutations(hashes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The multipliers (odd) and offsets of the hash functions: two uint64 (hashes,)."""
    random = rng(seed, "minhash")
    a = random.integers(0, 2**64, hashes, dtype=np.uint64) | np.uint64(1)
    return a, random.integers(0, 2**64, hashes, dtype=np.uint64)


def minhash(shingles: np.ndarray, offsets: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """MinHash signatures, uint32 (documents, hashes); an empty document has the largest value everywhere.

    Args:
        shingles: uint32 (shingles,), document after document.
        offsets: int64 (documents + 1,) where each document begins.
        a: multipliers, see `permutations`.
        b: addends, see `permutations`.
    """
    # One hash function at a time: the minima of a document are then over contiguous memory, which is what vectorises.
    lowest = np.full((len(a), len(offsets) - 1), np.iinfo(np.uint64).max)  # (hashes, documents)
    filled = np.flatnonzero(np.diff(offsets))
    begins = offsets[:-1][filled]
    room = np.empty(min(SHINGLE_BLOCK, len(shingles)), dtype=np.uint64)
    for start in range(0, len(shingles), SHINGLE_BLOCK):
        block = shingles[start : start + SHINGLE_BLOCK].astype(np.uint64)
        first = np.searchsorted(begins, start, "right") - 1  # the document that the block begins in
        last = np.searchsorted(begins, start + len(block), "left")
        documents, cuts = filled[first:last], np.maximum(begins[first:last] - start, 0)
        values = room[: len(block)]
        for row, factor, addend in zip(lowest, a, b, strict=True):
            np.multiply(block, factor, out=values)  # modulo 2^64
            values += addend
            row[documents] = np.minimum(row[documents], np.minimum.reduceat(values, cuts))
    return (lowest.T >> np.uint64(32)).astype(np.uint32)  # the order of minima survives the shift


def _shingles(texts: pa.StringArray, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct 32-bit shingle hashes of each document, and where each document's begin."""
    parts, sizes = [], [np.zeros(1, dtype=np.int64)]
    for words in blocks(texts, lower=True):
        keys = _shingle_keys(words, ngram)
        parts.append((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        sizes.append(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=words.documents))
    shingles = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
    return shingles, np.cumsum(np.concatenate(sizes))


def _shingle_keys(words: Words, ngram: int) -> np.ndarray:
    """Distinct (document << 32 | 32-bit hash of a shingle) of a block, sorted: uint64."""
    counts = words.counts
    size = np.minimum(counts, ngram)  # the words of a shingle, by document
    places = np.maximum(counts - ngram + 1, counts > 0)  # shingles, by document
    owner = np.repeat(np.arange(words.documents), places)
    at = np.arange(len(owner)) - np.repeat(np.cumsum(places) - places, places) + words.first[owner]
    hashes = np.zeros(len(at), dtype=np.uint64)
    for k in range(ngram):
        inside = k < size[owner]
        hashes[inside] = hashes[inside] * FACTOR + words.hashes[at[inside] + k]
    keys = np.sort(owner.astype(np.uint64) << np.uint64(32) | hashes >> np.uint64(32))
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return keys[new]


class _Shingles:
    """The shingle sets of all documents; the values may lie on disk, only the offsets are in memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._begins = np.cumsum([0, *map(len, chunks)])
        self.sizes = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.diff, self._offsets)])

    def of(self, document: int) -> np.ndarray:
        """One document's set, sorted."""
        chunk = int(np.searchsorted(self._begins, document, side="right")) - 1
        begin, end = self._offsets[chunk][document - self._begins[chunk] :][:2]
        mine: np.ndarray = self._values[chunk][begin:end]
        return mine

    def jaccard(self, document: int, others: np.ndarray) -> np.ndarray:
        """Exact similarity of one document with each of `others`: float64 (others,)."""
        mine = self.of(document)
        shared = np.empty(len(others))
        for index, other in enumerate(others):
            theirs = self.of(int(other))
            place = np.searchsorted(mine, theirs)
            shared[index] = np.count_nonzero(mine[np.minimum(place, len(mine) - 1)] == theirs)
        similarity: np.ndarray = shared / (len(mine) + self.sizes[others] - shared)
        return similarity


class _Clusters:
    """Union-find in which the root of a cluster is its first document."""

    def __init__(self, documents: int) -> None:
        self._parent = np.arange(documents)

    def find(self, documents: np.ndarray) -> np.ndarray:
        """The root of each document."""
        roots: np.ndarray = self._parent[documents]
        while (moved := self._parent[roots] != roots).any():
            roots = np.where(moved, self._parent[roots], roots)
        self._parent[documents] = roots
        return roots

    def join(self, document: int, others: np.ndarray) -> None:
        """Put all of them into one cluster."""
        roots = self.find(np.append(others, document))
        self._parent[roots] = roots.min()

    def open_pairs(self, bucket: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each document of the bucket with the later ones that are not in its cluster by then."""
        for position, document in enumerate(bucket[:-1]):
            later = bucket[position + 1 :]
            others = later[self.find(later) != self.find(bucket[position : position + 1])]
            if not len(others):  # the rest of the bucket is one cluster
                return
            yield int(document), others


def _buckets(band: np.ndarray, usable: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of two or more usable documents with equal rows of `band` (documents, rows), in input order."""
    documents = np.flatnonzero(usable)
    keys = np.zeros(len(documents), dtype=np.uint64)
    for column in range(band.shape[1]):
        keys = (keys ^ band[documents, column]) * FACTOR
        keys ^= keys >> np.uint64(32)
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    ends = np.append(begins[1:], len(order))
    many = ends - begins > 1
    for begin, end in zip(begins[many], ends[many], strict=True):
        yield documents[order[begin:end]]


def _rows(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of fixed-size lists as a matrix."""
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.zeros(0, dtype=np.uint32), *chunks]).reshape(-1, width)


def _reason(mask: np.ndarray, reason: str) -> pa.Array:
    return pa.array([reason], pa.string()).take(pa.array(np.zeros(len(mask), dtype=np.int32), mask=~mask))


def _cluster_notes(sizes: np.ndarray) -> dict[str, Any]:
    many = sizes[sizes > 1]
    return {"clusters": len(many), "largest_cluster": int(many.max(initial=0))}
