"""`bloomery run`: a recipe's own fields are its options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from bloomery.cli.options import FLAT, parse, print_json, print_table
from bloomery.core.errors import ConfigError

ABOUT = """Run a system: the paper's claim beside its baseline, in a run folder with a report.

Values: field defaults, then --preset, then --config, then options. The same command on the same --out continues a
run that was stopped. Exit code 1 means that the run finished and a claim does not hold (not for preset smoke).

Example:
  bloomery run {slug} --preset smoke
  bloomery run {slug} --config my.yaml --seed 7
"""


@dataclass
class Options:
    """How to run, whatever the system."""

    preset: Literal["smoke", "cpu", "gpu"] = "cpu"
    """smoke: seconds, checks that it runs; cpu: minutes, the claim; gpu: the larger claim."""
    config: Path | None = None
    """YAML file with fields, e.g. the config.yaml of an earlier run."""
    out: Path | None = None
    """Run folder; default runs/<system>/<time>."""
    resume: str | None = None
    """Continue this run folder, or "latest"; changed options rerun the stages they touch."""
    track: Literal["tensorboard", "wandb"] | None = None
    """Also send metrics there."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Run one system."""
    if not argv or argv[0].startswith("-"):
        if set(argv) & {"-h", "--help"}:
            parse(Options, ["--help"], prog="bloomery run SYSTEM", about=ABOUT.format(slug="end_to_end"))
        raise ConfigError("which system?", fix="bloomery run SYSTEM …; `bloomery systems` lists them")
    from bloomery import lab
    from bloomery.core.config import encode
    from bloomery.lab.launch import configuration

    system, *rest = argv
    cls = lab.load(system)
    preset, base, _ = configuration(cls, _peek(rest, "preset"), _peek(rest, "resume"), _peek(rest, "config"))
    both = _both(cls, Options(preset=preset), base)  # type: ignore[arg-type]
    chosen: Any = parse(
        type(both),
        rest,
        prog=f"bloomery run {system}",
        default=both,
        about=f"{cls.summary()}\n\n{ABOUT.format(slug=system)}",
    )
    options: Options = chosen.run
    result = lab.run(
        cls, preset, options.out, options.resume, track=options.track, quiet=options.quiet, **encode(chosen.recipe)
    )
    report = result.folder / "report.html"
    if options.json:
        print_json(
            {
                "folder": str(result.folder),
                "preset": preset,
                "passed": result.passed,
                "claims": [claim.to_dict() for claim in result.claims],
                "report": str(report),
            }
        )
    else:
        print_table(*claim_table([claim.to_dict() for claim in result.claims]))
        print(f"\nreport: {report}")
    if not result.passed and preset != "smoke":
        print("bloomery: the run finished, but not every claim holds", file=sys.stderr)
        return 1
    return 0


def claim_table(claims: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and rows for claims as `Claim.to_dict` gives them."""
    rows = []
    for claim in claims:
        ours, baseline = (sum(side.values()) / len(side) for side in (claim["ours"], claim["baseline"]))
        rows.append(
            (
                claim["statement"],
                f"{claim['names'][0]} {ours:.4g}",
                f"{claim['names'][1]} {baseline:.4g}",
                f"{claim['gain']:+.3g} ± {claim['spread']:.2g}",
                f"{claim['margin']:.3g}",
                claim["unit"],
                len(claim["ours"]),
                "holds" if claim["passes"] else "does not hold",
            )
        )
    return ("claim", "ours", "baseline", "gain", "margin", "unit", "seeds", "verdict"), rows


def _peek(argv: Sequence[str], name: str) -> str | None:
    """The value of one option before the rest can be parsed: it decides the defaults of the others."""
    for i, argument in enumerate(argv):
        if argument == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
    return None


def _both(cls: type, options: Options, recipe: Any) -> Any:
    """One dataclass with the common options and the recipe's fields side by side, no prefix on either."""
    fields = [("recipe", Annotated[cls, FLAT]), ("run", Annotated[Options, FLAT])]
    return dataclasses.make_dataclass("RunOptions", fields)(recipe, options)
