"""Peak memory and time of the language-model loss: in chunks (`nn.linear_cross_entropy`) against all logits at once.

Both give the loss and the gradients of hidden states and output matrix in float32. The plain form is
`F.cross_entropy(hidden @ weight.T, targets)`. Memory is what a fresh process needs beyond inputs and gradients: its
peak resident size while computing, less its size before, less the two gradients. Each figure comes from a process of
its own; time is the median over rounds in turns.

    python benchmarks/loss.py --json loss.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from bloomery.core.files import write_json
from bloomery.nn import linear_cross_entropy

CASES = {"128k vocabulary": (2048, 256, 131_072), "32k vocabulary": (2048, 256, 32_768)}  # positions, width, vocabulary


def once(kind: str, positions: int, width: int, vocabulary: int) -> dict[str, float]:
    """One process: set up, remember the size, compute, see how far it has grown."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, width, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) * width**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    if kind == "chunked":
        loss = linear_cross_entropy(hidden, weight, targets)
    else:
        loss = F.cross_entropy(hidden @ weight.T, targets)
    loss.backward()
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert hidden.grad is not None
    assert weight.grad is not None
    return {
        "seconds": seconds,
        "bytes": grown - hidden.grad.nbytes - weight.grad.nbytes,
        "loss": loss.item(),
        "gradient": weight.grad.norm().item(),
    }


def measure(case: tuple[int, ...], rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"chunked": [], "plain": []}
    for _ in range(rounds):
        for kind, results in found.items():
            command = [sys.executable, __file__, "--one", kind, *map(str, case)]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    ours, plain = found["chunked"][0], found["plain"][0]
    assert abs(ours["loss"] - plain["loss"]) < 1e-4
    assert abs(ours["gradient"] / plain["gradient"] - 1) < 1e-4
    middle = {
        kind: {key: statistics.median(result[key] for result in results) for key in ("seconds", "bytes")}
        for kind, results in found.items()
    }
    return middle | {"memory_ratio": middle["chunked"]["bytes"] / middle["plain"]["bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    parser.add_argument("--one", nargs=4, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, *sizes = options.one
        print(json.dumps(once(kind, *map(int, sizes))))
        return
    columns = ["case", "memory, chunked", "memory, plain", "share", "time, chunked", "time, plain"]
    rows, figures = [], []
    for name, case in CASES.items():
        result = measure(case, options.rounds)
        figures.append({"case": name} | result)
        chunked, plain = result["chunked"], result["plain"]
        rows.append([
            f"{name}, {case[0]:,} positions",
            f"{chunked['bytes'] / 2**20:,.0f} MiB",
            f"{plain['bytes'] / 2**20:,.0f} MiB",
            f"{result['memory_ratio']:.3f}",
            f"{chunked['seconds']:.2f} s",
            f"{plain['seconds']:.2f} s",
        ])  # fmt: skip
    setup = f"{torch.get_num_threads()} CPU threads, float32, torch {torch.__version__}"
    table = Table(*columns, title=setup)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.json:
        title = "The language-model loss in chunks against all logits at once"
        notes = ["Memory beyond inputs and gradients; every figure from a process of its own."]
        result = {"title": title, "setup": setup, "columns": columns, "rows": rows, "notes": notes, "figures": figures}
        write_json(options.json, result)


if __name__ == "__main__":
    main()
