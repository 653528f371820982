"""Documents per second and core of near-duplicate removal, beside datasketch and rensa; megabytes per second of Bloom.

All sides do the same job in a fresh single-threaded process: texts in memory → 5-word shingles → MinHash with 128
permutations → LSH for a threshold of 0.8 → which documents to drop. `str.split` makes the words of the peers. Ours also
verifies every candidate pair by its exact similarity, which the peers leave out. rensa gets its fastest way, one matrix
of digests from byte shingles. The sides take turns; the figures are medians over the rounds.

One document in five is a copy of an earlier one with a few words changed, so that there is something to find.

    python benchmarks/dedup.py --rounds 3 --json dedup.json
    python benchmarks/dedup.py --peer-python other-venv/bin/python --documents 20000
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curate import library_texts

HASHES, THRESHOLD, NGRAM = 128, 0.8, 5
COPIES = 0.2  # share of the documents that are changed copies
EDITS = 0.01  # share of the words of a copy that are changed: about 95 % of the shingles stay
PEERS = ("datasketch", "rensa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=4_000)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has datasketch and rensa")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        texts = json.loads(options.input.read_text(encoding="utf-8"))
        print(json.dumps(SIDES[options.side](texts)))
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Run all sides in turns and print the table."""
    from rich.console import Console
    from rich.table import Table

    from bloomery.core.files import write_json

    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.json"
        texts = documents(options.documents)
        source.write_text(json.dumps(texts), encoding="utf-8")
        size = sum(len(text.encode()) for text in texts)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                found[side].append(run_side(side, source, options))
    seconds = {side: statistics.median(r["seconds"] for r in results) for side, results in found.items()}
    rows = []
    for side, results in found.items():
        rows.append(
            [
                NAMES[side].format(version=results[0]["version"]),
                f"{results[0]['dropped']:,}",
                f"{len(texts) / seconds[side]:,.0f}",
                f"{size / 1e6 / seconds[side]:.1f}",
                f"{seconds[side] / seconds['near']:.1f}x" if side in PEERS else "",
            ]
        )
    columns = ["", "dropped", "documents/s", "MB/s", "ours is faster by"]
    setup = (
        f"{len(texts):,} documents ({size / 1e6:.1f} MB), every fifth a copy with one word in a hundred changed; "
        f"one thread, texts in memory to the decision; median of {options.rounds} rounds in turns."
    )
    notes = ["Ours verifies candidates by exact similarity, the peers do not."]
    table = Table(title=setup)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.json:
        content = {"title": "Duplicates", "setup": setup, "columns": columns, "rows": rows, "notes": notes}
        write_json(options.json, content)


def run_side(side: str, source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a fresh process: {"seconds", "dropped", "version"}."""
    python = options.peer_python if side in PEERS else sys.executable
    command = [python, __file__, "--side", side, "--input", str(source)]
    threads = ("OMP", "OPENBLAS", "ARROW", "RAYON")
    single = {f"{name}_NUM_THREADS": "1" for name in threads}
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **single}, check=False)
    if answer.returncode:
        sys.exit(f"{side} failed:\n{answer.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def documents(count: int) -> list[str]:
    """Texts of this Python's libraries; every fifth is a changed copy of an earlier one."""
    random.seed(0)
    made: list[str] = []
    for text in library_texts():
        if len(made) == count:
            break
        if made and random.random() < COPIES:
            words = random.choice(made).split(" ")
            made.append(" ".join(f"{w}x" if random.random() < EDITS else w for w in words))
        made.append(text)
    return made[:count]


def near(texts: list[str]) -> dict[str, Any]:
    from bloomery.corpus import NearDedup

    return _barrier(NearDedup(threshold=THRESHOLD, ngram=NGRAM, hashes=HASHES), texts)


def bloom(texts: list[str]) -> dict[str, Any]:
    from bloomery.corpus import BloomDedup

    return _barrier(BloomDedup(), texts)


def _barrier(step: Any, texts: list[str]) -> dict[str, Any]:
    """A barrier alone, with batches as the engine makes them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from bloomery.corpus.documents import from_texts
    from bloomery.corpus.steps import DROP

    pa.set_cpu_count(1)
    batches = [from_texts(texts[i : i + 1_000]) for i in range(0, len(texts), 1_000)]
    start = time.perf_counter()
    decided = step.decide(pa.concat_tables([step.sketch(batch) for batch in batches]))
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "dropped": pc.count(decided[DROP]).as_py(),
        "version": importlib.metadata.version("bloomery"),
    }


def datasketch(texts: list[str]) -> dict[str, Any]:
    from datasketch import MinHash, MinHashLSH

    start = time.perf_counter()
    index, dropped = MinHashLSH(threshold=THRESHOLD, num_perm=HASHES), 0
    for key, text in enumerate(texts):
        sketch = MinHash(num_perm=HASHES)
        sketch.update_batch(shingles(text))
        if index.query(sketch):
            dropped += 1
        index.insert(key, sketch)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "dropped": dropped, "version": importlib.metadata.version("datasketch")}


def rensa(texts: list[str]) -> dict[str, Any]:
    from rensa import RMinHash, RMinHashLSH

    start = time.perf_counter()
    matrix = RMinHash.digest_matrix_from_token_byte_sets([shingles(text) for text in texts], HASHES, 42)
    # 16 bands of 8: a pair at the threshold meets with probability 0.95
    flags = RMinHashLSH(THRESHOLD, HASHES, 16).insert_matrix_and_query_duplicate_flags(matrix)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "dropped": int(sum(flags)), "version": importlib.metadata.version("rensa")}


def shingles(text: str) -> list[bytes]:
    """The distinct 5-word shingles, lower case, as bytes."""
    words = text.lower().encode().split()
    return list({b" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))})


SIDES: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "near": near,
    "datasketch": datasketch,
    "rensa": rensa,
    "bloom": bloom,
}
NAMES = {
    "near": "bloomery, NearDedup",
    "datasketch": "datasketch {version}",
    "rensa": "rensa {version}",
    "bloom": "bloomery, BloomDedup",
}

if __name__ == "__main__":
    main()
