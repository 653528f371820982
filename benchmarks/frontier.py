"""Frontiers of many pages: pushes and pops a second, and memory, of `DiskFrontier` and of the one in memory.

A crawl of growing frontier: rounds of 100,000 new pages (64-bit numbers, random scores) pushed and the 10,000 best
popped, until `--pages` are pushed. Every run is a fresh process; memory is the largest anonymous memory after a round
(RssAnon) and the peak of everything (VmHWM), less what the process had before the first push. Last, the `save`.

    python benchmarks/frontier.py --pages 1000000 10000000 --json frontier.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from rich.console import Console
from rich.table import Table

from bloomery.core.files import write_json

RUN = """
import json, sys, time
from pathlib import Path
import numpy as np
from bloomery.web.scheduling import DiskFrontier, HeapFrontier

kind, folder, pages = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
PUSH, POP = 100_000, 10_000

def memory(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) / 1024

rand = np.random.default_rng(0)
disk = kind == "disk"
frontier = DiskFrontier(folder) if disk else HeapFrontier()
before, peak_before, most = memory("RssAnon"), memory("VmHWM"), 0.0
pushing = popping = 0.0
popped = check = 0
for _ in range(pages // PUSH):
    new, scores = rand.integers(0, 1 << 64, PUSH, dtype=np.uint64), rand.random(PUSH)
    start = time.perf_counter()
    if disk:
        frontier.push_many(new, scores)
    else:
        for page, score in zip(new.tolist(), scores.tolist()):
            frontier.push(page, score)
    pushing += time.perf_counter() - start
    start = time.perf_counter()
    best = frontier.pop_best(POP)
    popping += time.perf_counter() - start
    popped += len(best)
    check = (check * 31 + sum(best)) % (1 << 61)
    most = max(most, memory("RssAnon"))
start = time.perf_counter()
if disk:
    frontier.save()
print(json.dumps({
    "kind": kind, "pages": pages, "pushes_s": pages / pushing, "pops_s": popped / popping,
    "waiting": len(frontier), "check": check, "memory_mb": most - before, "peak_mb": memory("VmHWM") - peak_before,
    "disk_mb": sum(p.stat().st_size for p in folder.iterdir()) / 1e6, "save_s": time.perf_counter() - start,
}))
"""


def main() -> int:
    """Run every size and kind; non-zero when the two kinds pop different pages."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pages", type=int, nargs="+", default=[1_000_000, 10_000_000])
    options.add_argument("--kinds", nargs="+", default=["disk", "memory"])
    options.add_argument("--json", default="")
    args = options.parse_args()
    rows = []
    table = Table("frontier", "pages pushed", "pushes/s", "pops/s", "memory MB", "peak MB", "disk MB", "save s")
    for pages in args.pages:
        for kind in args.kinds:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-c", RUN, kind, folder, str(pages)]
                row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append(row)
            columns = ("pushes_s", "pops_s", "memory_mb", "peak_mb", "disk_mb")
            table.add_row(kind, f"{pages:,}", *(f"{row[c]:,.0f}" for c in columns), f"{row['save_s']:.1f}")
    Console().print(table)
    if args.json:
        write_json(args.json, rows)
    different = [p for p in args.pages if len({row["check"] for row in rows if row["pages"] == p}) > 1]
    if different:
        print(f"the two frontiers popped different pages of {different}", file=sys.stderr)
    return bool(different)


if __name__ == "__main__":
    raise SystemExit(main())
