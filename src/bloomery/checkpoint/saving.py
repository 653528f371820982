"""Save: plan, copy to host memory, write and flush, commit. Asynchronously only the first two hold training up.

    plan      who writes which chunk (planner)
    stage     this rank's chunks into one reused host buffer that is the image of its files (asynchronous saves)
    write     checksums and bytes into a few large files, flushed, several files at once
    commit    checksums to the first rank, the manifest, one rename; then `latest` and the retention of a folder

A synchronous save of CPU tensors writes from where they are, without a copy.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xxhash

import bloomery
from bloomery.checkpoint.comm import Comm, comm, forget
from bloomery.checkpoint.layout import bits, row_bytes
from bloomery.checkpoint.manifest import DATA, TABLE, Manifest, padded
from bloomery.checkpoint.planner import Planner, SavePlan, views
from bloomery.checkpoint.state import Flat, flatten
from bloomery.checkpoint.storage import Storage, storage, write_all
from bloomery.core.devices import free_memory
from bloomery.core.errors import CheckpointError, StorageError
from bloomery.core.files import explain_os_errors
from bloomery.core.log import logger

WRITERS = 4  # files written at once by a rank
SLACK = 1.02  # of the bytes to write, for the file system itself
SHARE = 0.9  # of the free memory that a copy of the state may take

log = logger("checkpoint")


class Handle:
    """A save under way. `staged` is done once training may go on, `committed` once the checkpoint is durable."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.staged: Future[None] = Future()
        self.committed: Future[None] = Future()
        self.timings: dict[str, float] = {}  # seconds of this rank: plan, stage, write, commit
        self.known_plan = False  # whether the plan was in the cache
        self.reported = False

    def wait(self) -> None:
        """Return when the checkpoint is durable; raise what went wrong, on every rank."""
        self.reported = True
        self.committed.result()


class Saver:
    """What saves have in common: the cache of plans, the host buffer, and the one save that may be under way."""

    def __init__(self) -> None:
        self.planner = Planner()
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._under_way: Handle | None = None
        self._thread: threading.Thread | None = None

    def save(
        self, to: Storage, state: Mapping[str, Any], ranks: Comm, *, asynchronous: bool, overwrite: bool,
        after: Callable[[], None] | None = None,
    ) -> Handle:  # fmt: skip
        """See `bloomery.checkpoint.save`; `after` runs on the first rank once the checkpoint is durable."""
        handle, clock = Handle(to.path), _Clock()
        failed: BaseException | None = None
        flat, draft = Flat(), ""
        try:
            self.finish()
            flat = flatten(state, ranks.rank, ranks.world)
        except Exception as error:
            failed = error
        rows, plan, handle.known_plan = self.planner.plan(flat.tensors, ranks, failed)
        try:
            if ranks.rank == 0:
                draft = to.begin(overwrite)
                _check_room(to, plan)
        except Exception as error:
            failed = explained(error, to.path)
        least, token = ranks.extremes(-1 if failed else int(draft or "0", 16))  # one number tells all ranks
        if least < 0:
            if draft:
                to.abort(draft)
            ranks.agree(failed)
        draft = f"{token:012x}"
        parts = views(flat.tensors, rows, plan.rows)
        handle.timings["plan"] = clock.lap()
        try:
            if asynchronous and (asynchronous := self._has_room(plan)):
                parts = self._stage(parts, plan)
        except Exception as error:
            failed = error  # told to the others when they have written
        handle.timings["stage"] = clock.lap()
        handle.staged.set_result(None)
        work = _Write(to, draft, parts, plan, _described(flat), ranks, handle, overwrite, after, failed)
        self._under_way = handle
        if asynchronous:
            self._thread = threading.Thread(target=work.run, name="checkpoint", daemon=True)
            self._thread.start()
        else:
            work.run()
            self.finish()
        return handle

    def finish(self) -> None:
        """Wait for the save under way; raise its error unless somebody has seen it."""
        handle, self._under_way = self._under_way, None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if handle is not None and not handle.reported:
            handle.wait()

    def _has_room(self, plan: SavePlan) -> bool:
        """Whether this machine can hold the copy; else the save is a synchronous one, which needs none."""
        needed, free = sum(plan.file_bytes) - len(self._buffer), free_memory()
        if needed < free * SHARE:
            return True
        log.warning("no memory for a copy of %.1f GB: training waits until it is written", needed / 1e9)
        return False

    def _stage(self, parts: list[torch.Tensor], plan: SavePlan) -> list[torch.Tensor]:
        """Copies of `parts` in the host buffer, each where it will be in its file; pinned where it comes from a GPU."""
        starts = np.cumsum([0, *plan.file_bytes])[plan.file] + plan.offset
        total, on_gpu = sum(plan.file_bytes), any(part.is_cuda for part in parts)
        if len(self._buffer) < total or self._buffer.is_pinned() != on_gpu:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # free it before the larger one is made
            self._buffer = torch.empty(total, dtype=torch.uint8, pin_memory=on_gpu)
        staged = []
        for part, start in zip(parts, starts.tolist(), strict=True):
            source = bits(part)
            room = self._buffer[start : start + source.numel() * source.element_size()]
            target = room.view(source.dtype).view(source.shape)
            target.copy_(source, non_blocking=True)
            staged.append(target)
        if on_gpu:
            torch.cuda.synchronize()
        return staged


