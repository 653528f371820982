"""Boxes of shards against PyTorch's own arithmetic, without processes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from bloomery.checkpoint.boxes import Box, fault
from bloomery.checkpoint.layout import FlatShard, _runs, pieces

shapes = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)


@st.composite
def placed(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]:
    shape = draw(shapes)
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    return shape, mesh, tuple(
        draw(st.just(Replicate()) | st.integers(0, len(shape) - 1).map(Shard)) for _ in mesh
    )  # fmt: skip


def boxes_of(shape: Any, placements: Any, mesh: Any) -> dict[tuple[int, ...], list[Any]]:
    return {at: _runs(shape, placements, mesh, at) for at in itertools.product(*map(range, mesh))}


def tiled(shape: tuple[int, ...], placements: Any, mesh: Any, found: dict[tuple[int, ...], list[Any]]) -> bool:
    """Whether each set of ranks that are no replicas of one another holds every element once."""
    replicas: dict[tuple[int, ...], list[Any]] = {}
    for at, runs in found.items():
        copy = tuple(i for i, placement in zip(at, placements, strict=True) if placement.is_replicate())
        replicas.setdefault(copy, []).extend(runs)
    d = len(shape)
    return all(
        fault(
            shape,
            np.array([start for start, _, _ in runs], np.int64).reshape(-1, d),
            np.array([size for _, _, size in runs], np.int64).reshape(-1, d),
        )
        is None
        for runs in replicas.values()
    )


@settings(max_examples=100)
@given(placed())
def test_shards_are_where_pytorch_puts_them(case: Any) -> None:
    shape, mesh, placements = case
    found = boxes_of(shape, placements, mesh)
    assert tiled(shape, placements, mesh, found)
    for at, runs in found.items():
        local, offset = _compute_local_shape_and_global_offset(shape, mesh, list(at), placements)
        if math.prod(local):
            assert runs == [(tuple(offset), (0,) * len(shape), tuple(local))]
        else:
            assert runs == []


@settings(max_examples=100)
@given(st.integers(0, 20), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_data_parallel_shards_of_tensor_parallel_ones_may_be_several_runs(n: int, m: int, dp: int, tp: int) -> None:
    """FSDP cuts what tensor parallelism has cut: the mesh says (dp, tp), the cuts were made the other way round."""
    placements, mesh = (_StridedShard(0, split_factor=tp), Shard(0)), (dp, tp)
    found = boxes_of((n, m), placements, mesh)
    assert tiled((n, m), placements, mesh, found)
    for (i, j), runs in found.items():
        rows = torch.arange(n).chunk(tp)[j : j + 1]
        rows = [part for half in rows for part in half.chunk(dp)[i : i + 1]]
        mine = torch.cat([torch.arange(start[0], start[0] + size[0]) for start, _, size in runs] or [torch.zeros(0)])
        assert mine.tolist() == (rows[0].tolist() if rows else [])
        assert [at[0] for _, at, _ in runs] == list(itertools.accumulate([0, *(s[0] for *_, s in runs[:-1])]))[
            : len(runs)
        ]


@settings(max_examples=100)
@given(st.data())
def test_a_flat_shard_is_cut_into_views_of_its_memory(data: Any) -> None:
    shape = data.draw(shapes)
    begin = data.draw(st.integers(0, math.prod(shape)))
    end = data.draw(st.integers(begin, math.prod(shape)))
    full = torch.arange(math.prod(shape)).reshape(shape)
    memory = full.flatten()[begin:end].clone()
    found = pieces(FlatShard(memory, begin, shape))
    for piece in found:
        whole = Box((0,) * len(shape), shape)
        assert torch.equal(piece.data, full[piece.box.within(whole)])
        assert piece.data.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    assert sum(piece.box.volume for piece in found) == end - begin
