"""MinHash signatures of word-shingle sets, many documents at once, and how their rows are cut into bands.

    signature_i(document) = min over its shingle hashes x of (a_i mix(x) + b_i) mod 2^32,    a_i odd

`mix` is murmur3's 32-bit finaliser: it is a bijection, so the share of equal rows of two signatures estimates the
Jaccard similarity of the two sets (Broder 1997). The numbers a_i, b_i are drawn as datasketch 2 draws them (its default
scheme, "affine32"), so for equal shingle hashes, seed and number of hashes the signatures are equal to datasketch's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bloomery.corpus.words import FACTOR, Words, blocks, rolling

SHINGLE_BLOCK = 65_536  # shingles hashed at a time, 4 bytes each: they and their hashes stay in the processor's cache
EMPTY = np.iinfo(np.uint32).max  # every row of a document without shingles


def permutations(hashes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors (odd) and addends of the hash functions: two uint32 (hashes,)."""
    random = np.random.RandomState(seed)  # the generator of datasketch
    a = random.randint(0, 1 << 31, hashes, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, random.randint(0, 1 << 32, hashes, dtype=np.uint32)


def bands_and_rows(threshold: float, hashes: int, recall: float) -> tuple[int, int]:
    """The most rows per band for which a pair at the threshold still meets in some band with probability `recall`.

    With similarity s, rows r and bands b the probability is 1 - (1 - s^r)^b; more rows mean fewer false candidates.
    """
    best = 1
    for rows in range(2, hashes + 1):
        if 1 - (1 - threshold**rows) ** (hashes // rows) >= recall:
            best = rows
    return hashes // best, best


def minhash(shingles: np.ndarray, offsets: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """MinHash signatures, uint32 (documents, hashes); an empty document has the largest value everywhere.

    Args:
        shingles: uint32 (shingles,), document after document.
        offsets: int64 (documents + 1,) where each document begins.
        a: factors, see `permutations`.
        b: addends, see `permutations`.
    """
    # One hash function at a time: the minima of a document are then over contiguous memory, which is what vectorises.
    lowest = np.full((len(a), len(offsets) - 1), EMPTY, dtype=np.uint32)  # (hashes, documents)
    filled = np.flatnonzero(np.diff(offsets))
    begins = offsets[:-1][filled]
    room = np.empty(min(SHINGLE_BLOCK, len(shingles)), dtype=np.uint32)
    for start in range(0, len(shingles), SHINGLE_BLOCK):
        block = _mix(shingles[start : start + SHINGLE_BLOCK])
        first = np.searchsorted(begins, start, "right") - 1  # the document that the block begins in
        last = np.searchsorted(begins, start + len(block), "left")
        documents, cuts = filled[first:last], np.maximum(begins[first:last] - start, 0)
        values = room[: len(block)]
        for row, factor, addend in zip(lowest, a, b, strict=True):
            np.multiply(block, factor, out=values)  # modulo 2^32
            values += addend
            row[documents] = np.minimum(row[documents], np.minimum.reduceat(values, cuts))
    return np.ascontiguousarray(lowest.T)


def word_shingles(texts: pa.StringArray, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """32-bit hashes of each document's shingles of `ngram` words in lower case, distinct and sorted.

    Returns uint32 (shingles,) and int64 (documents + 1,), where each document's begin. A document of fewer words is
    one shingle, one without words has none.
    """
    parts, sizes = [], [np.zeros(1, dtype=np.int64)]
    for words in blocks(texts, lower=True):
        keys = _keys(words, ngram)
        parts.append(keys.astype(np.uint32))  # the lower half
        sizes.append(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=words.documents))
    shingles = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
    return shingles, np.cumsum(np.concatenate(sizes))


def _keys(words: Words, ngram: int) -> np.ndarray:
    """Distinct (document << 32 | 32-bit hash of a shingle) of a block, sorted: uint64."""
    hashes, owner = words.hashes, words.document
    keys = np.zeros(0, dtype=np.uint64)
    if len(owner) >= ngram:  # over all words in a row; those that cross a document's end go
        last = owner[ngram - 1 :]
        keys = _key(last, rolling(hashes, ngram))[last == owner[: len(last)]]
    short = np.flatnonzero((words.counts < ngram) & (words.counts > 0))
    if len(short):
        whole = np.zeros(len(short), dtype=np.uint64)
        for k in range(ngram - 1):
            more = k < words.counts[short]
            whole[more] = whole[more] * FACTOR + hashes[words.first[short[more]] + k]
        keys = np.concatenate([keys, _key(short, whole)])
    keys.sort()
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return keys[new]


def _key(owner: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    key: np.ndarray = owner.astype(np.uint64)
    key <<= np.uint64(32)
    key |= hashes >> np.uint64(32)
    return key


def _mix(values: np.ndarray) -> np.ndarray:
    """The 32-bit finaliser of murmur3: uint32."""
    values = values ^ values >> np.uint32(16)
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    values ^= values >> np.uint32(16)
    return values
