"""Boxes against counting cell by cell."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.checkpoint import boxes
from bloomery.checkpoint.boxes import Box, fault, flat_boxes, overlaps, split, whole

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def cells(shape: tuple[int, ...], box: Box) -> np.ndarray:
    """The numbers of a box's elements in row-major order of the whole, in the order of the box."""
    full = np.arange(math.prod(shape)).reshape(shape)
    return full[tuple(slice(a, a + n) for a, n in zip(box.start, box.size, strict=True))].reshape(-1)


@st.composite
def some_boxes(draw: Any, shape: tuple[int, ...], at_least: int = 0) -> list[Box]:
    found = []
    for _ in range(draw(st.integers(at_least, 6))):
        start = tuple(draw(st.integers(0, n - 1)) for n in shape)
        found.append(Box(start, tuple(draw(st.integers(1, n - a)) for n, a in zip(shape, start, strict=True))))
    return found


def arrays(found: list[Box], d: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([box.start for box in found], np.int64).reshape(len(found), d),
        np.array([box.size for box in found], np.int64).reshape(len(found), d),
    )


@settings(max_examples=300)
@given(st.data())
def test_a_flat_range_is_tiled_in_order_by_few_boxes(data: Any) -> None:
    shape = data.draw(shapes)
    begin = data.draw(st.integers(0, math.prod(shape)))
    end = data.draw(st.integers(begin, math.prod(shape)))
    found = flat_boxes(shape, begin, end)
    assert np.concatenate([cells(shape, box) for box in found] or [[]]).tolist() == list(range(begin, end))
    assert len(found) <= max(1, 2 * (len(shape) - 1) + 1)


@settings(max_examples=200)
@given(st.data())
def test_a_box_is_cut_into_pieces_no_larger_than_the_limit(data: Any) -> None:
    shape = data.draw(shapes)
    box = data.draw(some_boxes(shape, 1))[0]
    limit = data.draw(st.integers(1, 40))
    parts = list(split(box, limit))
    assert np.concatenate([cells(shape, part) for part in parts]).tolist() == cells(shape, box).tolist()
    assert all(1 <= part.volume <= limit for part in parts)


@settings(max_examples=200)
@given(st.data())
def test_overlaps_are_those_of_the_elements(data: Any) -> None:
    shape = data.draw(shapes)
    stored, wanted = data.draw(some_boxes(shape)), data.draw(some_boxes(shape, 1))[0]
    hit, start, size = overlaps(*arrays(stored, len(shape)), wanted)
    expected = {i: set(cells(shape, box)) & set(cells(shape, wanted)) for i, box in enumerate(stored)}
    found = {
        int(i): set(cells(shape, Box(tuple(a.tolist()), tuple(n.tolist()))))
        for i, a, n in zip(hit, start, size, strict=True)
    }
    assert found == {i: both for i, both in expected.items() if both}


@st.composite
def layouts(draw: Any) -> tuple[tuple[int, ...], list[Box]]:
    """A tiling made of flat ranges or of a grid, often with one box lost, doubled, shifted or grown."""
    shape = draw(shapes)
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, math.prod(shape)), max_size=3)))
        edges = [0, *cuts, math.prod(shape)]
        found = [box for a, b in itertools.pairwise(edges) for box in flat_boxes(shape, a, b)]
    else:
        found = [whole(shape)]
        for axis, n in enumerate(shape):
            cut = draw(st.integers(0, n))
            found = [part for box in found for part in _cut(box, axis, cut)]
    change = draw(st.sampled_from(["none", "lost", "doubled", "moved", "any"]))
    if change == "any":
        found = draw(some_boxes(shape))
    elif change != "none" and found:
        at = draw(st.integers(0, len(found) - 1))
        box = found.pop(at)
        if change == "doubled":
            found += [box, box]
        if change == "moved" and shape:
            axis = draw(st.integers(0, len(shape) - 1))
            by = draw(st.sampled_from([-1, 1]))
            found.append(Box(tuple(a + by * (i == axis) for i, a in enumerate(box.start)), box.size))
    return shape, draw(st.permutations(found))


def _cut(box: Box, axis: int, at: int) -> list[Box]:
    a, n = box.start[axis], box.size[axis]
    parts = [(a, min(n, max(at - a, 0))), (max(a, at), n - min(n, max(at - a, 0)))]
    return [
        Box((*box.start[:axis], b, *box.start[axis + 1 :]), (*box.size[:axis], m, *box.size[axis + 1 :]))
        for b, m in parts
        if m
    ]


@settings(max_examples=600)
@given(layouts())
def test_faults_are_those_of_counting(layout: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, found = layout
    starts, sizes = arrays(found, len(shape))
    answers = [fault(shape, starts, sizes)]
    inside = all(
        a >= 0 and a + n <= m for box in found for a, n, m in zip(box.start, box.size, shape, strict=True)
    )  # fmt: skip
    if inside and found and shape:  # the path for grids knows every layout, that for flat ranges its own
        answers.append(boxes._grid_fault(np.array(shape), starts, sizes))
    count = np.zeros(math.prod(shape), int)
    for box in found:
        if inside:
            count[cells(shape, box)] += 1
    for answer in answers:
        if not inside:
            assert answer is not None
            assert answer[0] == "outside"
        elif (count == 1).all():
            assert answer is None
        else:
            assert answer is not None
            kind, box = answer
            at = count[cells(shape, box)]
            assert (at > 1).any() if kind == "twice" else kind == "missing" and (at == 0).all()


def test_boxes_read_as_slices() -> None:
    assert str(Box((0, 3), (2, 4))) == "[0:2, 3:7]"
    assert Box((2, 3), (1, 2)).within(Box((1, 3), (4, 4))) == (slice(1, 2), slice(0, 2))
