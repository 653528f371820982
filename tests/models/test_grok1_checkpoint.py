"""The original Grok-1 checkpoint: a fake one in the released format is read, converted, refused when it is not whole.

Twelve layers, so that the order of files (0, 1, 10, 11, 2, …) is not the order of layers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors import safe_open
from torch import Tensor

from bloomery.core.devices import free_memory
from bloomery.core.errors import BloomeryError, CheckpointError, ConfigError, StorageError
from bloomery.models import DecoderConfig, convert_pretrained, grok1, grok1_checkpoint, load_pretrained
from bloomery.models.config import MoEConfig
from bloomery.models.grok1_checkpoint import Quantised, convert_grok1, leaves, load_grok1

DIM, HEADS, KV, HEAD, EXPERTS, FFN, VOCAB, LAYERS, DEVICES = 16, 6, 2, 4, 3, 24, 37, 12, 8
CONFIG = DecoderConfig(
    vocab_size=VOCAB, dim=DIM, n_layers=LAYERS, n_heads=HEADS, n_kv_heads=KV, head_dim=HEAD, ffn_dim=FFN,
    post_norm=True, activation="gelu_tanh", softcap=30.0, tie_embeddings=True, embed_scale=DIM**0.5,
    logit_scale=3**-0.5, max_positions=64, moe=MoEConfig(n_experts=EXPERTS, top_k=2, expert_dim=FFN),
)  # fmt: skip


# --- writing in the released format ----------------------------------------------------------------------------------


class QuantizedWeight8bit:
    """Pickled as the release's class: by the name it had in the program that wrote it."""

    def __init__(self, weight: Any, scales: Any) -> None:
        self.weight, self.scales = weight, scales


class bfloat16:
    """Stands for the number type of the package ml_dtypes, which NumPy does not have."""


QuantizedWeight8bit.__module__, bfloat16.__module__ = "__main__", "ml_dtypes"


class Bfloat16Dtype:
    def __reduce__(self) -> Any:
        return np.dtype, (bfloat16, False, True), (3, "<", None, None, None, 2, 2, 64)


class Bfloat16Array:
    """Pickles as an array of bfloat16 does; the values must be exact."""

    def __init__(self, values: np.ndarray) -> None:
        self.bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        assert np.array_equal((self.bits.astype(np.uint32) << 16).view(np.float32), values)

    def __reduce__(self) -> Any:
        state = (1, self.bits.shape, Bfloat16Dtype(), False, self.bits.tobytes())
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


