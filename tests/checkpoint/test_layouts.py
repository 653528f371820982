"""Any layout on n ranks is saved and comes back bit for bit in any layout on m ranks (ranks simulated by threads)."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from simulated import SimulatedComm, agreed

from bloomery import checkpoint
from bloomery.checkpoint import FlatShard, Shard
from bloomery.checkpoint.faulty import Disk, MemoryStorage
from bloomery.checkpoint.layout import bits
from bloomery.checkpoint.saving import Saver

DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e8m0fnu, torch.float4_e2m1fn_x2, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.complex32, torch.complex64, torch.complex128,
]  # fmt: skip
Held = dict[str, Any]  # what one rank holds of a tensor: how, and where


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bytes, NaNs with payloads and subnormals among them; of bool only what a bool may be."""
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@st.composite
def cuts(draw: Any, shape: tuple[int, ...], world: int) -> list[Held | None]:
    """One tensor over `world` ranks; None where a rank has not even heard of it."""
    way = draw(st.sampled_from(["whole", "boxes", "flat"] if shape else ["whole", "flat"]))
    odd = draw(st.booleans())  # memory that is not contiguous
    if way == "whole":
        absent = draw(st.sets(st.integers(0, world - 1), max_size=world - 1))
        return [None if rank in absent else {"way": way, "odd": odd} for rank in range(world)]
    if way == "flat":
        edges = sorted(draw(st.lists(st.integers(0, math.prod(shape)), min_size=world - 1, max_size=world - 1)))
        edges = [0, *edges, math.prod(shape)]
        return [{"way": way, "begin": a, "end": b, "odd": odd} for a, b in itertools.pairwise(edges)]
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=2, unique=True))
    counts = [draw(st.integers(1, world))] + [0] * (len(axes) - 1)
    if len(axes) == 2:
        counts[1] = draw(st.integers(1, world // counts[0]))
    edges_of = []
    for axis, count in zip(axes, counts, strict=True):
        inner = sorted(draw(st.lists(st.integers(0, shape[axis]), min_size=count - 1, max_size=count - 1)))
        edges_of.append([0, *inner, shape[axis]])
    boxes = []
    for runs in itertools.product(*(list(itertools.pairwise(edges)) for edges in edges_of)):
        start, size = [0] * len(shape), list(shape)
        for axis, (a, b) in zip(axes, runs, strict=True):
            start[axis], size[axis] = a, b - a
        boxes.append({"way": way, "start": start, "size": size, "odd": odd})
    spare = [draw(st.sampled_from([None, *boxes])) for _ in range(world - len(boxes))]  # replicas, or nothing
    return draw(st.permutations([*boxes, *spare]))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def region(full: torch.Tensor, held: Held) -> torch.Tensor:
    if held["way"] == "whole":
        return full
    if held["way"] == "flat":
        return full.reshape(-1)[held["begin"] : held["end"]]
    return full[tuple(slice(a, a + n) for a, n in zip(held["start"], held["size"], strict=True))]


def memory(part: torch.Tensor, odd: bool, blank: bool) -> torch.Tensor:
    """A rank's own memory with the content of `part`, or with other content."""
    content = bits(part).clone() if part.dtype != torch.complex128 else part.clone()
    if blank:
        content = content.logical_not() if part.dtype == torch.bool else torch.zeros_like(content)
    if odd and part.ndim:
        wide = content.new_zeros([*part.shape[:-1], 2 * part.shape[-1]])  # every other element of the last axis
        wide[..., ::2] = content
        content = wide[..., ::2]
    return content if content.dtype == part.dtype else content.view(part.dtype)


def value(full: torch.Tensor, held: Held, blank: bool) -> Any:
    data = memory(region(full, held), held["odd"], blank)
    if held["way"] == "whole":
        return data
    if held["way"] == "flat":
        return FlatShard(data, held["begin"], full.shape)
    return Shard(data, held["start"], full.shape)


@st.composite
def cases(draw: Any) -> Any:
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    tensors, saved, wanted = {}, [], []
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
        tensors[f"t{number}"] = (shape, draw(st.sampled_from(DTYPES)))
        saved.append(draw(cuts(shape, n)))
        wanted.append(draw(cuts(shape, m)))
    return n, m, tensors, saved, wanted, draw(st.booleans()), draw(st.sampled_from([1, 5, 1 << 24]))


def part_of(rank: int, fulls: dict[str, torch.Tensor], layouts: list[list[Held | None]], blank: bool) -> Held:
    return {
        name: value(full, held[rank], blank)  # type: ignore[arg-type]
        for (name, full), held in zip(fulls.items(), layouts, strict=True)
        if held[rank] is not None
    }


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@settings(max_examples=200)
@given(cases())
def test_any_layout_to_any_layout_bit_for_bit(case: Any) -> None:
    n, m, tensors, saved, wanted, asynchronous, chunk = case
    fulls = {name: filled(shape, dtype, i) for i, (name, (shape, dtype)) in enumerate(tensors.items())}
    disk = Disk()

    def save(comm: SimulatedComm) -> None:
        saver = Saver()
        state = part_of(comm.rank, fulls, saved, blank=False)
        plan = saver.planner.plan
        saver.planner.plan = lambda values, ranks, failed: plan(values, ranks, failed, chunk, 64 * 3)  # type: ignore[method-assign]
        handle = saver.save(MemoryStorage("c", disk), state, comm, asynchronous=asynchronous, overwrite=False)
        if asynchronous:
            for part in state.values():  # training goes on
                data = part if isinstance(part, torch.Tensor) else part.data
                bits(data).fill_(1)
        handle.wait()

    def load(comm: SimulatedComm) -> Held:
        state = part_of(comm.rank, fulls, wanted, blank=True)
        checkpoint.load(MemoryStorage("c", disk), state, group=comm)
        return state

    agreed(n, save)
    for rank, found in enumerate(agreed(m, load)):
        for (name, full), layout in zip(fulls.items(), wanted, strict=True):
            if layout[rank] is not None:
                part = found[name]
                data = part if isinstance(part, torch.Tensor) else part.data
                assert torch.equal(raw(data), raw(region(full, layout[rank])))
    assert checkpoint.verify(MemoryStorage("c", disk)).nbytes == sum(
        t.numel() * t.element_size() for t in fulls.values()
    )
