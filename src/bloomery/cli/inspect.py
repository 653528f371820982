"""`bloomery inspect`: what a curation run dropped and why, and what it kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_rich
from bloomery.core.errors import ConfigError

ABOUT = """What a curation run dropped, why, with examples; survival of every step and source.

Example:
  bloomery inspect corpus/
  bloomery inspect corpus/ --html corpus.html
  bloomery inspect corpus/ --read documents.html --documents 50
  bloomery inspect crawl/pages-00000.warc.gz --read pages.html
  bloomery inspect s3://bucket/corpus

`--read` shows documents as a reader sees them, text and images in their order; it takes any input of curate, too.
"""


@dataclass
class Options:
    """What to look at."""

    folder: Annotated[str, Positional]
    """Output folder of `bloomery curate`, or its address (s3://…); for --read also any file of documents."""
    html: Path | None = None
    """Write a page to this file instead."""
    read: Path | None = None
    """Write a page with documents to read to this file."""
    documents: int = 20
    """How many documents to read."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Print the tables, or write the page."""
    options = parse(Options, argv, prog="bloomery inspect", about=ABOUT)
    from bloomery.core.files import atomic_file
    from bloomery.corpus.inspection import inspect

    if options.read is not None:
        page = _reader_page(options.folder, options.documents)
        with atomic_file(options.read, "w") as file:
            file.write(page)
        if options.json:
            print_json({"file": str(options.read)})
        else:
            print(f"written: {options.read}")
        return 0
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


def _reader_page(place: str, documents: int) -> str:
    if documents < 1:
        raise ConfigError(f"{documents} documents", where="--documents", fix="1 or more")
    from bloomery.corpus.interleaved.reader_page import reader_page
    from bloomery.corpus.readers import find_inputs
    from bloomery.corpus.steps import kept
    from bloomery.web import read_documents

    batches = (kept(batch) for file in find_inputs(place) for batch in read_documents(str(file), "interleaved", 32))
    return reader_page(batches, documents)
