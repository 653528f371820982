"""Plans of many ranks, made in one process: who writes what, how evenly, and how long deciding takes.

The first rank of a simulated world runs the real planner; the messages of the others are made beforehand. Tensors have
shapes and no memory (one number, expanded), so that 405 billion parameters fit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch

from bloomery.checkpoint import Shard
from bloomery.checkpoint.planner import LocalPlan, Planner, local_plan, merge
from bloomery.core.seeds import rng

REPEATS = 5  # of a plan that is known; the median counts
Shape = tuple[int, ...]


def placeholder(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of that shape that takes no memory."""
    return torch.empty(1, dtype=dtype).expand(tuple(shape))


# -------------------------------------------------------------------------------------------------------------- balance


def skewed(count: int, seed: int) -> dict[str, Shape]:
    """Matrices whose sizes spread over three orders of magnitude, in no order, and the embedding of a small model."""
    sizes = np.exp(rng(seed, "sizes").normal(12.0, 1.6, count))
    shapes: dict[str, Shape] = {f"layer.{i}": (max(1, int(n) // 64), 64) for i, n in enumerate(sizes)}
    return shapes | {"embedding": (32_000, 512)}


def balance(shapes: Mapping[str, Shape], world: int) -> dict[str, dict[str, float]]:
    """Bytes of the busiest rank over the mean for a state that `world` ranks all hold, by library and rule.

    `uncut` is our rule where tensors are not cut into chunks, so that only the order of assignment differs from DCP's.
    """
    from torch.distributed.checkpoint._dedup_save_plans import dedup_save_plans
    from torch.distributed.checkpoint.default_planner import create_default_local_save_plan

    state = {name: placeholder(shape) for name, shape in shapes.items()}
    found: dict[str, dict[str, float]] = {}
    for rule, chunk in (("ours", None), ("uncut", 1 << 40)):
        plan, _ = local_plan(state, world) if chunk is None else local_plan(state, 1, chunk)
        rows, _, _ = merge([plan] * world)
        found[rule] = spread([int(plan.nbytes[kept].sum()) for kept in rows])
    plans = [create_default_local_save_plan(state, rank == 0) for rank in range(world)]
    for rule, lowest in (("DCP", False), ("lowest rank", True)):
        kept_plans = dedup_save_plans(plans, lowest)
        found[rule] = spread([sum(4 * prod(shapes[item.index.fqn]) for item in plan.items) for plan in kept_plans])
    return found


def spread(load: Sequence[int]) -> dict[str, float]:
    """Largest and total bytes, and the largest over the mean."""
    return {"largest": max(load), "total": sum(load), "ratio": max(load) / (sum(load) / len(load))}


# ----------------------------------------------------------------------------------------------------------- plan cache


class FirstOfMany:
    """The communicator of rank 0 in a world whose other ranks have already sent their plans."""

    rank = 0

    def __init__(self, others: Sequence[bytes]) -> None:
        self.world, self.others = len(others) + 1, others

    def gather(self, payload: bytes) -> list[bytes]:
        """What arrives at the first rank."""
        return [payload, *self.others]

    def broadcast(self, payload: bytes | None) -> bytes:
        """What all are told, which is what was said."""
        assert payload is not None
        return payload

    def extremes(self, number: int) -> tuple[int, int]:
        """All have the same."""
        return number, number

    def agree(self, error: BaseException | None) -> None:
        """Only this rank can have failed."""
        if error is not None:
            raise error


def planning(states: Callable[[int], Mapping[str, Shard]], world: int) -> dict[str, float]:
    """Seconds that the first rank plans for: anew, then from the cache; and the median rank's own plan alone.

    Ranks whose shards have equal shapes have plans that differ in where they begin: one of them is planned, the others
    are that plan moved. The last rank is planned as well and compared.
    """
    others, alone = [], []
    known: dict[Any, tuple[LocalPlan, np.ndarray]] = {}
    for rank in range(1, world):
        state = states(rank)
        offsets = _offsets(state)
        key = tuple((name, shard.data.dtype, shard.data.shape) for name, shard in state.items())
        if key not in known or rank == world - 1:
            begin = time.perf_counter()
            plan, _ = local_plan(state, world)
            alone.append(time.perf_counter() - begin)
            if key in known:
                assert (_moved(*known[key], offsets).start == plan.start).all()
            known[key] = plan, offsets
        others.append(_moved(*known[key], offsets).to_bytes())
    state, comm, planner = states(0), FirstOfMany(others), Planner()
    begin = time.perf_counter()
    _, save_plan, was_known = planner.plan(state, comm)  # type: ignore[arg-type]
    first = time.perf_counter() - begin
    cached = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        is_known = planner.plan(state, comm)[2]  # type: ignore[arg-type]
        cached.append(time.perf_counter() - begin)
        assert is_known
    assert not was_known
    assert save_plan.chunks is not None
    return {
        "first": first, "cached": statistics.median(cached), "local": statistics.median(alone),
        "chunks": len(save_plan.chunks), "tensors": len(save_plan.tensors), "ranks": world,
        "bytes": int(save_plan.chunks.nbytes.sum()), "sent": sum(map(len, others)),
    }  # fmt: skip


def _offsets(state: Mapping[str, Shard]) -> np.ndarray:
    wide = max(len(shard.shape) for shard in state.values())
    return np.array([[*shard.offsets, *[0] * (wide - len(shard.shape))] for shard in state.values()], np.int64)


def _moved(plan: LocalPlan, old: np.ndarray, new: np.ndarray) -> LocalPlan:
    """The plan of shards that begin at `new` instead of `old`."""
    return replace(plan, start=plan.start + (new - old)[plan.tensor])


def many_tensors(count: int, shards: int) -> Callable[[int], Mapping[str, Shard]]:
    """The state of a rank: `count` matrices by rows over `shards` ranks, the same on every group of so many."""
    rows = 128 * shards

    def state(rank: int) -> Mapping[str, Shard]:
        part, shape = placeholder((128, 256)), (rows, 256)
        return {f"layer.{i}.weight": Shard(part, (rank % shards * 128, 0), shape) for i in range(count)}

    return state


def dcp_planning(count: int, world: int) -> dict[str, float]:
    """The same for DCP with its cache switched on: `count` tensors that all ranks hold (DTensors need real ranks).

    Planning of rank 0: its local plan, the global plan, the end; without sending anything.
    """
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.planner import SavePlanner

    state: dict[str, Any] = {f"layer.{i}.weight": placeholder((128, 256)) for i in range(count)}

    def plan(others: Sequence[Any]) -> tuple[float, Any]:
        planner = DefaultSavePlanner(enable_plan_caching=True)
        planner._cached_plans_key = "bytecheckpoint recipe"  # a slot of its own in the cache of the class
        begin = time.perf_counter()
        planner.set_up_planner(state, is_coordinator=True)
        mine = planner.create_local_plan()
        plans, _ = planner.create_global_plan([mine, *others])
        planner.finish_plan(plans[0])
        return time.perf_counter() - begin, mine

    fresh = DefaultSavePlanner()
    fresh.set_up_planner(state, is_coordinator=False)
    first, _ = plan([fresh.create_local_plan()] * (world - 1))
    unchanged = [type(fresh.plan)([], usable=False)] * (world - 1)
    cached = [plan(unchanged)[0] for _ in range(REPEATS)]
    for store in (SavePlanner._cached_save_plan, SavePlanner._cached_all_plans, SavePlanner._cached_global_plan,
                  SavePlanner._cached_metadata, SavePlanner._cached_final_save_plan):  # fmt: skip
        store.pop("bytecheckpoint recipe", None)
    return {"first": first, "cached": statistics.median(cached)}


# ----------------------------------------------------------------------------------------------- 405 billion parameters


TP, PP = 8, 16  # ranks that share a layer, and stages
DIM, FFN, VOCAB, KV = 16_384, 53_248, 128_256, 1_024  # Llama 3.1 405B, which has 126 layers
KINDS = {"model": torch.bfloat16, "master": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.float32}
MATRICES: dict[str, tuple[Shape, int | None]] = {  # shape, and the axis that tensor parallelism cuts
    "attn.q": ((DIM, DIM), 0), "attn.k": ((KV, DIM), 0), "attn.v": ((KV, DIM), 0), "attn.o": ((DIM, DIM), 1),
    "ffn.gate": ((FFN, DIM), 0), "ffn.up": ((FFN, DIM), 0), "ffn.down": ((DIM, FFN), 1), "norm1": ((DIM,), None),
    "norm2": ((DIM,), None),
}  # fmt: skip


def large(world: int, layers: int) -> Callable[[int], Mapping[str, Shard]]:
    """The state of a rank of a 405B run: 8-way tensor, 16-way pipeline parallel, the rest FSDP by rows.

    Every tensor is in four kinds: bfloat16 weights, float32 masters and AdamW's two moments.
    """
    replicas = world // (TP * PP)

    def state(rank: int) -> Mapping[str, Shard]:
        tp, dp, stage = rank % TP, rank // TP % replicas, rank // (TP * replicas)
        mine = range(layers * stage // PP, layers * (stage + 1) // PP)
        named = {f"layers.{layer}.{name}": how for layer in mine for name, how in MATRICES.items()}
        if stage == 0:
            named["embedding"] = ((VOCAB, DIM), 0)
        if stage == PP - 1:
            named |= {"norm": ((DIM,), None), "head": ((VOCAB, DIM), 0)}
        found: dict[str, Shard] = {}
        for name, (shape, axis) in named.items():
            start, size = [0] * len(shape), list(shape)
            for cut, part, parts in ((axis, tp, TP), (0, dp, replicas)):
                if cut is not None:
                    low, high = size[cut] * part // parts, size[cut] * (part + 1) // parts
                    start[cut], size[cut] = start[cut] + low, high - low
            for kind, dtype in KINDS.items():
                found[f"{kind}/{name}"] = Shard(placeholder(size, dtype), start, shape)
        return found

    return state
