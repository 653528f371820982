"""Documents per second on one core: `bloomery.corpus` against datatrove, the same documents, equivalent steps.

    filters          length, symbols, stop words (Gopher quality) and repetition (Gopher repetition)
    FineWeb          Gopher's, C4's and FineWeb's rules with datatrove's definitions: both keep the same documents
    filters + exact  the filters, then exact removal of duplicates over the whole corpus
    near duplicates  MinHash over 5-word shingles with 112 hashes, threshold about 0.75, clusters, filter
    from WARC        pages of this Python's documentation: text, then the filters; each side with its default
                     extractor, which is trafilatura for datatrove
    same extractor   the same, with trafilatura on both sides

Each side runs in a fresh single process that reads JSON lines or WARC and writes Parquet; imports are not timed. The
sides take turns, and the figures are medians over the rounds. Nothing needs the network.

datatrove cuts English into words with spaCy; with `--tokenizer whitespace` (the default) it is given `str.split`
instead, which is what our filters use and is many times faster for it. The dropped documents differ a little, because
the two libraries count repetition differently (see `bloomery.corpus.filters.Repetition`).

    python benchmarks/curate.py --rounds 5 --json curate.json
    python benchmarks/curate.py --peer-python other-venv/bin/python --input pages.jsonl --tokenizer spacy
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

CASES = {
    "filters": "filters",
    "fineweb": "FineWeb, same decisions",
    "exact": "filters + exact",
    "near": "near duplicates",
    "warc": "from WARC",
    "trafilatura": "from WARC, same extractor",
}
WARC = ("warc", "trafilatura")
HASHES, BANDS = 112, 14
SENTENCE_END = re.compile(r"[.?!][\"'”’»)\]]*(?!\S)")  # of the terminals, those that occur in these texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=4_000, help="at most so many")
    parser.add_argument("--pages", type=int, default=1_000, help="at most so many in the WARC file")
    parser.add_argument("--input", type=Path, help="JSON lines with `text`; by default texts of this Python's library")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tokenizer", choices=["whitespace", "spacy"], default="whitespace", help="of datatrove")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has datatrove")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (case,) = options.cases
        side = run_ours if options.side == "ours" else run_peer
        print(json.dumps(side(case, options.input, options.folder, options.tokenizer)))
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run both sides in turns and print the table."""
    from rich.console import Console
    from rich.table import Table

    from bloomery.core.files import write_json

    peer = peer_version(options.peer_python)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "documents" / "documents.jsonl"
        source.parent.mkdir()
        count, size = write_documents(source, options.input, options.documents)
        warc, pages = write_warc(Path(scratch) / "warc", options.pages) if set(WARC) & set(options.cases) else (None, 0)
        rows = []
        for case in options.cases:
            results: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
            for turn in range(options.rounds):
                for side in ("ours", "peer"):
                    folder = Path(scratch) / f"{case}-{turn}-{side}"
                    given = warc if case in WARC else source
                    results[side].append(run_side(side, case, given, folder, options))
            of = pages if case in WARC else count
            speed = {side: of / statistics.median(r["seconds"] for r in found) for side, found in results.items()}
            kept = {side: found[0]["kept"] for side, found in results.items()}
            rows.append(
                [
                    CASES[case],
                    f"{kept['ours']:,}",
                    f"{kept['peer']:,}",
                    f"{speed['ours']:,.0f}",
                    f"{speed['peer']:,.0f}",
                    f"{speed['ours'] / speed['peer']:.1f}x",
                ]
            )
    columns = ["steps", "kept, ours", "kept, peer", "ours", "peer", "ratio"]
    table = Table(title=f"documents per second and core, {count:,} documents of {size / 1e6:.1f} MB")
    for column in columns:
        table.add_column(column, justify="left" if column == "steps" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    setup = (
        f"Documents per second in one process on {count:,} documents ({size / 1e6:.1f} MB of text) against datatrove "
        f"{peer} with the {options.tokenizer} word tokenizer; JSON lines in, Parquet out; median of {options.rounds} "
        "rounds taken in turns, imports not timed."
    )
    notes = [
        "Except for FineWeb, the libraries define repetition differently and do not keep the same documents.",
        f"From WARC: {pages:,} pages; datatrove's extractor is trafilatura, ours by default Resiliparse's.",
    ]
    if options.json:
        content = {"title": "Curation", "setup": setup, "columns": columns, "rows": rows, "notes": notes}
        write_json(options.json, content)


def peer_version(python: str) -> str:
    """datatrove's version in that interpreter, or the end of the program with what to do."""
    code = "import datatrove, importlib.metadata as m; print(m.version('datatrove'))"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(f'{python} has no datatrove: pip install "bloomery[bench]", or give --peer-python another interpreter')
    return answer.stdout.strip()


def run_side(side: str, case: str, source: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a fresh process: {"seconds", "kept"}."""
    python = sys.executable if side == "ours" else options.peer_python
    arguments = [
        "--side",
        side,
        "--cases",
        case,
        "--input",
        source,
        "--folder",
        folder,
        "--tokenizer",
        options.tokenizer,
    ]
    command = [python, __file__, *map(str, arguments)]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **single}, check=False)
    if answer.returncode:
        sys.exit(f"{side} failed on {case}:\n{answer.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


# --------------------------------------------------------------------------------------------------------------- sides


def run_ours(case: str, source: Path, folder: Path, _: str) -> dict[str, Any]:
    import pyarrow as pa

    from bloomery.corpus import ExactDedup, Length, NearDedup, Repetition, Symbols, engine, run  # noqa: F401
    from bloomery.corpus.c4 import C4Quality
    from bloomery.corpus.fineweb import FineWebQuality, GopherQuality, GopherRepetition
    from bloomery.web import read_documents

    pa.set_cpu_count(1)
    quality = [Length(), Symbols(), Repetition()]
    read = functools.partial(read_documents, extract="trafilatura" if case == "trafilatura" else "main")
    steps = {
        "filters": quality,
        "fineweb": [
            GopherRepetition(),
            GopherQuality(),
            C4Quality(terminal_punctuation=False, strict_reference=True),
            FineWebQuality(strict_reference=True),
        ],
        "exact": [*quality, ExactDedup()],
        "near": [NearDedup(threshold=0.75, hashes=HASHES)],
        "warc": quality,
        "trafilatura": quality,
    }[case]
    start = time.perf_counter()
    report = run(steps, source, folder, quiet=True, read=read)
    return {"seconds": time.perf_counter() - start, "kept": report.documents_out}


def run_peer(case: str, source: Path, folder: Path, tokenizer: str) -> dict[str, Any]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader, ParquetReader, WarcReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.logging import logger
    from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

    class Whitespace(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
            ends = ends if ends and not text[ends[-1] :].strip() else [*ends, len(text)]
            return list(pairwise([0, *ends]))

    logger.remove()
    language: Any = Whitespace() if tokenizer == "whitespace" else "eng"
    load_word_tokenizer(language).word_tokenize("loads the tokenizer")
    read, written = JsonlReader(str(source.parent)), str(folder / "filtered")
    filters = [GopherQualityFilter(language=language), GopherRepetitionFilter(language=language)]
    exact, near = (
        ExactDedupConfig(content_getter=normalised),
        MinhashConfig(num_buckets=BANDS, hashes_per_bucket=HASHES // BANDS),
    )
    rest = [C4QualityFilter(language=language, filter_no_terminal_punct=False), FineWebQualityFilter(language=language)]
    a, b, c = (str(folder / name) for name in ("stage1", "stage2", "stage3"))
    result = str(folder / "result")
    pages = [WarcReader(str(source.parent)), Trafilatura(), *filters, ParquetWriter(result)]
    pipelines: list[list[Any]] = {
        "filters": [[read, *filters, ParquetWriter(result)]],
        "fineweb": [[read, *reversed(filters), *rest, ParquetWriter(result)]],
        "exact": [
            [read, *filters, ParquetWriter(written)],
            [ParquetReader(written), ExactDedupSignature(a, exact)],
            [ExactFindDedups(a, b, exact)],
            [ParquetReader(written), ExactDedupFilter(b, exact), ParquetWriter(result)],
        ],
        "near": [
            [read, MinhashDedupSignature(a, near, language=language)],
            [MinhashDedupBuckets(a, b, config=near)],
            [MinhashDedupCluster(b, c, config=near)],
            [read, MinhashDedupFilter(c), ParquetWriter(result)],
        ],
        "warc": [pages],
        "trafilatura": [pages],
    }[case]
    start = time.perf_counter()
    for number, pipeline in enumerate(pipelines):
        tasks = BANDS if case == "near" and number == 1 else 1
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / f"log{number}")).run()
    seconds = time.perf_counter() - start
    import pyarrow.parquet as pq

    kept = sum(pq.ParquetFile(path).metadata.num_rows for path in Path(result).glob("*.parquet"))
    return {"seconds": seconds, "kept": kept}


def normalised(document: Any) -> str:
    """The text as our exact removal compares it."""
    return " ".join(document.text.lower().split())


# ----------------------------------------------------------------------------------------------------------- documents


def write_documents(target: Path, given: Path | None, limit: int) -> tuple[int, int]:
    """Write at most `limit` texts as JSON lines; (documents, bytes of text)."""
    count = size = 0
    with target.open("w", encoding="utf-8") as file:
        for text in given_texts(given) if given else library_texts():
            if count == limit:
                break
            file.write(json.dumps({"text": text, "id": str(count)}) + "\n")
            count, size = count + 1, size + len(text.encode())
    return count, size


def write_warc(folder: Path, limit: int) -> tuple[Path, int]:
    """A WARC file with at most `limit` pages of this Python's documentation, and how many there are."""
    from bloomery.web import WarcWriter
    from bloomery.worlds.installed_docs import InstalledDocs

    folder.mkdir()
    docs = InstalledDocs()
    writer, headers = WarcWriter(folder, "pages", "benchmark"), [("Content-Type", "text/html; charset=utf-8")]
    paths = docs.paths[:: max(1, len(docs.paths) // limit)][:limit]
    for path in paths:
        writer.write_page(f"https://docs.example{path}", 200, "OK", headers, docs.page(path).html.encode(), {})
    writer.close()
    return writer.path, len(paths)


def given_texts(path: Path) -> Iterator[str]:
    from bloomery.corpus.documents import texts
    from bloomery.corpus.readers import read_documents
    from bloomery.corpus.steps import kept

    for batch in read_documents(path):
        yield from texts(kept(batch)).to_pylist()


def library_texts() -> Iterator[str]:
    """From every module of this Python's libraries: its docstrings as one text, and its first 20 kB of source."""
    import ast
    import sysconfig

    roots = dict.fromkeys((sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")))
    for path in sorted({file for root in roots for file in Path(root).rglob("*.py")}):
        try:
            source = path.read_text(encoding="utf-8")
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError, RecursionError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        prose = "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes if isinstance(node, documented))))
        yield from (text for text in (prose, source[:20_000]) if len(text) > 200)


if __name__ == "__main__":
    main()
