"""Boxes: axis-parallel blocks of a tensor in the coordinates of the whole, unsharded tensor (ByteCheckpoint, §3).

What a rank holds is a list of boxes, whatever sharded it; what a file holds is one box after another. Saving, checking
and resharding are then operations on boxes. Arrays of boxes are a pair of int64 arrays `starts`, `sizes`, both (n, d).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True)
class Box:
    """The block of `size` elements per axis that begins at `start`."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def volume(self) -> int:
        """Number of elements."""
        return prod(self.size)

    def within(self, other: Box) -> tuple[slice, ...]:
        """The indices of this box in an array that holds `other`."""
        return tuple(
            slice(a - b, a - b + n) for a, b, n in zip(self.start, other.start, self.size, strict=True)
        )  # fmt: skip

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{a + n}" for a, n in zip(self.start, self.size, strict=True)) + "]"


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return Box((0,) * len(shape), tuple(shape))


def flat_boxes(shape: Sequence[int], begin: int, end: int) -> list[Box]:
    """The elements `begin` … `end - 1` of a row-major tensor as at most 2(d - 1) + 1 boxes, in that order.

    A flat buffer that is cut anywhere (ZeRO, FSDP1) holds such ranges: the head of a partial row, whole rows, the tail
    of a partial row. Purely local, nothing is communicated (ByteCheckpoint, §3.2 "irregular tensor sharding").
    """
    if begin >= end:
        return []
    if len(shape) == 0:
        return [Box((), ())]
    if len(shape) == 1:
        return [Box((begin,), (end - begin,))]
    inner = prod(shape[1:])
    first, last = begin // inner, (end - 1) // inner

    def partial(row: int, a: int, b: int) -> list[Box]:
        return [
            Box((row, *box.start), (1, *box.size)) for box in flat_boxes(shape[1:], a - row * inner, b - row * inner)
        ]

    if first == last and end - begin < inner:
        return partial(first, begin, end)
    head = partial(first, begin, (first + 1) * inner) if begin % inner else []
    tail = partial(last, last * inner, end) if end % inner else []
    a, b = -(-begin // inner), end // inner
    body = [Box((a, *(0,) * (len(shape) - 1)), (b - a, *shape[1:]))] if b > a else []
    return head + body + tail


def split(box: Box, limit: int) -> Iterator[Box]:
    """Cut a box into boxes of at most `limit` elements (at least one) that follow each other in row-major order."""
    if box.volume <= limit or not box.size:
        yield box
        return
    axis = next(i for i, n in enumerate(box.size) if n > 1)
    row = prod(box.size[axis + 1 :])
    step = max(1, limit // row)
    for at in range(0, box.size[axis], step):
        count = min(step, box.size[axis] - at)
        piece = Box(
            (*box.start[:axis], box.start[axis] + at, *box.start[axis + 1 :]),
            (*box.size[:axis], count, *box.size[axis + 1 :]),
        )
        yield from split(piece, limit) if row > limit else (piece,)


def overlaps(starts: np.ndarray, sizes: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of n boxes meet `box`, and where: indices (m,), starts (m, d), sizes (m, d) of the intersections."""
    begin = np.array(box.start, np.int64)
    low, high = np.maximum(starts, begin), np.minimum(starts + sizes, begin + np.array(box.size, np.int64))
    hit = np.flatnonzero((high > low).all(axis=1))
    return hit, low[hit], (high - low)[hit]


def fault(shape: Sequence[int], starts: np.ndarray, sizes: np.ndarray) -> tuple[str, Box] | None:
    """None where the boxes tile the tensor exactly; else ("missing" or "twice" or "outside", a box that is so)."""
    if not prod(shape):
        return None
    if not len(shape):
        return None if len(starts) == 1 else ("twice" if len(starts) else "missing", whole(()))
    full = np.array(shape, dtype=np.int64)
    out = np.flatnonzero(((starts < 0) | (starts + sizes > full)).any(axis=1))
    if len(out):
        return "outside", _box(starts[out[0]], sizes[out[0]])
    if len(starts) == 1 and (sizes[0] == full).all():
        return None
    return (_flat_fault if _contiguous(full, sizes).all() else _grid_fault)(full, starts, sizes)


def _contiguous(shape: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes are one range of the row-major tensor: ones, then any size, then whole axes. (n,)"""
    partial = sizes != shape  # after the last partial axis all is whole; before it there may only be ones
    after = np.flip(np.logical_or.accumulate(np.flip(partial, 1), 1), 1)  # a partial axis here or further right
    before_last = np.concatenate([after[:, 1:], np.zeros((len(sizes), 1), bool)], axis=1)
    return (~before_last | (sizes == 1)).all(axis=1)


def _flat_fault(shape: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> tuple[str, Box] | None:
    strides = np.append(np.cumprod(shape[::-1])[::-1][1:], 1)
    begin = starts @ strides
    order = np.argsort(begin, kind="stable")
    begin = begin[order]
    end = begin + sizes[order].prod(axis=1)
    edges = np.concatenate([[0], end])
    nexts = np.concatenate([begin, [shape.prod()]])
    twice = np.flatnonzero(nexts[:-1] < edges[:-1])
    if len(twice):
        return "twice", _box(starts[order[twice[0]]], sizes[order[twice[0]]])
    gap = np.flatnonzero(nexts > edges)
    if len(gap):
        return "missing", flat_boxes([int(n) for n in shape], int(edges[gap[0]]), int(nexts[gap[0]]))[0]
    return None


def _grid_fault(shape: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> tuple[str, Box] | None:
    """Count how often every cell of the grid of all cuts is covered, with differences along each axis."""
    cuts = [np.unique(np.concatenate([[0, n], a, a + s])) for n, a, s in zip(shape, starts.T, sizes.T, strict=True)]
    corners = [
        (np.searchsorted(c, a), np.searchsorted(c, a + s)) for c, a, s in zip(cuts, starts.T, sizes.T, strict=True)
    ]
    count = np.zeros([len(c) for c in cuts], dtype=np.int32)
    for mask in np.ndindex((2,) * len(cuts)):
        np.add.at(count, tuple(pair[bit] for pair, bit in zip(corners, mask, strict=True)), (-1) ** sum(mask))
    for axis in range(len(cuts)):
        count = count.cumsum(axis=axis)
    count = count[tuple(slice(-1) for _ in cuts)]
    for kind, cells in (("twice", count > 1), ("missing", count < 1)):
        if cells.any():
            at = np.unravel_index(int(cells.argmax()), cells.shape)
            start = tuple(int(c[i]) for c, i in zip(cuts, at, strict=True))
            return kind, Box(start, tuple(int(c[i + 1] - c[i]) for c, i in zip(cuts, at, strict=True)))
    return None


def _box(start: np.ndarray, size: np.ndarray) -> Box:
    return Box(tuple(int(n) for n in start), tuple(int(n) for n in size))
