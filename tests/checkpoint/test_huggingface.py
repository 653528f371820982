"""Safetensors folders in and out: what transformers loads, bit by bit, in files of a given size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from bloomery import checkpoint
from bloomery.checkpoint import huggingface
from bloomery.checkpoint.huggingface import export_safetensors, import_safetensors
from bloomery.core import weight_files
from bloomery.core.errors import CheckpointError


def llama(tied: bool = False) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_an_export(tmp_path: Path, tied: bool) -> None:
    import transformers

    model = llama(tied)
    model.config.save_pretrained(tmp_path / "config")
    checkpoint.save(tmp_path / "ours", {"model": model, "optimizer": torch.optim.SGD(model.parameters()), "step": 3})
    written = export_safetensors(tmp_path / "ours", tmp_path / "hf", shard_bytes=30_000, beside=tmp_path / "config")
    assert same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32), model)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) == written["files"] > 2
    assert index["metadata"]["total_size"] == written["bytes"] == sum(p.nbytes for p in model.parameters())
    assert all(name in load_file(tmp_path / "hf" / file) for name, file in index["weight_map"].items())
    assert all((tmp_path / "hf" / file).stat().st_size < 40_000 for file in files)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_of_transformers_is_imported(tmp_path: Path, tied: bool) -> None:
    model = llama(tied)
    model.save_pretrained(tmp_path / "hf", max_shard_size="30KB")
    manifest = import_safetensors(tmp_path / "hf", tmp_path / "ours")
    checkpoint.verify(tmp_path / "ours")
    other = llama(tied)
    nn.init.zeros_(other.model.norm.weight)
    report = checkpoint.load(tmp_path / "ours", {"model": other})
    assert (report.missing, report.unexpected) == ([], [])
    assert same(model, other)
    assert manifest.aliases == ({"model/lm_head.weight": "model/model.embed_tokens.weight"} if tied else {})


def test_another_dtype(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
    checkpoint.save(tmp_path / "ours", {"net": model})
    export_safetensors(tmp_path / "ours", tmp_path / "hf", key="net", dtype="bfloat16", rename=lambda name: f"x.{name}")
    stored = load_file(tmp_path / "hf/model.safetensors")
    assert stored.keys() == {f"x.{name}" for name in model.state_dict()}
    assert torch.equal(stored["x.0.weight"], model[0].weight.bfloat16())
    assert stored["x.1.num_batches_tracked"].dtype == torch.int64


def test_every_dtype_there_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    noise = torch.randint(0, 255, (6, 16), dtype=torch.uint8)
    kinds = {getattr(torch, name) for name in huggingface._DTYPES.values()} - {torch.bool}
    tensors = {str(kind).removeprefix("torch."): noise.clone().view(kind) for kind in kinds}
    tensors |= {"bool": noise > 99, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    (tmp_path / "hf").mkdir()
    save_file(tensors, tmp_path / "hf/model.safetensors")
    import_safetensors(tmp_path / "hf", tmp_path / "ours")
    export_safetensors(tmp_path / "ours", tmp_path / "again")
    after = load_file(tmp_path / "again/model.safetensors")
    assert after.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
        assert (
            after[name].view(-1).view(torch.uint8).tolist() == tensor.contiguous().view(-1).view(torch.uint8).tolist()
        )


def test_one_file_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(6)))
    checkpoint.save(tmp_path / "ours", {"model": model})
    order: list[str] = []
    read, write = huggingface.Reader.read, weight_files.save_file
    monkeypatch.setattr(huggingface.Reader, "read", lambda self, name: (order.append("read"), read(self, name))[1])
    monkeypatch.setattr(weight_files, "save_file", lambda *a, **k: (order.append("write"), write(*a, **k))[1])
    export_safetensors(tmp_path / "ours", tmp_path / "hf", shard_bytes=2 * 16 * 16 * 4)
    assert order == ["read", "read", "write"] * 3


def test_names_that_a_file_says_are_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

    (tmp_path / "hf").mkdir()
    save_model(model := Tied(), str(tmp_path / "hf/model.safetensors"))
    import_safetensors(tmp_path / "hf", tmp_path / "ours")
    checkpoint.load(tmp_path / "ours", {"model": (other := Tied())})
    assert same(model, other)


def test_bad_input(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "ours", {"model": nn.Linear(2, 2), "step": 1})
    with pytest.raises(CheckpointError, match=r"holds no module .*did you mean .model"):
        export_safetensors(tmp_path / "ours", tmp_path / "hf", key="modle")
    with pytest.raises(CheckpointError, match="two tensors would get one name"):
        export_safetensors(tmp_path / "ours", tmp_path / "hf", rename=lambda name: "x")
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        export_safetensors(tmp_path / "ours", tmp_path / "hf", beside=tmp_path)
    checkpoint.save(tmp_path / "odd", {"model": checkpoint.Named({"x": torch.ones(2, dtype=torch.complex128)})})
    with pytest.raises(CheckpointError, match="complex128, which has no place in safetensors"):
        export_safetensors(tmp_path / "odd", tmp_path / "hf")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/model.safetensors").write_bytes(b"\x08" + bytes(30))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        import_safetensors(tmp_path / "broken", tmp_path / "x")
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / "x").exists()
