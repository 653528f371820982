"""A frontier on disk: hundreds of millions of waiting pages in the memory of one buffer.

The waiting pages are sorted runs of (key, page), as in external sorting: pushes are buffered in memory, sorted, and
spilled as a file when the buffer is full; the best `count` pages are among the first `count` of every run, so
`pop_best` looks at these alone. Runs are merged when there are many of them. Two `DiskSet`s know which pages were ever
pushed and which were handed out. The order is that of `HeapFrontier`, ties by number included.

Memory: the buffers of pushes and of the two sets, a block per run, and some 200 bytes for each page that waits with a
new score; raters that follow links (`SeenInLinks`, `ParentScore`) give new scores to most pages, and then this grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.files import explain_os_errors, read_json, write_json
from bloomery.web.scheduling.disk_set import BLOCK, DiskSet, check_length, merge, ordered, read_blocks, write
from bloomery.web.scheduling.frontier import PageId

RECORD = np.dtype([("key", "<f8"), ("page", "<u8")])  # sorts by key (the better the smaller), then page
MAX_RUNS = 16  # files, before they become one
BATCH = 1 << 16  # pages pushed one by one, before they are sorted in
FORMAT = 1
MANIFEST = "frontier.json"


@dataclass
class _Run:
    """Sorted records, in memory or (with a `path`) on disk: those from number `start` on still wait."""

    length: int
    start: int = 0
    path: Path | None = None
    block: np.ndarray | None = None  # all records, or those of the file from number `offset` on
    offset: int = 0

    def first(self, count: int) -> np.ndarray:
        """The next `count` records, fewer at the end."""
        stop = min(self.start + count, self.length)
        if self.path is not None and (self.block is None or stop > self.offset + len(self.block)):
            self.block, self.offset = None, self.start
            self.block = np.fromfile(self.path, RECORD, max(count, BLOCK // 8), offset=self.start * RECORD.itemsize)
        assert self.block is not None
        return self.block[self.start - self.offset : stop - self.offset]

    def blocks(self) -> Iterator[np.ndarray]:
        """All waiting records."""
        if self.path is not None:
            return read_blocks(self.path, RECORD, self.start)
        assert self.block is not None
        return iter([self.block[self.start :]])


class DiskFrontier:
    """A `Frontier` of pages that are numbers below 2^64, e.g. `hash64` of addresses, in the folder `folder`.

    A page that was handed out is done: pushing it again has no effect. `save` makes what was pushed and popped so far
    outlast the process; opened again, the frontier is as it was saved, whatever happened since.

    Args:
        order: "desc" (high scores first) or "asc".
        memory: pages buffered in memory; 16 bytes each, and about as much again while they are sorted.

    Raises:
        ConfigError: the folder holds a frontier of another order.
        StorageError: files of it are missing or damaged; the disk is full.
    """

    def __init__(self, folder: Path | str, order: str = "desc", memory: int = 1 << 20) -> None:
        if order not in ("desc", "asc"):
            raise ConfigError(f"order={order!r}", fix="desc or asc")
        self.folder, self.order, self.memory = Path(folder), order, memory
        self._sign = {"desc": -1.0, "asc": 1.0}[order]
        self._pages: list[int] = []  # pushed, not sorted yet
        self._new_scores: list[float] = []
        self._runs: list[_Run] = []
        self._latest: dict[int, tuple[float, int]] = {}  # pages pushed again: key that counts, records in runs
        self._serial = 0
        self._saved: set[str] = set()  # files that the state on disk needs
        with explain_os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._seen = DiskSet(self.folder, "seen", memory)
        self._done = DiskSet(self.folder, "done", memory)
        if (self.folder / MANIFEST).exists():
            self._restore(read_json(self.folder / MANIFEST))
        self._remove_others()

    def push(self, page: PageId, score: float) -> None:
        """Add a page, or give one that is waiting a new score."""
        if score != score:
            raise DataError("the score is not a number", where=f"page {page}", fix="check the scorer")
        if not isinstance(page, int) or not 0 <= page < 1 << 64:
            raise DataError(f"page {page!r} is no number below 2^64", fix="push hash64 of its address")
        self._pages.append(page)
        self._new_scores.append(score)
        if len(self._pages) >= min(self.memory, BATCH):
            self._sort_in()

    def push_many(self, pages: np.ndarray, scores: np.ndarray) -> None:
        """Add many pages (uint64) at once: the same as pushing one after the other."""
        if np.isnan(scores).any():
            raise DataError("a score is not a number", where=f"page {pages[np.isnan(scores)][0]}")
        self._sort_in()
        for i in range(0, len(pages), self.memory):
            self._insert(pages[i : i + self.memory].astype(np.uint64), scores[i : i + self.memory].astype(np.float64))

    def pop_best(self, count: int) -> list[PageId]:
        """Take out the `count` best pages, the best one first; fewer when fewer are left."""
        self._sort_in()
        best: list[np.ndarray] = []
        missing = count
        while missing and self._runs:
            parts = [run.first(missing) for run in self._runs]
            records = np.concatenate(parts)
            owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            taken = np.lexsort((records["page"], records["key"]))[:missing]
            for run, used in zip(self._runs, np.bincount(owner[taken], minlength=len(parts)).tolist(), strict=True):
                run.start += used
            self._runs = [run for run in self._runs if run.start < run.length]
            pages = self._current(records[taken])
            best.append(pages)
            missing -= len(pages)
        result = np.concatenate(best) if best else np.empty(0, np.uint64)
        self._done.add(np.sort(result))
        return result.tolist()

    def __len__(self) -> int:
        self._sort_in()
        return len(self._seen) - len(self._done)

    def __iter__(self) -> Iterator[tuple[PageId, float]]:
        self._sort_in()
        told: set[int] = set()
        for run in self._runs:
            for block in run.blocks():
                for key, page in block.tolist():
                    if page not in self._latest:
                        yield page, self._sign * key
                    elif key == self._latest[page][0] and page not in told:
                        told.add(page)
                        yield page, self._sign * key

    # --- pushes -------------------------------------------------------------------------------------------------------

    def _sort_in(self) -> None:
        """Make a run of what was pushed one by one."""
        if self._pages:
            pages, scores = np.array(self._pages, np.uint64), np.array(self._new_scores)
            self._pages, self._new_scores = [], []
            self._insert(pages, scores)

    def _insert(self, pages: np.ndarray, scores: np.ndarray) -> None:
        """A run of one batch, of which the last score of a page counts."""
        pages, last = np.unique(pages[::-1], return_index=True)
        keys = self._sign * scores[::-1][last]
        known = self._seen.contains(pages)
        waits = known.copy()
        waits[known] = ~self._done.contains(pages[known])
        for page, key in zip(pages[waits].tolist(), keys[waits].tolist(), strict=True):
            self._latest[page] = (key, self._latest.get(page, (key, 1))[1] + 1)
        self._seen.add(pages[~known])
        kept = waits | ~known
        records = np.empty(int(kept.sum()), RECORD)
        records["key"], records["page"] = keys[kept], pages[kept]
        self._add_run(ordered(records))

    def _add_run(self, records: np.ndarray) -> None:
        """One more run in memory; merged with those of about its length, and spilled when memory is full."""
        if not len(records):
            return
        inside = [run for run in self._runs if run.path is None]
        while inside and inside[-1].length - inside[-1].start < 2 * len(records):
            run = inside.pop()
            self._runs.remove(run)
            records = ordered(np.concatenate((*run.blocks(), records)))
        self._runs.append(_Run(len(records), block=records))
        if sum(run.length for run in self._runs if run.path is None) >= self.memory:
            self._spill()

    def _spill(self) -> None:
        """Write what is in memory as one file; make one of all files when there are too many."""
        inside = [run for run in self._runs if run.path is None]
        outside = [run for run in self._runs if run.path is not None]
        if inside:
            outside.append(self._write([ordered(np.concatenate([b for run in inside for b in run.blocks()]))]))
        if len(outside) > MAX_RUNS:
            outside = [self._write(merge([run.blocks() for run in outside]))]
        self._runs = outside
        self._remove_others()

    def _write(self, blocks: Iterable[np.ndarray]) -> _Run:
        path = self.folder / f"run-{self._serial}"
        self._serial += 1
        with explain_os_errors(self.folder):
            return _Run(write(path, blocks), path=path)

    def _current(self, records: np.ndarray) -> np.ndarray:
        """The pages of records that are not out of date, in order."""
        pages = records["page"]
        if not self._latest:
            return pages
        keep = np.ones(len(records), bool)
        for i, (key, page) in enumerate(records.tolist()):
            if page in self._latest:
                counts, left = self._latest[page]
                keep[i] = key == counts
                # once handed out, no key counts: NaN equals none
                self._latest[page] = (float("nan") if keep[i] else counts, left - 1)
                if left == 1:
                    del self._latest[page]
        return pages[keep]

    # --- saving -------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Make the frontier outlast this process as it is now."""
        self._sort_in()
        self._spill()
        self._seen.flush()
        self._done.flush()
        latest = [[page, None if key != key else key, left] for page, (key, left) in sorted(self._latest.items())]
        runs = [[run.path.name, run.length, run.start] for run in self._runs if run.path is not None]
        state = {"format": FORMAT, "order": self.order, "serial": self._serial, "runs": runs, "latest": latest}
        write_json(self.folder / MANIFEST, state | {"seen": self._seen.files, "done": self._done.files})
        self._saved = self._used()
        self._remove_others()

    def _restore(self, state: dict[str, Any]) -> None:
        for key, value in (("format", FORMAT), ("order", self.order)):
            if state.get(key) != value:
                raise ConfigError(f"{key} there {state.get(key)}, now {value}", where=self.folder, fix="begin anew")
        self._serial = state["serial"]
        for name, length, start in state["runs"]:
            check_length(self.folder / name, RECORD.itemsize * length)
            self._runs.append(_Run(length, start, self.folder / name))
        self._latest = {page: (float("nan") if key is None else key, left) for page, key, left in state["latest"]}
        self._seen.restore(state["seen"])
        self._done.restore(state["done"])
        self._saved = self._used()

    def _used(self) -> set[str]:
        return {run.path.name for run in self._runs if run.path is not None} | {*self._seen.files, *self._done.files}

    def _remove_others(self) -> None:
        """Delete files of this frontier that neither the saved nor the present state needs."""
        keep = self._used() | self._saved
        for kind in ("run", "seen", "done"):
            for path in self.folder.glob(f"{kind}-*"):
                if path.name not in keep:
                    path.unlink()
