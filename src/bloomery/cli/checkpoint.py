"""`bloomery checkpoint inspect | verify | diff | reshard | export | import | prune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_rich, print_table
from bloomery.core.errors import CheckpointError, ConfigError, nearest

if TYPE_CHECKING:
    from bloomery.checkpoint import Storage

SHOWN = 40  # differences in a table

ABOUT = """Look at checkpoints, check them, rewrite them, take them to other formats and back.

Commands:
  bloomery checkpoint inspect  keys, tensors, which rank's file holds what, timings; as a page too
  bloomery checkpoint verify   read every byte and compare it with its checksum
  bloomery checkpoint diff     what two checkpoints differ in, element by element
  bloomery checkpoint reshard  rewrite for the ranks that will load it
  bloomery checkpoint export   to a safetensors folder, or PyTorch's distributed checkpoint (DCP)
  bloomery checkpoint import   from either
  bloomery checkpoint prune    delete the old ones of a run

A path is one checkpoint or the folder of a run, which stands for its newest; addresses of fsspec (s3://…) work too.

Example:
  bloomery checkpoint inspect runs/small/checkpoints --html page.html
"""


@dataclass
class InspectOptions:
    """What is in a checkpoint; reads its manifest, not its tensors.

    Example:
      bloomery checkpoint inspect runs/small/checkpoints --match "model/*"
      bloomery checkpoint inspect runs/small/checkpoints/step-00000400 --html page.html
    """

    path: Annotated[str, Positional]
    """Checkpoint, or the folder of a run."""
    match: str = ""
    """List the tensors whose names match this pattern (* for all)."""
    html: Path | None = None
    """Write a page to this file instead."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class VerifyOptions:
    """Read every byte of a checkpoint and compare it with its checksum. Exit code 1: it is damaged.

    Example:
      bloomery checkpoint verify runs/small/checkpoints
    """

    path: Annotated[str, Positional]
    """Checkpoint, or the folder of a run."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class DiffOptions:
    """What two checkpoints differ in, however each is cut. Exit code 1: they differ.

    Example:
      bloomery checkpoint diff run-a/checkpoints/step-00000400 run-b/checkpoints/step-00000400
    """

    a: Annotated[str, Positional]
    """Checkpoint, or the folder of a run."""
    b: Annotated[str, Positional]
    """Another."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class ReshardOptions:
    """Rewrite a checkpoint so that each of the ranks that will load it reads its own files from end to end.

    Example:
      bloomery checkpoint reshard runs/small/checkpoints for-eight --ranks 8
    """

    path: Annotated[str, Positional]
    """Checkpoint, or the folder of a run."""
    out: Annotated[str, Positional]
    """Checkpoint to write; must not exist."""
    ranks: int = 1
    """Ranks that will load it."""
    axis: int = 0
    """Axis that tensors are cut along (FSDP2: 0)."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class ExportOptions:
    """Write a checkpoint in another format: one module of it as safetensors, or all of it as DCP.

    Example:
      bloomery checkpoint export runs/small/checkpoints hf --dtype bfloat16 --beside Llama-3.2-1B
      bloomery checkpoint export runs/small/checkpoints dcp --format dcp
    """

    path: Annotated[str, Positional]
    """Checkpoint, or the folder of a run."""
    out: Annotated[Path, Positional]
    """Folder to write."""
    format: Literal["safetensors", "dcp"] = "safetensors"
    """Kind of folder."""
    key: str = "model"
    """Safetensors: the module to write."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Safetensors: number format of the weights."""
    shard_gb: float = 5.0
    """Safetensors: largest file, in gigabytes (10^9 bytes)."""
    beside: Path | None = None
    """Safetensors: folder whose config.json and tokenizer go with the weights."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class ImportOptions:
    """Write a DCP folder (any layout, any number of ranks) or a safetensors folder as a checkpoint.

    Example:
      bloomery checkpoint import old-run/step-400 runs/small/checkpoints/step-00000400
    """

    folder: Annotated[Path, Positional]
    """Folder to read: DCP where it has a .metadata, else safetensors."""
    out: Annotated[str, Positional]
    """Checkpoint to write; must not exist."""
    key: str = "model"
    """Key of the module, where the folder has no name for it."""
    skip: tuple[str, ...] = ()
    """DCP: patterns of keys to leave out."""
    optimizer: str | None = None
    """DCP: class of the optimiser, where its options do not tell."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class PruneOptions:
    """Delete old checkpoints of a run. The newest is read and checked first; nothing goes if it is damaged.

    Example:
      bloomery checkpoint prune runs/small/checkpoints --keep-last 3 --keep-every 1000
    """

    root: Annotated[str, Positional]
    """Folder of the run, with step-… in it."""
    keep_last: int = 3
    """How many of the newest stay."""
    keep_every: int = 0
    """Steps that this number divides stay too."""
    dry_run: bool = False
    """Say what would go."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Dispatch to one of the commands."""
    commands = {
        "inspect": inspect, "verify": verify, "diff": diff, "reshard": reshard, "export": export,
        "import": import_folder, "prune": prune,
    }  # fmt: skip
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: bloomery checkpoint {'|'.join(commands)} …\n\n{ABOUT}", end="")
        return 0
    if not argv:
        raise ConfigError("which command?", fix=f"bloomery checkpoint {'|'.join(commands)} …")
    if argv[0] not in commands:
        raise ConfigError(f"unknown checkpoint command {argv[0]!r}", fix=nearest(argv[0], commands))
    return commands[argv[0]](argv[1:])


def inspect(argv: Sequence[str]) -> int:
    """Print the tables, or write the page."""
    options = parse(InspectOptions, argv, prog="bloomery checkpoint inspect")
    from bloomery.checkpoint.inspection import inspect as look
    from bloomery.core.files import atomic_file

    found = look(_place(options.path))
    if options.html is not None:
        with atomic_file(options.html, "w") as file:
            file.write(found.html())
    if options.json:
        print_json(found.to_dict(options.match or "*"))
    elif options.html is not None:
        print(f"written: {options.html}")
    else:
        print_rich(found.table(options.match))
    return 0


def verify(argv: Sequence[str]) -> int:
    """Check every byte."""
    options = parse(VerifyOptions, argv, prog="bloomery checkpoint verify")
    from bloomery import checkpoint
    from bloomery.checkpoint.inspection import size

    place = _place(options.path)
    try:
        manifest = checkpoint.verify(place, quiet=options.quiet)
    except CheckpointError as error:
        if not error.what.startswith("damaged"):
            raise
        if options.json:
            print_json({"path": place.path, "whole": False, "damage": error.what})
        else:
            print(f"{place.path}: {error.what}")
        return 1
    stored = sum(nbytes for _, nbytes in manifest.files)
    if options.json:
        print_json({"path": place.path, "whole": True, "bytes": stored, "chunks": len(manifest.chunks)})
    else:
        print(f"{place.path}: whole, {len(manifest.chunks):,} chunks, {size(stored)}")
    return 0


def diff(argv: Sequence[str]) -> int:
    """Compare two."""
    options = parse(DiffOptions, argv, prog="bloomery checkpoint diff")
    from bloomery import checkpoint

    found = checkpoint.diff(_place(options.a), _place(options.b), quiet=options.quiet)
    if options.json:
        print_json(found.to_dict())
        return int(bool(found))
    rows: list[tuple[str, str, str]] = []
    rows += [(name, "missing", "only in the first") for name in found.missing]
    rows += [(name, "unexpected", "only in the second") for name in found.unexpected]
    rows += [(name, "shape", f"{one} and {two}") for name, (one, two) in found.shape.items()]
    rows += [(name, "dtype", f"{one} and {two}") for name, (one, two) in found.dtype.items()]
    rows += [
        (name, "elements", f"{c.unequal:,} of {c.of:,} differ, by at most {c.largest:g}")
        for name, c in found.changed.items()
    ]
    rows += [(name, "value", what) for name, what in found.values.items()]
    if rows:
        print_table(("name", "differs in", "how"), rows[:SHOWN])
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN:,} more (--json lists all)")
    print(f"{found.equal:,} tensors are equal" + ("" if rows else ", and so is everything else"))
    return int(bool(found))


