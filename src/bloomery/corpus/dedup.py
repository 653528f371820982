"""Duplicates: documents with the same text, and documents that share most of their word n-grams. The first one stays.

Both are barriers. `ExactDedup` compares 128-bit hashes. `NearDedup` is MinHash (`minhash`) with banding, whose
candidate pairs are then verified on the shingles themselves, so that a chance match never costs a document; pairs are
joined to clusters by union-find, all pairs of a band at once. The report gets the number of clusters and the size of
the largest: chains of near-duplicates can swallow a source, and one should see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from bloomery.core.errors import ConfigError
from bloomery.corpus.documents import texts
from bloomery.corpus.minhash import bands_and_rows, minhash, permutations, word_shingles
from bloomery.corpus.steps import Barrier, Plan, decisions
from bloomery.corpus.words import FACTOR

PAIRS = 1 << 16  # pairs that are looked at together
PAIR_BLOCK = 1 << 18  # shingles of the pairs that are compared together, 16 bytes each


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
    candidate with probability `recall` or more, unless `bands` says how many: FineWeb's are hashes=112, bands=14,
    DCLM's hashes=1395, bands=93. A candidate is a duplicate if the exact Jaccard similarity of its 32-bit shingle
    hashes reaches the threshold.
    """

    threshold: float = 0.8
    ngram: int = 5
    hashes: int = 128
    recall: float = 0.98
    bands: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("threshold", 0.1, 1.0), ("recall", 0.5, 0.9999)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)}", where="NearDedup", fix=f"{low} to {high}")
        for name in ("ngram", "hashes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="NearDedup", fix="1 or more")
        if self.bands is not None and not 1 <= self.bands <= self.hashes:
            raise ConfigError(f"bands={self.bands}", where="NearDedup", fix=f"1 to hashes={self.hashes}")

    def plan(self, documents: int, bytes: int) -> Plan:
        """Signatures in memory; shingles (one of 4 bytes per word, a word taken as 6 bytes) stay on disk."""
        signatures = 4 * self.hashes * documents
        return Plan(ram_bytes=signatures + 64 * documents, disk_bytes=signatures + 4 * bytes // 6)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """`shingles`: sorted distinct uint32 hashes; `signature`: `hashes` uint32 minima."""
        shingles, offsets = word_shingles(texts(batch), self.ngram)
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
        if self.bands is not None:
            bands, rows = self.bands, self.hashes // self.bands
        clusters = Clusters(len(sketches))
        candidates = verified = 0
        for band in range(bands):
            documents, bucket = _buckets(signatures[:, band * rows : (band + 1) * rows], shingles.sizes > 0)
            for first, second in _open_pairs(documents, bucket, clusters):
                new = ~_agree(signatures[:, : band * rows], first, second, rows)  # otherwise compared before: different
                first, second = first[new], second[new]
                similar = shingles.similar(first, second, self.threshold)
                clusters.join(first[similar], second[similar])
                candidates += len(first)
                verified += int(similar.sum())
        roots = clusters.find(np.arange(len(sketches)))
        sizes = np.bincount(roots, minlength=len(roots))[np.unique(roots)]
        notes = {"bands": bands, "rows": rows, "candidate_pairs": candidates, "duplicate_pairs": verified}
        copies = roots != np.arange(len(roots))
        return decisions(drop=_reason(copies, "near duplicate"), notes=notes | _cluster_notes(sizes))


class Clusters:
    """Union-find on many documents at once, in which the root of a cluster is its first document."""

    def __init__(self, documents: int) -> None:
        self._parent = np.arange(documents)

    def find(self, documents: np.ndarray) -> np.ndarray:
        """The root of each document."""
        roots: np.ndarray = self._parent[documents]
        while (moved := self._parent[roots] != roots).any():
            roots = np.where(moved, self._parent[roots], roots)
        self._parent[documents] = roots
        return roots

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Put both documents of every pair into one cluster."""
        while True:
            one, other = self.find(first), self.find(second)
            apart = one != other
            if not apart.any():
                return
            first, second, one, other = first[apart], second[apart], one[apart], other[apart]
            # Every later root goes under the earliest of those it is joined with; pairs still apart go round again.
            np.minimum.at(self._parent, np.maximum(one, other), np.minimum(one, other))


def _buckets(band: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Usable documents that share all rows of `band` (documents, rows) with another, and the bucket of each.

    Bucket after bucket, in each in input order.
    """
    documents = np.flatnonzero(usable)
    keys = np.zeros(len(documents), dtype=np.uint64)
    for column in range(band.shape[1]):
        keys = (keys ^ band[documents, column]) * FACTOR
        keys ^= keys >> np.uint64(32)
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
    sizes = np.diff(begins, append=len(order))
    several = np.repeat(sizes > 1, sizes)
    return documents[order[several]], np.repeat(np.arange(len(sizes)), sizes)[several]


def _open_pairs(
    documents: np.ndarray, bucket: np.ndarray, clusters: Clusters
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """In turns, the first document of every bucket with the others that are not in its cluster; then without it.

    A bucket that has become one cluster is done.
    """
    while len(documents):
        begins = np.flatnonzero(np.diff(bucket, prepend=-1))
        sizes = np.diff(begins, append=len(documents))
        roots = clusters.find(documents)
        done = np.minimum.reduceat(roots, begins) == np.maximum.reduceat(roots, begins)
        leader = np.repeat(begins, sizes)
        pairs = np.flatnonzero(roots != roots[leader])
        for start in range(0, len(pairs), PAIRS):
            some = pairs[start : start + PAIRS]
            yield documents[leader[some]], documents[some]
        stays = np.repeat(~done & (sizes > 2), sizes)
        stays[begins] = False
        documents, bucket = documents[stays], bucket[stays]


def _agree(signatures: np.ndarray, first: np.ndarray, second: np.ndarray, rows: int) -> np.ndarray:
    """Whether two documents share all `rows` of any band of these signatures: bool (pairs,)."""
    equal = signatures[first] == signatures[second]
    agree: np.ndarray = equal.reshape(len(first), -1, rows).all(axis=2).any(axis=1)
    return agree


class _Shingles:
    """The shingle sets of all documents; the values may lie on disk, only the offsets are in memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._begins = np.cumsum([0, *map(len, chunks)])
        self.sizes = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.diff, self._offsets)])

    def similar(self, first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
        """Whether the exact similarity of each pair reaches the threshold: bool (pairs,)."""
        one, other = self.sizes[first], self.sizes[second]
        found: np.ndarray = np.minimum(one, other) / np.maximum(one, other) >= threshold  # it cannot be more than that
        maybe = np.flatnonzero(found)
        found[maybe] = self.jaccard(first[maybe], second[maybe]) >= threshold
        return found

    def jaccard(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Exact similarity of each pair of documents: float64 (pairs,)."""
        both = self.sizes[first] + self.sizes[second]
        ends = np.cumsum(both)
        shared = np.zeros(len(first), dtype=np.int64)
        begin = 0
        while begin < len(first):
            end = max(begin + 1, int(np.searchsorted(ends, ends[begin] - both[begin] + PAIR_BLOCK, side="right")))
            # A shingle of both documents comes twice: equal neighbours once all of a pair's are sorted.
            keys = np.concatenate([self._keys(some[begin:end]) for some in (first, second)])
            keys.sort()
            twice = keys[1:][keys[1:] == keys[:-1]]
            shared[begin:end] = np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=end - begin)
            begin = end
        similarity: np.ndarray = shared / (both - shared)
        return similarity

    def _keys(self, documents: np.ndarray) -> np.ndarray:
        """(place in `documents` << 32 | shingle) of all their shingles: uint64."""
        keys = np.repeat(np.arange(len(documents), dtype=np.uint64) << np.uint64(32), self.sizes[documents])
        chunks = np.searchsorted(self._begins, documents, side="right") - 1
        places = documents - self._begins[chunks]
        parts = []
        for chunk, place in zip(chunks.tolist(), places.tolist(), strict=True):
            begin, end = self._offsets[chunk][place : place + 2]
            parts.append(self._values[chunk][begin:end])
        keys |= np.concatenate(parts)
        return keys


def _rows(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A column of fixed-size lists as a matrix."""
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate([np.zeros(0, dtype=np.uint32), *chunks]).reshape(-1, width)


def _reason(mask: np.ndarray, reason: str) -> pa.Array:
    return pa.array([reason], pa.string()).take(pa.array(np.zeros(len(mask), dtype=np.int32), mask=~mask))


def _cluster_notes(sizes: np.ndarray) -> dict[str, Any]:
    many = sizes[sizes > 1]
    return {"clusters": len(many), "largest_cluster": int(many.max(initial=0))}
