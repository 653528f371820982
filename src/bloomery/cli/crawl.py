"""`bloomery crawl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bloomery.cli.options import FLAT, parse, print_json, print_table
from bloomery.web import CrawlConfig, crawl

ABOUT = """Fetch a site politely into WARC files: robots.txt, one host at a time with a pause, size and time limits.

The same command continues a crawl that was stopped, without fetching a stored page again.

Example:
  bloomery crawl https://docs.example.org/ --out crawl --max-pages 500
"""


@dataclass
class Options:
    """What to fetch and where to keep it."""

    urls: Annotated[tuple[str, ...], Positional]
    """Where to start."""
    out: Path
    """Folder for the WARC files and crawl.json."""
    config: Annotated[CrawlConfig, FLAT] = field(default_factory=CrawlConfig)
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Crawl and print what was fetched and what was not."""
    options = parse(Options, argv, prog="bloomery crawl", about=ABOUT)
    report = crawl(options.urls, options.out, options.config, quiet=options.quiet)
    if options.json:
        print_json(report.to_dict())
        return 0
    print(f"{options.out}: {report.summary()}; {report.finished}")
    if report.examples:
        rows = [
            (kind, report.errors.get(kind, ""), text) for kind, texts in report.examples.items() for text in texts[:1]
        ]
        print_table(("kind", "count", "for example"), rows)
    return 0
