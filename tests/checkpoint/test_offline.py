"""Reading and writing in one process: resharding keeps every bit, and a difference is what was changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from bloomery import checkpoint
from bloomery.checkpoint import offline
from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.manifest import TensorMeta
from bloomery.checkpoint.offline import Reader, write
from bloomery.core.errors import CheckpointError


def state(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(37, 50), nn.Linear(50, 3))
    model[1].bias = None
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 37)).sum().backward()
    optimizer.step()
    return {
        "model": model,
        "optimizer": optimizer,
        "step": 5,
        "rows": checkpoint.Rows([1, 2, 3]),
        "x": torch.zeros(0, 2),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "a", state())
    return tmp_path / "a"


@pytest.mark.parametrize(("ranks", "axis"), [(1, 0), (3, 0), (4, 1), (60, 0)])
def test_resharding_keeps_every_bit(saved: Path, tmp_path: Path, ranks: int, axis: int) -> None:
    manifest = checkpoint.reshard(saved, tmp_path / "b", ranks=ranks, axis=axis)
    checkpoint.verify(tmp_path / "b")
    assert not checkpoint.diff(saved, tmp_path / "b")
    assert manifest.values == checkpoint.read_manifest(checkpoint.storage(saved)).values
    assert sorted(name for name, _ in manifest.files) == [f"data/{r:05d}-0.bin" for r in range(min(ranks, 53))]
    other = state(seed=1)
    checkpoint.load(tmp_path / "b", other)
    assert all(map(torch.equal, other["model"].parameters(), state()["model"].parameters()))


def test_each_rank_finds_its_shard_in_one_file_in_order(saved: Path, tmp_path: Path) -> None:
    """What `torch.chunk`, and so FSDP2, gives rank r lies in file r, one tensor after the other."""
    manifest = checkpoint.reshard(saved, tmp_path / "b", ranks=3)
    for i, meta in enumerate(manifest.tensors):
        if len(meta.shape) == 0 or not meta.nbytes:
            continue
        rows = manifest.chunks.of(i)
        shares = torch.arange(meta.shape[0]).chunk(3)
        for start, size, file in zip(
            manifest.chunks.start[rows], manifest.chunks.size[rows], manifest.chunks.file[rows], strict=True
        ):
            assert (int(start[0]), int(size[0])) == (int(shares[file][0]), len(shares[file]))
    for file in range(3):
        of = manifest.chunks.tensor[manifest.chunks.file == file]
        order = np.argsort(manifest.chunks.offset[manifest.chunks.file == file])
        sharded = [n for n in of[order].tolist() if len(manifest.tensors[n].shape)]
        assert sharded == sorted(sharded)


class Counted(checkpoint.LocalStorage):
    """Counts what is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[tuple[str, int]] = []

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        self.reads.append((name, sum(part.nbytes for part in buffers)))
        return super().read_into(name, offset, buffers)


