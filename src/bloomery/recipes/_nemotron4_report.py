"""Figures and tables of the Nemotron-4 recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bloomery.lab import Run, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[int, Any]]  # what a training run gave, by arm and trial
CONTINUED: dict[str, float | None] = {  # the share of the first rate at which the second blend begins
    "flat": None,
    "decay": None,
    "switch at 0.2": 0.2,  # the paper's
    "switch at 0.5": 0.5,
    "switch at once": 1.0,
}


def show(run: Run, peaks: Mapping[str, Any], runs: Results) -> None:
    """Continued training with its rate below; the ramp; the activations; every number in tables."""
    says = "Held-out loss in continued training, against the end of pretraining; below, the learning rate"
    run.figure("continued", draw_continued(runs), says)
    run.figure("ramp", draw_ramp(runs), "The ramp and the constant batch, at equal tokens; below, the batch size")
    losses = {arm: {t: r["source"] for t, r in runs[arm].items()} for arm in peaks}
    drawn = figures.bars(losses, y="held-out nats per byte", zero=False)
    run.figure("activations", drawn, "Final loss of each activation at its own best learning rate")

    tried = [
        (arm, f"{p['rate']:g}", ", ".join(f"{r}: {v:.3f}" for r, v in p["losses"].items())) for arm, p in peaks.items()
    ]
    run.table("rates", ["activation", "chosen", "loss at half the tokens, by peak rate"], tried, "Learning rates tried")
    layers = range(len(runs["relu2"][0]["zeros"]))
    zeros = [(arm, *(f"{mean([r['zeros'][i] for r in runs[arm].values()]):.1%}" for i in layers)) for arm in peaks]
    run.table("zeros", ["activation", *(f"layer {i + 1}" for i in layers)], zeros, "Activations that are exactly 0")
    final = [
        (name, *(f"{mean([r[key] for r in runs[name].values()]):.3f}" for key in ("source", "questions")))
        for name in ("relu2", "ramp", *CONTINUED)
    ]
    run.table("losses", ["run", "held-out source", "held-out answers"], final, "Mean final loss in nats per byte")


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def draw_continued(runs: Results) -> Figure:
    """Change of both losses since the end of pretraining, which takes the seeds' own levels out, and the rate."""
    figure, (answers, source, rate) = panels(3)
    for arm, colour in zip(CONTINUED, (figures.PALETTE[i] for i in (1, 2, 0, 4, 3)), strict=True):
        changes = []
        for trial, result in runs[arm].items():
            _, *base = runs["relu2"][trial]["curve"][-1]
            places = [[0.0, *base], *result["curve"]]
            changes.append([(tokens, a - base[0], b - base[1]) for tokens, a, b in places])
        band(answers, changes, 2, colour, arm)
        band(source, changes, 1, colour, arm)
        steps = runs[arm][0]["rates"]
        rate.plot([tokens / 1e3 for tokens, _, _ in steps], [lr for _, lr, _ in steps], color=colour)
    for axes, text in ((answers, "answers"), (source, "source")):
        axes.set(ylabel=f"change in nats\nper byte of {text}")
    rate.set(xlabel="thousand bytes after pretraining", ylabel="learning rate", yscale="log")
    source.legend(fontsize=9, frameon=False, labelcolor=figures.INK, loc="lower left", ncols=2)
    return figure


def draw_ramp(runs: Results) -> Figure:
    """Loss of source over tokens with and without the ramp, the batch size below."""
    figure, (loss, size) = panels(2)
    for arm, name, colour in (("ramp", "ramp", figures.PALETTE[0]), ("relu2", "constant", figures.PALETTE[1])):
        band(loss, [r["curve"] for r in runs[arm].values()], 1, colour, name)
        steps = runs[arm][0]["rates"]
        size.step([p[0] / 1e3 for p in steps], [p[2] for p in steps], color=colour, where="pre")
    loss.set(ylabel="held-out nats per byte")
    size.set(xlabel="thousand bytes of training", ylabel="sequences\nper step", ylim=(0, None))
    loss.legend(fontsize=9.5, frameon=False, labelcolor=figures.INK)
    return figure


def panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Axes above each other that share their tokens; the last one is half as high."""
    figure, first = figures.new(5.4, 1.2 + 1.5 * count)
    first.remove()
    axes = figure.subplots(count, 1, sharex=True, height_ratios=[2] * (count - 1) + [1])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, axis="y", alpha=0.12)
    return figure, axes


def band(axes: Axes, curves: Sequence[Sequence[Sequence[float]]], column: int, colour: str, label: str) -> None:
    """One column of the curves over tokens: the mean over seeds, and smallest to largest."""
    points = list(zip(*curves, strict=True))  # (place, seed, column)
    xs = [seeds[0][0] / 1e3 for seeds in points]
    ys = [[seed[column] for seed in seeds] for seeds in points]
    axes.plot(xs, [mean(seeds) for seeds in ys], color=colour, label=label)
    if len(curves) > 1:
        axes.fill_between(
            xs, [min(seeds) for seeds in ys], [max(seeds) for seeds in ys], color=colour, alpha=0.13, lw=0
        )
