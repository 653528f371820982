"""What the report of looped transformers shows: tables and figures of its three experiments, no computation."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bloomery.lab import Run, figures
from bloomery.recipes._looped_tasks import by_trial


def show_text(run: Run, arms: Mapping[str, Any]) -> None:
    """Loss beside parameters and operations, and the learning rates tried."""
    curves = {
        arm: [([t for t, _ in curve], [loss for _, loss in curve]) for curve in result["curves"]]
        for arm, result in arms.items()
    }
    figure = figures.lines(curves, x="training bytes", y="held-out nats per byte")
    run.figure("text_loss", figure, "Held-out loss while training; the band spans the seeds. Lower is better.")
    figure = figures.bars({arm: by_trial(r["losses"]) for arm, r in arms.items()}, y="nats per byte", zero=False)
    run.figure("text_final", figure, "At the end of training, by seed.")
    untied = arms["untied"]
    rows = [
        [
            arm,
            f"{result['parameters']:,}",
            f"{result['parameters'] / untied['parameters']:.0%}",
            f"{result['flops'] / untied['flops']:.2f}",
            f"{fmean(result['losses'].values()):.4f}",
            f"{result['rate']:g}",
        ]
        for arm, result in arms.items()
    ]
    columns = ["levels", "block parameters", "of the untied", "operations", "held-out nats/byte", "learning rate"]
    caption = "Two baselines for the ring: two blocks has its parameters (a few more), untied has its operations."
    run.table("text", columns, rows, caption)
    show_rates(run, "text", arms)


def show_hops(run: Run, arms: Mapping[str, Any], labels: int) -> None:
    """Accuracy by length of the chain."""
    series = {arm: [by_depth(end["accuracy"]) for end in result["ends"].values()] for arm, result in arms.items()}
    figure = figures.lines(series, x="pointers to follow", y="accuracy")
    caption = f"Answers to chains of so many pointers; guessing among the labels gives {1 / labels:.2f}."
    run.figure("hops", figure, caption)
    deepest = [str(depth) for depth in series[next(iter(series))][0][0]]
    rows = [
        [
            arm,
            f"{result['parameters']:,}",
            f"{result['flops']:,}",
            *(f"{fmean(end['accuracy'][d] for end in result['ends'].values()):.3f}" for d in deepest),
        ]
        for arm, result in arms.items()
    ]
    columns = ["model", "block parameters", "operations per token", *(f"{depth} hops" for depth in deepest)]
    run.table("hops", columns, rows, "Mean accuracy over the seeds.")
    show_rates(run, "hops", arms)


def show_thinking(run: Run, arms: Mapping[str, Any]) -> None:
    """Loss by depth, who is sent on, and what another effort does to a trained model."""
    series = {arm: [by_depth(end["accuracy"]) for end in result["ends"].values()] for arm, result in arms.items()}
    figure = figures.lines(series, x="pointers to follow", y="accuracy")
    run.figure("thinking", figure, "Answers by length of the chain, among fillers.")
    thinking = arms["thinking"]["ends"].values()
    routes = {
        f"loop {loop}, step {step + 1}": [
            by_depth(route["by depth"])
            for end in thinking
            for route in end["routes"]
            if (route["loop"], route["step"]) == (loop, step)
        ]
        for loop, step in [(route["loop"], route["step"]) for route in next(iter(thinking))["routes"]]
    }
    figure = figures.lines(routes, x="pointers to follow (-1: a filler, 0: a label)", y="share that takes the step")
    run.figure("routes", figure, "Which tokens the routers send on in evaluation, by length of the chain.")
    plain = arms["one block"]["flops"]
    rows = [
        [
            arm,
            f"{result['parameters']:,}",
            f"{fmean(end['flops'] for end in result['ends'].values()) / plain:.2f}",
            f"{fmean(end['hard'] for end in result['ends'].values()):.3f}",
            f"{fmean(end['loss'] for end in result['ends'].values()):.3f}",
        ]
        for arm, result in arms.items()
    ]
    columns = ["model", "block parameters", "operations", "nats per hard token", "nats per token"]
    run.table("thinking", columns, rows, "One block has the parameters of thinking; two blocks has more of both.")
    efforts = zip(*(end["effort"] for end in thinking), strict=True)
    rows = [
        [
            same[0]["steps"],
            "-" if same[0]["fraction"] is None else same[0]["fraction"],
            f"{same[0]['flops'] / plain:.2f}",
            f"{fmean(effort['hard'] for effort in same):.3f}",
        ]
        for same in efforts
    ]
    caption = "The trained models with other numbers of steps and other fractions, nothing retrained."
    run.table("effort", ["steps", "fraction", "operations", "nats per hard token"], rows, caption)
    show_rates(run, "thinking", arms)


def show_rates(run: Run, name: str, arms: Mapping[str, Any]) -> None:
    """The loss that every learning rate gave in its short run."""
    tried = sorted({rate for result in arms.values() for rate in result["tried"]}, key=float)
    if tried:
        rows = [[arm, *(result["tried"].get(rate) for rate in tried)] for arm, result in arms.items()]
        rows = [[arm, *(None if loss is None else f"{loss:.3f}" for loss in losses)] for arm, *losses in rows]
        run.table(f"{name}/rates", ["model", *tried], rows, "Tuning: loss of a shorter run on a seed of its own.")


def by_depth(values: Mapping[str, float]) -> tuple[list[int], list[float]]:
    """Depths in order, and their values."""
    depths = sorted(int(depth) for depth in values)
    return depths, [values[str(depth)] for depth in depths]
