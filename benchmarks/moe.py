"""Forward and backward of one mixture-of-experts block: ours against `transformers`' DeepseekV2Moe, same weights.

Tokens per second over the routed and shared experts and their router, with gradients of every weight and of the input.
Their block runs in each of its ways to compute experts that works here (a loop over experts, or
a grouped product); the ratio is against the faster. All take turns in one process; the table gives medians over rounds,
and the outputs and gradients are compared first.

    python benchmarks/moe.py --threads 2 --rounds 7 --json moe.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bloomery.core.files import write_json
from bloomery.nn import MoE, Router

WAYS = ("eager", "grouped_mm")
CASES = {  # dim, experts, top k, expert width, shared width, tokens
    "256 wide, 64 experts of 128, top 6, 1,024 tokens": (256, 64, 6, 128, 256, 1024),
    "512 wide, 64 experts of 352, top 6, 512 tokens": (512, 64, 6, 352, 704, 512),
    "1024 wide, 16 experts of 704, top 4, 512 tokens": (1024, 16, 4, 704, 1408, 512),
}


def peer(way: str, dim: int, experts: int, top_k: int, width: int, shared: int) -> nn.Module:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

    config = DeepseekV2Config(
        hidden_size=dim, moe_intermediate_size=width, n_routed_experts=experts, num_experts_per_tok=top_k,
        n_shared_experts=shared // width, topk_method="greedy", routed_scaling_factor=1.0, hidden_act="silu",
        experts_implementation=way,
    )  # fmt: skip
    config._experts_implementation = way
    block = DeepseekV2Moe(config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(
                std=parameter.shape[-1] ** -0.5, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return block


def ours(their: Any, dim: int, experts: int, top_k: int, width: int, shared: int) -> MoE:
    block = MoE(dim, experts, top_k, width, shared_dim=shared, router=Router(dim, experts, top_k))
    assert block.shared is not None
    with torch.no_grad():
        block.router.weight.copy_(their.gate.weight)
        block.gate_up.copy_(their.experts.gate_up_proj)
        block.down.copy_(their.experts.down_proj)
        mlp = their.shared_experts
        block.shared.gate_up.weight.copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        block.shared.down.weight.copy_(mlp.down_proj.weight)
    return block


def step(block: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        block.zero_grad(set_to_none=True)
        x.grad = None
        out: Tensor = block(x)
        out.square().mean().backward()
        return out

    return run


def compare(mine: MoE, their: Any, x: Tensor) -> float:
    """The largest difference of output and input gradient, as a share of the largest value."""
    results = []
    for block in (mine, their):
        out = step(block, x)()
        assert x.grad is not None
        results.append((out.detach(), x.grad.clone()))
    pairs = zip(*results, strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def measure(sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    *shape, tokens = sizes
    x = torch.randn(1, tokens, shape[0], generator=torch.Generator().manual_seed(1)).requires_grad_()
    runs: dict[str, Callable[[], Tensor]] = {}
    mine: MoE | None = None
    for way in WAYS:
        their = peer(way, *shape)
        mine = mine or ours(their, *shape)
        try:
            error = compare(mine, their, x)
        except RuntimeError as reason:
            print(f"{way} does not run here: {str(reason).splitlines()[0]}")
            continue
        if error > 1e-4:
            print(f"{way} differs by {error:.1e}: left out")
            continue
        runs[way] = step(their, x)
    assert mine is not None
    runs["ours"] = step(mine, x)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first round warms up
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - began)
    speeds = {name: tokens / statistics.median(values) for name, values in times.items()}
    fastest = max((name for name in speeds if name != "ours"), key=lambda name: speeds[name])
    return {"speeds": speeds, "fastest": fastest, "ratio": speeds["ours"] / speeds[fastest]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", type=int, default=None, help="only the case of this number, from 0")
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    import transformers

    columns = [
        "block",
        "ours (tokens/s)",
        *(f"theirs, {way}" for way in WAYS),
        "ratio to their fastest",
        "to their loop",
    ]
    setup = f"{torch.get_num_threads()} CPU threads, float32, torch {torch.__version__}, "
    setup += f"transformers {transformers.__version__}"
    table, rows, figures = Table(*columns, title=setup), [], []
    names = list(CASES) if options.case is None else [list(CASES)[options.case]]
    for name in names:
        result = measure(CASES[name], options.rounds)
        figures.append({"case": name, **result})
        speeds = result["speeds"]
        row = [name, f"{speeds['ours']:,.0f}"]
        row += [f"{speeds[way]:,.0f}" if way in speeds else "-" for way in WAYS]
        row += [f"{result['ratio']:.2f}x", f"{speeds['ours'] / speeds['eager']:.2f}x"]
        rows.append(row)
        table.add_row(*row)
    Console().print(table)
    if options.json:
        title = "Mixture of experts: one block forward and backward against transformers' DeepSeek-V2"
        notes = [f"Medians of {options.rounds} rounds in turns in one process; outputs and gradients compared first."]
        result = {"title": title, "setup": setup, "columns": columns, "rows": rows, "notes": notes, "figures": figures}
        write_json(options.json, result)


if __name__ == "__main__":
    main()
