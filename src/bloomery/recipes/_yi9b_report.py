"""Figures and tables of the Yi-9B recipe."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bloomery.lab import Run, figures

Results = Mapping[str, Mapping[int, Any]]  # what an arm gave, by arm and trial


def show(run: Run, reports: Mapping[int, Any], arms: Results) -> None:
    """The cosine curve, the losses before and after, and every number in tables."""
    layers = range(len(reports[0]["cosine"]))
    curves = {
        "all tokens": [(list(layers), r["cosine_with_first"]) for r in reports.values()],
        "without the first": [(list(layers), r["cosine"]) for r in reports.values()],
    }
    figure = figures.lines(curves, x="layer", y="cosine of input and output")
    run.figure("cosine", figure, "How parallel each layer of the base leaves the residual stream; band over seeds.")
    begun, ended = ({trial: r[key] for trial, r in arms["base"].items()} for key in ("init", "final"))
    grown = {arm: trials for arm, trials in arms.items() if arm != "base"}
    rise = {arm: {t: r["init"] - begun[t] for t, r in trials.items()} for arm, trials in grown.items()}
    figure = figures.bars(rise, y="nats per byte over the base")
    run.figure("init_loss", figure, "What growing costs before any training: held-out loss less that of the base.")
    left = {arm: {t: r["final"] - ended[t] for t, r in trials.items()} for arm, trials in grown.items()}
    figure = figures.bars(left, y="nats per byte over the base")
    caption = "After continued training: held-out loss less that of the base trained on for as many operations."
    run.figure("final_loss", figure, caption)
    paths = {arm: [_columns(r["curve"]) for r in arms[arm].values()] for arm in ("block", "zero-init", "base")}
    figure = figures.lines(paths, x="bytes of continued training", y="held-out nats per byte")
    run.figure("continued", figure, "Held-out source while training goes on; the second stage holds more arithmetic.")

    base = _mean(arms["base"], "init")
    rows: list[tuple[Any, ...]] = [
        (
            arm,
            f"{_mean(trials, 'init'):.4f}",
            f"{_mean(trials, 'init') - base:+.4f}",
            f"{_mean(trials, 'final'):.4f}",
            f"{_mean(trials, 'problems'):.4f}",
            f"{trials[0]['parameters']:,}",
            f"{trials[0]['tokens']:,}",
        )
        for arm, trials in arms.items()
    ]
    columns = ["arm", "init", "rise over the base", "final", "final on problems", "parameters", "bytes trained on"]
    unseen = _mean(reports, "problems")
    caption = f"Means over the seeds in nats per byte. Before growth: {base:.4f} on held-out source, {unseen:.4f} on "
    caption += "problems. All rows have as many operations."
    run.table("losses", columns, rows, caption)

    count = len(reports[0]["plans"]["block"]) - len(layers)
    rows = []
    for start in reports[0]["windows"]:
        stop = int(start) + count
        cosines = (fmean(r["cosine"][int(start) : stop]) for r in reports.values())
        losses = (r["windows"][start] for r in reports.values())
        rows.append(
            (f"{start}-{stop - 1}", *(f"{c:.3f} / {loss:.4f}" for c, loss in zip(cosines, losses, strict=True)))
        )
    columns = ["window", *(f"seed {trial}" for trial in reports)]
    caption = "Mean cosine of every window of layers / loss on the calibration text when it runs twice."
    run.table("windows", columns, rows, caption)
    rows = [(a, *(f"{r['alphas'][a]:.4f}" for r in reports.values())) for a in reports[0]["alphas"]]
    columns = ["alpha", *(f"seed {trial}" for trial in reports)]
    run.table("alphas", columns, rows, "Loss on the calibration text when the chosen window's copies are scaled so.")
    rows = [(arm, *(_plan(r["plans"][arm]) for r in reports.values())) for arm in reports[0]["plans"]]
    run.table("plans", ["arm", *(f"seed {trial}" for trial in reports)], rows, "Layers of the base, in the order run.")
    rows = [
        (arm, *(", ".join(f"{size} at {tokens:,}" for tokens, size in r["batches"]) for r in trials.values()))
        for arm, trials in arms.items()
    ]
    caption = "Sequences in an optimiser step, and from what byte of continued training on."
    run.table("batches", ["arm", *(f"seed {trial}" for trial in reports)], rows, caption)


def _mean(trials: Mapping[int, Any], key: str) -> float:
    return fmean(r[key] for r in trials.values())


def _columns(curve: list[list[float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in curve], [y for _, y in curve]


def _plan(sources: list[int]) -> str:
    return " ".join(map(str, sources))
