"""Units of work on a Ray cluster: an existing one by its address, or a local one that lives as long as the run.

One unit is one Ray task. That is all we need of Ray: results are files and not objects, so Ray Data's blocks and
shuffles have no part in it, and a unit that runs here writes the bytes that it writes in this process or in a pool.
What Ray brings is the machines: it places the tasks, and begins one anew when its worker or its node is lost.

- The input and output folders must lie where every node sees them (a network file system, a mounted bucket); a task
  that does not find the run's folder says so.
- Barriers decide in the driver.
- At most `workers` units are in flight, so that neither Ray's queue nor its object store grows with the corpus.
- A unit is begun `ATTEMPTS` times before the death of its workers is put down to its file.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bloomery.core.errors import BloomeryError, ConfigError, StorageError, require
from bloomery.corpus.pool import ATTEMPTS, Progress, death, pickled, portable
from bloomery.corpus.unit import Job, Reader, Segment, process


class RayCluster:
    """Does up to `workers` units at a time (by default as many as the cluster has processors).

    Args:
        segments: what is to be done, see `unit.Segment`.
        read: path -> iterator of document batches.
        workers: most units in flight; also the size of a local cluster.
        address: of a running cluster ("auto", "host:6379", "ray://host:10001"); None starts a local one, or uses the
            one that this process is already connected to and leaves it running.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster answers at `address`; steps or reader cannot be pickled.
        BloomeryError: what a task raised, or that its workers kept dying, naming the file.
    """

    def __init__(
        self, segments: Sequence[Segment], read: Reader, workers: int | None = None, address: str | None = None
    ) -> None:
        payload = pickled(segments, read)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # says what a coming version will do
        self._ray: Any = require("ray", "ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            connect(self._ray, address, workers)
        self._limit = workers or max(int(self._ray.cluster_resources().get("CPU", 1)), 1)
        self._payload = self._ray.put((sys.path, payload))  # as a spawned process gets it: steps are found by name
        options = {"num_cpus": 1, "max_retries": ATTEMPTS - 1}  # Ray itself begins a task anew when its worker dies
        self._task = self._ray.remote(**options)(_do)

    def run(self, segment: int, jobs: Sequence[Job], progress: Progress) -> Iterator[Job]:
        """Do the segment's jobs; yield each when it is finished, in any order."""
        waiting = list(reversed(jobs))
        busy: dict[Any, Job] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._limit:
                    job = waiting.pop()
                    busy[self._task.remote(self._payload, segment, job)] = job
                (ready, *_), _ = self._ray.wait(list(busy), num_returns=1)
                job = busy.pop(ready)
                result = self._result(ready, job)
                progress(result)
                yield job
        finally:  # an error or the caller's break: nobody waits for the others any more
            for task in busy:
                self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave the cluster; a local one that was started here ends."""
        if self._ours:
            self._ray.shutdown()

    def _result(self, task: Any, job: Job) -> int:
        """The number of documents that the task read; raises what went wrong."""
        try:
            result = self._ray.get(task)
        except self._ray.exceptions.OutOfMemoryError as error:
            raise BloomeryError(
                "Ray stopped the worker that read this file, again and again, because its machine ran out of memory",
                where=job.source,
                fix="use fewer workers; finished files are kept, run the same command again",
            ) from error
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError) as error:
            raise death(None, job) from error
        if isinstance(result, BaseException):
            raise result
        return int(result)


def connect(ray: Any, address: str | None, workers: int | None) -> None:
    """Connect to the cluster at `address`, or start a local one for `workers` tasks at a time."""
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        count = workers or len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=count, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(
            f"no Ray cluster there: {' '.join(str(error).split())}",
            where=address,
            fix="start one with `ray start --head`, or leave the address out for a local one",
        ) from error


def _do(payload: tuple[list[str], bytes], segment: int, job: Job) -> int | BaseException:
    """The task: the number of documents read, or the error as a value, so that Ray does not wrap it."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    run = job.record.parent.parent / "run.json"
    if not run.exists():
        return StorageError(
            f"the run's folder is not to be seen from the machine {os.uname().nodename}",
            where=run.parent.parent,
            fix="put inputs and outputs where every node of the cluster sees them",
        )
    places, code = payload
    sys.path += [place for place in places if place not in sys.path]
    documents = 0

    def count(more: int) -> None:
        nonlocal documents
        documents += more

    try:
        segments, read = pickle.loads(code)
        process(job, segments[segment], read, count)
    except BaseException as error:
        return portable(error, job)
    return documents
