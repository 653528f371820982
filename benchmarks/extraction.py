"""Quality and speed of text extraction: our three extractors beside bare Resiliparse and bare trafilatura.

Quality is measured on pages with gold text of the article: for each page the F1 of its 4-word shingles (as a multiset,
words by `str.split`, as in Scrapinghub's article extraction benchmark), and the means over pages. Speed is measured on
the same pages, one thread, the extractors in turns, pages decoded before: the median over the rounds.

    python benchmarks/extraction.py --pages articles.warc.gz --gold articles_gold.jsonl.gz --json extraction.json

The gold file has one JSON object per line with `url` and `text`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SHINGLE = 4
Extractor = Callable[[str], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, required=True, help="WARC file")
    parser.add_argument("--gold", type=Path, required=True, help="JSON lines, gzip")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    from bloomery.core.files import write_json

    pages = pairs(options.pages, options.gold)
    found = extractors()
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(options.rounds):
        for name, extractor in found.items():
            start = time.perf_counter()
            for html, _ in pages:
                extractor(html)
            seconds[name].append(time.perf_counter() - start)
    bare = statistics.median(seconds[next(iter(found))])
    rows = []
    for name, extractor in found.items():
        scores = [score(extractor(html), gold) for html, gold in pages]
        precision, recall, f1 = (statistics.fmean(column) for column in zip(*scores, strict=True))
        took = statistics.median(seconds[name])
        rows.append(
            [name, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", f"{len(pages) / took:,.0f}", f"{bare / took:.2f}x"]
        )
    columns = ["extractor", "precision", "recall", "F1", "pages/s", "of Resiliparse's speed"]
    size = sum(len(html) for html, _ in pages) / 1e6
    setup = (
        f"{len(pages)} English articles with gold text ({size:.1f} MB of HTML); precision, recall and F1 of "
        f"{SHINGLE}-word shingles, means over pages; one thread, median of {options.rounds} rounds in turns."
    )
    table = Table(title=setup)
    for column in columns:
        table.add_column(column, justify="left" if column == "extractor" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.json:
        notes = ["Ours also refuses pages built to stall a parser and finds title and language; the bare calls do not."]
        content = {"title": "Extraction", "setup": setup, "columns": columns, "rows": rows, "notes": notes}
        write_json(options.json, content)


def pairs(pages: Path, gold: Path) -> list[tuple[str, str]]:
    """(HTML, gold text) of every page that has gold."""
    from bloomery.web.archive import iterate_pages

    with gzip.open(gold, "rt", encoding="utf-8") as file:
        texts = {row["url"]: row["text"] for row in map(json.loads, file)}
    return [(page.html, texts[page.url]) for page in iterate_pages(pages) if page.url in texts]


def extractors() -> dict[str, Extractor]:
    """By name; bare Resiliparse first."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    from bloomery.web.extract import extract

    version = importlib.metadata.version
    return {
        f"Resiliparse {version('resiliparse')}": lambda html: str(extract_plain_text(html, main_content=True)),
        f"trafilatura {version('trafilatura')}": lambda html: trafilatura.extract(html, include_comments=False) or "",
        "bloomery, main": lambda html: extract(html, "main").text,
        "bloomery, trafilatura": lambda html: extract(html, "trafilatura").text,
        "bloomery, full": lambda html: extract(html, "full").text,
    }


def score(text: str, gold: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of shingles."""
    ours, theirs = shingles(text), shingles(gold)
    shared = sum((ours & theirs).values())
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / sum(ours.values()), shared / sum(theirs.values())
    return precision, recall, 2 * precision * recall / (precision + recall)


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


if __name__ == "__main__":
    main()
