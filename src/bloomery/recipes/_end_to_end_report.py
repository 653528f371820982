"""What the report of the main job shows of its stages: tables, figures and samples, no computation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bloomery.lab import Run, figures


def show_crawl(run: Run, report: Mapping[str, Any]) -> None:
    """Pages, bytes and what went wrong."""
    rows: list[tuple[str, Any]] = [
        ("pages stored", f"{report['pages']:,}"),
        ("megabytes", f"{report['bytes'] / 1e6:.1f}"),
        ("pages per second", f"{report['pages'] / max(report['seconds'], 1e-9):.0f}"),
    ]
    rows += [(f"not stored: {kind}", f"{count:,}") for kind, count in sorted(report["errors"].items())]
    run.table("crawl", ["crawl", "count"], rows, "What the crawler brought home, and what it could not fetch.")


def show_corpora(run: Run, curated: Mapping[str, Any], packs: Mapping[str, Mapping[str, int]]) -> None:
    """Where documents were lost, and how much text each corpus holds."""
    filters = [step for step in curated["steps"][1:] if step["dropped"] or step["errors"]]
    steps = [("pages", curated["documents_in"]), *((step["name"], step["kept"]) for step in filters)]
    caption = "Documents left after each curation step that dropped some; the raw corpus keeps every page."
    run.figure("survival", figures.survival(steps, unit="documents"), caption)
    rows = []
    for step in curated["steps"]:
        reasons = [*step["dropped"].items(), *step["errors"].items()][:3]
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        rows.append([step["name"], step["documents_in"], step["kept"], why or None])
    run.table("curation", ["step", "in", "kept", "most frequent reasons"], rows, "The survival report.")
    sizes = [[k, p["documents"], p["bytes"], p["tokens"], f"{p['bytes'] / p['tokens']:.2f}"] for k, p in packs.items()]
    columns = ["corpus", "documents", "bytes", "tokens", "bytes per token"]
    run.table("corpora", columns, sizes, "Text after tokenisation. Nothing is ever trained on the third.")


def show_training(run: Run, losses: Mapping[str, Mapping[int, float]]) -> None:
    """Held-out loss while training, and at the end."""
    curves = {
        arm: [_curve(run, f"pretrain/{arm}-{trial}", "nats_per_byte") for trial in values]
        for arm, values in losses.items()
    }
    figure = figures.lines(curves, x="training tokens", y="held-out nats per byte")
    run.figure("held_out_loss", figure, "Loss on held-out documentation; the band spans the seeds. Lower is better.")
    figure = figures.bars(losses, y="held-out nats per byte", zero=False)
    run.figure("final_loss", figure, "At the end of training, by seed.")


def show_ablation(run: Run, losses: Mapping[str, float]) -> None:
    """What each part of curation contributes: one seed, so differences of a few hundredths mean little."""
    parts = {
        "raw": "everything visible on every page",
        "main_text": "main text of every page: no navigation, headers and footers",
        "filtered": "and language, length, symbol and repetition filters, duplicates removed",
        "curated": "and the best part by the quality score",
    }
    rows, before = [], None
    for name, loss in losses.items():
        rows.append([parts[name], f"{loss:.3f}", None if before is None else f"{loss - before:+.3f}"])
        before = loss
    columns = ["corpus", "held-out nats per byte", "change"]
    run.table("which steps help", columns, rows, "The same training on each stage of curation (first seed only).")


def show_model(run: Run, result: Mapping[str, Any], folder: Path) -> None:
    """What the final model says."""
    caption = "Text the final model continues (temperature 0.7, repetition penalty 1.3)."
    run.samples("continuations", result["continuations"], caption)
    if "answers" in result:
        caption = (
            "Questions about modules it has never seen, answered greedily. At this size expect the manner, not facts."
        )
        run.samples("answers", result["answers"], caption)
        rows = [["its own answer among four", f"{result['choice']:.1%}", f"{1 / result['choices']:.0%}"]]
        run.table("choice", ["multiple choice on held-out questions", "right", "chance"], rows)
    run.artefact(folder, "the final model as a Hugging Face folder")


def _curve(run: Run, stage: str, name: str) -> tuple[list[float], list[float]]:
    """(training tokens, values) logged in a stage."""
    lines = run.metrics(name, stage)
    return [line["tokens"] for line in lines], [line[name] for line in lines]
