"""`bloomery curate`: documents in, a clean corpus and a survival table out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_rich
from bloomery.core.config import decode, load_yaml
from bloomery.core.errors import ConfigError, nearest

DEFAULT = ("Language", "Length", "Symbols", "Repetition", "ExactDedup", "NearDedup")
KNOWN = (*DEFAULT, "Score", "Select", "Split")

ABOUT = """Filter, deduplicate and select documents. Every drop has a reason; the survival table counts them.

Reads WARC, ARC, HTML, Parquet, Arrow, JSONL(.gz) and folders of text; writes one Parquet file per input file. The same
command continues a run that was stopped.

Example:
  bloomery curate crawl/ corpus/
  bloomery curate a.jsonl b.warc.gz corpus/ --use Length ExactDedup --workers 8
  bloomery curate crawl/ corpus/ --steps steps.yaml

steps.yaml:
  steps:
    - Language: {keep: en}
    - Length
    - Repetition
    - ExactDedup
    - NearDedup: {threshold: 0.8}
    - Score: {model: classifier.bin}        # a fastText .bin or .ftz, or the folder of a trained scorer
    - Select: {column: score_quality, fraction: 0.5}
    - Split: {validation: 0.01}
"""


@dataclass
class Options:
    """What to curate and how."""

    paths: Annotated[tuple[Path, ...], Positional]
    """Input files or folders, then the output folder."""
    steps: Path | None = None
    """YAML file with a list of steps."""
    use: tuple[str, ...] = ()
    """Names of steps, with their defaults, instead of a file."""
    engine: Literal["inline", "processes"] = "processes"
    """Run in this process, or in a pool."""
    workers: int | None = None
    """Processes of the pool; default: all CPUs."""
    resume: bool = True
    """Skip input files that are done."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Curate and print the survival table."""
    options = parse(Options, argv, prog="bloomery curate", about=ABOUT)
    if len(options.paths) < 2:
        raise ConfigError("needs inputs and an output folder", fix="bloomery curate IN… OUT")
    if options.steps and options.use:
        raise ConfigError("--steps and --use exclude each other", fix="write the steps into the file")
    from bloomery import corpus
    from bloomery.web import read_documents

    *inputs, output = options.paths
    report = corpus.run(
        load_steps(options.steps) if options.steps else [make_step(name) for name in options.use or DEFAULT],
        inputs,
        output,
        engine=options.engine,
        workers=options.workers,
        read=read_documents,
        resume=options.resume,
        quiet=options.quiet,
    )
    if options.json:
        print_json(report.to_dict())
    else:
        print_rich(report.table())
    return 0


def load_steps(file: Path) -> list[Any]:
    """The steps that a YAML file lists: names, or one-entry mappings from a name to its fields."""
    values = load_yaml(file)
    for key in values:
        if key != "steps":
            raise ConfigError(f"unknown field {key!r}", where=file, fix=nearest(key, ["steps"]))
    steps = values.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ConfigError("needs a list under `steps:`", where=file, fix="see bloomery curate --help")
    made = []
    for i, item in enumerate(steps):
        where = f"{file}: steps[{i}]"
        if isinstance(item, dict) and len(item) == 1:
            ((name, fields),) = item.items()
        else:
            name, fields = item, {}
        if not isinstance(name, str) or not isinstance(fields or {}, dict):
            raise ConfigError(f"expected a name or name: {{field: value}}, got {item!r}", where=where)
        made.append(make_step(name, fields or {}, where))
    return made


def make_step(name: str, fields: dict[str, Any] | None = None, where: str = "") -> Any:
    """One step by its name, with fields checked like any configuration."""
    from bloomery import corpus

    if name not in KNOWN:
        raise ConfigError(f"unknown step {name!r}", where=where or None, fix=nearest(name, KNOWN))
    if name == "Score":
        return corpus.Score(_scorer(fields or {}, where))
    return decode(getattr(corpus, name), fields or {}, where=f"{where} {name}".strip())


def _scorer(fields: dict[str, Any], where: str) -> Any:
    from bloomery import corpus

    if set(fields) != {"model"}:
        raise ConfigError(f"Score takes model: PATH, got {sorted(fields)}", where=where or None)
    path = Path(str(fields["model"]))
    return corpus.FastTextScorer.load(path) if path.suffix in (".bin", ".ftz") else corpus.LinearScorer.load(path)
