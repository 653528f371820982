"""PyTorch's own checkpoint folders in and out, bit by bit; one process here, two ranks in `test_interchange_ranks`."""

from __future__ import annotations

import contextlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from bloomery import checkpoint
from bloomery.checkpoint.dcp import export_dcp, import_dcp
from bloomery.core.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.mid = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("halves", torch.randn(3, 5).bfloat16())
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mid(self.embed(x)))


def trained(seed: int = 0, steps: int = 2) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Net()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=0.01)
    for _ in range(steps):
        model(torch.arange(11)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def dcp_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    loader = {"seen": [1, (2, 3)], "buffers": [torch.arange(4), torch.ones(2)], "name": "a.b"}
    return {"model": weights, "optim": moments, "step": 7, "loader": loader}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DCP folder that PyTorch wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dcp_state(*trained()), checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def same(a: Any, b: Any) -> bool:
    """Equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def equal_modules(a: nn.Module, b: nn.Module) -> bool:
    bits = [{k: v.view(torch.uint8) if v.numel() else v for k, v in m.state_dict().items()} for m in (a, b)]
    return same(*bits)


def test_a_folder_of_pytorch_becomes_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    model, optimizer = trained()
    manifest = import_dcp(folder, tmp_path / "ours")
    checkpoint.verify(tmp_path / "ours")
    other, its = trained(seed=1, steps=1)
    state = {"model": other, "optim": its, "step": 0, "loader": None}
    checkpoint.load(tmp_path / "ours", state)
    assert equal_modules(model, other)
    assert same(optimizer.state_dict(), its.state_dict())
    assert state["step"] == 7
    assert same(state["loader"], dcp_state(model, optimizer)["loader"])
    assert manifest.values["optim"]["class"] == "AdamW"


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    import_dcp(folder, tmp_path / "ours")
    assert export_dcp(tmp_path / "ours", tmp_path / "again") == []
    before, after = (_load_state_dict_from_keys(checkpoint_id=where) for where in (folder, tmp_path / "again"))
    half = [state["model"].pop("halves").view(torch.int16) for state in (before, after)]
    assert torch.equal(*half)
    assert same(before, dict(sorted(after.items(), key=lambda item: list(before).index(item[0]))))
    told = [pickle.loads((where / ".metadata").read_bytes()) for where in (folder, tmp_path / "again")]
    assert told[0].planner_data == told[1].planner_data
    assert told[0].state_dict_metadata.keys() == told[1].state_dict_metadata.keys()


def test_pytorch_loads_what_we_export(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path / "ours", {"model": model, "optim": optimizer, "step": 7, "rank": checkpoint.PerRank(1)})
    assert export_dcp(tmp_path / "ours", tmp_path / "dcp") == ["rank"]
    other, its = trained(seed=1)
    state = {key: value for key, value in dcp_state(other, its).items() if key != "loader"}
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    set_state_dict(other, its, model_state_dict=state["model"], optim_state_dict=state["optim"])
    assert equal_modules(model, other)
    assert same(optimizer.state_dict(), its.state_dict())
    assert state["step"] == 7
    sizes = sum(file.stat().st_size for file in (tmp_path / "dcp").glob("*.distcp"))
    assert len(list((tmp_path / "dcp").iterdir())) == 2
    assert sizes > model.embed.weight.nbytes  # tied: written once, found under both names


@pytest.mark.parametrize("flat_optimizer", [False, True])
def test_shapes_of_state(tmp_path: Path, flat_optimizer: bool) -> None:
    """A bare state dictionary; one wrapped once more; a flattened optimiser, as torchtitan saves it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    model, optimizer = trained()
    options = StateDictOptions(flatten_optimizer_state_dict=flat_optimizer)
    moments = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "bare", no_dist=True)
    dcp.save({"app": {"model": model.state_dict(), "optim": moments}}, checkpoint_id=tmp_path / "app", no_dist=True)
    import_dcp(tmp_path / "bare", tmp_path / "a", key="weights")
    import_dcp(tmp_path / "app", tmp_path / "b")
    first, second = Net(), trained(seed=1)
    checkpoint.load(tmp_path / "a", {"weights": first})
    checkpoint.load(tmp_path / "b", {"model": second[0], "optim": second[1]})
    assert equal_modules(model, first)
    assert equal_modules(model, second[0])
    assert same(optimizer.state_dict(), second[1].state_dict())


def test_a_module_without_submodules_is_known_by_its_optimiser(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    state = {"net": model, "optim": torch.optim.SGD(model.parameters(), lr=0.1), "plain": {"x": torch.ones(1)}}
    checkpoint.save(tmp_path / "a", {**state, "none": {}})
    export_dcp(tmp_path / "a", tmp_path / "dcp")
    manifest = import_dcp(tmp_path / "dcp", tmp_path / "b")
    assert manifest.values["net"] == {"kind": "module"}
    assert checkpoint.diff(tmp_path / "a", tmp_path / "b").values == {"none": "missing"}  # DCP has no empty ones


def test_keys_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    manifest = import_dcp(folder, tmp_path / "ours", skip=["optim.*", "loader*"])
    assert {name.partition("/")[0] for name in manifest.index} == {"model"}
    assert "optim" not in manifest.values


def test_what_a_bare_pickle_would_run_is_refused(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    (folder / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Evil()}))
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        import_dcp(folder, tmp_path / "ours")
    dcp.save({"a.b": torch.ones(2), "evil": Evil()}, checkpoint_id=tmp_path / "evil", no_dist=True)
    with pytest.raises(CheckpointError, match="evil is an object that only pickle could restore"):
        import_dcp(tmp_path / "evil", tmp_path / "ours")
    import_dcp(tmp_path / "evil", tmp_path / "ours", skip=["evil"])
    assert not (tmp_path / "made").exists()


def test_a_flipped_bit_is_found(folder: Path, tmp_path: Path) -> None:
    """`torch.distributed.checkpoint.load` reads it without a word."""
    (data,) = folder.glob("*.distcp")
    content = bytearray(data.read_bytes())
    at = bytes(content).index(trained()[0].mid.weight.detach().numpy().tobytes())
    content[at + 9] ^= 4
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.mid\.weight .* is damaged"):
        import_dcp(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    data.write_bytes(content[: at + 9])
    with pytest.raises(CheckpointError, match="cut off"):
        import_dcp(folder, tmp_path / "ours")
    data.unlink()
    with pytest.raises(CheckpointError, match=r"distcp is missing"):
        import_dcp(folder, tmp_path / "ours")
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"it has no \.metadata"):
        import_dcp(folder, tmp_path / "ours")
    assert list(tmp_path.iterdir()) == [folder]


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_metadata_is_read_or_refused(folder: Path, tmp_path_factory, data: st.DataObject) -> None:
    """Whatever became of the pickle, the worst that comes out is one line."""
    content = bytearray((folder / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    other = tmp_path_factory.mktemp("damaged")
    (other / ".metadata").write_bytes(content)
    for file in folder.glob("*.distcp"):
        (other / file.name).hardlink_to(file)
    with contextlib.suppress(CheckpointError):
        import_dcp(other, other / "ours")
