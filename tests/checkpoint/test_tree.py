"""Plain values come back as they were, whatever they are nested in; rows are dealt out anew without loss."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.checkpoint.tree import Encoded, PerRank, Rows, decode, encode
from bloomery.core.errors import CheckpointError

words = st.text(max_size=4) | st.sampled_from(["a/b", "%2F", "$tensor", "$", "", "0", "key0", "rank-00000", "ü#"])
arrays = st.sampled_from(["<f4", ">f8", "<i2", "|b1", "<u8", "<c16", "<f2"]).flatmap(
    lambda kind: st.lists(st.integers(0, 3), max_size=3).map(
        lambda shape: np.arange(math.prod(shape)).reshape(shape).astype(kind)
    )
)
scalars = st.sampled_from([np.float64, np.float32, np.int8, np.uint64, np.bool_, np.complex64]).map(
    lambda kind: kind(1)
)
numbers = st.integers() | st.floats() | st.booleans() | st.none() | st.just(-0.0)
tensors = st.sampled_from([torch.arange(6).reshape(2, 3), torch.tensor(2.5), torch.zeros(0, 3)])
leaves = numbers | words | st.binary(max_size=5) | arrays | scalars | tensors
keys = numbers | words | st.tuples(st.integers(), words) | st.binary(max_size=2)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal with equal types, bit by bit: a NaN is itself, -0.0 is not 0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype.newbyteorder(a.dtype.byteorder) and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return a == b


def through(value: Any, rank: int = 0, world: int = 1, like: Any = None) -> Any:
    told = encode("x", value, rank, world)
    return decode("x", told.values, told.tensors.__getitem__, rank, world, like)


@settings(max_examples=150)
@given(trees)
def test_any_nesting_comes_back(value: Any) -> None:
    assert same(value, through(value))


def test_values_with_a_nan_key_and_odd_nesting_come_back() -> None:
    value = {"a/b": {"$": [(), {}, [], ({1: {(2, "x"): b"\0"}},)]}, "%": {None: math.nan, 1.5: -math.inf}}
    assert same(value, through(value))
    assert through(torch.Size([2, 3])) == (2, 3)
    assert list(encode("x", {"a/b": torch.ones(1), "a": {"b": torch.ones(2)}}).tensors) == ["x/a%2Fb", "x/a/b"]


@pytest.mark.parametrize("value", [object(), {1, 2}, print, {"a": [slice(3)]}, np.array(["a"]), np.datetime64("2020")])
def test_what_only_pickle_could_store_is_refused_by_its_path(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^x(/a/0)? is a "):
        encode("x", value)


def gathered(values: list[Any]) -> Encoded:
    """What the parts of several ranks are once they are merged."""
    both = Encoded({}, {})
    for rank, value in enumerate(values):
        told = encode("x", value, rank, len(values))
        assert both.values.get("x", told.values["x"]) == told.values["x"]
        both.values |= told.values
        both.tensors |= told.tensors
    return both


@settings(max_examples=60)
@given(st.lists(st.lists(trees, max_size=4), min_size=1, max_size=5), st.integers(1, 6))
def test_rows_of_n_parts_go_to_m_parts_without_loss_or_repetition(items: list[list[Any]], parts: int) -> None:
    told = gathered([Rows(mine) for mine in items])
    shares = [decode("x", told.values, told.tensors.__getitem__, part, parts).items for part in range(parts)]
    assert same([item for share in shares for item in share], [item for mine in items for item in mine])
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_of_one_part_get_the_same_rows() -> None:
    told = gathered([{"buffer": Rows([1, 2, 3], part=0, parts=1)}] * 2)
    again = [
        decode("x", told.values, told.tensors.__getitem__, rank, 4, {"buffer": Rows([], rank // 2, 2)})
        for rank in range(4)
    ]
    assert [value["buffer"].items for value in again] == [[1], [1], [2, 3], [2, 3]]


def test_a_value_of_each_rank_returns_to_it_and_to_no_other_world() -> None:
    told = gathered([PerRank({"seed": rank, "state": torch.tensor([rank])}) for rank in range(3)])
    found = [decode("x", told.values, told.tensors.__getitem__, rank, 3) for rank in range(3)]
    assert [(f.value["seed"], int(f.value["state"]), f.rank, f.world) for f in found] == [
        (r, r, r, 3) for r in range(3)
    ]
    with pytest.raises(CheckpointError, match="x was saved by each of 3 ranks, and this run has 2"):
        decode("x", told.values, told.tensors.__getitem__, 0, 2)


def test_a_tag_of_a_later_version_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"x holds '\$set', which this version does not know \(upgrade bloomery\)"
    ):
        decode("x", {"x": {"$set": []}}, {}.__getitem__)
