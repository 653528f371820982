"""What the report of Ling shows: losses, loads with and without the routing warm-up, heads. No training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from bloomery.lab import Run, figures
from bloomery.recipes.ling import (
    CHECKED,
    CLEAN,
    DENSE,
    EXPERTS,
    HOT_NORMALISED,
    HOT_PLAIN,
    LONG,
    NORMALISED,
)

if TYPE_CHECKING:
    from bloomery.recipes.ling import Runs


def show(
    run: Run,
    tuned: Mapping[str, Any],
    runs: Runs,
    checks: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, int]],
    *,
    early: int,
    watched: int,
) -> None:
    """Everything about the trained arms; `sizes` are parameters, all and active, by arm."""
    figure = figures.lines(_curves(runs, EXPERTS, DENSE), x="optimiser step", y="held-out nats per byte")
    run.figure("loss", figure, "Loss on held-out modules; the band spans the seeds.")
    sides = {"with warm-up": EXPERTS, "without": CLEAN}
    loads = {
        name: [(list(range(1, early + 1)), result["loads"]) for result in runs[arm].values()]
        for name, arm in sides.items()
    }
    figure = figures.lines(loads, x="optimiser step", y="busiest expert, in fair shares")
    figure.axes[0].axvline(watched, color=figures.INK, linewidth=0.8, linestyle=":")
    figure.axes[0].set_ylim(bottom=0)
    caption = "Load of the busiest expert, mean over layers; 1 is fair, up to the dotted line it is compared."
    run.figure("load", figure, caption + " The band spans the seeds.")
    heads = (HOT_NORMALISED, HOT_PLAIN, NORMALISED, EXPERTS)
    figure = figures.lines(_curves(runs, *heads, until=early), x="optimiser step", y="held-out nats per byte")
    caption = f"Heads, the rate of two of them 20 times as high. The arm `{EXPERTS}` has a plain head."
    run.figure("heads", figure, caption)
    rows = [
        [
            arm,
            *sizes[arm],
            f"{tuned[DENSE if arm == DENSE else EXPERTS]['rate']:g}",
            ", ".join(f"{rate}: {loss:.3f}" for rate, loss in tuned[arm]["losses"].items()) if arm in LONG else None,
            ", ".join(f"{result['early']:.3f}" for result in by.values()),
            ", ".join(f"{result['loss']:.3f}" for result in by.values()) if arm in LONG else None,
            ", ".join(f"{max(result['loads'][:watched]):.2f}" for result in by.values()) if arm != DENSE else None,
        ]
        for arm, by in runs.items()
    ]
    columns = ["arm", "parameters", "active", "rate", "rates tried", f"loss at step {early}", "final loss"]
    run.table("arms", [*columns, "largest load"], rows, "Held-out nats per byte and loads, by seed.")
    table = [[name, *(f"{value:.3g}" for value in by.values())] for name, by in checks.items()]
    caption = f"Largest difference of a weight after {CHECKED} steps, evaluated on the way or not, by seed."
    run.table("evaluation", ["evaluation", *(f"seed {trial}" for trial in runs[EXPERTS])], table, caption)


def _curves(runs: Runs, *arms: str, until: float = inf) -> figures.Series:
    """Held-out loss by step, a line for each arm and seed, up to step `until`."""
    return {arm: [_line(result["curve"], until) for result in runs[arm].values()] for arm in arms}


def _line(curve: Sequence[tuple[int, float]], until: float) -> tuple[list[int], list[float]]:
    shown = [(step, loss) for step, loss in curve if step <= until]
    return [step for step, _ in shown], [loss for _, loss in shown]
