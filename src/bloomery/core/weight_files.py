"""The files of a Hugging Face folder: safetensors, whole or in shards with an index, and those beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from bloomery.core.errors import CheckpointError, DataError
from bloomery.core.files import read_json, safetensors_errors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
OURS = ("*.safetensors", INDEX, "config.json", *COMPANIONS)  # what saving may replace


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those its index names, all of which must exist inside the folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if any(folder.glob("pytorch_model*.bin")):
            raise CheckpointError(
                "holds only pytorch_model.bin, a pickle, which can run code when opened and is not read",
                where=folder,
                fix="convert it to safetensors with the tool it came with",
            )
        raise CheckpointError(f"neither {WEIGHTS} nor {INDEX} is there", where=folder)
    try:
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        foreign = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a weight index: {error}", where=folder / INDEX) from error
    if foreign:
        raise CheckpointError(f"names files outside its folder: {', '.join(foreign[:5])}", where=folder / INDEX)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{len(absent)} of {len(names)} shards are missing: {', '.join(absent[:5])}",
            where=folder,
            fix="fetch them again",
        )
    return [folder / name for name in names]


def write_weights(folder: Path, sizes: Mapping[str, int], read: Callable[[str], Tensor], shard_bytes: int) -> None:
    """One file, or numbered shards and an index, in the order of `sizes`; tensors are read when their file is due."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, nbytes in sizes.items():
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        with safetensors_errors():
            save_file({name: read(name) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