def quantised(rng: np.random.Generator, shape: tuple[int, ...], groups: int) -> tuple[QuantizedWeight8bit, np.ndarray]:
    """A random leaf, and its weights, multiplied out row by row."""
    weight = rng.integers(-127, 128, shape, dtype=np.int8)
    exact = (
        rng.integers(128, 256, (*shape[:-2], groups, shape[-1])).astype(np.float32) * 2.0**-14
    )  # 8 bits, as bfloat16
    dense = np.zeros(shape, np.float32)
    rows = shape[-2] // groups
    for row in range(shape[-2]):
        dense[..., row, :] = weight[..., row, :] * exact[..., row // rows, :]
    return QuantizedWeight8bit(weight, Bfloat16Array(exact)), dense


def write_release(folder: Path) -> dict[str, Tensor]:
    """A checkpoint in `folder/ckpt-0`; its tensors by the ports' names."""
    rng = np.random.default_rng(3)
    tree: dict[str, Any] = {}  # path of the parameter tree → what is pickled
    port: dict[str, np.ndarray] = {}

    def plain(path: str, name: str, shape: tuple[int, ...]) -> None:
        tree[path] = rng.standard_normal(shape).astype(np.float32)
        port[name] = tree[path].T if name.endswith("gate") else tree[path]

    def matrix(path: str, names: list[str], shape: tuple[int, ...], groups: int) -> None:
        tree[path], dense = quantised(rng, shape, groups)
        port.update({n: m.T for n, m in zip(names, dense if len(shape) == 3 else dense[None], strict=True)})

    plain("language_model/in_out_embed/embeddings", "model.embed_tokens", (VOCAB, DIM))
    plain("language_model/rms_norm/scale", "model.norm", (DIM,))
    for i in range(LAYERS):
        path, name = f"transformer/decoder_layer_{i}", f"model.layers.{i}"
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            width = (HEADS if ours == "q" else KV) * HEAD
            matrix(f"{path}/multi_head_attention/{theirs}/w", [f"{name}.attn.{ours}_proj"], (DIM, width), 1)
        matrix(f"{path}/multi_head_attention/linear/w", [f"{name}.attn.o_proj"], (HEADS * HEAD, DIM), DEVICES)
        for part, rows, columns, groups in (
            ("linear", DIM, FFN, 1), ("linear_v", DIM, FFN, 1), ("linear_1", FFN, DIM, DEVICES)
        ):  # fmt: skip
            names = [f"{name}.moe_block.experts.{e}.{part}" for e in range(EXPERTS)]
            matrix(f"{path}/moe/{part}/w", names, (EXPERTS, rows, columns), groups)
        for suffix, norm in enumerate(("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")):
            plain(f"{path}/rms_norm{f'_{suffix}' if suffix else ''}/scale", f"{name}.{norm}", (DIM,))
        plain(f"{path}/router/w", f"{name}.moe_block.gate", (DIM, EXPERTS))
    (folder / "ckpt-0").mkdir(parents=True)
    for index, path in enumerate(sorted(tree)):  # JAX flattens dictionaries by sorted keys
        (folder / "ckpt-0" / f"tensor{index:05d}_000").write_bytes(pickle.dumps(tree[path], 4))
    return {f"{name}.weight": torch.from_numpy(np.ascontiguousarray(array)) for name, array in port.items()}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Read only."""
    import __main__

    patch = pytest.MonkeyPatch()
    patch.setattr(__main__, "QuantizedWeight8bit", QuantizedWeight8bit, raising=False)
    patch.setitem(sys.modules, "ml_dtypes", types.SimpleNamespace(bfloat16=bfloat16))
    folder = tmp_path_factory.mktemp("grok-1")
    tensors = write_release(folder)
    patch.undo()
    return folder, tensors


@pytest.fixture
def copy(release: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> Path:
    """A checkpoint to break."""
    shutil.copytree(release[0], tmp_path / "broken")
    return tmp_path / "broken"


def leaf(folder: Path, index: int) -> Path:
    return folder / "ckpt-0" / f"tensor{index:05d}_000"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_tensor_lands_in_its_layer(release: tuple[Path, dict[str, Tensor]]) -> None:
    folder, expected = release
    model = load_grok1(folder, "float32", config=CONFIG)
    ours = grok1.KEYS.tensors(model)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name
    assert not torch.equal(
        expected["model.layers.2.attn.q_proj.weight"], expected["model.layers.10.attn.q_proj.weight"]
    )


def test_the_sizes_of_the_release() -> None:
    """770 leaves; the embedding, the final norm, and a first layer of the shapes that its files have."""
    found = leaves(grok1.PRESETS["grok-1"])
    assert len(found) == 770
    assert [(leaf.index, leaf.path, leaf.shape) for leaf in found[:4]] == [
        (0, "language_model/in_out_embed", (131072, 6144)),
        (1, "language_model/rms_norm", (6144,)),
        (2, "transformer/decoder_layer_0/moe/linear", (8, 6144, 32768)),
        (3, "transformer/decoder_layer_0/moe/linear_1", (8, 32768, 6144)),
    ]
    assert [leaf.path.split("/")[1] for leaf in found[2::12]][:4] == [f"decoder_layer_{i}" for i in (0, 1, 10, 11)]
    assert found[-1].names == ("model.layers.9.moe_block.gate.weight",)


@given(st.data())
def test_scales_belong_to_groups_of_rows(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    groups, rows, columns = (data.draw(st.integers(1, 5)) for _ in range(3))
    batch = data.draw(st.sampled_from([(), (2,)]))
    weight = rng.integers(-128, 128, (*batch, groups * rows, columns), dtype=np.int8)
    scales = rng.random((*batch, groups, columns), dtype=np.float32)
    dense = Quantised(weight, scales).dense()
    for row in range(groups * rows):
        assert np.array_equal(dense[..., row, :], weight[..., row, :] * scales[..., row // rows, :])


def test_bfloat16_by_default_with_routers_in_float32(
    release: tuple[Path, dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, expected = release
    with caplog.at_level(logging.INFO, logger="bloomery"):
        model = load_grok1(folder, config=CONFIG)
    size = sum(p.nbytes for p in model.parameters())
    assert f"torch.bfloat16, {size / 1e9:.1f} GB in memory" in caplog.text
    for name, tensor in grok1.KEYS.tensors(model).items():
        router = name.endswith("moe_block.gate.weight")
        assert tensor.dtype == (torch.float32 if router else torch.bfloat16)
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name
    assert torch.isfinite(model(torch.arange(VOCAB)[None]).logits).all()


def test_sizes_from_a_config_beside_the_leaves(release: tuple[Path, dict[str, Tensor]], copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps(grok1.write(CONFIG)))
    model = load_pretrained(copy, "float32")  # the usual door
    assert torch.equal(model(torch.arange(9)[None]).logits, load_grok1(copy, "float32")(torch.arange(9)[None]).logits)
    assert torch.equal(model.embed.weight, release[1]["model.embed_tokens.weight"])


# --- converting ------------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_is_the_same_model(release: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, expected = release
    n = convert_grok1(folder, tmp_path / "safe", "float32", shard_bytes=20_000, config=CONFIG, quiet=True)
    assert n == sum(tensor.numel() for tensor in expected.values())
    files = sorted(path.name for path in (tmp_path / "safe").glob("*.safetensors"))
    assert len(files) > 3
    assert all((tmp_path / "safe" / name).stat().st_size < 40_000 for name in files)
    ours = grok1.KEYS.tensors(load_pretrained(tmp_path / "safe"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["safe"]


def test_convert_is_the_command(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bloomery.cli.main import main

    (copy / "config.json").write_text(json.dumps(grok1.write(CONFIG)))
    assert main(["convert", str(copy), str(tmp_path / "safe"), "--shard-gb", "1e-4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["dtype"] == "bfloat16"
    assert said["files"] > 1
    with safe_open(next(iter((tmp_path / "safe").glob("*00002-of*"))), framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {torch.float32 if "gate" in name else torch.bfloat16 for name in kinds} == set(kinds.values())
    assert main(["convert", str(copy), str(tmp_path / "safe")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_killed_conversion_goes_on(
    release: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = release
    target, partial = tmp_path / "safe", tmp_path / "safe.partial"
    options: dict[str, Any] = {"dtype": "float32", "shard_bytes": 20_000, "config": CONFIG, "quiet": True}
    whole = tmp_path / "whole"
    convert_grok1(folder, whole, **options)
    write, written = grok1_checkpoint.save_file, []

    def dies(tensors: Any, path: Path, **rest: Any) -> None:
        if len(written) == 3:
            path.write_bytes(b"half of a fi")
            raise KeyboardInterrupt
        written.append(path)
        write(tensors, path, **rest)

    monkeypatch.setattr(grok1_checkpoint, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        convert_grok1(folder, target, **options)
    assert not target.exists()
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert len(done) == 3
    monkeypatch.setattr(grok1_checkpoint, "save_file", write)
    for other in ({"dtype": "bfloat16"}, {"shard_bytes": 30_000}):
        with pytest.raises(StorageError, match="begun with other settings"):
            convert_grok1(folder, target, **options | other)
    convert_grok1(folder, target, **options)
    assert {name: (target / name).stat().st_mtime_ns for name in done} == done
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
    assert not partial.exists()


# --- what is refused -------------------------------------------------------------------------------------------------


def drop(folder: Path) -> None:
    leaf(folder, 17).unlink()
    leaf(folder, 40).unlink()


def shape(folder: Path) -> None:
    leaf(folder, 26).write_bytes(pickle.dumps(np.zeros((DIM, 5), np.float32)))


def hostile(folder: Path) -> None:
    leaf(folder, 9).write_bytes(b"cos\nsystem\n(Vtouch touched\ntR.")


def cut(folder: Path) -> None:
    with leaf(folder, 5).open("r+b") as file:
        file.truncate(leaf(folder, 5).stat().st_size - 7)


def scales(folder: Path, size: int = 5) -> None:
    content = leaf(folder, 2).read_bytes()
    assert content.count(b"\x8c\x06scales") == 1
    other = leaf(folder, 3).read_bytes()  # its scales have eight rows, which these 16 divide, but other columns
    leaf(folder, 2).write_bytes(other)


def fewer_layers(folder: Path) -> None:
    for index in range(134, 146):
        leaf(folder, index).unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (drop, r"2 of 146 files for 12 layers \(12 each and 2\) are missing; the first missing is "
                r"tensor00017_000, leaf 17 \(transformer/decoder_layer_1/multi_head_attention/key\)"),
    "extra": (lambda f: shutil.copy(leaf(f, 1), leaf(f, 146)), r"1 more than the 146 .* such as tensor00146_000"),
    "in pieces": (lambda f: shutil.copy(leaf(f, 1), f / "ckpt-0" / "tensor00001_001"), "several pieces are not read"),
    "shape": (shape, r"leaf 26 \(transformer/decoder_layer_10/moe/linear\) is \[16, 5\] instead of \[3, 16, 24\]"),
    "swapped": (scales, r"leaf 2 .* is \[3, 24, 16\] instead of \[3, 16, 24\]"),
    "hostile": (hostile, r"tensor00009_000: the pickle asks for 'os\.system'"),
    "cut off": (cut, r"tensor00005_000: ends at byte"),
    "empty": (lambda f: leaf(f, 5).write_bytes(b""), "tensor00005_000: is empty"),
    "depth": (fewer_layers, r"12 of 146 files .*decoder_layer_9/moe/linear\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_checkpoint_that_is_not_whole(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, message = BROKEN[case]
    spoil(copy)
    for use in (lambda: load_grok1(copy, config=CONFIG), lambda: convert_grok1(copy, tmp_path / "t", config=CONFIG)):
        with pytest.raises(CheckpointError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize(
    ("weight", "rows", "message"),
    [
        (np.zeros((DIM, KV * HEAD), np.int8), (5, KV * HEAD), "has scales .* which do not divide"),
        (np.zeros((DIM, KV * HEAD), np.int8), (1, 3), "has scales .* which do not divide"),
        (np.zeros((DIM, KV * HEAD), np.int8), (0, KV * HEAD), "has scales .* which do not divide"),
        (np.zeros((DIM, KV * HEAD), np.int16), (1, KV * HEAD), "is int16 with scales, not int8"),
    ],
)
def test_scales_that_do_not_fit(
    copy: Path, monkeypatch: pytest.MonkeyPatch, weight: np.ndarray, rows: tuple[int, int], message: str
) -> None:
    import __main__

    monkeypatch.setattr(__main__, "QuantizedWeight8bit", QuantizedWeight8bit, raising=False)
    leaf(copy, 5).write_bytes(pickle.dumps(QuantizedWeight8bit(weight, np.zeros(rows, np.float32))))
    with pytest.raises(CheckpointError, match=rf"leaf 5 \(.*key\) {message}"):
        load_grok1(copy, config=CONFIG)


def test_too_little_memory_and_too_little_disk(
    release: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grok1_checkpoint, "free_memory", lambda: 100_000)
    with pytest.raises(StorageError, match=r"the model takes 0\.0 GB of memory, 0\.0 GB are free \(use a larger"):
        load_grok1(release[0], config=CONFIG)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(grok1_checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"GB are to be written, 0\.0 GB are free"):
        convert_grok1(release[0], tmp_path / "safe", config=CONFIG)
    assert not list(tmp_path.iterdir())


def test_free_memory_is_a_plausible_number() -> None:
    free = free_memory()
    assert free is None or 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_folder_without_leaves_and_a_configuration_of_another_kind(tmp_path: Path) -> None:
    assert not grok1_checkpoint.is_original(tmp_path)
    with pytest.raises(BloomeryError, match="770 of 770 files for 64 layers"):
        load_grok1(tmp_path)
    with pytest.raises(BloomeryError, match="not a Hugging Face model folder"):
        convert_pretrained(tmp_path, tmp_path / "safe")
    with pytest.raises(ConfigError, match="not a configuration of Grok-1's kind"):
        leaves(dataclasses.replace(CONFIG, moe=None))
