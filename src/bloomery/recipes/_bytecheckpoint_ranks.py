"""Processes that stay: they form worlds of one size after another, so that one start serves every measurement.

A measurement is a module-level function `f(rank, world, *args)`, called by all ranks of a world; what each returns
comes back. Between two measurements the process group is destroyed and made anew, as a restarted job would.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bloomery.core.errors import BloomeryError

TIMEOUT = 300.0  # seconds that one measurement may take


class Ranks:
    """`count` processes with PyTorch loaded, started when they are needed. No process outlives the context."""

    def __init__(self, count: int, timeout: float = TIMEOUT) -> None:
        self.count, self.timeout = count, timeout

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="ranks-")
        self._groups = 0
        self._pipes: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs), name=f"rank-{rank}")
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # an idle rank leaves then
        for process in self._processes:
            process.join(0.0 if kind else 20.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._scratch.cleanup()

    def run(self, world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(rank, world, *args)` on the first `world` ranks, joined over gloo: their results by rank.

        Raises:
            BloomeryError: a rank raised (its traceback is told), died, or took longer than the timeout.
        """
        if not self._processes:
            self._start()
        self._groups += 1
        store = str(Path(self._scratch.name) / f"group-{self._groups}")
        for pipe in self._pipes[:world]:
            pipe.send((world, store, function, args))
        results: dict[int, Any] = {}
        deadline = time.monotonic() + self.timeout
        while len(results) < world:
            waiting = [pipe for rank, pipe in enumerate(self._pipes[:world]) if rank not in results]
            ready: list[Any] = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BloomeryError(f"{function.__name__} on {world} ranks took longer than {self.timeout:.0f} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    done, value = pipe.recv()
                except EOFError:
                    raise BloomeryError(f"{function.__name__}: rank {rank} of {world} died") from None
                if not done:
                    raise BloomeryError(f"{function.__name__}: rank {rank} of {world} failed:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(world)]


def _serve(rank: int, pipe: Connection) -> None:
    """Wait for measurements until the pipe is closed."""
    import torch
    import torch.distributed as dist

    from bloomery import checkpoint

    torch.set_num_threads(1)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # remarks on the speed of tiny redistributions
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)  # views that nobody writes into
    while True:
        try:
            world, store, function, args = pipe.recv()
        except EOFError:
            sys.exit(0)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.device_count() >= world > 1 else "gloo"
        try:
            dist.init_process_group(
                backend, init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=TIMEOUT)
            )
            answer = True, function(rank, world, *args)
            checkpoint.finish()
        except Exception:
            answer = False, traceback.format_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        try:
            pipe.send(answer)
        except BrokenPipeError:  # another rank's failure has ended the run
            sys.exit(1)
