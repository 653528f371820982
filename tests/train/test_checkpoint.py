from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from bloomery.core.errors import CheckpointError, StorageError
from bloomery.train import checkpoint


def trained(model: Any, steps: int = 2) -> torch.optim.AdamW:
    """A few optimiser steps on a made-up gradient, so that every state tensor is set."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for step in range(steps):
        for p in model.parameters():
            p.grad = torch.sin(torch.arange(p.numel(), dtype=torch.float32) + step).view_as(p)
        optimizer.step()
    return optimizer


def snapshot(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found = {name: t.clone() for name, t in model.state_dict().items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for p, values in optimizer.state.items():
        found |= {f"{names[id(p)]}/{key}": t.clone() for key, t in values.items()}
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.fixture
def saved(tmp_path: Path, toy: Callable[..., Any]) -> Path:
    for step in (1, 2):
        model = toy()
        checkpoint.save(checkpoint.step_folder(tmp_path, step), model, trained(model, step), {"step": step})
    return checkpoint.step_folder(tmp_path, 2)


@pytest.mark.parametrize("tied", [False, True])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, toy: Callable[..., Any], tied: bool) -> None:
    model = toy(tied=tied)
    optimizer = trained(model)
    before = snapshot(model, optimizer)
    state = {"step": 7, "nested": {"list": [1, 2.5, None, "ü"]}}
    checkpoint.save(tmp_path / "c", model, optimizer, state)
    other = toy(tied=tied)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.01, fused=True)
    assert checkpoint.load(tmp_path / "c", other, fresh) == state == checkpoint.read_state(tmp_path / "c")
    assert_same(snapshot(other, fresh), before)
    names = set(load_file(tmp_path / "c" / "model.safetensors"))
    assert ("head.weight" in names) != tied  # tied tensors are stored once
    assert {f.name for f in (tmp_path / "c").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
    }  # fmt: skip


def test_loading_without_an_optimiser(saved: Path, toy: Callable[..., Any]) -> None:
    model, reference = toy(), toy()
    trained(reference, 2)
    checkpoint.load(saved, model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_one_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("flip")
    model = torch.nn.Linear(3, 2)
    checkpoint.save(folder / "c", model, trained(model), {"step": 1})
    name = data.draw(st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json"]))
    content = bytearray((folder / "c" / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "c" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"damaged.*{name}"):
        checkpoint.load(folder / "c", model)
    assert checkpoint.latest(folder) is None
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("model.safetensors", lambda f: f.write_bytes(f.read_bytes()[:-1]), "model.safetensors has"),
        ("optimizer.safetensors", lambda f: f.write_bytes(b""), "optimizer.safetensors has 0 bytes"),
        ("state.json", lambda f: f.unlink(), "state.json is missing"),
        ("manifest.json", lambda f: f.unlink(), "no manifest"),
        ("manifest.json", lambda f: f.write_bytes(f.read_bytes()[:40]), "manifest.json is not readable"),
        ("manifest.json", lambda f: f.write_text('{"format": 1, "files": {}}'), "model.safetensors is missing"),
        ("manifest.json", lambda f: f.write_text('{"format": 1, "files": [3]}'), "manifest.json is not readable"),
        ("manifest.json", lambda f: f.write_text('{"format": 99, "files": {}}'), "format 99"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_used(
    saved: Path, toy: Callable[..., Any], caplog: pytest.LogCaptureFixture, name: str, damage: Any, says: str
) -> None:
    damage(saved / name)
    model = toy()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=says) as caught:
        checkpoint.load(saved, model)
    assert str(saved) in str(caught.value)
    assert_same(model.state_dict(), before)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(saved.parent) == checkpoint.step_folder(saved.parent, 1)
    assert says in caplog.text


def test_a_checkpoint_of_another_model_lists_every_difference_at_once(saved: Path, toy: Callable[..., Any]) -> None:
    other = toy(dim=9)
    other.extra = torch.nn.Linear(2, 2)
    del other.drop, other.head
    other.gain = torch.nn.Parameter(torch.zeros(3))
    other.mix.bias.data = torch.zeros(8, dtype=torch.bfloat16)
    before = {key: t.clone() for key, t in other.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(saved, other, torch.optim.AdamW(other.parameters()))
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "missing extra.weight",
        "missing gain",
        "extra head.weight",
        "embed.weight is 13×8 in the checkpoint, 13×9 in the model",
        "mix.bias is torch.float32 in the checkpoint, torch.bfloat16 in the model",
    ):
        assert part in message
    assert_same(other.state_dict(), before)


def test_tied_and_separate_weights_are_different_models(tmp_path: Path, toy: Callable[..., Any]) -> None:
    for tied, says in ((True, "checkpoint only"), (False, "model only")):
        model = toy(tied=tied)
        checkpoint.save(tmp_path / str(tied), model, trained(model), {})
        with pytest.raises(CheckpointError, match=rf"head\.weight is tied to embed\.weight in the {says}"):
            checkpoint.load(tmp_path / str(tied), toy(tied=not tied))


def test_a_frozen_parameter_has_no_optimiser_state(tmp_path: Path, toy: Callable[..., Any]) -> None:
    model = toy()
    checkpoint.save(tmp_path / "c", model, trained(model), {})
    fewer = torch.optim.AdamW(list(model.parameters())[1:], lr=0.1)
    with pytest.raises(CheckpointError, match="optimizer state of unknown embed"):
        checkpoint.load(tmp_path / "c", model, fewer)


def test_retention_keeps_the_newest_and_sweeps_leftovers(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for step in (9, 10, 100, 100_000_000):
        checkpoint.save(checkpoint.step_folder(tmp_path, step), model, trained(model), {"step": step})
    (tmp_path / ".step-00000011.abc.tmp").mkdir()
    (tmp_path / "step-00000010.old").mkdir()
    (tmp_path / "notes").mkdir()
    checkpoint.prune(tmp_path, keep_last=2, newest=checkpoint.step_folder(tmp_path, 100_000_000))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step-00000100", "step-100000000"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100000000"
    assert checkpoint.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("where", ["tensors", "json"])
def test_a_full_disk_keeps_the_last_checkpoint(
    saved: Path, toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        if where == "tensors":  # what safetensors says
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "tensors":
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    model = toy()
    with pytest.raises(StorageError, match=r"disk is full.*free some space"):
        checkpoint.save(checkpoint.step_folder(saved.parent, 3), model, trained(model), {"step": 3})
    monkeypatch.undo()
    assert sorted(p.name for p in saved.parent.iterdir()) == ["step-00000001", "step-00000002"]
    assert checkpoint.latest(saved.parent) == saved
    assert checkpoint.load(saved, model) == {"step": 2}


def test_no_pickle_and_readable_json(saved: Path) -> None:
    assert json.loads((saved / "state.json").read_text())["state"] == {"step": 2}
    assert not [f for f in saved.iterdir() if f.read_bytes()[:2] in (b"PK", b"\x80\x02")]
