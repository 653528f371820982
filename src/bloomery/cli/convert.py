"""`bloomery convert`: a Hugging Face folder in another dtype or sharding."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json
from bloomery.core.errors import ConfigError
from bloomery.core.files import atomic_folder, read_json, write_json

# Files beside the weights that travel unchanged.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass
class Options:
    """Rewrite a model folder in Hugging Face format: other dtype, other shard size. Checks every tensor on the way.

    Example:
      bloomery convert Llama-3.2-1B small --dtype bfloat16 --shard-gb 2
    """

    source: Annotated[Path, Positional]
    """Folder to read."""
    target: Annotated[Path, Positional]
    """Folder to write; must not exist."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Number format of the weights."""
    shard_gb: float = 5.0
    """Largest weight file, in gigabytes (10^9 bytes)."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Convert and say what was written."""
    options = parse(Options, argv, prog="bloomery convert")
    written = convert(options.source, options.target, options.dtype, options.shard_gb)
    if options.json:
        print_json(written)
    else:
        print(
            f"{written['target']}: {written['parameters']:,} parameters, {written['dtype']}, {written['files']} file(s)"
        )
    return 0


def convert(source: Path, target: Path, dtype: str = "keep", shard_gb: float = 5.0) -> dict[str, object]:
    """Load `source`, save it as `target` (whole or not at all), and return what was written.

    `config.json` keeps every field of the original but the dtype; tokenizer files are copied as they are.
    """
    from bloomery.models import load_pretrained, save_pretrained

    if target.exists():
        raise ConfigError("exists already", where=target, fix="name a new folder")
    if not shard_gb > 0:
        raise ConfigError(f"shard_gb is {shard_gb}", fix="it must be above 0")
    model = load_pretrained(source, dtype=None if dtype == "keep" else dtype)
    with atomic_folder(target) as folder:
        save_pretrained(model, folder / "weights", shard_bytes=int(shard_gb * 1e9))
        for file in sorted((folder / "weights").iterdir()):
            file.rename(folder / file.name)
        (folder / "weights").rmdir()
        name = str(model.head_weight.dtype).removeprefix("torch.")
        config = read_json(source / "config.json")
        key = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5 and 4
        write_json(folder / "config.json", config | {key: name})
        for companion in COMPANIONS:
            if (source / companion).is_file():
                shutil.copyfile(source / companion, folder / companion)
    return {
        "target": str(target),
        "parameters": model.num_parameters(),
        "dtype": name,
        "files": len(list(target.glob("*.safetensors"))),
    }
