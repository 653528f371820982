"""`bloomery inspect`: what a curation run dropped and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_rich

ABOUT = """What a curation run dropped, why, with examples; survival of every step and source.

Example:
  bloomery inspect corpus/
  bloomery inspect corpus/ --html corpus.html
  bloomery inspect s3://bucket/corpus
"""


@dataclass
class Options:
    """What to look at."""

    folder: Annotated[str, Positional]
    """Output folder of `bloomery curate`, or its address (s3://…)."""
    html: Path | None = None
    """Write a page to this file instead."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Print the tables, or write the page."""
    options = parse(Options, argv, prog="bloomery inspect", about=ABOUT)
    from bloomery.core.files import atomic_file
    from bloomery.corpus.inspection import inspect

    found = inspect(options.folder)
    if options.html is not None:
        with atomic_file(options.html, "w") as file:
            file.write(found.html())
    if options.json:
        print_json(found.to_dict())
    elif options.html is not None:
        print(f"written: {options.html}")
    else:
        print_rich(found.table())
    return 0
