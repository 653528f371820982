"""`bloomery systems`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bloomery.cli.options import parse, print_json, print_table


@dataclass
class Options:
    """List the systems that are here. Reads their source; imports none of them.

    Example:
      bloomery systems --json
    """

    stage: str | None = None
    """Only systems of this stage."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """List the catalogue."""
    options = parse(Options, argv, prog="bloomery systems")
    from bloomery.core.errors import ConfigError, nearest
    from bloomery.lab.catalogue import systems

    found = systems()
    stages = {info.stage for info in found}
    if options.stage is not None and options.stage not in stages:
        raise ConfigError(f"no system of stage {options.stage!r}", fix=nearest(options.stage, stages))
    found = [info for info in found if options.stage in (None, info.stage)]
    if options.json:
        print_json([info.to_dict() for info in found])
    else:
        print_table(
            ("system", "stage", "paper", "what it shows"), [(s.slug, s.stage, s.paper, s.summary) for s in found]
        )
    return 0
