"""`bloomery convert`: a Hugging Face folder in another dtype or sharding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json
from bloomery.core.errors import ConfigError
from bloomery.core.files import read_json


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
    """Rewrite `source` as `target` (whole or not at all) and return what was written."""
    from bloomery.models import convert_pretrained

    if target.exists():
        raise ConfigError("exists already", where=target, fix="name a new folder")
    if not shard_gb > 0:
        raise ConfigError(f"shard_gb is {shard_gb}", fix="it must be above 0")
    parameters = convert_pretrained(source, target, None if dtype == "keep" else dtype, int(shard_gb * 1e9))
    config = read_json(target / "config.json")
    return {
        "target": str(target),
        "parameters": parameters,
        "dtype": config.get("dtype") or config["torch_dtype"],
        "files": len(list(target.glob("*.safetensors"))),
    }