def reshard(argv: Sequence[str]) -> int:
    """Rewrite for other ranks."""
    options = parse(ReshardOptions, argv, prog="bloomery checkpoint reshard")
    from bloomery import checkpoint

    manifest = checkpoint.reshard(
        _place(options.path), options.out, ranks=options.ranks, axis=options.axis, quiet=options.quiet
    )
    _written(options.out, manifest, options.json)
    return 0


def export(argv: Sequence[str]) -> int:
    """To another format."""
    options = parse(ExportOptions, argv, prog="bloomery checkpoint export")
    if not options.shard_gb > 0:
        raise ConfigError(f"shard_gb is {options.shard_gb}", fix="it must be above 0")
    if options.out.exists():
        raise ConfigError("exists already", where=options.out, fix="name a new folder")
    place, facts = _place(options.path), dict[str, Any]()
    if options.format == "dcp":
        from bloomery.checkpoint.dcp import export_dcp

        if (options.key, options.dtype, options.beside) != ("model", "keep", None):
            raise ConfigError("--key, --dtype and --beside are for safetensors", fix="DCP takes everything as it is")
        facts["left_out"] = export_dcp(place, options.out, quiet=options.quiet)
    else:
        from bloomery.checkpoint.huggingface import export_safetensors

        dtype = None if options.dtype == "keep" else options.dtype
        facts = export_safetensors(
            place, options.out, key=options.key, dtype=dtype, shard_bytes=int(options.shard_gb * 1e9),
            beside=options.beside, quiet=options.quiet,
        )  # fmt: skip
    facts = {"target": str(options.out), "format": options.format, **facts}
    if options.json:
        print_json(facts)
    elif options.format == "dcp":
        left_out = f"; left out: {', '.join(facts['left_out'])}" if facts["left_out"] else ""
        print(f"{options.out}: written{left_out}")
    else:
        print(f"{options.out}: {facts['tensors']:,} tensors in {facts['files']} file(s)")
    return 0


