"""`bloomery evaluate`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from bloomery.cli.generate import Where, load
from bloomery.cli.options import FLAT, parse, print_json, print_table
from bloomery.core.errors import ConfigError
from bloomery.core.files import atomic_file

if TYPE_CHECKING:
    from bloomery.generate.evaluate import TaskResult
    from bloomery.generate.tasks import Task
    from bloomery.metrics import SuiteScore


@dataclass
class Options:
    """Put tasks to a model folder: multiple choice, written answers, bits per byte. Files need no download: one JSON
    object a line, such as {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}.

    Example:
      bloomery evaluate runs/mine/model --task arithmetic installed_docs
      bloomery evaluate runs/mine/model --task held_out.jsonl --samples answers.jsonl
      bloomery evaluate runs/mine/model --task jeopardy=jeopardy_all.jsonl --core v2
    """

    model: Annotated[Path, Positional]
    """Model folder with tokenizer.json."""
    task: tuple[str, ...] = ()
    """Built-in tasks (arithmetic, installed_docs), JSONL files, or name=file."""
    shots: int | None = None
    """Solved examples before each question; the task's own number where not given."""
    limit: int | None = None
    """Ask only so many questions of each task, drawn at random."""
    seed: int = 0
    """Decides the solved examples, the questions of --limit and those of built-in tasks."""
    core: Literal["v1", "v2"] | None = None
    """Ask the tasks of DCLM's CORE as it does and give the score of this version."""
    samples: Path | None = None
    """Write what the model made of every question to this JSONL file."""
    batch_tokens: int = 8192
    """Positions in one pass of the model: speed and memory only."""
    where: Annotated[Where, FLAT] = field(default_factory=Where)
    quiet: bool = False
    """No progress."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Evaluate and print a line per metric."""
    options = parse(Options, argv, prog="bloomery evaluate")
    if not options.task:
        raise ConfigError("no task", fix="--task arithmetic, or a JSONL file; see bloomery evaluate --help")
    if options.core and options.shots is not None:
        raise ConfigError("--core and --shots contradict each other", fix="CORE has its own number of solved examples")
    if options.batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {options.batch_tokens}", fix="it must be at least 1")
    tasks = read_tasks(options)  # before the model: a mistake in a file should not take minutes to show
    model, tokenizer = load(options.model, options.where)
    from bloomery.generate.evaluate import evaluate

    results = [
        evaluate(
            model,
            tokenizer,
            task,
            limit=options.limit,
            seed=options.seed,
            batch_tokens=options.batch_tokens,
            quiet=options.quiet,
        )
        for task in tasks
    ]
    if options.samples is not None:
        write_samples(results, options.samples)
    core = None
    if options.core:
        from bloomery.metrics import CORE_V2, core_score

        core = core_score({r.task: r.value for r in results if r.task in CORE_V2}, options.core)
    if options.json:
        print_json({"tasks": [as_json(result) for result in results]} | ({"core": core_json(core)} if core else {}))
        return 0
    print_results(results)
    if core is not None:
        missing = f"no score, as {len(core.missing)} tasks are missing: {', '.join(core.missing)}"
        print(f"\n{core.suite}: {missing if core.score is None else format(core.score, '.4f')}")
    return 0


def read_tasks(options: Options) -> list[Task]:
    """The tasks with the options applied; each name once."""
    from bloomery.generate.tasks import as_core_task, load_task

    tasks = [load_task(name, options.seed) for name in options.task]
    if options.core:
        tasks = [as_core_task(task, options.core) for task in tasks]
    if options.shots is not None:
        tasks = [replace(task, shots=options.shots if task.kind != "documents" else 0) for task in tasks]
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two tasks are called {twice[0]!r}", fix="tell them apart: --task name=file")
    return tasks


def as_json(result: TaskResult) -> dict[str, Any]:
    """A result without the single answers."""
    return {
        "task": result.task,
        "kind": result.kind,
        "questions": result.questions,
        "shots": result.shots,
        "chance": result.chance,
        "primary": result.primary,
        "value": result.value,
        "centred": result.centred,
        "truncated": result.truncated,
        "metrics": {name: {"value": e.value, "error": e.error} for name, e in result.metrics.items()},
    }


def core_json(core: SuiteScore) -> dict[str, Any]:
    """A suite's score."""
    return {"suite": core.suite, "score": core.score, "centred": core.centred, "missing": list(core.missing)}


def write_samples(results: Sequence[TaskResult], path: Path) -> None:
    """One line per question."""
    with atomic_file(path) as file:
        for result in results:
            for answer in result.answers:
                file.write((json.dumps({"task": result.task, **answer}, ensure_ascii=False) + "\n").encode())


def print_results(results: Sequence[TaskResult]) -> None:
    """A line per metric, the primary one first; the accuracy of guessing and the centred accuracy beside it."""
    rows = []
    for result in results:
        first = result.primary
        for name in [first, *(name for name in result.metrics if name != first)]:
            estimate = result.metrics[name]
            judged = (f"{result.chance:.3f}", f"{result.centred:.4f}") if result.centred is not None else (None, None)
            rows.append(
                (
                    result.task if name == first else "",
                    result.questions if name == first else "",
                    result.shots if name == first else "",
                    name,
                    f"{estimate.value:.4f}",
                    None if math.isnan(estimate.error) else f"{estimate.error:.4f}",
                    *(judged if name == first else ("", "")),
                )
            )
        if result.truncated:
            print(
                f"bloomery: {result.task}: {result.truncated} of {result.questions} questions are longer than the "
                "model's context and lost their beginning",
                file=sys.stderr,
            )
    print_table(("task", "questions", "shots", "metric", "value", "± error", "chance", "centred"), rows)
