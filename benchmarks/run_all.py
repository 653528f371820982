"""Run every benchmark in turn and write their tables to docs/benchmarks.md; with `--only`, the others' tables stay.

    python benchmarks/run_all.py --peer-python .venv-peers/bin/python

Each benchmark is a script of its own that prints a table (ours, peer, ratio) and, with `--json`, writes it as
{"title", "setup", "columns", "rows", "notes"}. This script only collects them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
PEERS = {
    "crawl": True,
    "curate": True,
    "dedup": True,
    "substrings": True,
    "quality": False,
    "memory": False,
    "pretrain": False,
    "generate": False,
    "serving": False,
    "moe": False,
    "loss": False,
    "checkpoint": False,
}  # whether the peer has its own interpreter
HEAD = """# Benchmarks

Ours and the peer do the same work in turns on one machine; each figure is the median of several rounds. `make bench`
runs all of them and rewrites this page; each script under `benchmarks/` can be run alone and says what it measures.

Sections may come from different days and machines: each says which.
"""


def machine() -> str:
    """The processor, its cores and Python, in words."""
    model = platform.processor() or platform.machine()
    try:
        names = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    except OSError:
        pass
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}"


def markdown(result: dict) -> str:
    """One benchmark's result as a section."""
    rows = [result["columns"], ["---"] * len(result["columns"]), *result["rows"]]
    table = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    where = f"Measured on {machine()}, {datetime.date.today()}."
    parts = [f"## {result['title']}", result["setup"], table, *result.get("notes", []), where]
    return "\n\n".join(parts)


def sections_of(page: Path) -> dict[str, str]:
    """The sections a page has, by title."""
    parts = page.read_text().split("\n## ")[1:] if page.exists() else []
    return {part.partition("\n")[0]: "## " + part.strip() for part in parts}


def main() -> int:
    """Run, collect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has scrapy and datatrove")
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS))
    args = parser.parse_args()
    sections, failed = sections_of(PAGE), []  # also of those that are run alone: extraction needs data, frontier disk
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(out)]
            command += ["--peer-python", args.peer_python] if PEERS[name] else []
            print(f"== {name}", flush=True)
            if subprocess.run(command).returncode or not out.exists():
                failed.append(name)
                continue
            result = json.loads(out.read_text())
            sections[result["title"]] = markdown(result)
    if failed:
        print(f"failed: {', '.join(failed)}; {PAGE} is left as it was", file=sys.stderr)
        return 1
    PAGE.write_text(HEAD + "\n" + "\n\n".join(sections.values()) + "\n")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
