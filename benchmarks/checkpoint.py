"""Saving and loading a sharded training state: ours beside torch.distributed.checkpoint, by rounds in turns.

A decoder of 40 million parameters with AdamW in float32, 480 MB, on two gloo ranks: sharded by FSDP2, and whole on both
(DDP). Every round saves synchronously, then asynchronously while the state changes, then loads both; every load is
compared bit by bit. All libraries write to the same disk and flush; what is loaded has just been written and is in the
page cache. Times are those of the slowest rank. torch_checkpointing takes part where it is installed; `torch.save` is a
file a rank that no other layout could read: the cost of serialising.

    python benchmarks/checkpoint.py --rounds 5 --json checkpoint.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bloomery.core.files import write_json
from bloomery.recipes._bytecheckpoint_engines import DCP, OURS, available
from bloomery.recipes._bytecheckpoint_measure import REPLICATED, SHARDED, Size, compare
from bloomery.recipes._bytecheckpoint_ranks import Ranks

KINDS = {"sync": "synchronous save", "stall": "stall of an asynchronous save", "durable": "asynchronous, until durable",
         "load": "load"}  # fmt: skip
MEMORY = "memory that saving asynchronously adds, over the rank's state"
SIZE = Size(vocab=32_000, dim=512, depth=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()
    names, found = available(), dict[str, dict[str, Any]]()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for layout in (SHARDED, REPLICATED):
            with Ranks(options.ranks) as ranks:  # fresh processes: none keeps a buffer
                every = ranks.run(options.ranks, compare, SIZE, layout, names, Path(folder), options.rounds, 0)
            found[layout] = every[0]
            for name in names:
                found[layout][name]["memory"] = max(each[name]["memory"] for each in every)
    others = [name for name in names if name not in (OURS, DCP)]
    columns = ["layout", "what", OURS, DCP, "ours / DCP", *others]
    rows = []
    for layout, result in found.items():
        seconds = {text: {name: median(result[name][kind]) for name in names} for kind, text in KINDS.items()}
        memory = {MEMORY: {name: result[name]["memory"] for name in names}}
        for what, values in (seconds | memory).items():
            shown = {name: f"{value:.2f}" if what == MEMORY else f"{value:.3f} s" for name, value in values.items()}
            ratio = f"{values[OURS] / values[DCP]:.2f}"
            rows.append([layout, what, shown[OURS], shown[DCP], ratio, *(shown[name] for name in others)])
    state = {layout: result["local_bytes"] / 1e6 for layout, result in found.items()}
    setup = (
        f"{options.ranks} ranks over gloo, "
        f"{' and '.join(f'{size:.0f} MB a rank ({layout})' for layout, size in state.items())}; "
        f"medians of {options.rounds} rounds in turns, all flushed, caches warm; torch {torch.__version__}."
    )
    table = Table(*columns, title="saving and loading a sharded state")
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)
    if options.json:
        notes = ["`torch.save` holds training up for as long as it writes, and its files fit the same layout only.",
                 "Only ours checks what it loads: every byte is under a checksum."]  # fmt: skip
        title = "Checkpoints: saving and loading a sharded state"
        write_json(options.json, {"title": title, "setup": setup, "columns": columns, "rows": rows, "notes": notes})


if __name__ == "__main__":
    main()
