"""Time, memory and bytes of saving and loading one large state, all libraries in turns on the same ranks and disk.

Functions here run on ranks (see `_bytecheckpoint_ranks`). Times are those of the slowest rank, from when all start.
"""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bloomery import checkpoint
from bloomery.checkpoint import FlatShard
from bloomery.checkpoint.layout import pieces
from bloomery.core.seeds import generator, rng
from bloomery.recipes._bytecheckpoint_engines import DCP, OURS, Engine, State, discard, engines, timed

SHARDED, REPLICATED = "FSDP2", "DDP"
HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class Size:
    """A decoder; with `mixed`, weights in bfloat16 beside float32 masters."""

    vocab: int
    dim: int
    depth: int
    mixed: bool = False


def build(size: Size, layout: str, seed: int) -> State:
    """A decoder and its AdamW after one step, on this rank's device: sharded by layer or whole on every rank."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from bloomery.models import Decoder, DecoderConfig

    world, rank = dist.get_world_size(), dist.get_rank()
    device = torch.device("cuda", rank) if torch.cuda.device_count() >= world else torch.device("cpu")
    config = DecoderConfig(
        vocab_size=size.vocab, dim=size.dim, n_layers=size.depth, n_heads=size.dim // HEAD,
        n_kv_heads=size.dim // HEAD, head_dim=HEAD, ffn_dim=3 * size.dim, tie_embeddings=True,
    )  # fmt: skip
    model: nn.Module = Decoder(config, generator(seed, "weights")).to(device)
    trained = model
    if size.mixed:
        weights = Decoder(config, generator(seed, "weights")).to(device, torch.bfloat16).requires_grad_(False)
        model = nn.ModuleDict({"weights": weights, "master": trained})
    if layout == SHARDED and world > 1:
        mesh = init_device_mesh(device.type, (world,))
        for block in [m for m in model.modules() if type(m).__name__ == "Block"]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    for p in trained.parameters():
        p.grad = p.detach() * 0.1 + 1e-3
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"model": model, "optimizer": optimizer}


def tensors(state: State) -> list[Tensor]:
    """The memory of this rank that a checkpoint has to hold."""
    found = list(state["model"].state_dict().values())
    for moments in state["optimizer"].state.values():
        found += moments.values()
    return [getattr(tensor, "_local_tensor", tensor) for tensor in found]


# ------------------------------------------------------------------------------------------------------ time and memory


def compare(
    rank: int, world: int, size: Size, layout: str, names: tuple[str, ...], folder: Path, rounds: int, seed: int
) -> dict[str, Any]:
    """Rounds of a synchronous save, an asynchronous one and a load of each engine, in turns; seconds by engine.

    Before the rounds each engine saves twice asynchronously, which starts its processes and makes its buffers. What
    the first one adds to the peak of this rank's resident memory is its overhead, if nothing was saved here before.
    """
    state = build(size, layout, seed)
    local = sum(tensor.nbytes for tensor in tensors(state))
    found = engines(state, names)
    result: dict[str, Any] = {
        name: {key: [] for key in ("sync", "stall", "durable", "load", "slowdown")} for name in names
    }
    for name, engine in found.items():
        result[name]["memory"] = added_memory(lambda engine=engine: engine.begin(folder / "first")()) / local  # type: ignore[misc]
        discard(folder / "first")
        engine.begin(folder / "second")()
        discard(folder / "second")
    quiet = Steps()
    step = quiet.run(lambda: time.sleep(0.5))
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            one_round(found[name], folder / f"{name}-{number}", state, step, result[name])
    for engine in found.values():
        engine.close()
    return result | {"local_bytes": local, "world": world}


def one_round(engine: Engine, path: Path, state: State, step: float, into: dict[str, list[float]]) -> None:
    """Save, save in the background, load, with checks that what is loaded is what was there at the time."""
    before = fingerprint(state)
    seconds, _ = timed(lambda: engine.save(path / "sync"))
    into["sync"].append(seconds)
    begin = time.perf_counter()
    seconds, wait = timed(lambda: engine.begin(path / "async"))
    into["stall"].append(seconds)
    with torch.no_grad():  # training goes on
        for tensor in tensors(state):
            tensor.add_(1)
    during = Steps().run(wait)
    dist.barrier()
    into["durable"].append(time.perf_counter() - begin)
    if step and during:
        into["slowdown"].append(during / step)
    for kind in ("sync", "async"):
        with torch.no_grad():
            for tensor in tensors(state):
                tensor.zero_()
        seconds, _ = timed(lambda kind=kind: engine.load(path / kind))  # type: ignore[misc]
        if kind == "sync":
            into["load"].append(seconds)
        if fingerprint(state) != before:
            raise RuntimeError(f"{type(engine).__name__}: what was loaded from {kind} is not what was saved")
    discard(path)


class Steps:
    """A small matrix product over and over: how long one takes while something else goes on."""

    def run(self, waiting: Callable[[], Any]) -> float:
        """Median seconds of a step until `waiting`, on a thread of its own, returns; 0 where none was finished."""
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                waiting()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=wait)
        a = torch.full((256, 256), 1 / 256)
        steps = []
        thread.start()
        while thread.is_alive():
            begin = time.perf_counter()
            a = a @ a
            steps.append(time.perf_counter() - begin)
        thread.join()
        if failed:
            raise failed[0]
        return statistics.median(steps) if steps else 0.0


def fingerprint(state: State) -> list[int]:
    """A sum over the bits of each tensor of this rank."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [int(tensor.detach().view(kinds[tensor.element_size()]).sum()) for tensor in tensors(state)]


