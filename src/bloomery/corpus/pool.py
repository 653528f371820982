"""Who does the units of work: this process, or worker processes that say exactly which file killed one of them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.corpus.unit import Job, Reader, Segment, process

Progress = Callable[[int], None]  # told how many more documents have been read


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
        BloomeryError: what a worker raised, or that a worker died, naming the file. What was finished stays.
    """

    def __init__(self, segments: Sequence[Segment], read: Reader, workers: int) -> None:
        try:
            self._payload = pickle.dumps((tuple(segments), read))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"steps and reader must be importable by worker processes: {error}",
                fix='define them at module level, or use engine="inline"',
            ) from error
        self._context = multiprocessing.get_context("spawn")
        self._limit = workers
        self._workers: dict[Connection, BaseProcess] = {}

    def run(self, segment: int, jobs: Sequence[Job], progress: Progress) -> Iterator[Job]:
        """Do the segment's jobs; yield each when it is finished, in any order."""
        waiting = list(reversed(jobs))
        busy: dict[Connection, Job] = {}
        while len(self._workers) < min(self._limit, len(jobs)):
            self._start()
        idle = list(self._workers)
        while waiting or busy:
            while waiting and idle:
                connection = idle.pop()
                busy[connection] = waiting.pop()
                with suppress(BrokenPipeError):  # died before its first job; noticed when its answer is read
                    connection.send((segment, busy[connection]))
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                try:
                    message = ready.recv()
                except (EOFError, ConnectionResetError):
                    self._workers[ready].join()
                    raise _death(self._workers[ready].exitcode, busy[ready]) from None
                if isinstance(message, int):
                    progress(message)
                elif isinstance(message, BaseException):
                    raise message
                else:
                    idle.append(ready)
                    yield busy.pop(ready)

    def close(self) -> None:
        """Stop all workers, whatever they are doing."""
        for connection, worker in self._workers.items():
            worker.kill()
            worker.join()
            connection.close()
        self._workers.clear()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        worker: BaseProcess = self._context.Process(target=_work, args=(theirs, self._payload), daemon=True)
        worker.start()
        theirs.close()  # so that the worker's death is the end of the stream
        self._workers[ours] = worker


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
            connection.send(_portable(error, job))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: BaseException, job: Job) -> BaseException:
    """The error itself where it survives pickling, else its traceback as text."""
    if isinstance(error, BloomeryError):
        return error
    text = "".join(traceback.format_exception(error))
    return BloomeryError(f"a step failed: {error!r}\n{text}", where=job.source)


def _death(code: int | None, job: Job) -> BloomeryError:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "the system probably ran out of memory: use fewer workers; " if name == "SIGKILL" else ""
        return BloomeryError(
            f"the worker process was killed by {name} while it read this file",
            where=job.source,
            fix=hint + "finished files are kept, run the same command again",
        )
    return BloomeryError(
        f"the worker process ended with exit code {code} before it finished this file",
        where=job.source,
        fix='finished files are kept; a script that calls run(engine="processes") needs `if __name__ == "__main__":`',
    )
