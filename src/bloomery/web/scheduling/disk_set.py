"""A set of 64-bit numbers on disk, such as hashes of the addresses a crawl has met.

Sorted files, each at least twice as long as the next: adding n numbers one batch at a time costs O(n log n) sequential
bytes. Numbers are asked for in batches; a batch that would touch most of a file reads it in blocks from the beginning,
a small one looks into the mapped file. Memory: a buffer and two blocks, whatever the set holds.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bloomery.core.errors import StorageError
from bloomery.core.files import explain_os_errors

BLOCK = 1 << 17  # numbers read at once
PAGE = 512  # numbers in a page of memory


class DiskSet:
    """Unsigned 64-bit numbers. Files are never changed, only replaced; `files` are those that hold the set now.

    `memory` is how many numbers are kept in memory before they are written.
    """

    def __init__(self, folder: Path, name: str, memory: int = 1 << 20) -> None:
        self.folder, self.name, self.memory = folder, name, memory
        self.files: dict[str, int] = {}  # file -> numbers in it
        self._recent = np.empty(0, np.uint64)  # sorted, in no file
        self._serial = itertools.count()

    def __len__(self) -> int:
        return sum(self.files.values()) + len(self._recent)

    def contains(self, numbers: np.ndarray) -> np.ndarray:
        """Whether each number (uint64, sorted) is in the set."""
        found = _among(numbers, self._recent)
        for name, length in self.files.items():
            with explain_os_errors(self.folder):
                if len(numbers) * PAGE < length:
                    found |= _among(numbers, np.memmap(self.folder / name, np.uint64, "r"))
                else:
                    for block in read_blocks(self.folder / name, np.dtype(np.uint64)):
                        i, j = np.searchsorted(numbers, [block[0], block[-1]])
                        found[i : j + 1] |= _among(numbers[i : j + 1], block)
        return found

    def add(self, numbers: np.ndarray) -> None:
        """Add numbers (uint64, sorted, each once) that are not in the set yet."""
        self._recent = np.sort(np.concatenate((self._recent, numbers)), kind="stable")
        if len(self._recent) >= self.memory:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory, and merge files until each is at least twice as long as the next."""
        if not len(self._recent):
            return
        with explain_os_errors(self.folder):
            name = self._fresh()
            write(self.folder / name, [self._recent])
            self.files[name] = len(self._recent)
            self._recent = self._recent[:0]
            while len(self.files) > 1:
                (first, longer), (second, shorter) = list(self.files.items())[-2:]
                if longer >= 2 * shorter:
                    break
                merged = self._fresh()
                parts = [read_blocks(self.folder / name, np.dtype(np.uint64)) for name in (first, second)]
                write(self.folder / merged, merge(parts))
                del self.files[first], self.files[second]
                self.files[merged] = longer + shorter

    def restore(self, files: dict[str, int]) -> None:
        """Hold what these files hold.

        Raises:
            StorageError: a file is gone or has another length.
        """
        for name, length in files.items():
            check_length(self.folder / name, 8 * length)
        self.files = dict(files)
        self._serial = itertools.count(1 + max((int(name.rsplit("-", 1)[1]) for name in files), default=-1))

    def _fresh(self) -> str:
        return f"{self.name}-{next(self._serial)}"


def write(path: Path, blocks: Iterable[np.ndarray]) -> int:
    """Write blocks one after the other, down to the disk; how many records they have."""
    length = 0
    with path.open("wb") as out:
        for block in blocks:
            block.tofile(out)
            length += len(block)
        out.flush()
        os.fsync(out.fileno())
    return length


def read_blocks(path: Path, dtype: np.dtype, start: int = 0) -> Iterator[np.ndarray]:
    """The records of a file from number `start`, in blocks."""
    with path.open("rb") as file:
        file.seek(start * dtype.itemsize)
        while len(block := np.fromfile(file, dtype, BLOCK)):
            yield block


def merge(sources: list[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Sorted blocks out of several sources of sorted blocks; in memory is one block of each."""
    heads = [(next(source), source) for source in sources]
    while heads:
        limit = min((block[-1:] for block, _ in heads), key=lambda last: last.tolist())
        parts, rest = [], []
        for block, source in heads:
            cut = int(np.searchsorted(block, limit, side="right")[0])
            parts.append(block[:cut])
            left = block[cut:] if cut < len(block) else next(source, block[:0])
            if len(left):
                rest.append((left, source))
        heads = rest
        yield ordered(np.concatenate(parts))


def ordered(records: np.ndarray) -> np.ndarray:
    """Sorted numbers, or records sorted by their fields in order (numpy's own sort of records is slow)."""
    if records.dtype.names is None:
        return np.sort(records, kind="stable")
    return records[np.lexsort([records[name] for name in reversed(records.dtype.names)])]


def check_length(path: Path, size: int) -> None:
    """`StorageError` unless the file has this many bytes."""
    if not path.exists() or path.stat().st_size != size:
        raise StorageError(f"not the {size:,} bytes it was saved with", where=path, fix="restore it or begin anew")


def _among(numbers: np.ndarray, block: np.ndarray) -> np.ndarray:
    if not len(block):
        return np.zeros(len(numbers), bool)
    at = np.searchsorted(block, numbers)
    return np.asarray(block[np.minimum(at, len(block) - 1)] == numbers)