def added_memory(function: Callable[[], Any]) -> int:
    """Bytes by which the peak of this process's resident memory exceeds what it was before; 0 without /proc."""
    dist.barrier()
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        function()
        return 0
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # or what was freed and not given back would be used again, unseen
    clear.write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# ---------------------------------------------------------------------------------------------------------- bytes read


def reads(rank: int, world: int, size: Size, folder: Path, seed: int) -> dict[str, float]:
    """Bytes that this rank reads from files to load a state that every rank holds whole; and that it is sent."""
    state = build(size, REPLICATED, seed)
    total = sum(tensor.nbytes for tensor in tensors(state))
    found: dict[str, float] = {"state": total}
    for name, engine in engines(state, (OURS, DCP)).items():
        engine.save(folder / name)
        dist.barrier()
        files = FilesRead()
        if name == OURS:
            report = checkpoint.load(folder / name, state)
            found["told"], found["received"] = report.bytes_read, report.bytes_received
        else:
            engine.load(folder / name)
        found[name] = files.bytes()
        engine.close()
        discard(folder / name)
    return found


class FilesRead:
    """Bytes that this process has read since then, as Linux counts them (`rchar`: files, pipes, read() of sockets)."""

    def __init__(self) -> None:
        self._before = self._now()

    def bytes(self) -> int:
        """Since this object was made; 0 without /proc."""
        return self._now() - self._before

    def _now(self) -> int:
        file = Path("/proc/self/io")
        return int(file.read_text().split("rchar:")[1].split()[0]) if file.exists() else 0


# ----------------------------------------------------------------------------------------------------- irregular shards


def irregular(rank: int, world: int, elements: int, rounds: int, seed: int) -> dict[str, Any]:
    """One flat buffer of many tensors, cut into equal ranges in the middle of rows: two ways to get storable pieces.

    Decomposition takes the boxes of every range where they lie. All-gather makes every tensor whole on every rank, as
    FSDP1 and Megatron's distributed optimiser did before.
    """
    random, shapes, left = rng(seed, "shapes"), [], elements
    while left:
        axes = int(random.integers(1, 4))
        shape = tuple(int(n) for n in random.integers(3, (20_000, 1_000, 100)[axes - 1], size=axes))
        shapes.append(shape if prod(shape) <= left else (left,))
        left -= prod(shapes[-1])
    bounds = [elements * r // world for r in range(world + 1)]
    flat = torch.rand(bounds[rank + 1] - bounds[rank])
    longest = max(b - a for a, b in pairwise(bounds))

    def decompose() -> int:
        count, at = 0, 0
        for shape in shapes:
            low, high = (min(max(edge - at, 0), prod(shape)) for edge in bounds[rank : rank + 2])
            if high > low:
                own = flat[at + low - bounds[rank] : at + high - bounds[rank]]
                count += len(pieces(FlatShard(own, low, shape)))
            at += prod(shape)
        return count

    def gather() -> list[Tensor]:
        padded = torch.cat([flat, flat.new_zeros(longest - len(flat))])
        parts = [torch.empty(longest) for _ in range(world)]
        dist.all_gather(parts, padded)
        whole = torch.cat([part[: b - a] for part, a, b in zip(parts, bounds, bounds[1:], strict=False)])
        return [part.view(shape) for part, shape in zip(whole.split([prod(s) for s in shapes]), shapes, strict=True)]

    ours, theirs = [], []
    boxes = 0
    for _ in range(rounds):
        seconds, boxes = timed(decompose)
        ours.append(seconds)
        theirs.append(timed(gather)[0])
    return {
        "ours": ours, "all_gather": theirs, "boxes": boxes, "tensors": len(shapes), "bytes": 4 * elements,
        "communicated": 4 * longest * (world - 1),
    }  # fmt: skip
