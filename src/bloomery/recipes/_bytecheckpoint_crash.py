"""Two ways to lose a checkpoint: the job is killed while it saves, and a bit flips on the disk.

    kills    a job of two ranks saves asynchronously, step after step; SIGKILL hits one rank or both at a random
             moment. Then the newest checkpoint must be the newest that was reported durable, or a later one, and every
             number in every checkpoint that a reader accepts must be that of its step
    flips    one bit of a checkpoint is turned over, everywhere alike; what loads must be what was saved, or nothing

Jobs are forked by a process that has loaded PyTorch and started no thread, so that one costs milliseconds.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bloomery import checkpoint
from bloomery.checkpoint import Checkpoints
from bloomery.core.errors import BloomeryError
from bloomery.core.seeds import generator, rng

RANKS, KEPT = 2, 3
PARTS = 4  # tensors of the state; half of them on each rank, one on both
LONGEST = 120.0  # seconds for a job to report its first checkpoint
ROWS = 64


# ---------------------------------------------------------------------------------------------------------------- kills


def kills(folder: Path, count: int, elements: int, seed: int) -> dict[str, Any]:
    """Run `count` jobs in a fresh interpreter, kill each, judge what is left."""
    told = json.dumps({"folder": str(folder), "count": count, "elements": elements, "seed": seed})
    command = [sys.executable, "-c", f"from {__name__} import forker; forker()", told]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise BloomeryError(f"the kill test failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def forker() -> None:
    """Fork the jobs, one after another, and say what came of them."""
    told = json.loads(sys.argv[-1])
    torch.set_num_threads(1)
    random, trials = rng(told["seed"], "kills"), []
    for number in range(told["count"]):
        place = Path(told["folder"]) / f"trial-{number}"
        place.mkdir(parents=True)
        victims = [[0], [1], [0, 1]][number % 3]
        trials.append(trial(place, victims, float(random.random()), told["elements"]))
        shutil.rmtree(place)
    print(json.dumps({"trials": trials}))


def trial(place: Path, victims: list[int], moment: float, elements: int) -> dict[str, Any]:
    """One job: killed at `moment` (0 … 1) of the time that two saves take after the second was reported durable."""
    read, write = os.pipe()
    ranks = [forked(lambda rank=rank: job(rank, place, write, elements)) for rank in range(RANKS)]  # type: ignore[misc]
    os.close(write)
    reports: list[tuple[int, float]] = []
    with os.fdopen(read, "rb", buffering=0) as pipe:
        lines = reported(pipe)
        while len(reports) < 2:
            reports.append((next(lines), time.monotonic()))
        time.sleep(moment * 2 * (reports[1][1] - reports[0][1]))
        for rank in victims:
            os.kill(ranks[rank], signal.SIGKILL)
        for rank, process in enumerate(ranks):  # without its partner a rank cannot go on
            if rank not in victims:
                time.sleep(0.05)
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        last = max([step for step, _ in reports] + list(lines))
    inside, outside = os.pipe()
    judge = forked(lambda: os.write(outside, json.dumps(judged(place, elements)).encode()))
    os.close(outside)
    with os.fdopen(inside, "rb") as pipe:
        found = json.loads(pipe.read() or b"{}")
    os.waitpid(judge, 0)
    return {"victims": victims, "moment": moment, "reported": last} | found


def job(rank: int, place: Path, pipe: int, elements: int) -> None:
    """A rank that saves for ever: what step n holds follows from n alone."""
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=RANKS)
    found, state, step = Checkpoints(place / "run", keep_last=KEPT), numbers(1, elements, rank), 1
    while True:
        handle = found.save(step, state, asynchronous=True)
        fill(state, numbers(step + 1, elements, rank))  # training goes on while the step before is written
        handle.wait()
        if rank == 0:
            os.write(pipe, b"%d\n" % step)
        step += 1


def fill(state: dict[str, Any], new: dict[str, Any]) -> None:
    """Overwrite the state in the memory where it is."""
    for name, value in new.items():
        if name == "step":
            state[name] = value
        else:
            local(state[name]).copy_(local(value))


def numbers(step: int, elements: int, rank: int) -> dict[str, Any]:
    """The state of a rank at a step: rows of large tensors, one that both have, the number itself."""
    rows, width = ROWS, max(1, elements // ROWS)
    state: dict[str, Any] = {"step": step, "shared": torch.full((width,), float(step))}
    half = rows // RANKS
    for part in range(PARTS):
        values = torch.arange(half * width, dtype=torch.float32).view(half, width) + half * width * rank
        state[f"part{part}"] = checkpoint.Shard(values * (part + 1) + step, (half * rank, 0), (rows, width))
    return state


def local(value: Any) -> torch.Tensor:
    """The memory of a shard or a tensor."""
    return value.data


def judged(place: Path, elements: int) -> dict[str, Any]:
    """What a reader finds: the newest step, and how many checkpoints it would accept that are not as they were."""
    checkpoints = Checkpoints(place / "run")
    accepted, wrong = [], []
    for step in checkpoints.steps():
        state: dict[str, Any] = {"step": 0, "shared": torch.zeros(max(1, elements // ROWS))}
        state |= {f"part{part}": torch.zeros(ROWS, max(1, elements // ROWS)) for part in range(PARTS)}
        try:
            checkpoint.load(checkpoints.at(step), state)
        except BloomeryError:
            continue
        accepted.append(step)
        parts = [numbers(step, elements, rank) for rank in range(RANKS)]
        right = state["step"] == step and torch.equal(state["shared"], parts[0]["shared"])
        for part in range(PARTS):
            whole = torch.cat([local(each[f"part{part}"]) for each in parts])
            right = right and torch.equal(state[f"part{part}"], whole)
        if not right:
            wrong.append(step)
    return {"latest": checkpoints.latest(), "accepted": accepted, "wrong": wrong}


def forked(function: Callable[[], Any]) -> int:
    """The process that runs `function` and ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return child


