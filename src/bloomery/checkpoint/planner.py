"""Who writes what: local plans, merged once, cached after.

    local plan     each rank: the boxes that it holds, cut into chunks                      (no communication)
    merge          the first rank: the same chunk on several ranks is written by one of them, largest first to the rank
                   with the least bytes; together the chunks must tile every tensor
    cache          the next save of the same layout: one comparison on each rank and one small reduction

Plans are columns, not objects: 405B parameters on a thousand ranks are millions of boxes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash

from bloomery.checkpoint.boxes import Box, fault, split
from bloomery.checkpoint.comm import Comm
from bloomery.checkpoint.layout import (
    FlatShard,
    Piece,
    Shard,
    Shards,
    Tensorlike,
    dtype_name,
    global_shape,
    local,
    pieces,
)
from bloomery.checkpoint.manifest import Chunks, TensorMeta, padded
from bloomery.core.errors import CheckpointError

CHUNK_BYTES = 16 << 20  # at most, and a read is whole chunks
FAIR_BYTES = 1 << 20  # a piece is cut this fine, not finer, so that ranks that all hold it can share the writing
FILE_BYTES = 256 << 20  # a data file is closed once it is this large, so that several can be written at once
CACHED_PLANS = 8
VERSION = 1


@dataclass
class LocalPlan:
    """The chunks of one rank: row i is a box of tensor `tensor[i]`."""

    tensors: list[TensorMeta]
    tensor: np.ndarray  # (n,)
    start: np.ndarray  # (n, d)
    size: np.ndarray  # (n, d)
    nbytes: np.ndarray  # (n,)
    header: bytes = b""  # the tensors, as they are sent

    def __post_init__(self) -> None:
        if not self.header:
            names = [[meta.name, meta.dtype, meta.shape] for meta in self.tensors]
            self.header = zlib.compress(json.dumps(names).encode(), 1)

    def to_bytes(self) -> bytes:
        """As it travels to the first rank."""
        n, d = self.start.shape
        table = np.concatenate([self.tensor[:, None], self.start, self.size, self.nbytes[:, None]], axis=1)
        return np.array([len(self.header), n, d], np.int64).tobytes() + self.header + table.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, message: bytes, headers: dict[bytes, list[TensorMeta]]) -> LocalPlan:
        """The plan that `to_bytes` packed. Ranks often send equal headers: `headers` holds those parsed before."""
        length, n, d = np.frombuffer(message, np.int64, 3).tolist()
        header = message[24 : 24 + length]
        if header not in headers:
            headers[header] = [TensorMeta(a, b, tuple(c)) for a, b, c in json.loads(zlib.decompress(header))]
        table = np.frombuffer(message, "<i8", n * (2 * d + 2), offset=24 + length).reshape(n, 2 * d + 2)
        return cls(headers[header], table[:, 0], table[:, 1 : d + 1], table[:, d + 1 : -1], table[:, -1], header)


@dataclass
class SavePlan:
    """What one rank writes: rows of its local plan, each with its place in one of the rank's files."""

    rows: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    file_bytes: list[int]
    chunks: Chunks | None = None  # on the first rank: all ranks' chunks, checksums still empty, ordered by rank
    tensors: list[TensorMeta] = field(default_factory=list)
    files: list[tuple[int, int]] = field(default_factory=list)  # (rank, bytes)


