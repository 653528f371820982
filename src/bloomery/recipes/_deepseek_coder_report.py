"""What the report of DeepSeek-Coder-V2 shows: experts' loads over steps, losses in a gap, a table. No training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomery.lab import Run, figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Loads = Sequence[tuple[int, Sequence[float]]]  # (optimiser step, share of each expert)
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # arm -> seed -> result


def show(run: Run, found: Found) -> None:
    """Everything about the trained arms."""
    show_loads(run, found)
    show_gaps(run, found)
    names = ("loss", "load", "prefix_only", "gap")
    rows = [
        [arm, seed, *(f"{result[name]:.3f}" if name in result else None for name in names)]
        for arm, results in found.items()
        for seed, result in results.items()
    ]
    columns = ["arm", "seed", "held-out nats/byte", "busiest expert", "gap: prefix alone", "gap: prefix and suffix"]
    run.table("arms", columns, rows, "Every trained model.")


def show_loads(run: Run, found: Found) -> None:
    """The busiest expert of every seed, and all experts of the first."""
    sides = {"with balance loss": "plain", "without": "unbalanced"}
    curves = {name: [busiest(result["loads"]) for result in found[arm].values()] for name, arm in sides.items()}
    figure = figures.lines(curves, x="optimiser step", y="load, in fair shares")
    run.figure(
        "load", figure, "The busiest expert of the first layer with experts; 1 is fair. The band spans the seeds."
    )
    caption = "Every expert of that layer while training (first seed): without a balance loss some do most of the work."
    run.figure("experts", draw_experts({name: found[arm][0]["loads"] for name, arm in sides.items()}), caption)


def show_gaps(run: Run, found: Found) -> None:
    """Loss in the gap by what comes before it."""
    sides = {
        "prefix and suffix (fim)": ("fim", "gap_bins"),
        "prefix alone (left to right)": ("plain", "prefix_only_bins"),
        "prefix alone (fim)": ("fim", "prefix_only_bins"),
    }
    edges = next(iter(found["plain"].values()))["edges"]
    places = list(range(len(edges) - 1))
    curves = {
        name: [
            (places, [np.nan if value is None else value for value in result[bins]]) for result in found[arm].values()
        ]
        for name, (arm, bins) in sides.items()
    }
    figure = figures.lines(curves, x="characters before the gap", y="nats per byte of the gap")
    figure.axes[0].set_xticks(places, [f"{low}-{high - 1}" for low, high in pairwise(edges)])
    run.figure(
        "gap", figure, "What a byte inside a line of held-out code costs. The band spans the seeds. Lower is better."
    )


def busiest(loads: Loads) -> tuple[list[int], list[float]]:
    """(steps, largest load in fair shares)."""
    return [step for step, _ in loads], [max(shares) * len(shares) for _, shares in loads]


def draw_experts(sides: Mapping[str, Loads]) -> Figure:
    """One thin line per expert."""
    figure, axes = figures.new()
    for (name, loads), colour in zip(sides.items(), figures.PALETTE, strict=False):
        shares = np.array([shares for _, shares in loads])  # (points, experts)
        lines = axes.plot([step for step, _ in loads], shares * shares.shape[1], color=colour, linewidth=1.0, alpha=0.8)
        lines[0].set_label(name)
    axes.set(xlabel="optimiser step", ylabel="load, in fair shares")
    axes.legend(frameon=False)
    return figure
