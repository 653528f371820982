"""Who writes what: every element once, evenly, and the same whoever asks."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.checkpoint.boxes import Box, whole
from bloomery.checkpoint.comm import Comm
from bloomery.checkpoint.layout import FlatShard
from bloomery.checkpoint.manifest import ALIGN, FORMAT, Chunks, Manifest, TensorMeta, load_manifest, parse, spans
from bloomery.checkpoint.planner import LocalPlan, Planner, local_plan, merge, place, plan_of
from bloomery.core.errors import CheckpointError
from bloomery.core.hashing import hash64

sizes_of = st.lists(st.integers(1, 50), min_size=1, max_size=6)


def one_axis(sizes: dict[str, int]) -> LocalPlan:
    metas = [TensorMeta(name, "uint8", (n,)) for name, n in sizes.items()]
    return plan_of(metas, [(i, whole(meta.shape)) for i, meta in enumerate(metas)])


def loads(plans: list[LocalPlan], rows: list[np.ndarray]) -> list[int]:
    return [int(plan.nbytes[kept].sum()) for plan, kept in zip(plans, rows, strict=True)]


def written(plans: list[LocalPlan], rows: list[np.ndarray]) -> list[str]:
    return sorted(plan.tensors[plan.tensor[i]].name for plan, kept in zip(plans, rows, strict=True) for i in kept)


@settings(max_examples=100)
@given(st.data())
def test_every_tensor_is_written_once_by_a_rank_that_holds_it(data: Any) -> None:
    world = data.draw(st.integers(1, 6))
    sizes = {f"t{i}": n for i, n in enumerate(data.draw(sizes_of))}
    holders = {name: data.draw(st.sets(st.integers(0, world - 1), min_size=1)) for name in sizes}
    plans = []
    for rank in range(world):  # each names them in an order of its own
        mine = data.draw(st.permutations([name for name in sizes if rank in holders[name]]))
        plans.append(one_axis({name: sizes[name] for name in mine}))
    rows, tensors, tensor = merge(plans)
    assert written(plans, rows) == sorted(sizes)
    assert {meta.name for meta in tensors} == set(sizes)
    names = [plan.tensors[plan.tensor[i]].name for plan, kept in zip(plans, rows, strict=True) for i in kept]
    assert [tensors[number].name for number in tensor] == names  # the tensor of each row that is kept
    again = merge([LocalPlan.from_bytes(plan.to_bytes(), {}) for plan in plans])
    assert [kept.tolist() for kept in again[0]] == [kept.tolist() for kept in rows]


@settings(max_examples=60)
@given(sizes_of, st.integers(1, 3), st.randoms())
def test_replicas_are_spread_within_a_third_of_the_optimum(sizes: list[int], world: int, chance: Any) -> None:
    """Longest processing time first: at most 4/3 - 1/(3n) of the best assignment (Graham 1969)."""
    names = {f"t{i}": n for i, n in enumerate(sizes)}
    plans = [one_axis(names)] * world
    rows = merge(plans)[0]
    best = min(
        max(sum(n for n, r in zip(sizes, ranks, strict=True) if r == rank) for rank in range(world))
        for ranks in itertools.product(range(world), repeat=len(sizes))
    )
    assert max(loads(plans, rows)) <= (4 / 3 - 1 / (3 * world)) * best + 1e-9
    shuffled = list(names.items())
    chance.shuffle(shuffled)
    other = [one_axis(dict(shuffled))] * world
    assert sorted(loads(other, merge(other)[0])) == sorted(loads(plans, rows))


def test_what_one_rank_holds_alone_counts_before_replicas_are_dealt() -> None:
    plans = [one_axis({"mine": 90, "a": 40, "b": 30}), one_axis({"a": 40, "b": 30})]
    assert loads(plans, merge(plans)[0]) == [90, 70]


def test_skewed_replicas_over_four_ranks_are_even() -> None:
    sizes = {f"t{i}": int(4e6 / (i + 1)) for i in range(200)}
    plans = [one_axis(sizes)] * 4
    load = loads(plans, merge(plans)[0])
    assert max(load) / (sum(load) / 4) <= 1.05


def test_holes_overlaps_and_shapes_that_differ_are_named_with_their_box() -> None:
    meta = [TensorMeta("model/w", "float32", (4, 6))]

    def held(*boxes: Box) -> LocalPlan:
        return plan_of(meta, [(0, box) for box in boxes])

    top, low, left = Box((0, 0), (2, 6)), Box((2, 0), (2, 6)), Box((0, 0), (4, 3))
    with pytest.raises(CheckpointError, match=r"^model/w of shape \[4, 6\]: \[2:4, 0:6\] is held by no rank$"):
        merge([held(top), held(top)])
    with pytest.raises(CheckpointError, match=r"\[0:2, 0:3\] is held in boxes that overlap"):
        merge([held(top, low), held(left)])
    with pytest.raises(CheckpointError, match=r"\[3:5, 0:6\] leaves it"):
        merge([held(top), held(Box((3, 0), (2, 6)))])
    other = plan_of([TensorMeta("model/w", "float32", (4, 7))], [(0, whole((4, 7)))])
    with pytest.raises(CheckpointError, match=r"model/w is float32 \[4, 7\] on rank 1, float32 \[4, 6\] on another"):
        merge([held(top, low), other])
    with pytest.raises(CheckpointError, match="scale of shape \\[\\]: \\[\\] is held by no rank"):
        merge(
            [local_plan({"scale": FlatShard(torch.zeros(0), 0, ())}, 1)[0]],
        )


@settings(max_examples=60)
@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 400))
def test_files_hold_chunks_one_after_another(nbytes: list[int], file_bytes: int) -> None:
    file, offset, sizes = place(np.array(nbytes, np.int64), file_bytes)
    assert sorted(set(file.tolist())) == list(range(len(sizes)))
    for number, size in enumerate(sizes):
        at = 0
        for i in np.flatnonzero(file == number):
            assert offset[i] == at
            assert at < file_bytes or at == 0  # a file takes no chunk that begins after it is full
            at += -(-nbytes[i] // ALIGN) * ALIGN
        assert at == size


def test_a_known_layout_is_not_planned_again_and_another_is() -> None:
    planner = Planner()

    def plan(rows: int, dtype: torch.dtype = torch.float32) -> bool:
        return planner.plan({"w": torch.zeros(rows, 4, dtype=dtype)}, Comm())[2]

    assert [plan(4), plan(4), plan(5), plan(4, torch.float64), plan(4)] == [False, True, False, False, True]
    assert not any(plan(rows) for rows in range(10, 17))  # seven others: with the last used, all eight there are
    assert plan(4)
    assert not plan(5)  # used longest ago: gone


# ------------------------------------------------------------------------------------------------------------ manifest

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def manifests(draw: Any) -> Manifest:
    d = draw(st.integers(0, 3))
    shapes = draw(st.lists(st.tuples(*[st.integers(0, 5)] * d), max_size=4))
    tensors = [TensorMeta(f"t{i}/ü", "bfloat16", tuple(shape)) for i, shape in enumerate(shapes)]
    rows = [i for i, meta in enumerate(tensors) if math.prod(meta.shape)]
    n = len(rows)
    ends = np.cumsum([0] + [-(-2 * math.prod(shapes[i]) // 64) * 64 for i in rows])
    size = np.array([tensors[i].shape for i in rows], np.int64).reshape(n, d)
    chunks = Chunks(
        np.array(rows, np.int32), np.zeros((n, d), np.int64), size, 2 * size.prod(axis=1), np.zeros(n, np.int32),
        ends[:-1], np.array([2**64 - 1 - i for i in range(n)], np.uint64),
    )  # fmt: skip
    values = {name: {"kind": "value", "tree": tree} for name, tree in draw(st.dictionaries(st.text(), plain)).items()}
    return Manifest(
        tensors, chunks, [("data/0.bin", int(ends[-1]))], values, {"a": "b"}, [{"bytes": 1e-5}], {"world": 2}
    )


@settings(max_examples=60)
@given(manifests())
def test_a_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    text, table = manifest.dump()
    again = load_manifest(parse(text, "here"), table, "here")
    assert (again.tensors, again.files, again.aliases) == (manifest.tensors, manifest.files, manifest.aliases)
    assert (again.values, again.ranks, again.about) == (manifest.values, manifest.ranks, manifest.about)
    for name, column in vars(manifest.chunks).items():
        found = getattr(again.chunks, name)
        assert found.tolist() == column.tolist() or (name in ("start", "size") and not manifest.chunks.start.shape[1])
    assert again.nbytes == manifest.nbytes
    assert again.dump() == (text, table)


def test_every_bit_of_a_manifest_counts() -> None:
    manifest = Manifest(
        [], Chunks(*(np.zeros((0, 1) if i in (1, 2) else 0, np.int64) for i in range(7))), [],
        {"x": {"kind": "value", "tree": [0.30000000000000004, 1e-05, "é", "\ud800", 12, True]}},
    )  # fmt: skip
    text, table = manifest.dump()
    for damaged, whole_one in ((text, table), (table, text)):
        for bit in range(8 * len(damaged)):
            flipped = bytearray(damaged)
            flipped[bit // 8] ^= 1 << bit % 8
            both = (bytes(flipped), whole_one) if damaged is text else (whole_one, bytes(flipped))
            with pytest.raises(CheckpointError, match=r"here: (damaged checkpoint|format \d+ is |a pickle)"):
                load_manifest(parse(both[0], "here"), both[1], "here")


def test_manifests_that_are_not_to_be_trusted() -> None:
    empty = Manifest([], Chunks(*(np.zeros((0, 1) if i in (1, 2) else 0, np.int64) for i in range(7))), [])
    text, table = empty.dump()
    newer = json.dumps({**json.loads(text), "format": FORMAT + 1}).encode()
    for content, message in (
        (newer, rf"format {FORMAT + 1} is newer than this library \({FORMAT}\) \(upgrade bloomery\)"),
        (b"\x80\x04K\x01.", "a pickle where manifest.json is expected: it is not opened"),
        (b"PK\x03\x04", "a pickle where"),
        (b"", "damaged checkpoint"),
        (b"[]", "damaged checkpoint"),
        (b"{}", "damaged checkpoint"),
        (b"[" * 100_000, "damaged checkpoint"),
        (b"\xff\xfe", "damaged checkpoint"),
        (text[:-1], "damaged checkpoint"),
        (json.dumps({**json.loads(text), "format": 1}).encode(), "format 1 is of bloomery's first training loop"),
        (text + b" ", "damaged checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            parse(content, "here")
    for name in ("../x", "/etc/x", "data/../../x", "a\\b"):
        outside = Manifest([], empty.chunks, [(name, 0)])
        text, table = outside.dump()
        with pytest.raises(CheckpointError, match="lies outside the checkpoint"):
            load_manifest(parse(text, "here"), table, "here")


@settings(max_examples=100)
@given(st.binary() | st.text().map(str.encode) | plain.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_manifest_or_an_error(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse(content, "here")


def test_a_forged_manifest_is_refused_though_its_checksums_agree() -> None:
    def forged(**columns: int) -> Manifest:
        one = {"tensor": 0, "nbytes": 24, "file": 0, "offset": 0, "checksum": 0} | columns
        box = {"start": np.array([[0, 0]]), "size": np.array([[2, 3]])}
        table = Chunks(**box, **{name: np.array([value], np.int64) for name, value in one.items()})
        return Manifest([TensorMeta("w", "float32", (2, 3))], table, [("data/0.bin", 64)])

    text, table = forged().dump()
    load_manifest(parse(text, "here"), table, "here")
    for columns in (
        {"tensor": 1},
        {"tensor": -1},
        {"file": 1},
        {"offset": 64},
        {"offset": -64},
        {"offset": 8},
        {"nbytes": 28},
    ):
        text, table = forged(**columns).dump()
        with pytest.raises(CheckpointError, match="its manifest contradicts itself"):
            load_manifest(parse(text, "here"), table, "here")
    text, table = forged().dump()
    body = parse(text, "here")
    for name, value in (("tensors", [["w"]]), ("files", 5), ("values", {"x": 1}), ("aliases", 3), ("about", None)):
        with pytest.raises(CheckpointError, match="its manifest contradicts itself"):
            load_manifest(body | {name: value}, table, "here")
        with pytest.raises(CheckpointError, match="its manifest contradicts itself"):
            load_manifest({key: kept for key, kept in body.items() if key != name}, table, "here")
    for content in (b"", b"ARROW1\0\0", bytes(100)):
        told = {"rows": 1, "bytes": len(content), "checksum": f"{hash64(content):016x}"}
        with pytest.raises(CheckpointError, match="its manifest contradicts itself"):
            load_manifest(body | {"chunks": told}, content, "here")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 300)), max_size=20), st.data())
def test_spans_read_every_chunk_once_within_bounds(pieces: list[tuple[int, int]], data: Any) -> None:
    ends = [0, 0, 0]
    rows = []
    for file, length in pieces:
        rows.append((file, ends[file], length))
        ends[file] += -(-length // 64) * 64
    file, offset, nbytes = np.array(rows, np.int64).reshape(-1, 3).T
    zeros = np.zeros(len(rows), np.int64)
    chunks = Chunks(zeros, zeros[:, None], zeros[:, None], nbytes, file, offset, zeros)
    wanted = np.flatnonzero([data.draw(st.booleans()) for _ in rows])
    most, gap = data.draw(st.integers(64, 1000)), data.draw(st.integers(0, 200))
    groups = list(spans(chunks, wanted, most, gap))
    assert sorted(row for group in groups for row in group.tolist()) == wanted.tolist()
    for group in groups:
        begin, stop = offset[group], offset[group] + -(-nbytes[group] // 64) * 64
        assert len(set(file[group].tolist())) == 1
        assert (begin[1:] - stop[:-1] <= gap).all()
        assert (begin[1:] >= stop[:-1]).all()
        assert len(group) == 1 or stop[-1] - begin[0] <= most
