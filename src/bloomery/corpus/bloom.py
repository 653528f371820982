"""A Bloom filter over 64-bit hashes: a set that may say yes too often, never no, in 9.6 bits per element at 1 %.

    p = (1 - (1 - 1/m)^(k n))^k        false-positive rate with m bits, k hash functions, n elements
    k* = ceil(m/n ln 2)                the best k

The bits lie in 64-bit words, in memory or in a file that is mapped, so a filter may be larger than memory and serve
several runs. The k positions of an element come from one hash by enhanced double hashing (Dillinger and Manolios 2004).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.files import atomic_file
from bloomery.core.seeds import derive

HEADER = 4096  # bytes before the words of a file: JSON, padded with blanks
FORMAT = "bloomery bloom filter 1"
MOST_WORDS = (1 << 32) - 1  # 34 GB; more elements need shards
BLOCK = 1 << 16  # elements looked up at a time
LATE, SPREAD = np.uint64(32), np.uint64(0x9E3779B97F4A7C15)


def false_positive_rate(size: int, elements: int, hashers: int) -> float:
    """p for a filter of `size` bytes, as in the formula above."""
    return float((1 - (1 - 1 / (8 * size)) ** (hashers * elements)) ** hashers) if size else 1.0


def best_hashers(size: int, elements: int) -> int:
    """k* for a filter of `size` bytes."""
    return math.ceil(8 * size / elements * math.log(2))


def size_for(elements: int, rate: float) -> int:
    """The least number of bytes whose false-positive rate with k* hash functions is at most `rate`."""
    if elements < 1 or not 0 < rate < 1:
        raise ConfigError(f"elements={elements}, rate={rate}", fix="1 or more elements, a rate between 0 and 1")
    low, high = 1, max(16, 64 * elements)
    while low < high:
        middle = (low + high) // 2
        enough = false_positive_rate(middle, elements, best_hashers(middle, elements)) <= rate
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


class BloomFilter:
    """Bits for `elements` elements at the false-positive rate `rate`. `count` is how many have been added."""

    def __init__(self, elements: int, rate: float = 0.01, seed: int = 0) -> None:
        size = size_for(elements, rate)
        words = -(-size // 8)
        if words > MOST_WORDS:
            shards = -(-words // MOST_WORDS)
            raise ConfigError(
                f"{elements:,} elements at {rate} need {size / 1e9:.0f} GB in one filter", fix=f"use {shards} shards"
            )
        self._set_up(np.zeros(words, dtype=np.uint64), best_hashers(size, elements), elements, seed, 0)

    def _set_up(self, words: np.ndarray, hashers: int, elements: int, seed: int, count: int) -> None:
        self.words, self.hashers, self.elements, self.seed, self.count = words, hashers, elements, seed, count
        self._salt = np.uint64(derive(seed, "bloom"))

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Whether each hash (uint64) may have been added: bool, like `hashes`."""
        found = np.zeros(len(hashes), dtype=bool)
        for start in range(0, len(hashes), BLOCK):
            left = np.arange(start, min(start + BLOCK, len(hashes)))
            place, step = self._begin(hashes[left])
            for turn in range(self.hashers):
                word, bit = self._at(place)
                some = (self.words[word] & bit) != 0
                left, place, step = left[some], place[some], step[some]  # most new elements leave early
                if not len(left):
                    break
                place, step = place + step, step + np.uint64(turn)
            found[left] = True
        return found

    def add(self, hashes: np.ndarray) -> None:
        """Set the bits of each hash."""
        self.count += len(hashes)
        for start in range(0, len(hashes), BLOCK):
            place, step = self._begin(hashes[start : start + BLOCK])
            for turn in range(self.hashers):
                word, bit = self._at(place)
                todo = np.flatnonzero((self.words[word] & bit) == 0)
                while len(todo):  # of several bits for one word the last wins: look who lost, and again
                    at, mask = word[todo], bit[todo]
                    self.words[at] |= mask
                    todo = todo[(self.words[at] & mask) == 0]
                place, step = place + step, step + np.uint64(turn)

    def _begin(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = (hashes ^ self._salt) * SPREAD
        place ^= place >> LATE
        step = place * SPREAD
        step ^= step >> LATE
        return place, step

    def _at(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Word and bit of each place: the upper half of the number chooses the word, the lowest bits the bit."""
        word = ((place >> LATE) * np.uint64(len(self.words)) >> LATE).astype(np.int64)
        return word, np.uint64(1) << (place & np.uint64(63))

    @property
    def rate(self) -> float:
        """The false-positive rate with what has been added so far."""
        return false_positive_rate(8 * len(self.words), self.count, self.hashers) if self.count else 0.0

    def merge(self, other: BloomFilter) -> None:
        """Add all that the other filter holds. It must have the same size, hash functions and seed."""
        mine, theirs = ((f.hashers, f.seed, len(f.words)) for f in (self, other))
        if mine != theirs:
            raise ConfigError(f"filters differ: (hash functions, seed, words) {mine} and {theirs}", where="merge")
        self.words |= other.words
        self.count += other.count

    def save(self, path: Path | str) -> None:
        """Write header and words, atomically."""
        about = {"format": FORMAT, "words": len(self.words), "hashers": self.hashers, "elements": self.elements}
        header = json.dumps({**about, "seed": self.seed, "count": self.count}).encode()
        with atomic_file(path) as file:
            file.write(header.ljust(HEADER))
            self.words.tofile(file)

    @classmethod
    def open(cls, path: Path | str) -> BloomFilter:
        """A filter whose words stay on disk until they are used; what is added does not change the file."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                about: dict[str, Any] = json.loads(file.read(HEADER))
            words, hashers = int(about["words"]), int(about["hashers"])
            elements, seed, count = int(about["elements"]), int(about["seed"]), int(about["count"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"not a Bloom filter: {error}", where=path) from error
        if about.get("format") != FORMAT or not 1 <= words <= MOST_WORDS or not 1 <= hashers <= 64:
            raise DataError("not a Bloom filter of this version", where=path)
        if path.stat().st_size != HEADER + 8 * words:
            raise DataError(
                f"{path.stat().st_size} bytes, {HEADER + 8 * words} expected", where=path, fix="copy it again"
            )
        made = cls.__new__(cls)
        made._set_up(np.memmap(path, np.uint64, "c", HEADER, (words,)), hashers, elements, seed, count)
        return made
