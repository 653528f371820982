"""Megatron's description of shards, without Megatron: a class with its attributes stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from bloomery import checkpoint
from bloomery.checkpoint.layout import pieces
from bloomery.checkpoint.megatron import ShardedTensor, from_sharded, is_sharded, shards_of, to_sharded
from bloomery.core.errors import CheckpointError


@dataclass
class Factory:
    """As ShardedTensorFactory: two halves of a fused weight under keys of their own."""

    data: torch.Tensor
    replica_id: int = 0
    merge_fn: Callable[..., Any] = torch.cat

    def build(self) -> dict[str, ShardedTensor]:
        halves = self.data.chunk(2)
        return {name: whole(f"fc1.{name}", half) for name, half in zip(("gate", "up"), halves, strict=True)}


def whole(key: str, data: torch.Tensor, **more: Any) -> ShardedTensor:
    shape = tuple(data.shape)
    return ShardedTensor(key, data, data.dtype, shape, shape, (0,) * len(shape), (1,) * len(shape), **more)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_a_range_of_a_flattened_shard_is_its_elements(shape: list[int], draw: st.DataObject) -> None:
    """The boxes hold exactly what the flat buffer holds, wherever the shard and the range begin."""
    full = torch.arange(prod(shape)).view(shape)
    offset = [draw.draw(st.integers(0, n - 1)) for n in shape]
    size = [draw.draw(st.integers(1, n - a)) for n, a in zip(shape, offset, strict=True)]
    shard = full[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))].contiguous().view(-1)
    begin = draw.draw(st.integers(0, len(shard)))
    end = draw.draw(st.integers(begin, len(shard)))
    sharded = ShardedTensor(
        "x", shard[begin:end], shard.dtype, tuple(size), tuple(shape), tuple(offset), None, 0, 0, slice(begin, end)
    )
    found = [element for part in shards_of(sharded) for element in part.data.flatten().tolist()]
    assert found == shard[begin:end].tolist()
    for part in shards_of(sharded):
        (piece,) = pieces(part)
        at = tuple(slice(a, a + n) for a, n in zip(piece.box.start, piece.box.size, strict=True))
        assert torch.equal(full[at], piece.data)
        assert piece.data.untyped_storage().data_ptr() == shard.untyped_storage().data_ptr()  # filled in place


def test_stacked_layers_factories_and_common_values(tmp_path: Path) -> None:
    layers = [torch.randn(3, 4) for _ in range(3)]
    fused = torch.randn(6, 2)
    state = {
        "decoder": [
            ShardedTensor("layers.weight", layer, layer.dtype, (3, 4), (3, 3, 4), (i, 0, 0), (3, 1, 1), 0, 1)
            for i, layer in enumerate(layers)
        ],
        "fc1": Factory(fused),
        "args": {"lr": 0.1, "names": ["a", "b"]},
        "iteration": 5,
    }
    tensors, common = from_sharded(state)
    assert common == {"args.lr": 0.1, "args.names": ["a", "b"], "iteration": 5}
    assert tensors.keys() == {"layers.weight", "fc1.gate", "fc1.up"}
    checkpoint.save(tmp_path / "a", {"model": tensors, "common": common})
    stacked = checkpoint.Named({"layers.weight": torch.zeros(3, 3, 4), "fc1.gate": torch.zeros(3, 2)})
    checkpoint.load(tmp_path / "a", {"model": stacked}, strict=False)
    assert torch.equal(stacked["layers.weight"], torch.stack(layers))  # type: ignore[arg-type]
    assert torch.equal(stacked["fc1.gate"], fused[:3])  # type: ignore[arg-type]
    expected = [layer.clone() for layer in layers]
    for layer in layers:
        layer.zero_()
    loaded = {"model": from_sharded(state)[0], "common": None}
    checkpoint.load(tmp_path / "a", loaded)
    assert all(map(torch.equal, layers, expected))  # Megatron's own memory
    assert loaded["common"] == common


def test_ours_as_sharded_tensors() -> None:
    data = torch.arange(24.0).view(4, 6)
    (sharded,) = to_sharded("x", checkpoint.Shard(data[2:, :3], (2, 0), (4, 6)), replica_id=(0, 1))
    assert (sharded.local_shape, sharded.global_offset, sharded.axis_fragmentations) == ((2, 3), (2, 0), (2, 2))
    assert (sharded.key, sharded.global_shape, sharded.replica_id) == ("x", (4, 6), (0, 1))
    assert is_sharded(sharded)
    flat = to_sharded("x", checkpoint.FlatShard(data.view(-1)[4:20], 4, (4, 6)))
    assert [part.global_offset for part in flat] == [(0, 4), (1, 0), (3, 0)]
    assert flat[1].axis_fragmentations is None  # rows 1 and 2 of 4 are no part of an even grid
    back, _ = from_sharded({str(i): part for i, part in enumerate(flat)})
    assert [piece.box for piece in pieces(back["x"])] == [
        piece.box for piece in pieces(checkpoint.FlatShard(data.view(-1)[4:20], 4, (4, 6)))
    ]


def test_bad_input() -> None:
    @dataclass
    class ShardedObject:
        key: str
        data: Any
        replica_id: int = 0

    data = torch.zeros(2, 3)
    with pytest.raises(CheckpointError, match=r"a\.b is a ShardedObject, whose data only pickle could store"):
        from_sharded({"a": {"b": ShardedObject("x", object())}})
    with pytest.raises(CheckpointError, match="do not go together"):
        shards_of(ShardedTensor("x", data, data.dtype, (2, 3), (5, 2, 3), (0, 0, 0), None))
    with pytest.raises(CheckpointError, match=r"where its local shape is \(3, 2\)"):
        shards_of(ShardedTensor("x", data, data.dtype, (3, 2), (3, 2), (0, 0), None))
    with pytest.raises(CheckpointError, match="for the range"):
        shards_of(ShardedTensor("x", data, data.dtype, (2, 3), (2, 3), (0, 0), None, 0, 0, slice(0, 6)))