def local_plan(
    tensors: Mapping[str, Tensorlike], world: int, chunk_bytes: int = CHUNK_BYTES
) -> tuple[LocalPlan, list[tuple[int, int, Box]]]:
    """The plan of this rank, and for every row (number of the tensor, number of its piece, box).

    How a piece is cut depends on its size and on `world` alone, so that ranks that hold the same one agree.
    """
    metas, rows = [], []
    for number, (name, value) in enumerate(tensors.items()):
        metas.append(TensorMeta(name, dtype_name(local(value).dtype), global_shape(value)))
        for at, piece in enumerate(pieces(value, name)):
            width = piece.data.element_size()
            fair = chunk_bytes if world == 1 else max(piece.box.volume * width // (4 * world), FAIR_BYTES)
            limit = max(1, min(chunk_bytes, fair) // width)
            rows += [(number, at, box) for box in split(piece.box, limit)]
    return plan_of(metas, [(number, box) for number, _, box in rows]), rows


def plan_of(metas: list[TensorMeta], boxes: Sequence[tuple[int, Box]]) -> LocalPlan:
    """A local plan of boxes, each with the number of its tensor."""
    d = max((len(meta.shape) for meta in metas), default=0)
    start, size = np.zeros((len(boxes), d), np.int64), np.ones((len(boxes), d), np.int64)
    for i, (_, box) in enumerate(boxes):
        start[i, : len(box.start)], size[i, : len(box.size)] = box.start, box.size
    tensor = np.array([number for number, _ in boxes], np.int64)
    width = np.array([getattr(torch, meta.dtype).itemsize for meta in metas], np.int64)
    nbytes = size.prod(axis=1) * (width[tensor] if len(boxes) else 1)
    return LocalPlan(metas, tensor, start, size, nbytes.astype(np.int64))


def views(
    tensors: Mapping[str, Tensorlike], rows: Sequence[tuple[int, int, Box]], wanted: np.ndarray
) -> list[torch.Tensor]:
    """The memory behind the `wanted` rows of a plan, each in the shape of its box."""
    values, names = list(tensors.values()), list(tensors)
    parts: dict[int, list[Piece]] = {}
    found = []
    for row in wanted.tolist():
        number, at, box = rows[row]
        if number not in parts:
            parts[number] = pieces(values[number], names[number])
        piece = parts[number][at]
        found.append(piece.data if box == piece.box else piece.data[box.within(piece.box)])
    return found


def merge(plans: Sequence[LocalPlan]) -> tuple[list[np.ndarray], list[TensorMeta], np.ndarray]:
    """The rows that each rank keeps, all tensors, and for each kept row, rank by rank, the number of its tensor.

    Raises:
        CheckpointError: ranks that differ about a tensor, boxes that overlap, or do not cover one.
    """
    d = max((plan.start.shape[1] for plan in plans), default=0)
    tensors, numbers = _common_tensors(plans)
    tensor = np.concatenate([number[plan.tensor] for plan, number in zip(plans, numbers, strict=True)]).astype(np.int64)
    start = np.concatenate([widened(plan.start, d, 0) for plan in plans])
    size = np.concatenate([widened(plan.size, d, 1) for plan in plans])
    nbytes = np.concatenate([plan.nbytes for plan in plans])
    rank = np.repeat(np.arange(len(plans)), [len(plan.tensor) for plan in plans])

    kept = _writers(_identity(tensor, start, size), nbytes, rank, len(plans))
    check_cover(tensors, tensor[kept], start[kept], size[kept])
    begins = np.cumsum([0, *(len(plan.tensor) for plan in plans)])
    bounds = np.searchsorted(kept, begins)
    rows = [kept[a:b] - begin for a, b, begin in zip(bounds, bounds[1:], begins, strict=False)]
    return rows, tensors, tensor[kept]


def _common_tensors(plans: Sequence[LocalPlan]) -> tuple[list[TensorMeta], list[np.ndarray]]:
    known: dict[str, int] = {}
    tensors: list[TensorMeta] = []
    by_header: dict[bytes, np.ndarray] = {}
    numbers = []
    for at, plan in enumerate(plans):
        if plan.header not in by_header:
            for meta in plan.tensors:
                number = known.setdefault(meta.name, len(tensors))
                if number == len(tensors):
                    tensors.append(meta)
                elif tensors[number] != meta:
                    a, b = tensors[number], meta
                    what = (
                        f"{meta.name} is {b.dtype} {list(b.shape)} on rank {at}, {a.dtype} {list(a.shape)} on another"
                    )
                    raise CheckpointError(what, fix="give every rank the shape of the whole tensor")
            by_header[plan.header] = np.array([known[meta.name] for meta in plan.tensors], np.int64)
        numbers.append(by_header[plan.header])
    return tensors, numbers


def _identity(tensor: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A 64-bit number for each (tensor, box); two that met by chance would leave a hole, which is then found."""
    mixed = tensor.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for column in [*start.T, *size.T]:
            mixed = (mixed ^ (mixed >> np.uint64(29)) ^ column.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


def _writers(identity: np.ndarray, nbytes: np.ndarray, rank: np.ndarray, world: int) -> np.ndarray:
    """The rows that are written, in order: one for each identity, spread by bytes (longest processing time first)."""
    order = np.argsort(identity, kind="stable")
    begins = np.flatnonzero(np.concatenate([[True], np.diff(identity[order]) != 0])) if len(order) else order
    counts = np.diff(np.append(begins, len(order)))
    alone = order[begins[counts == 1]]
    load = np.bincount(rank[alone], nbytes[alone], world)
    many = np.flatnonzero(counts > 1)
    many = many[np.lexsort((order[begins[many]], -nbytes[order[begins[many]]]))]
    chosen = np.empty(len(many), np.int64)
    for i, (begin, count) in enumerate(zip(begins[many].tolist(), counts[many].tolist(), strict=True)):
        holders = order[begin : begin + count]
        chosen[i] = row = holders[load[rank[holders]].argmin()]  # the lowest rank where several are equal
        load[rank[row]] += nbytes[row]
    return np.sort(np.concatenate([alone, chosen]))


def check_cover(tensors: list[TensorMeta], tensor: np.ndarray, start: np.ndarray, size: np.ndarray) -> None:
    """Raise a `CheckpointError` that names a tensor and a box, unless the boxes tile every tensor exactly."""
    order = np.argsort(tensor, kind="stable")
    edges = np.searchsorted(tensor[order], np.arange(len(tensors) + 1))
    for number, meta in enumerate(tensors):
        rows, ndim = order[edges[number] : edges[number + 1]], len(meta.shape)
        found = fault(meta.shape, start[rows, :ndim], size[rows, :ndim])
        if found is not None:
            kind, box = found
            text = {"missing": "is held by no rank", "twice": "is held in boxes that overlap", "outside": "leaves it"}[
                kind
            ]
            raise CheckpointError(f"{meta.name} of shape {list(meta.shape)}: {box} {text}")


def widened(boxes: np.ndarray, d: int, fill: int) -> np.ndarray:
    """Columns of boxes (n, axes) with as many more of `fill` as there are to be d."""
    return boxes if boxes.shape[1] == d else np.pad(boxes, ((0, 0), (0, d - boxes.shape[1])), constant_values=fill)


def place(nbytes: np.ndarray, file_bytes: int = FILE_BYTES) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Where a rank's chunks lie: file and offset of each, and the bytes of every file."""
    lengths = padded(nbytes)
    begins = np.cumsum(lengths) - lengths
    file = begins // file_bytes
    file = np.unique(file, return_inverse=True)[1] if len(file) else file
    first = begins[np.searchsorted(file, file)] if len(file) else begins
    sizes = np.bincount(file, lengths).astype(np.int64).tolist() if len(file) else []
    return file, begins - first, sizes


class Planner:
    """Plans saves, and remembers the plans of the last few layouts."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[int, list[tuple[int, int, Box]], SavePlan]] = {}

    def plan(
        self,
        tensors: Mapping[str, Tensorlike],
        comm: Comm,
        failed: BaseException | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> tuple[list[tuple[int, int, Box]], SavePlan, bool]:
        """The rows of the local plan, what to write of them, and whether the plan was known.

        `failed` is what has kept this rank from having tensors; every rank raises then. A known plan costs the ranks
        one small reduction.
        """
        key = (VERSION, comm.rank, comm.world, chunk_bytes, file_bytes, signature(tensors))
        known = self._known.pop(key, None)
        least, most = comm.extremes(-2 if failed else known[0] if known else -1)
        if least == -2:
            comm.agree(failed)
        if known is not None and least == most:
            self._known[key] = known  # the newest again
            return known[1], known[2], True
        error: BaseException | None = None
        try:
            mine, rows = local_plan(tensors, comm.world, chunk_bytes)
        except Exception as found:
            error = found
        comm.agree(error)
        gathered, answer, plan = comm.gather(mine.to_bytes()), b"", None
        if gathered is not None:
            try:
                answer, plan = self._merged(gathered, file_bytes)
            except CheckpointError as found:
                error = found
        comm.agree(error)
        identity, kept = _unpacked(comm.broadcast(answer), comm.rank)
        file, offset, sizes = place(mine.nbytes[kept], file_bytes)
        plan = SavePlan(kept, file, offset, sizes) if plan is None else plan
        plan.rows, plan.file, plan.offset, plan.file_bytes = kept, file, offset, sizes
        self._known[key] = (identity, rows, plan)
        while len(self._known) > CACHED_PLANS:
            self._known.pop(next(iter(self._known)))
        return rows, plan, False

    def _merged(self, gathered: Sequence[bytes], file_bytes: int) -> tuple[bytes, SavePlan]:
        headers: dict[bytes, list[TensorMeta]] = {}
        plans = [LocalPlan.from_bytes(message, headers) for message in gathered]
        rows, tensors, tensor = merge(plans)
        chunks, files = lay_out(plans, rows, tensor, file_bytes)
        identity = xxhash.xxh3_64_intdigest(b"".join(gathered)) >> 1  # of the whole plan; not negative as int64
        none = np.zeros(0, np.int64)
        return _packed(identity, plans, rows), SavePlan(none, none, none, [], chunks, tensors, files)


def lay_out(
    plans: Sequence[LocalPlan], rows: Sequence[np.ndarray], tensor: np.ndarray, file_bytes: int
) -> tuple[Chunks, list[tuple[int, int]]]:
    """The table of all ranks' chunks, rank by rank, and the files as (rank, bytes)."""
    d = max((plan.start.shape[1] for plan in plans), default=0)
    file, offset, files = [], [], list[tuple[int, int]]()
    for rank, (plan, kept) in enumerate(zip(plans, rows, strict=True)):
        at, where, sizes = place(plan.nbytes[kept], file_bytes)
        file.append(at + len(files))
        offset.append(where)
        files += [(rank, size) for size in sizes]
    pairs = list(zip(plans, rows, strict=True))
    return Chunks(
        tensor,
        np.concatenate([widened(plan.start[kept], d, 0) for plan, kept in pairs]),
        np.concatenate([widened(plan.size[kept], d, 1) for plan, kept in pairs]),
        np.concatenate([plan.nbytes[kept] for plan, kept in pairs]),
        np.concatenate(file),
        np.concatenate(offset),
        np.zeros(len(tensor), np.uint64),
    ), files


def signature(tensors: Mapping[str, Tensorlike]) -> tuple[Any, ...]:
    """All that a plan depends on: names, dtypes, shapes, and how each tensor is cut."""
    return tuple((name, *_cut(value)) for name, value in tensors.items())


def _cut(value: Tensorlike) -> tuple[Any, ...]:
    if isinstance(value, Shards):
        return tuple(_cut(part) for part in value.parts)
    if isinstance(value, Shard):
        return value.data.dtype, value.data.shape, tuple(value.offsets), tuple(value.shape)
    if isinstance(value, FlatShard):
        return value.data.dtype, value.data.shape, value.begin, tuple(value.shape)
    spec = getattr(value, "_spec", None)
    return (
        value.dtype,
        value.shape,
        spec and (spec.placements, spec.mesh.shape, tuple(spec.mesh.get_coordinate() or ())),
    )


def _packed(identity: int, plans: Sequence[LocalPlan], rows: Sequence[np.ndarray]) -> bytes:
    """The decision as one bit for each row of each rank."""
    masks = []
    for plan, kept in zip(plans, rows, strict=True):
        mask = np.zeros(len(plan.tensor), bool)
        mask[kept] = True
        masks.append(np.packbits(mask))
    ends = np.cumsum([len(mask) for mask in masks])
    return np.array([identity, len(masks), *ends], np.int64).tobytes() + b"".join(mask.tobytes() for mask in masks)


def _unpacked(message: bytes, rank: int) -> tuple[int, np.ndarray]:
    identity, world = np.frombuffer(message, np.int64, 2).tolist()
    ends = [0, *np.frombuffer(message, np.int64, world, offset=16).tolist()]
    begin = 16 + 8 * world
    mask = np.frombuffer(message, np.uint8, ends[rank + 1] - ends[rank], offset=begin + ends[rank])
    return identity, np.flatnonzero(np.unpackbits(mask))