def reported(pipe: Any) -> Iterator[int]:
    """Steps that the job says are durable, until no process is left that could say more."""
    left = b""
    while select.select([pipe], [], [], LONGEST)[0]:
        data = pipe.read(4096)
        if not data:
            return
        *lines, left = (left + data).split(b"\n")
        yield from map(int, lines)
    raise BloomeryError(f"a job has reported no checkpoint for {LONGEST:.0f} s")


# ---------------------------------------------------------------------------------------------------------------- flips


def flips(folder: Path, count: int, elements: int, seed: int) -> dict[str, dict[str, int]]:
    """For both libraries: flips that were refused, that gave other numbers, and that changed nothing.

    Any byte of any file is as likely as another, except that DCP's pickled metadata is spared: it is code.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    def saved() -> dict[str, torch.Tensor]:
        drawn = generator(seed, "flips")
        return {f"layer{i}": torch.randn(elements // 8 or 1, generator=drawn) for i in range(8)}

    def empty() -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(tensor) for name, tensor in saved().items()}

    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is meant
    checkpoint.save(folder / "ours", saved())
    dcp.save(saved(), checkpoint_id=folder / "dcp", no_dist=True)
    loads: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "ours": lambda state: checkpoint.load(folder / "ours", state),
        "dcp": lambda state: dcp.load(state, checkpoint_id=folder / "dcp", no_dist=True),
    }
    found = {}
    for name, load in loads.items():
        random = rng(seed, "bits")
        counts = {"refused": 0, "wrong": 0, "unchanged": 0}
        files = sorted(file for file in (folder / name).rglob("*") if file.is_file() and file.name != ".metadata")
        sizes = np.array([file.stat().st_size for file in files], float)
        for _ in range(count):
            file = files[int(random.choice(len(files), p=sizes / sizes.sum()))]
            at, bit = int(random.integers(file.stat().st_size)), 1 << int(random.integers(8))
            flip(file, at, bit)
            state = empty()
            try:
                load(state)
            except (Exception, CheckpointException):  # DCP's is no Exception
                counts["refused"] += 1
            else:
                same = all(torch.equal(a, b) for a, b in zip(state.values(), saved().values(), strict=True))
                counts["unchanged" if same else "wrong"] += 1
            flip(file, at, bit)
        found[name] = counts
    return found


def flip(file: Path, at: int, bit: int) -> None:
    """Turn one bit over."""
    with file.open("r+b") as handle:
        handle.seek(at)
        byte = handle.read(1)[0] ^ bit
        handle.seek(at)
        handle.write(bytes([byte]))
