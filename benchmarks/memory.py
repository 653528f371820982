"""Peak memory of a curation at one and at ten times the input: flat for local steps, growing by so much for barriers.

    local steps      WARC in, main content, Language, Length, Symbols, Repetition; Parquet out
    ExactDedup, …    JSON lines in, then one barrier alone: what it keeps of every document

The input is generated: pages of random sentences from a list of words, as one WARC or JSON-lines file per worker, ten
times as long in the second run. Each run is a fresh process. Its memory is the peak of the resident memory (VmHWM),
Python and its libraries included; with the pool, that of the largest worker. A barrier's growth is that of anonymous
memory (RssAnon, looked at twenty times a second: without mapped files, which the system takes back when it needs to)
between the two runs divided by the additional documents, beside what its own `plan` says.

    python benchmarks/memory.py --megabytes 30 --json memory.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LOCAL = ("Language", "Length", "Symbols", "Repetition")
BARRIERS = ("ExactDedup", "NearDedup", "BloomDedup")
GROWTH = 10
COMMON = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "with", "be", "by", "on", "not", "he", "have")
OTHERS = (
    "furnace",
    "iron",
    "ore",
    "charcoal",
    "slag",
    "hearth",
    "hammer",
    "people",
    "river",
    "winter",
    "finds",
    "heavy",
)
WORDS = (*COMMON, *COMMON, *OTHERS)


def main() -> None:
    """Measure every case, print the table, write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=30, help="of pages per file in the smaller run")
    parser.add_argument("--cases", nargs="+", choices=["inline", "processes", *BARRIERS], default=None)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--run", nargs=4, metavar=("CASE", "IN", "OUT", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(*options.run)))
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Generate inputs of both sizes, run every case on both."""
    from rich.console import Console
    from rich.table import Table

    from bloomery.core.files import write_json

    rows = []
    for case in options.cases or ["inline", "processes", *BARRIERS]:
        files, kind = (2 if case == "processes" else 1), ("jsonl" if case in BARRIERS else "warc.gz")
        found = {}
        for times in (1, GROWTH):
            with tempfile.TemporaryDirectory() as scratch:
                source = Path(scratch) / "in"
                source.mkdir()
                for number in range(files):
                    write_pages(source / f"pages{number}.{kind}", options.megabytes * times * 1_000_000, number)
                command = [sys.executable, __file__, "--run", case, str(source), f"{scratch}/out", str(files)]
                single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **single})
                if answer.returncode:
                    sys.exit(f"{case} failed:\n{answer.stderr[-3000:]}")
                found[times] = json.loads(answer.stdout.splitlines()[-1])
        small, large = found[1], found[GROWTH]
        more = large["documents"] - small["documents"]
        growth = (large["anonymous"] - small["anonymous"]) / more
        is_barrier = case in BARRIERS
        rows.append(
            [
                case if is_barrier else f"local steps, {case}",
                f"{small['documents']:,}", f"{large['documents']:,}",
                f"{small['memory'] / 1e6:,.0f} MB", f"{large['memory'] / 1e6:,.0f} MB",
                f"{large['memory'] / small['memory']:.2f}x",
                f"{growth:,.0f} B (plan {(large['plan'] - small['plan']) / more:,.0f} B)" if is_barrier else "–",
            ]
        )  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    columns = ["steps", "documents, 1x", f"{GROWTH}x", "peak, 1x", f"peak, {GROWTH}x", "ratio", "growth per document"]
    table = Table(*columns, title=f"peak memory at 1x and {GROWTH}x input")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    setup = (
        f"Peak resident memory of the process that reads, libraries included; generated pages, {options.megabytes} MB "
        f"of HTML or JSON lines per file and {GROWTH} times as much; every run in a fresh process, the pool with two "
        "workers (the larger is shown)."
    )
    note = (
        "A barrier's sketches are memory-mapped files: they count in its peak while there is room for them. Its growth "
        "per document is that of anonymous memory."
    )
    if options.json:
        write_json(options.json, {"title": "Memory", "setup": setup, "columns": columns, "rows": rows, "notes": [note]})


def measure(case: str, source: str, out: str, workers: str) -> dict[str, Any]:
    """One run in this process: peak memory in bytes, documents, and the barrier's plan."""
    import pyarrow as pa

    from bloomery import corpus
    from bloomery.web import read_documents

    pa.set_cpu_count(1)
    names = (case,) if case in BARRIERS else LOCAL
    steps = [getattr(corpus, name)() for name in names]
    watch = Watch(children=case == "processes")
    watch.start()
    engine = "processes" if case == "processes" else "inline"
    report = corpus.run(steps, source, out, engine=engine, workers=int(workers), read=read_documents, quiet=True)
    needs = steps[0].plan(report.documents_in, report.text_bytes_in) if case in BARRIERS else None
    return {**watch.largest(), "documents": report.documents_in, "plan": needs.ram_bytes if needs else 0}


class Watch(threading.Thread):
    """Looks at the memory of this process, or of its children, twenty times a second."""

    def __init__(self, children: bool) -> None:
        super().__init__(daemon=True)
        self._children = children
        self._peaks: dict[str, int] = {}
        self._anonymous = 0

    def run(self) -> None:
        """Look until the program ends. VmHWM only grows, so a process's last look is its peak."""
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while True:
            for process in children.read_text().split() if self._children else [str(os.getpid())]:
                self._peaks[process] = max(self._peaks.get(process, 0), memory(process, "VmHWM"))
                self._anonymous = max(self._anonymous, memory(process, "RssAnon"))
            time.sleep(0.05)

    def largest(self) -> dict[str, int]:
        """Bytes of the largest process: all that was resident, and the part that is not mapped from files."""
        return {"memory": max(self._peaks.values()), "anonymous": self._anonymous}


def memory(process: str, field: str) -> int:
    """Bytes in a field of the process's status, 0 if it has gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def write_pages(path: Path, size: int, seed: int) -> None:
    """Pages of random sentences, about `size` bytes of them, as a WARC or JSON-lines file."""
    rand = random.Random(seed)
    sentences = [" ".join(rand.choices(WORDS, k=rand.randrange(6, 24))).capitalize() + "." for _ in range(20_000)]
    written = number = 0
    with path.open("wb") as file:
        while written < size:
            lines = [" ".join(rand.choices(sentences, k=5)) for _ in range(rand.randrange(3, 14))]
            url = f"http://host{number % 50}.example/{seed}/{number}"
            if path.suffix == ".jsonl":
                block = json.dumps({"text": "\n".join(lines), "url": url}).encode() + b"\n"
                file.write(block)
            else:
                body = "".join(f"<p>{line}</p>\n" for line in lines)
                block = (
                    f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<title>{number}</title><main>{body}".encode()
                )
                head = (
                    f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
                    f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
                )
                file.write(gzip.compress(head.encode() + block + b"\r\n\r\n", 1))
            written += len(block)
            number += 1


if __name__ == "__main__":
    main()
