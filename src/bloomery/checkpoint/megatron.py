"""Megatron-Core's sharded state dictionaries as ours and back, without Megatron: by the attributes of its classes.

    ShardedTensor            key, data, dtype, local_shape, global_shape, global_offset, axis_fragmentations,
                             replica_id, prepend_axis_num (stacked layers), flattened_range (of a ZeRO optimiser)
    ShardedTensorFactory     build() makes ShardedTensors of one value, merge_fn() the value of what was loaded
    anything else            a plain value, equal on all ranks ("common" in Megatron)

A replica is any holder of an equal box: each box is written once, by the holder with the least to write, rather than
always by replica 0. Not covered: ShardedObject (only pickle stores those) and Megatron's own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from bloomery.checkpoint.boxes import flat_boxes
from bloomery.checkpoint.layout import Shard, Shards, Tensorlike, global_shape, local, pieces
from bloomery.checkpoint.state import Named
from bloomery.core.errors import CheckpointError

FIELDS = ("key", "data", "global_shape", "global_offset", "local_shape", "replica_id")


def from_sharded(state: Any) -> tuple[Named, dict[str, Any]]:
    """The tensors of a sharded state dictionary by their keys, sharing its memory, and its plain values by path.

    `save(path, {"model": tensors, "common": common})` writes them; to load, make them of a sharded state dictionary of
    the new layout, `load`, and the tensors are filled in place. Shards of one key on one rank become one `Shards`.

    Raises:
        CheckpointError: a shard that does not fit its own description, a sharded object.
    """
    shards: dict[str, list[Shard]] = {}
    common: dict[str, Any] = {}
    for path, value in _leaves(state):
        if is_sharded(value):
            shards.setdefault(value.key, []).extend(shards_of(value))
        elif hasattr(value, "replica_id"):
            what = f"{path} is a {type(value).__name__}, whose data only pickle could store"
            raise CheckpointError(what, fix="give it as plain values or tensors")
        else:
            common[path] = value
    return Named({key: its[0] if len(its) == 1 else Shards(its) for key, its in shards.items() if its}), common


def is_sharded(value: object) -> bool:
    """Whether `value` has the attributes of a ShardedTensor."""
    return all(hasattr(value, name) for name in FIELDS)


def shards_of(sharded: Any) -> list[Shard]:
    """A ShardedTensor as boxes: one, or several where it is a range of a flattened shard."""
    key, data, shape = sharded.key, sharded.data, tuple(sharded.global_shape)
    offset, size = tuple(sharded.global_offset), tuple(sharded.local_shape)
    ahead = getattr(sharded, "prepend_axis_num", 0)
    if len(size) + ahead != len(shape) or len(offset) != len(shape):
        raise CheckpointError(f"{key}: shape {shape}, offset {offset} and local shape {size} do not go together")
    size = (1,) * ahead + size
    given = getattr(sharded, "flattened_range", None)
    if given is None:
        if (1,) * ahead + tuple(data.shape) != size:
            raise CheckpointError(f"{key}: data of shape {tuple(data.shape)} where its local shape is {size}")
        return [Shard(data.view(size), offset, shape)]
    if data.ndim != 1 or len(data) != given.stop - given.start or given.stop > prod(size):
        raise CheckpointError(f"{key}: data of shape {tuple(data.shape)} for the range {given} of a shard {size}")
    found, at = [], 0
    for box in flat_boxes(size, given.start, given.stop):
        start = tuple(a + b for a, b in zip(offset, box.start, strict=True))
        found.append(Shard(data[at : at + box.volume].view(box.size), start, shape))
        at += box.volume
    return found


@dataclass
class ShardedTensor:
    """What Megatron's class of that name says of a shard; `replica_id` 0 (or all zeros) is the one that it writes."""

    key: str
    data: torch.Tensor
    dtype: torch.dtype
    local_shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    global_offset: tuple[int, ...]
    axis_fragmentations: tuple[int, ...] | None
    replica_id: int | tuple[int, ...] = 0
    prepend_axis_num: int = 0
    flattened_range: slice | None = None


def to_sharded(
    key: str, value: Tensorlike, *, replica_id: int | tuple[int, ...] = 0, make: Any = ShardedTensor
) -> list[Any]:
    """What this rank holds of a tensor as ShardedTensors, one a box; `make` is Megatron's class where it is installed.

    `axis_fragmentations` are the numbers of equal parts of each axis, None for boxes that no such grid holds.
    """
    shape = global_shape(value)
    found = []
    for piece in pieces(value, key):
        grid = tuple(n // size if n % size == 0 and a % size == 0 else 0 for n, a, size in zip(
            shape, piece.box.start, piece.box.size, strict=True))  # fmt: skip
        found.append(
            make(
                key=key,
                data=piece.data,
                dtype=local(value).dtype,
                local_shape=piece.box.size,
                global_shape=shape,
                global_offset=piece.box.start,
                axis_fragmentations=grid if all(grid) else None,
                replica_id=replica_id,
            )
        )
    return found


def _leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, Mapping):
        for name, value in state.items():
            yield from _leaves(value, f"{path}.{name}" if path else str(name))
    elif isinstance(state, list | tuple) and any(_holds_shards(value) for value in state):
        for i, value in enumerate(state):
            yield from _leaves(value, f"{path}.{i}" if path else str(i))
    elif hasattr(state, "build") and hasattr(state, "merge_fn"):
        yield from _leaves(state.build(), path)
    else:
        yield path, state


def _holds_shards(value: Any) -> bool:
    return is_sharded(value) or hasattr(value, "merge_fn") or isinstance(value, Mapping | list | tuple)
