"""CORE: the mean centred accuracy over 22 tasks by which DataComp-LM compares models (arXiv:2406.11794 §3.5).

The tasks and how they are asked are the same in both versions; v2 (September 2025) corrects what guessing scores in
three of them. Scores of different versions cannot be compared; papers before that date report v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bloomery.core.errors import ConfigError, nearest
from bloomery.metrics.aggregate import SuiteScore, suite_score

ANSWER = "\nAnswer: "


@dataclass(frozen=True)
class CoreTask:
    """How a task is asked."""

    kind: str  # choice | schema | greedy: see bloomery.generate.tasks
    shots: int  # solved examples before each question
    chance: float  # accuracy of guessing
    delimiter: str = " "  # between question and answer


CORE_V2 = {
    "hellaswag_zeroshot": CoreTask("choice", 0, 0.25),
    "jeopardy": CoreTask("greedy", 10, 0.0, ANSWER),
    "bigbench_qa_wikidata": CoreTask("greedy", 10, 0.0),
    "arc_easy": CoreTask("choice", 10, 0.25, ANSWER),
    "arc_challenge": CoreTask("choice", 10, 0.25, ANSWER),
    "copa": CoreTask("choice", 0, 0.5),
    "commonsense_qa": CoreTask("choice", 10, 0.403),
    "piqa": CoreTask("choice", 10, 0.5, ANSWER),
    "openbook_qa": CoreTask("choice", 0, 0.25),
    "lambada_openai": CoreTask("greedy", 0, 0.0),
    "hellaswag": CoreTask("choice", 10, 0.25),
    "winograd": CoreTask("schema", 0, 0.5),
    "winogrande": CoreTask("schema", 0, 0.5),
    "bigbench_dyck_languages": CoreTask("greedy", 10, 0.0),
    "agi_eval_lsat_ar": CoreTask("choice", 3, 0.25),
    "bigbench_cs_algorithms": CoreTask("greedy", 10, 0.0),
    "bigbench_operators": CoreTask("greedy", 10, 0.0),
    "bigbench_repeat_copy_logic": CoreTask("greedy", 10, 0.0),
    "squad": CoreTask("greedy", 10, 0.0),
    "coqa": CoreTask("greedy", 0, 0.0),
    "boolq": CoreTask("choice", 10, 0.62, ANSWER),
    "bigbench_language_identification": CoreTask("choice", 10, 0.25),
}
V1_CHANCES = {"commonsense_qa": 0.2, "agi_eval_lsat_ar": 0.2, "bigbench_language_identification": 0.091}
VERSIONS = ("v1", "v2")


def core_chances(version: str = "v2") -> dict[str, float]:
    """Accuracy of guessing in each task, in 0 … 1."""
    if version not in VERSIONS:
        raise ConfigError(f"no version {version!r} of CORE", fix=nearest(version, VERSIONS))
    return {name: task.chance for name, task in CORE_V2.items()} | (V1_CHANCES if version == "v1" else {})


def core_score(accuracies: Mapping[str, float], version: str = "v2") -> SuiteScore:
    """CORE from raw accuracies (0 … 1) by task name; without a score, but with their names, while tasks are missing."""
    return suite_score(f"CORE {version}", core_chances(version), accuracies)
