"""Megabytes per second of exact-substring removal, beside a suffix array (libdivsufsort through pydivsufsort).

Both sides do the same job in a fresh single-threaded process: texts in memory → which bytes stand in a piece of 100
bytes or more that stands twice. The peer is Lee et al.'s method with the usual tools: one suffix array over all texts,
the lengths that neighbours share (Kasai), and all pieces of 100 bytes marked. Processor time; the sides take turns;
medians over the rounds.

The last row is ours on ten million bytes of one character, which must not be slower than linear.

    python benchmarks/substrings.py --rounds 3 --json substrings.json
    python benchmarks/substrings.py --peer-python other-venv/bin/python --megabytes 60
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from curate import library_texts

LENGTH = 100
SIDES = ("ours", "suffix array", "one character")
PEER = "suffix array"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has pydivsufsort")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        texts = json.loads(options.input.read_text(encoding="utf-8"))
        result = peer(texts) if options.side == PEER else ours(["x" * 10_000_000] if options.side != "ours" else texts)
        result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps(result))
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run all sides in turns and print the table."""
    from rich.console import Console
    from rich.table import Table

    from bloomery.core.files import write_json

    texts, size = [], 0
    for text in library_texts():
        texts.append(text)
        size += len(text.encode())
        if size >= options.megabytes * 1e6:
            break
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.json"
        source.write_text(json.dumps(texts), encoding="utf-8")
        for _ in range(options.rounds):
            for side in SIDES:
                found[side].append(run_side(side, source, options))
    seconds = {side: statistics.median(r["seconds"] for r in results) for side, results in found.items()}
    names = {
        "ours": "bloomery, SubstringDedup",
        PEER: f"suffix array, pydivsufsort {found[PEER][0]['version']}",
        "one character": "bloomery, 10 MB of one character",
    }
    rows = []
    for side, results in found.items():
        megabytes = 10.0 if side == "one character" else size / 1e6
        memory = statistics.median(r["memory"] for r in results)
        ratio = f"{seconds[PEER] / seconds['ours']:.1f}x" if side == PEER else ""
        rows.append(
            [names[side], f"{results[0]['bytes']:,}", f"{megabytes / seconds[side]:.1f}", f"{memory:,.0f}", ratio]
        )
    columns = ["", "bytes in repeated pieces", "MB/s of processor time", "memory, MB", "ours is faster by"]
    setup = (
        f"{len(texts):,} documents ({size / 1e6:.1f} MB), pieces of {LENGTH} bytes; one thread, texts in memory to the "
        f"decision; median of {options.rounds} rounds in turns."
    )
    notes = [
        'All copies are counted (keep="none"). The peer counts a little more: the marks between its texts, and '
        "characters that a piece has a part of, which ours leaves whole."
    ]
    table = Table(title=setup)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.json:
        content = {"title": "Repeated substrings", "setup": setup, "columns": columns, "rows": rows, "notes": notes}
        write_json(options.json, content)


def run_side(side: str, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a fresh process: {"seconds", "bytes", "memory", "version"}."""
    python = options.peer_python if side == PEER else sys.executable
    command = [python, __file__, "--side", side, "--input", str(source)]
    single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "ARROW")}
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **single}, check=False)
    if answer.returncode:
        sys.exit(f"{side} failed:\n{answer.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def ours(texts: list[str]) -> dict[str, Any]:
    """The barrier alone, with batches as the engine makes them; all copies count, as they do for the peer."""
    import pyarrow as pa

    from bloomery.corpus import SubstringDedup
    from bloomery.corpus.documents import from_texts
    from bloomery.corpus.steps import decision_notes

    pa.set_cpu_count(1)
    step = SubstringDedup(length=LENGTH, keep="none")
    batches = [from_texts(texts[i : i + 1_000]) for i in range(0, len(texts), 1_000)]
    start = time.process_time()
    decided = step.decide(pa.concat_tables([step.sketch(batch) for batch in batches]))
    seconds = time.process_time() - start
    removed = decision_notes(decided)["bytes_removed"]
    return {"seconds": seconds, "bytes": removed, "version": importlib.metadata.version("bloomery")}


def peer(texts: list[str]) -> dict[str, Any]:
    """One suffix array; every text ends in bytes that stand nowhere else, so that no piece crosses its end."""
    import numpy as np
    import pydivsufsort

    start = time.process_time()
    data = b"".join(text.encode() + b"\xff" + number.to_bytes(4, "big") for number, text in enumerate(texts))
    order = pydivsufsort.divsufsort(data)
    shared = pydivsufsort.kasai(data, order)
    at = np.flatnonzero(shared[:-1] >= LENGTH)
    edges = np.zeros(len(data) + 1, np.int32)
    for side in (order[at], order[at + 1]):
        np.add.at(edges, side, 1)
        np.add.at(edges, side + shared[at], -1)
    marked = np.cumsum(edges[:-1]) > 0
    seconds = time.process_time() - start
    return {"seconds": seconds, "bytes": int(marked.sum()), "version": importlib.metadata.version("pydivsufsort")}


if __name__ == "__main__":
    main()
