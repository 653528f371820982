"""What part of a tensor this process holds: any of PyTorch's ways to shard one, told as boxes.

    torch.Tensor    the whole tensor; other ranks that have it hold the same values (DDP, buffers)
    DTensor         FSDP2, HSDP, tensor and expert parallel: boxes from its mesh and placements, uneven shards included
    Shard           one box of a larger tensor: what Megatron calls a ShardedTensor
    FlatShard       a range of the flattened tensor, cut anywhere: ZeRO's and FSDP1's flat buffers
    Shards          several boxes of one tensor: stacked layers, a range of a flattened shard

Bytes are those of the machine (little-endian); a tensor of any dtype that PyTorch can copy is stored bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import torch

from bloomery.checkpoint.boxes import Box, flat_boxes, whole
from bloomery.core.errors import CheckpointError


@dataclass(frozen=True)
class Shard:
    """The box of `data.shape` elements at `offsets` of a tensor of `shape`."""

    data: torch.Tensor
    offsets: Sequence[int]
    shape: Sequence[int]


@dataclass(frozen=True)
class FlatShard:
    """Elements `begin` … `begin + len(data) - 1` of a row-major tensor of `shape`; `data` is flat."""

    data: torch.Tensor
    begin: int
    shape: Sequence[int]


@dataclass(frozen=True)
class Shards:
    """Boxes of one tensor, at least one."""

    parts: Sequence[Shard]

    @property
    def data(self) -> torch.Tensor:
        """The memory of the first."""
        return self.parts[0].data

    @property
    def shape(self) -> Sequence[int]:
        """The shape of the whole tensor."""
        return self.parts[0].shape


Tensorlike = torch.Tensor | Shard | FlatShard | Shards


@dataclass(frozen=True)
class Piece:
    """A box of a tensor and the memory of this process that holds it, in the shape of the box."""

    box: Box
    data: torch.Tensor


def is_tensor(value: object) -> bool:
    """Whether `value` is one of the ways to hold (a part of) a tensor."""
    return isinstance(value, torch.Tensor | Shard | FlatShard | Shards)


def local(value: Tensorlike) -> torch.Tensor:
    """The memory behind `value`, without a copy."""
    data = value if isinstance(value, torch.Tensor) else value.data
    return data._local_tensor if _is_dtensor(data) else data.detach()  # type: ignore[attr-defined]


def global_shape(value: Tensorlike) -> tuple[int, ...]:
    """The shape of the whole tensor."""
    return tuple(int(n) for n in value.shape)


def pieces(value: Tensorlike, name: str = "tensor") -> list[Piece]:
    """The boxes that this process holds; none where its shard is empty.

    Raises:
        CheckpointError: partial sums that were never reduced, a shard that leaves its tensor, a dtype or a kind of
            tensor that has no defined bytes.
    """
    if isinstance(value, Shards):
        return [piece for part in value.parts for piece in pieces(part, name)]
    data, shape = local(value), global_shape(value)
    check_bytes(data, name)
    if isinstance(value, Shard):
        box = Box(tuple(int(n) for n in value.offsets), tuple(data.shape))
        if len(box.start) != len(shape) or data.ndim != len(shape):
            raise CheckpointError(f"shard of {name} has {data.ndim} axes, the tensor {len(shape)}")
        if any(a < 0 or a + n > m for a, n, m in zip(box.start, box.size, shape, strict=True)):
            raise CheckpointError(f"shard {box} of {name} leaves its shape {list(shape)}")
        return [Piece(box, data)] if box.volume else []
    if isinstance(value, FlatShard):
        begin, end = value.begin, value.begin + data.numel()
        if data.ndim != 1 or begin < 0 or end > prod(shape):
            raise CheckpointError(
                f"flat shard {begin}:{end} of {name} leaves its {prod(shape)} elements, or is not flat"
            )
        found, at = [], 0
        for box in flat_boxes(shape, begin, end):
            found.append(Piece(box, data[at : at + box.volume].view(box.size)))
            at += box.volume
        return found
    if not _is_dtensor(value):
        return [Piece(whole(shape), data)] if data.numel() else []
    spec = value._spec  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in spec.placements):
        raise CheckpointError(f"{name} holds partial sums", fix="reduce it first: redistribute to Shard or Replicate")
    coordinate = spec.mesh.get_coordinate()
    if coordinate is None or not data.numel():
        return []
    return [
        Piece(Box(start, size), data[tuple(slice(a, a + n) for a, n in zip(at, size, strict=True))])
        for start, at, size in _runs(shape, tuple(spec.placements), tuple(spec.mesh.shape), tuple(coordinate))
    ]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same width, so that copies move every dtype unchanged."""
    if lazy(tensor):
        tensor = tensor.resolve_conj().resolve_neg()
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    return tensor if kind is None or tensor.dtype == kind else tensor.view(kind)


def lazy(tensor: torch.Tensor) -> bool:
    """Whether the elements are not those in memory, but to be conjugated or negated: `bits` is then a copy."""
    return tensor.is_conj() or tensor.is_neg()


def row_bytes(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's bytes in row-major order, uint8 (nbytes,): a view where memory already is so."""
    data = bits(tensor).cpu().contiguous()
    row = data.as_strided((data.numel(),), (1,))  # contiguous, but of one element any stride is
    return row.view(torch.uint8).numpy()


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float32` as "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of that name, or a `CheckpointError` where this PyTorch has none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"dtype {name!r} is not known to PyTorch {torch.__version__}")
    return found


def check_bytes(data: torch.Tensor, name: str) -> None:
    """Refuse a tensor that has no defined bytes, or none at all."""
    if data.is_quantized or data.layout is not torch.strided:
        fix = "save int_repr() with its scales, or to_dense()"
        raise CheckpointError(f"{name} is a {'quantised' if data.is_quantized else 'sparse'} tensor", fix=fix)
    if data.device.type == "meta":
        raise CheckpointError(f"{name} is on the meta device: it has no values", fix="materialise the module first")


def _is_dtensor(value: object) -> bool:
    return hasattr(value, "_local_tensor") and hasattr(value, "_spec")


@lru_cache(maxsize=65536)
def _runs(
    shape: tuple[int, ...], placements: tuple[Any, ...], mesh: tuple[int, ...], at: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Boxes of a DTensor's shard: (start in the tensor, start in the shard, size) for each.

    PyTorch's own split, done on the row numbers of each axis, says which rows are here. FSDP on top of tensor
    parallelism on one axis (`_StridedShard`) may leave several runs of rows.
    """
    rows = [torch.arange(n) for n in shape]
    for placement, ranks, rank in zip(placements, mesh, at, strict=True):
        if not placement.is_replicate():
            axis = placement.dim
            index = rows[axis].reshape([-1 if i == axis else 1 for i in range(len(shape))])
            rows[axis] = placement._split_tensor(index, ranks, with_padding=False, contiguous=False)[0][rank].flatten()
    per_axis = []
    for index in rows:
        breaks = [0, *((index.diff() != 1).nonzero().flatten() + 1).tolist(), len(index)]
        per_axis.append([(int(index[a]), a, b - a) for a, b in pairwise(breaks) if b > a])
    return [tuple(zip(*runs, strict=True)) if runs else ((), (), ()) for runs in product(*per_axis)]  # type: ignore[misc]
