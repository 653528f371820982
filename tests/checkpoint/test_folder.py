"""The checkpoints of a run, and state that belongs to the run and not to a rank."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery import checkpoint
from bloomery.checkpoint import Checkpoints, ElasticSampler, Rng
from bloomery.checkpoint.tree import decode, encode
from bloomery.core.errors import CheckpointError, StorageError


def state(step: int) -> dict[str, Any]:
    return {"w": torch.full((1000,), float(step)), "step": step}


def damage(folder: Path) -> None:
    file = folder / "data" / "00000-0.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_retention_keeps_the_last_and_the_protected(tmp_path: Path, asynchronous: bool) -> None:
    kept = Checkpoints(tmp_path, keep_last=2, protect=lambda step: step % 4 == 0)
    (tmp_path / ".step-00000099.0123456789ab.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    for step in range(1, 8):
        kept.save(step, state(step), asynchronous=asynchronous)
    checkpoint.finish()
    assert kept.steps() == [4, 6, 7]
    assert kept.latest(check_data=True) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", *(f"step-0000000{step}" for step in (4, 6, 7))]
    assert Checkpoints(tmp_path / "nowhere").latest() is None
    with pytest.raises(CheckpointError, match="at least 1"):
        Checkpoints(tmp_path, keep_last=0)


def test_nothing_goes_before_the_newer_one_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, keep_last=1)
    kept.save(1, state(1))
    monkeypatch.setattr(checkpoint.LocalStorage, "commit", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StorageError, match="disk is full"):
        kept.save(2, state(2))
    assert kept.steps() == [1]
    kept.save(3, state(3), asynchronous=True)
    with pytest.raises(StorageError, match="disk is full"):
        checkpoint.finish()
    assert kept.latest(check_data=True) == 1


def test_a_damaged_checkpoint_is_passed_over_and_can_be_written_again(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        kept.save(step, state(step))
    damage(tmp_path / "step-00000003")
    found = state(0)
    loaded = kept.load(found)
    assert loaded is not None
    assert (loaded[0], found["step"], float(found["w"][7])) == (2, 2, 2.0)
    assert (kept.latest(), kept.latest(check_data=True)) == (3, 2)
    kept.save(3, state(33))
    assert kept.latest(check_data=True) == 3
    with pytest.raises(CheckpointError, match="already holds"):
        kept.save(3, state(3))
    with pytest.raises(CheckpointError, match="another model"):
        kept.load({"w": torch.zeros(7)})
    assert Checkpoints(tmp_path / "none").load({}) is None


@pytest.mark.parametrize("address", [False, True])
def test_two_places(tmp_path: Path, address: bool) -> None:
    slow = f"memory://two-places-{tmp_path.name}" if address else tmp_path / "slow"
    kept = Checkpoints(tmp_path / "fast", keep_last=1, durable=slow)
    for step in (1, 2, 3):
        kept.save(step, state(step), asynchronous=True)
    checkpoint.finish()
    assert kept.steps() == [3]
    second = Checkpoints(slow)
    assert second.steps() == [1, 2, 3]
    found = state(0)
    loaded = second.load(found)
    assert loaded is not None
    assert (loaded[0], found["step"]) == (3, 3)
    assert second.prune(3) == []
    assert Checkpoints(slow, keep_last=2).prune(3) == [1]


@given(
    st.integers(1, 40), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 5)), max_size=5),
    st.integers(0, 9),
)  # fmt: skip
def test_no_sample_is_lost_or_repeated_whatever_the_ranks(
    count: int, phases: list[tuple[int, int, int]], seed: int
) -> None:
    """Ranks, batch sizes and loaders that read ahead change between restarts; what is trained is the one sequence."""
    trained: list[int] = []
    saved: dict[str, int] | None = None
    for parts, batch_size, steps in phases:
        samplers = [ElasticSampler(count, batch_size, part=part, parts=parts, seed=seed) for part in range(parts)]
        for sampler in samplers:
            if saved is not None:
                sampler.load_state_dict(saved)
        batches = [list(islice(sampler, steps + 2)) for sampler in samplers]  # two are read ahead
        for step in range(steps):
            for part in range(parts):
                trained += batches[part][step]
        for sampler in samplers:
            sampler.trained(steps)
        assert len({tuple(sampler.state_dict().items()) for sampler in samplers}) == 1
        saved = samplers[0].state_dict()
    straight = ElasticSampler(count, 1, seed=seed)
    assert trained == [straight.sample(position) for position in range(len(trained))]
    for begin in range(0, len(trained) - count + 1, count):
        assert sorted(trained[begin : begin + count]) == list(range(count))


def test_a_sampler_of_other_data_is_refused() -> None:
    with pytest.raises(CheckpointError, match="counts 5 samples with seed 0, this run 6"):
        ElasticSampler(6, 1).load_state_dict(ElasticSampler(5, 1).state_dict())
    with pytest.raises(CheckpointError, match="no batches"):
        ElasticSampler(5, 1, part=2, parts=2)


def test_generators_continue_or_begin_anew() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    encoded = encode("rng", Rng(7).state_dict(), rank=1, world=2)
    encoded.values["rng/states/rank-00000"] = encoded.values["rng/states/rank-00001"]

    def drawn() -> tuple[float, float, float]:
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    def load(rank: int, world: int) -> Rng:
        generators = Rng(7)
        tensors = encoded.tensors
        generators.load_state_dict(decode("rng", encoded.values, lambda name: tensors[name], rank, world))
        return generators

    expected = drawn()
    load(1, 2)
    assert drawn() == expected
    first = load(0, 3)
    other = drawn()
    assert other != expected
    assert first.changes == 1
    load(1, 3)
    assert drawn() != other
    load(0, 3)
    assert drawn() == other
