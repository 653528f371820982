"""Who does the units of work: this process, or worker processes. (`ray_pool` has the third: a Ray cluster.)

A worker process that dies (out of memory, a crash in a library, the administrator's hand) costs the unit it was doing,
which leaves nothing behind: another process does it again, `ATTEMPTS` times in all. Then the file itself is the likely
cause, and the run ends with an error that names it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.core.log import logger
from bloomery.corpus.unit import Job, Reader, Segment, process

Progress = Callable[[int], None]  # told how many more documents have been read; fewer than none when a unit was lost
ATTEMPTS = 3  # times that a unit is begun before a worker's death is put down to its file


class Pool(Protocol):
    """Does units of work, up to some number at a time."""

    def run(self, segment: int, jobs: Sequence[Job], progress: Progress) -> Iterator[Job]:
        """Do the segment's jobs; yield each when it is finished, in any order."""

    def close(self) -> None:
        """Stop all work at once."""


class Inline:
    """Does the units one after the other in this process."""

    def __init__(self, segments: Sequence[Segment], read: Reader) -> None:
        self._segments, self._read = segments, read

    def run(self, segment: int, jobs: Sequence[Job], progress: Progress) -> Iterator[Job]:
        """Do the segment's jobs; yield each when it is finished."""
        for job in jobs:
            process(job, self._segments[segment], self._read, progress)
            yield job

    def close(self) -> None:
        """Nothing to stop."""


class Processes:
    """Does up to `workers` units at a time, each in a process of its own; processes stay for the next segment.

    Raises:
        BloomeryError: what a worker raised, or that workers kept dying, naming the file. What was finished stays.
    """

    def __init__(self, segments: Sequence[Segment], read: Reader, workers: int) -> None:
        self._payload = pickled(segments, read)
        self._context = multiprocessing.get_context("spawn")
        self._limit = workers
        self._workers: dict[Connection, BaseProcess] = {}

    def run(self, segment: int, jobs: Sequence[Job], progress: Progress) -> Iterator[Job]:
        """Do the segment's jobs; yield each when it is finished, in any order."""
        waiting = list(reversed(jobs))
        busy: dict[Connection, Job] = {}
        begun, told = Counter[Job](), Counter[Job]()  # attempts, and documents reported by the running one
        idle = list(self._workers)
        while waiting or busy:
            while waiting and (idle or len(self._workers) < self._limit):
                connection = idle.pop() if idle else self._start()
                job = busy[connection] = waiting.pop()
                begun[job] += 1
                with suppress(BrokenPipeError):  # died before its first job; noticed when its answer is read
                    connection.send((segment, job))
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                job = busy[ready]
                try:
                    message = ready.recv()
                except (EOFError, ConnectionResetError):
                    code = self._bury(ready)
                    if begun[job] == ATTEMPTS:
                        raise death(code, job) from None
                    logger("corpus").warning("%s: a worker died (exit code %s); doing it again", job.source, code)
                    progress(-told.pop(job, 0))
                    waiting.append(busy.pop(ready))
                    continue
                if isinstance(message, int):
                    told[job] += message
                    progress(message)
                elif isinstance(message, BaseException):
                    raise message
                else:
                    idle.append(ready)
                    yield busy.pop(ready)

    def close(self) -> None:
        """Stop all workers, whatever they are doing."""
        for worker in self._workers.values():
            worker.kill()
        for connection in list(self._workers):
            self._bury(connection)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        worker: BaseProcess = self._context.Process(target=_work, args=(theirs, self._payload), daemon=True)
        worker.start()
        theirs.close()  # so that the worker's death is the end of the stream
        self._workers[ours] = worker
        return ours

    def _bury(self, connection: Connection) -> int | None:
        """Forget a worker that is dead or dying; its exit code."""
        worker = self._workers.pop(connection)
        worker.join()
        connection.close()
        return worker.exitcode


def pickled(segments: Sequence[Segment], read: Reader) -> bytes:
    """What a worker needs to know, or a `ConfigError` about steps that cannot travel."""
    try:
        return pickle.dumps((tuple(segments), read))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"steps and reader must be importable by worker processes: {error}",
            fix='define them at module level, or use engine="inline"',
        ) from error


def _work(connection: Connection, payload: bytes) -> None:
    """A worker: takes jobs until the other end closes; sends counts of documents, then "done" or the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import pyarrow as pa

    pa.set_cpu_count(1)
    segments, read = pickle.loads(payload)
    while True:
        try:
            segment, job = connection.recv()
        except EOFError:
            return
        try:
            process(job, segments[segment], read, connection.send)
            connection.send("done")
        except BaseException as error:
            connection.send(portable(error, job))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def portable(error: BaseException, job: Job) -> BaseException:
    """The error itself where it survives pickling, else its traceback as text."""
    if isinstance(error, BloomeryError):
        return error
    text = "".join(traceback.format_exception(error))
    return BloomeryError(f"a step failed: {error!r}\n{text}", where=job.source)


def death(code: int | None, job: Job) -> BloomeryError:
    """The error for a file on which every worker died; `code` is the last one's exit code, None where unknown."""
    if code is None or code < 0:
        killed = f"killed by {signal.Signals(-code).name}" if code else "lost"
        memory = "the system probably ran out of memory: use fewer workers; " if code in (None, -signal.SIGKILL) else ""
        return BloomeryError(
            f"the worker process was {killed} while it read this file, {ATTEMPTS} times",
            where=job.source,
            fix=memory + "finished files are kept, run the same command again",
        )
    return BloomeryError(
        f"the worker process ended with exit code {code} before it finished this file, {ATTEMPTS} times",
        where=job.source,
        fix='finished files are kept; a script that calls run(engine="processes") needs `if __name__ == "__main__":`',
    )
