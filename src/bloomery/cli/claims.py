"""`bloomery claims`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bloomery.cli.options import parse, print_json, print_table
from bloomery.core.errors import BloomeryError


@dataclass
class Options:
    """What the runs on this machine have shown: the newest run of every system and preset.

    With --run every system is run first, one after the other; the exit code is 1 when one breaks off or does not hold.

    Example:
      bloomery claims --json
      bloomery claims --run --preset smoke
    """

    root: Path = Path("runs")
    """Folder that holds the runs."""
    all: bool = False
    """Every run, not only the newest."""
    run: bool = False
    """Run every system first."""
    preset: Literal["smoke", "cpu", "gpu"] = "cpu"
    """With --run: which preset. Smoke is too small to judge claims: with it only a run that breaks off counts."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """List the claims of finished runs, after running every system when asked."""
    options = parse(Options, argv, prog="bloomery claims")
    from bloomery.lab.launch import shown

    failed = run_all(options.preset, options.root) if options.run else []
    runs = shown(options.root)
    if not options.all:
        runs = list({(run["recipe"], run["preset"]): run for run in runs}.values())
    if options.json:
        print_json(runs)
    elif runs:
        print_runs(runs)
    else:
        print(f"no finished run under {options.root}/ yet; try: bloomery run end_to_end --preset smoke")
    if failed:
        print(f"bloomery: {len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_all(preset: str, root: Path) -> list[str]:
    """Run every system of the catalogue; returns those that broke off or whose claims do not hold."""
    from bloomery import lab
    from bloomery.lab.folder import new_folder

    failed = []
    for system in lab.systems():
        try:
            held = lab.run(system.slug, preset, new_folder(system.slug, root)).passed or preset == "smoke"
        except Exception as error:  # the others still get their turn
            kind = "" if isinstance(error, BloomeryError) else f"unexpected {type(error).__name__}: "
            print(f"bloomery: {system.slug}: {kind}{error}", file=sys.stderr)
            held = False
        if not held:
            failed.append(system.slug)
    return failed


def print_runs(runs: Sequence[dict[str, Any]]) -> None:
    """One line per claim."""
    rows = [
        (
            run["recipe"],
            run["preset"],
            claim["statement"],
            f"{claim['gain']:+.3g} ± {claim['spread']:.2g} {claim['unit']}".strip(),
            f"{claim['margin']:.3g}",
            len(claim["ours"]),
            "holds" if claim["passes"] else "does not hold",
            run["finished"],
        )
        for run in runs
        for claim in run["claims"]
    ]
    print_table(("system", "preset", "claim", "gain", "margin", "seeds", "verdict", "finished"), rows)