def import_folder(argv: Sequence[str]) -> int:
    """From another format."""
    options = parse(ImportOptions, argv, prog="bloomery checkpoint import")
    from bloomery.checkpoint.dcp import METADATA, import_dcp
    from bloomery.checkpoint.huggingface import import_safetensors

    if not options.folder.is_dir():
        raise ConfigError("no such folder", where=options.folder)
    if (options.folder / METADATA).exists():
        manifest = import_dcp(
            options.folder, options.out, key=options.key, optimizer=options.optimizer, skip=options.skip,
            quiet=options.quiet,
        )  # fmt: skip
    else:
        if options.skip or options.optimizer:
            raise ConfigError("--skip and --optimizer are for DCP folders", where=options.folder)
        manifest = import_safetensors(options.folder, options.out, key=options.key, quiet=options.quiet)
    _written(options.out, manifest, options.json)
    return 0


def prune(argv: Sequence[str]) -> int:
    """Delete old ones."""
    options = parse(PruneOptions, argv, prog="bloomery checkpoint prune")
    from bloomery.checkpoint import Checkpoints

    every = options.keep_every
    run = Checkpoints(
        options.root, keep_last=options.keep_last, protect=lambda step: every > 0 and step % every == 0
    )  # fmt: skip
    newest = run.steps()[-1] if run.steps() else None
    if newest is None:
        raise CheckpointError("holds no checkpoints", where=options.root, fix="give the folder that holds step-…")
    if not run.whole(newest, check_data=True):
        fix = f"bloomery checkpoint verify {run.at(newest).path}"
        raise CheckpointError(f"step {newest}, the newest, is damaged: nothing is deleted", where=options.root, fix=fix)
    gone = run.stale(newest) if options.dry_run else run.prune(newest)
    kept = [step for step in run.steps() if step not in gone]
    if options.json:
        print_json({"root": options.root, "deleted": [] if options.dry_run else gone, "stale": gone, "kept": kept})
    else:
        word = "would go" if options.dry_run else "deleted"
        print(f"{word}: {', '.join(map(str, gone)) or 'none'}; kept: {', '.join(map(str, kept))}")
    return 0


def _place(path: str) -> Storage:
    """One checkpoint; of a run's folder the newest that is whole."""
    from bloomery.checkpoint import Checkpoints, storage

    run = Checkpoints(path)
    if not run.steps():
        return storage(path)
    step = run.latest()
    if step is None:
        raise CheckpointError("holds no checkpoint that is whole", where=path)
    return run.at(step)


def _written(out: str, manifest: Any, as_json: bool) -> None:
    from bloomery.checkpoint.inspection import size

    facts = {
        "target": out, "tensors": len(manifest.tensors), "bytes": manifest.nbytes, "files": len(manifest.files),
        "keys": [name for name, record in manifest.values.items() if "/" not in name and record["kind"] != "same"],
    }  # fmt: skip
    if as_json:
        print_json(facts)
    else:
        print(f"{out}: {facts['tensors']:,} tensors, {size(manifest.nbytes)} in {facts['files']} file(s)")