def test_a_rank_reads_its_own_file_only(tmp_path: Path) -> None:
    """Saved in columns, wanted in rows: everything has to be read; after resharding, a quarter."""
    full = {f"m/{i}": torch.randn(64, 64) for i in range(20)}
    metas = [TensorMeta(name, "float32", (64, 64)) for name in full]
    columns = [
        (rank, name, Box((0, 16 * rank), (64, 16)), tensor[:, 16 * rank : 16 * rank + 16])
        for rank in range(4)
        for name, tensor in full.items()
    ]
    write(tmp_path / "a", metas, columns, {"m": {"kind": "module"}}, {}, world=4)
    checkpoint.reshard(tmp_path / "a", tmp_path / "b", ranks=4)
    total = sum(meta.nbytes for meta in metas)
    counts = {}
    for name in ("a", "b"):
        reader = Reader(place := Counted(tmp_path / name))
        rows = reader.boxes([(meta.name, Box((16, 0), (16, 64))) for meta in metas])
        assert all(torch.equal(found, full[meta.name][16:32]) for found, meta in zip(rows, metas, strict=True))
        counts[name] = {file for file, _ in place.reads}, sum(size for _, size in place.reads)
    assert counts["a"] == ({f"data/0000{rank}-0.bin" for rank in range(4)}, total)
    assert counts["b"] == ({"data/00001-0.bin"}, total // 4)


def test_memory_is_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors larger than a batch are read and written in parts."""
    big = torch.randn(64, 1024)
    checkpoint.save(tmp_path / "a", {"w": checkpoint.Named({"big": big, "b": torch.randn(7)})})
    monkeypatch.setattr(offline, "BATCH", 32 << 10)
    monkeypatch.setattr("bloomery.checkpoint.resharding.BATCH", 32 << 10)
    seen: list[int] = []
    boxes = Reader.boxes
    monkeypatch.setattr(
        Reader, "boxes", lambda self, wanted: (out := boxes(self, wanted), seen.append(sum(t.nbytes for t in out)))[0]
    )
    checkpoint.reshard(tmp_path / "a", tmp_path / "b", ranks=2)
    assert max(seen) <= 32 << 10
    assert sum(seen) == big.nbytes + 28
    assert torch.equal(Reader(tmp_path / "b").read("w/big"), big)


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=3), st.integers(1, 5), st.integers(0, 2))
@settings(max_examples=30)
def test_any_shape_and_number_of_ranks(tmp_path_factory, seed: int, shape: list[int], ranks: int, axis: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    generator = torch.Generator().manual_seed(seed)
    tensors = {"x": torch.randn(shape, generator=generator), "y": torch.randint(9, [*shape, 3], generator=generator)}
    checkpoint.save(folder / "a", {"m": checkpoint.Named(tensors)})
    checkpoint.reshard(folder / "a", folder / "b", ranks=ranks, axis=axis)
    checkpoint.verify(folder / "b")
    reader = Reader(folder / "b")
    assert all(torch.equal(reader.read(f"m/{name}"), tensor) for name, tensor in tensors.items())


def test_what_differs(saved: Path, tmp_path: Path) -> None:
    other = state()
    with torch.no_grad():
        other["model"][0].weight[3, 4] += 0.5
        other["model"][0].weight[0, 0] += 0.25
        other["model"][0].bias[1] = math.nan
        other["model"][1].weight.neg_().neg_()
    other["step"], other["y"] = 6, torch.ones(2)
    del other["x"]
    other["rows"] = checkpoint.Rows([1, 2])
    checkpoint.save(tmp_path / "b", other)
    found = checkpoint.diff(saved, tmp_path / "b")
    assert (found.missing, found.unexpected) == (["x"], ["y"])
    assert found.changed.keys() == {"model/0.weight", "model/0.bias"}
    weight, bias = found.changed["model/0.weight"], found.changed["model/0.bias"]
    assert (weight.unequal, weight.of, weight.largest) == (2, 37 * 50, pytest.approx(0.5))
    assert (bias.unequal, bias.of) == (1, 50)
    assert math.isnan(bias.largest)
    assert found.values == {"rows": "changed", "step": "changed", "x": "missing", "y": "unexpected"}
    assert found.equal == 1 + 3 * 3


def test_shapes_dtypes_signs_and_nans(tmp_path: Path) -> None:
    one = {
        "a": torch.ones(2, 3),
        "b": torch.tensor([1.5, 2.0]),
        "c": torch.tensor([0.0, math.nan]),
        "d": torch.tensor(3),
    }
    two = {"a": torch.ones(3, 2), "b": torch.tensor([1.5, 4.0]).bfloat16(), "c": torch.tensor([-0.0, math.nan])}
    checkpoint.save(tmp_path / "a", {"m": checkpoint.Named(one)})
    checkpoint.save(tmp_path / "b", {"m": checkpoint.Named({**two, "d": torch.tensor(2**40 + 3)})})
    found = checkpoint.diff(tmp_path / "a", tmp_path / "b")
    assert found.shape == {"m/a": [[2, 3], [3, 2]]}
    assert found.dtype == {"m/b": ["float32", "bfloat16"]}
    assert vars(found.changed["m/b"]) == {"unequal": 1, "of": 2, "largest": 2.0}
    assert vars(found.changed["m/c"]) == {"unequal": 1, "of": 2, "largest": 0.0}  # the sign of zero is a bit
    assert vars(found.changed["m/d"]) == {"unequal": 1, "of": 1, "largest": 2.0**40}
    with pytest.raises(CheckpointError, match="damaged"):
        file = next((tmp_path / "a/data").iterdir())
        content = bytearray(file.read_bytes())
        content[64] ^= 1  # in m/b
        file.write_bytes(content)
        checkpoint.diff(tmp_path / "a", tmp_path / "b")


def test_what_is_written_must_tile(tmp_path: Path) -> None:
    metas, data = [TensorMeta("x", "float32", (4, 2))], torch.ones(2, 2)
    half, other = (0, "x", Box((0, 0), (2, 2)), data), (0, "x", Box((2, 0), (2, 2)), data)
    for parts, message in [
        ([half], r"\[2:4, 0:2\] is held by no rank"),
        ([half, half, other], "overlap"),
        ([half, (0, "x", Box((2, 0), (2, 1)), data)], r"x \[2:4, 0:1\] should be float32"),
        ([half, (0, "x", Box((2, 0), (2, 2)), data.double())], "should be float32"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            write(tmp_path / "x", metas, parts, {}, {})
        assert list(tmp_path.iterdir()) == []
    write(tmp_path / "x", metas, [half, other], {}, {})
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        write(tmp_path / "x", metas, [half, other], {}, {})
    with pytest.raises(CheckpointError, match="cannot be cut for 0 ranks"):
        checkpoint.reshard(tmp_path / "x", tmp_path / "y", ranks=0)