class _Write:
    """The second half of a save, on the thread that calls `run`."""

    def __init__(
        self, to: Storage, draft: str, parts: list[torch.Tensor], plan: SavePlan, told: bytes, ranks: Comm,
        handle: Handle, overwrite: bool, after: Callable[[], None] | None, failed: BaseException | None,
    ) -> None:  # fmt: skip
        self.to, self.draft, self.parts, self.plan, self.told, self.failed = to, draft, parts, plan, told, failed
        self.ranks, self.handle, self.overwrite, self.after = ranks, handle, overwrite, after

    def run(self) -> None:
        """Write, then commit; the handle gets the outcome, the same on every rank."""
        try:
            self._run()
        except BaseException as error:
            if self.ranks.rank == 0 and self.draft:
                try:
                    self.to.abort(self.draft)
                except Exception as second:
                    log.warning("%s: what was written could not be removed: %s", self.to.path, second)
            self.handle.committed.set_exception(error)
        else:
            self.handle.committed.set_result(None)

    def _run(self) -> None:
        clock, failed = _Clock(), self.failed
        checksums = np.zeros(len(self.parts), np.uint64)
        try:
            numbers = range(0 if failed else len(self.plan.file_bytes))
            with ThreadPoolExecutor(max(1, min(WRITERS, len(numbers)))) as pool:
                list(pool.map(lambda number: self._file(number, checksums), numbers))
        except Exception as error:
            failed = error
        self.handle.timings["write"] = clock.lap()
        self.ranks.agree(explained(failed, self.to.path))
        timings = {**self.handle.timings, "bytes": sum(self.plan.file_bytes)}
        header = json.dumps(timings).encode()
        gathered = self.ranks.gather(_framed(header, self.told, checksums.tobytes()))
        if gathered is not None:
            try:
                self._commit(gathered)
            except Exception as error:
                failed = error
        self.ranks.agree(explained(failed, self.to.path))
        self.draft = ""  # it is a checkpoint now
        if self.ranks.rank == 0 and self.after is not None:
            try:
                self.after()
            except Exception as error:
                failed = error
        self.ranks.agree(explained(failed, self.to.path))
        self.handle.timings["commit"] = clock.lap()

    def _file(self, number: int, checksums: np.ndarray) -> None:
        """Write one data file: chunks with their padding, each under its checksum."""
        name = f"{DATA}/{self.ranks.rank:05d}-{number}.bin"
        with self.to.create(self.draft, name) as file:
            for i in np.flatnonzero(self.plan.file == number).tolist():
                data = row_bytes(self.parts[i]).data
                padding = bytes(padded(len(data)) - len(data))
                check = xxhash.xxh3_64(data)
                check.update(padding)
                checksums[i] = check.intdigest()
                write_all(file, data)
                if padding:
                    write_all(file, memoryview(padding))
        if self.to.size(self.draft, name) != self.plan.file_bytes[number]:
            raise StorageError(f"{name} is shorter than what was written", where=self.to.path)

    def _commit(self, gathered: list[bytes]) -> None:
        assert self.plan.chunks is not None
        parts = [_unframed(message) for message in gathered]
        chunks = replace(self.plan.chunks, checksum=np.concatenate([np.frombuffer(c, np.uint64) for *_, c in parts]))
        values, aliases = _merged([json.loads(zlib.decompress(told)) for _, told, _ in parts])
        counters: dict[int, int] = {}
        files = []
        for rank, size in self.plan.files:
            files.append((f"{DATA}/{rank:05d}-{counters.setdefault(rank, 0)}.bin", size))
            counters[rank] += 1
        ranks = [json.loads(header) for header, *_ in parts]
        about = {
            "bloomery": bloomery.__version__, "torch": torch.__version__, "world": len(parts),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        manifest, table = Manifest(self.plan.tensors, chunks.by_tensor(), files, values, aliases, ranks, about).dump()
        with self.to.create(self.draft, TABLE) as file:
            write_all(file, memoryview(table))
        if self.to.size(self.draft, TABLE) != len(table):
            raise StorageError(f"{TABLE} is shorter than what was written", where=self.to.path)
        self.to.commit(self.draft, manifest, self.overwrite)


_saver = Saver()


@atexit.register
def _leave() -> None:
    """Before the interpreter is taken down: the last save ends, and gloo's threads with its groups."""
    try:
        _saver.finish()
    finally:
        forget()


def save(
    path: str | os.PathLike[str] | Storage, state: Mapping[str, Any], *, asynchronous: bool = False,
    overwrite: bool = False, group: Any = None,
) -> Handle:  # fmt: skip
    """Write `state` as the checkpoint `path`: all of it is there afterwards, or nothing.

    `state` maps keys to modules, optimisers, objects with `state_dict()`, tensors in any layout, or plain values; every
    rank of `group` calls this with its part. Asynchronously it returns as soon as the state has been copied, so
    training may change it; a failure is raised by `handle.wait()`, or else by the next `save` or `load`.

    Raises:
        CheckpointError: ranks that disagree, boxes that overlap or leave holes, values that only pickle could store, a
            path that holds a checkpoint, another writer.
        StorageError: a full, read-only or failing disk; what was there before is untouched.
    """
    to = storage(path) if isinstance(path, str | os.PathLike) else path
    return save_to(to, state, asynchronous=asynchronous, overwrite=overwrite, group=group)


def save_to(
    to: Storage, state: Mapping[str, Any], *, asynchronous: bool = False, overwrite: bool = False, group: Any = None,
    after: Callable[[], None] | None = None,
) -> Handle:  # fmt: skip
    """`save` to a storage; `after` runs on the first rank between the commit and `handle.committed`."""
    return _saver.save(to, state, comm(group), asynchronous=asynchronous, overwrite=overwrite, after=after)


def finish() -> None:
    """Wait for an asynchronous save that is under way and raise its error if nobody has seen it."""
    _saver.finish()


def _described(flat: Flat) -> bytes:
    """Values and aliases, fixed at this moment: training goes on and changes them."""
    return zlib.compress(json.dumps([flat.values, flat.aliases]).encode("utf-8", "surrogatepass"), 1)


def _merged(told: list[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """One set of values for all ranks: what several ranks have must be equal."""
    values: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    owner: dict[str, int] = {}
    for rank, (its_values, its_aliases) in enumerate(told):
        for name, value in its_values.items():
            if values.setdefault(name, value) != value:
                what = f"{name} differs between ranks {owner[name]} and {rank}"
                raise CheckpointError(what, fix="make it equal, or wrap it in PerRank or Rows")
            owner.setdefault(name, rank)
        aliases |= its_aliases
    return values, aliases


def _check_room(to: Storage, plan: SavePlan) -> None:
    needed, free = sum(size for _, size in plan.files), to.free_bytes()
    if free is not None and needed * SLACK > free:
        what = f"the checkpoint needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
        raise StorageError(what, where=to.path, fix="free some space, or keep fewer checkpoints")


def explained(error: BaseException | None, path: str) -> BaseException | None:
    """An error of the system as one line that names the checkpoint."""
    if not isinstance(error, OSError):
        return error
    try:
        with explain_os_errors(path):
            raise error
    except StorageError as clear:
        return clear
    except OSError:
        return StorageError(f"{type(error).__name__}: {error}"[:300], where=path)


def _framed(*parts: bytes) -> bytes:
    return np.array([len(part) for part in parts], np.int64).tobytes() + b"".join(parts)


def _unframed(message: bytes) -> list[bytes]:
    ends = 24 + np.cumsum(np.frombuffer(message, np.int64, 3))
    return [message[a:b] for a, b in zip([24, *ends.tolist()], ends.tolist(), strict=False)]


class _Clock:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.at = self.at, time.perf_counter()
        return round(self.at - before, 6)
