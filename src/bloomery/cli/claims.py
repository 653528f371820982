"""`bloomery claims`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bloomery.cli.options import parse, print_json, print_table


@dataclass
class Options:
    """What the runs on this machine have shown: the newest run of every system and preset.

    Example:
      bloomery claims --json
    """

    root: Path = Path("runs")
    """Folder that holds the runs."""
    all: bool = False
    """Every run, not only the newest."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """List the claims of finished runs."""
    options = parse(Options, argv, prog="bloomery claims")
    from bloomery.lab.launch import shown

    runs = shown(options.root)
    if not options.all:
        runs = list({(run["recipe"], run["preset"]): run for run in runs}.values())
    if options.json:
        print_json(runs)
        return 0
    if not runs:
        print(f"no finished run under {options.root}/ yet; try: bloomery run end_to_end --preset smoke")
        return 0
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
    return 0
