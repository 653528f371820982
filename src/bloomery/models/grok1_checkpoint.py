"""The original Grok-1 checkpoint: a folder `ckpt-0` of pickled int8 leaves, read without running a pickle.

The release is a flattened JAX parameter tree, one file per leaf, `tensor00000_000` onwards, in the order of its sorted
paths. So layers are in *lexicographic* order (0, 1, 10, 11, … 2, 20, …); since all layers have equal shapes, numeric
order would load without complaint and be wrong. Attention and expert matrices are int8 (stored inputs × outputs) with
bfloat16 scales; the embedding, norms and routers are float32.

Scales belong to output columns. A matrix that was split over eight devices along its *inputs* has a row of scales for
each of them: rows are taken in as many groups as there are rows of scales. An int8 times a bfloat16 is exact in
float32, so rounding the product to bfloat16 gives the values the original program multiplies with.

Two things users ran into are settled before the first byte is converted: what is missing or cut off is named, and what
does not fit into memory or on the disk is refused with the number.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bloomery.core.devices import free_memory, pick_dtype
from bloomery.core.errors import CheckpointError, ConfigError, StorageError
from bloomery.core.files import explain_os_errors, read_json, safetensors_errors, write_json
from bloomery.core.hashing import digest
from bloomery.core.log import logger
from bloomery.core.progress import Progress
from bloomery.core.unpickle import Array, load
from bloomery.core.weight_files import INDEX, SHARD_BYTES, WEIGHTS
from bloomery.models import grok1
from bloomery.models.decoder import Decoder, DecoderConfig
from bloomery.models.pretrained import load_config
from bloomery.nn.moe import Router

FOLDER, PLAN = "ckpt-0", "conversion.json"
LEAVES_PER_LAYER = 12
_FILE = re.compile(r"tensor\d{5}_\d{3}")
_LISTED = 4  # leaves of the wrong shape that a message spells out


@dataclass(frozen=True)
class Quantised:
    """The release's `QuantizedWeight8bit`: weight (…, rows, columns) int8, scales (…, groups of rows, columns)."""

    weight: Array
    scales: Array

    def __getitem__(self, expert: int) -> Quantised:
        return Quantised(self.weight[expert], self.scales[expert])

    def dense(self) -> Array:
        """The float32 weights."""
        *batch, rows, columns = self.weight.shape
        groups = self.scales.shape[-2]
        grouped = self.weight.reshape(*batch, groups, rows // groups, columns)
        return (grouped * self.scales[..., None, :].astype(np.float32)).reshape(self.weight.shape)


RECORDS = {f"{module}.QuantizedWeight8bit": Quantised for module in ("__main__", "model")}


@dataclass(frozen=True)
class Leaf:
    """One file: its place in the original parameter tree, and the tensors of the ports' format that come from it."""

    index: int
    path: str
    shape: tuple[int, ...]
    names: tuple[str, ...]  # several for a stack of experts

    @property
    def file(self) -> str:
        """Its file name."""
        return f"tensor{self.index:05d}_000"

    def __str__(self) -> str:
        return f"leaf {self.index} ({self.path})"


def leaves(config: DecoderConfig) -> list[Leaf]:
    """All leaves in the order of the release: 2 + 12 per layer."""
    c, moe = config, config.moe
    if moe is None or not c.post_norm or not c.tie_embeddings:
        raise ConfigError(
            "not a configuration of Grok-1's kind", fix="experts, post_norm and tie_embeddings are needed"
        )
    wide, narrow = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    up, down = (moe.n_experts, c.dim, moe.expert_dim), (moe.n_experts, moe.expert_dim, c.dim)
    layer: dict[str, tuple[str, tuple[int, ...]]] = {
        "moe/linear": ("moe_block.experts.{}.linear", up),
        "moe/linear_1": ("moe_block.experts.{}.linear_1", down),
        "moe/linear_v": ("moe_block.experts.{}.linear_v", up),
        "multi_head_attention/key": ("attn.k_proj", (c.dim, narrow)),
        "multi_head_attention/linear": ("attn.o_proj", (wide, c.dim)),
        "multi_head_attention/query": ("attn.q_proj", (c.dim, wide)),
        "multi_head_attention/value": ("attn.v_proj", (c.dim, narrow)),
        "rms_norm": ("pre_attn_norm", (c.dim,)),
        "rms_norm_1": ("post_attn_norm", (c.dim,)),
        "rms_norm_2": ("pre_moe_norm", (c.dim,)),
        "rms_norm_3": ("post_moe_norm", (c.dim,)),
        "router": ("moe_block.gate", (c.dim, moe.n_experts)),
    }
    found: list[tuple[str, tuple[int, ...], tuple[str, ...]]] = [
        ("language_model/in_out_embed", (c.vocab_size, c.dim), ("model.embed_tokens.weight",)),
        ("language_model/rms_norm", (c.dim,), ("model.norm.weight",)),
    ]
    for i in sorted(range(c.n_layers), key=str):
        for path, (port, shape) in layer.items():
            copies = moe.n_experts if "{}" in port else 1
            names = tuple(f"model.layers.{i}.{port.format(e)}.weight" for e in range(copies))
            found.append((f"transformer/decoder_layer_{i}/{path}", shape, names))
    return [Leaf(index, *leaf) for index, leaf in enumerate(found)]


def is_original(folder: Path | str) -> bool:
    """Whether a folder is, or holds, a checkpoint in the format of the release."""
    return _leaf_folder(Path(folder)) is not None


def original_config(folder: Path | str) -> DecoderConfig:
    """Sizes of the checkpoint: from a `config.json` beside it (as the ports spell it), else those of the release."""
    beside = Path(folder) / "config.json"
    return load_config(folder) if beside.is_file() else grok1.PRESETS["grok-1"]


class Original:
    """A checkpoint whose files have all been looked at: there, whole, and of the shapes that `config` says.

    Only headers are read; what holds gigabytes stays on the disk until `tensor` asks for it.
    """

    def __init__(self, folder: Path | str, config: DecoderConfig | None = None) -> None:
        self.config = original_config(folder) if config is None else config
        self.leaves = leaves(self.config)
        self.folder = _leaf_folder(Path(folder)) or Path(folder) / FOLDER
        self._require_files()
        wrong = [problem for leaf in self.leaves if (problem := self._misfit(leaf))]
        if wrong:
            rest = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
            fix = "does the configuration belong to this checkpoint?"
            raise CheckpointError("; ".join(wrong[:_LISTED]) + rest, where=self.folder, fix=fix)

    @cached_property
    def places(self) -> dict[str, tuple[Leaf, int | None]]:
        """Where each tensor of the ports' format comes from: a leaf, and the expert in it if it holds several."""
        stacks = {name: (leaf, e) for leaf in self.leaves if len(leaf.names) > 1 for e, name in enumerate(leaf.names)}
        return stacks | {leaf.names[0]: (leaf, None) for leaf in self.leaves if len(leaf.names) == 1}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in the ports' format (outputs × inputs)."""
        leaf, expert = self.places[name]
        shape = leaf.shape if expert is None else leaf.shape[1:]
        return shape if _as_stored(leaf) else shape[::-1]

    def tensor(self, name: str) -> Tensor:
        """One tensor of the ports' format in float32, read from the disk now."""
        leaf, expert = self.places[name]
        stored = load(self.folder / leaf.file, RECORDS)
        part = stored if expert is None else stored[expert]
        dense = part.dense() if isinstance(part, Quantised) else part.astype(np.float32)  # a copy: files are read-only
        tensor = torch.from_numpy(dense)
        return tensor if _as_stored(leaf) else tensor.t()

    def _require_files(self) -> None:
        wanted = {leaf.file: leaf for leaf in self.leaves}
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        found = {path.name for path in there if _FILE.fullmatch(path.name)}
        missing = [leaf for name, leaf in wanted.items() if name not in found]
        extra = sorted(found - wanted.keys())
        expected = f"{len(wanted)} files for {self.config.n_layers} layers ({LEAVES_PER_LAYER} each and 2)"
        if missing:
            first = f"the first missing is {missing[0].file}, {missing[0]}"
            what = f"{len(missing)} of {expected} are missing; {first}"
            raise CheckpointError(what, where=self.folder, fix="fetch them again")
        if extra:
            split = any(not name.endswith("_000") for name in extra)
            raise CheckpointError(
                f"{len(extra)} more than the {expected}, such as {extra[0]}",
                where=self.folder,
                fix="leaves written in several pieces are not read" if split else "give the right number of layers",
            )

    def _misfit(self, leaf: Leaf) -> str:
        """What is wrong with the shapes of a leaf, or nothing."""
        stored = load(self.folder / leaf.file, RECORDS)
        weight = stored.weight if isinstance(stored, Quantised) else stored
        if weight.shape != leaf.shape:
            return f"{leaf} is {list(weight.shape)} instead of {list(leaf.shape)}"
        if isinstance(stored, Quantised):
            scales, (*batch, rows, columns) = stored.scales.shape, weight.shape
            groups = scales[-2] if len(scales) == weight.ndim else 0
            if groups == 0 or rows % groups or scales != (*batch, groups, columns):
                return f"{leaf} has scales {list(scales)}, which do not divide its weights {list(weight.shape)}"
            if weight.dtype != np.int8:
                return f"{leaf} is {weight.dtype} with scales, not int8"
        return ""


def load_grok1(
    folder: Path | str,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    config: DecoderConfig | None = None,
) -> Decoder:
    """The decoder in an original checkpoint, dequantised to `dtype` (bfloat16, as the release computes).

    Routers stay float32, as in the release. The log says the number format and the size; a model that is larger than
    the free memory is refused. Weights are copied tensor by tensor, so memory stays at the model plus one matrix.
    """
    original = Original(folder, config)
    with torch.device("meta"):
        model = Decoder(original.config)
    kind = pick_dtype("bfloat16" if dtype is None else dtype)
    model.to(kind)
    for module in model.modules():
        if isinstance(module, Router):
            module.float()
    size = sum(p.nbytes for p in model.parameters())
    logger("models").info("Grok-1 checkpoint %s: %s, %.1f GB in memory", original.folder, kind, size / 1e9)
    _require_memory(size, torch.device(device or "cpu"), original.folder)
    model.to_empty(device=device or "cpu")
    for name, place in grok1.KEYS.tensors(model).items():
        place.copy_(original.tensor(name))
    return model


def convert_grok1(
    source: Path | str,
    target: Path | str,
    dtype: torch.dtype | str | None = None,
    shard_bytes: int = SHARD_BYTES,
    *,
    config: DecoderConfig | None = None,
    quiet: bool = False,
) -> int:
    """Rewrite an original checkpoint as a folder of safetensors in the format of the ports; the number of parameters.

    Weights become `dtype` (bfloat16), routers stay float32. Files are written one by one into `<target>.partial`, each
    whole or not at all; the same command started again goes on after the last one. `target` appears when all is done.
    """
    original, target = Original(source, config), Path(target)
    kind = pick_dtype("bfloat16" if dtype is None else dtype)
    kinds = {name: torch.float32 if name.endswith("moe_block.gate.weight") else kind for name in original.places}
    sizes = {name: int(np.prod(original.shape(name))) * kinds[name].itemsize for name in original.places}
    shards = list(_shards(sizes, shard_bytes))
    fields = grok1.write(original.config) | {"torch_dtype": str(kind).removeprefix("torch.")}
    partial = target.with_name(target.name + ".partial")
    with explain_os_errors(partial):
        _begin(
            partial, {"source": _fingerprint(original), "config": fields, "shards": digest(shards)}, sum(sizes.values())
        )
        with Progress("convert", len(sizes), "tensors", quiet=quiet) as progress:
            for i, names in enumerate(shards, start=1):
                path = partial / (WEIGHTS if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors")
                if not path.exists():
                    _write_shard(path, {name: original.tensor(name).to(kinds[name]).contiguous() for name in names})
                progress.advance(len(names))
        if len(shards) > 1:
            files = {n: f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i, ns in enumerate(shards, 1) for n in ns}
            write_json(partial / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files})
        write_json(partial / "config.json", fields)
        (partial / PLAN).unlink()
        partial.rename(target)
    return sum(sizes[name] // kinds[name].itemsize for name in sizes)


def _shards(sizes: dict[str, int], shard_bytes: int) -> Iterator[list[str]]:
    """Names in runs of at most `shard_bytes`."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > shard_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _begin(partial: Path, plan: dict[str, object], size: int) -> None:
    """Start the folder of a conversion, or take up the same one."""
    plan = json.loads(json.dumps(plan))
    begun = (partial / PLAN).is_file()
    if begun and read_json(partial / PLAN) != plan:
        raise StorageError(
            "holds a conversion that was begun with other settings or another source",
            where=partial,
            fix="delete it, or name another target",
        )
    partial.parent.mkdir(parents=True, exist_ok=True)
    left = size - sum(file.stat().st_size for file in partial.glob("*.safetensors"))
    if left > (free := shutil.disk_usage(partial.parent).free):
        raise StorageError(
            f"{left / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free",
            where=partial.parent,
            fix="free some space or name another target; what is written stays",
        )
    if not begun:
        partial.mkdir()
        write_json(partial / PLAN, plan)


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    aside = path.with_suffix(".tmp")
    with safetensors_errors():
        save_file(tensors, aside, metadata={"format": "pt"})
    aside.rename(path)


def _fingerprint(original: Original) -> str:
    """Names, sizes and times of the files: enough to notice another source, without reading hundreds of gigabytes."""
    stats = [(original.folder / leaf.file).stat() for leaf in original.leaves]
    return digest([(stat.st_size, stat.st_mtime_ns) for stat in stats])


def _leaf_folder(folder: Path) -> Path | None:
    """The folder with the leaves: this one or its `ckpt-0`."""
    for place in (folder, folder / FOLDER):
        if place.is_dir() and any(_FILE.fullmatch(path.name) for path in place.iterdir()):
            return place
    return None


def _as_stored(leaf: Leaf) -> bool:
    """Whether the ports store a leaf as the release does: the embedding and the norms; matrices are transposed."""
    return leaf.path.endswith("in_out_embed") or len(leaf.shape) == 1


def _require_memory(size: int, device: torch.device, folder: Path) -> None:
    """Refuse what would be killed by the operating system half-way."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if size > free:
        raise StorageError(
            f"the model takes {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            where=folder,
            fix="use a larger machine, or `bloomery convert`, which needs no more than a shard",
        )
