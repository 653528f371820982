"""What a model is asked: questions from JSON lines or made on the spot, and the text around them.

A task has one kind. One line of a file is one question, and its fields tell the kind:

| kind | fields | the model is right when |
|---|---|---|
| choice | `question`, `choices`, `answer` (place of the right one, from 0) | the right choice is the likeliest |
| schema | `contexts`, `continuation`, `answer` | the continuation is likeliest after the right context (Winograd) |
| greedy | `context`, `continuation` | every token of the continuation is its first choice |
| exact | `question`, `answer` (text, or a list of accepted ones) | what it writes equals an accepted answer |
| documents | `text` | (no right or wrong: bits per byte of the text) |

The spellings of MosaicML's evaluation files, which DCLM's CORE is distributed in, are understood too: `query`, `gold`,
`context_options`, `aliases`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from bloomery.core.errors import ConfigError, DataError, EmptyError, nearest
from bloomery.core.seeds import rng
from bloomery.metrics import CORE_V2, core_chances
from bloomery.worlds import arithmetic

Kind = Literal["choice", "schema", "greedy", "exact", "documents"]
PRIMARY: dict[Kind, str] = {
    "choice": "accuracy",
    "schema": "accuracy",
    "greedy": "accuracy",
    "exact": "exact_match",
    "documents": "bits_per_byte",
}
BUILT_IN_QUESTIONS, BUILT_IN_CHOICES = 200, 4


@dataclass(frozen=True)
class Question:
    """One question: contexts × continuations, of which one side has several entries (see `Task.kind`).

    `answer` is the place of the right one among several; for "exact", `continuations` are the accepted answers.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    answer: int = 0

    @property
    def solved(self) -> tuple[str, str]:
        """Context and continuation as they belong together."""
        i, j = (self.answer if len(side) > 1 else 0 for side in (self.contexts, self.continuations))
        return self.contexts[i], self.continuations[j]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions of one kind, and how they are asked.

    Before each question come `shots` solved others of the same task, drawn for (seed, task, place of the question).
    A space at the end of `delimiter` goes to the continuation, where tokenizers have it.
    """

    name: str
    kind: Kind
    questions: tuple[Question, ...] = field(repr=False)
    shots: int = 0
    delimiter: str = " "  # between context and continuation
    separator: str = "\n"  # after a solved example
    stop: tuple[str, ...] = ("\n",)  # of written answers
    max_new_tokens: int = 32  # of written answers
    primary: str = ""  # the metric to compare by; empty: the usual one of the kind
    chance: float | None = None  # what guessing scores; None: one over the number of choices, averaged

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"no kind of task {self.kind!r}", where=self.name, fix=nearest(self.kind, get_args(Kind)))
        if not self.questions:
            raise EmptyError("a task without a question", where=self.name)
        if self.kind == "documents" and self.shots:
            raise ConfigError("documents have no solved examples", where=self.name, fix="shots must be 0")
        if not 0 <= self.shots < len(self.questions):
            raise ConfigError(
                f"shots is {self.shots}, but the task has {len(self.questions)} questions",
                where=self.name,
                fix="from 0 to one less than the questions there are",
            )

    def guessing(self, chosen: Sequence[int] | None = None) -> float:
        """The accuracy of guessing, in 0 … 1, in the task or in a choice of its questions."""
        if self.chance is not None or self.kind not in ("choice", "schema"):
            return self.chance or 0.0
        asked = self.questions if chosen is None else [self.questions[i] for i in chosen]
        return sum(1 / (len(q.contexts) * len(q.continuations)) for q in asked) / len(asked)

    def prompt(self, index: int, seed: int = 0) -> tuple[list[str], list[str]]:
        """Contexts (with the solved examples before them) and continuations of a question, ready to be joined."""
        question = self.questions[index]
        others = rng(seed, "shots", self.name, index).choice(len(self.questions) - 1, self.shots, replace=False)
        solved = (self.questions[i + (i >= index)].solved for i in others.tolist())  # never the question itself
        before = "".join(f"{context}{self.delimiter}{answer}{self.separator}" for context, answer in solved)
        delimiter = self.delimiter.rstrip(" ")
        space = self.delimiter[len(delimiter) :]
        contexts = [before + context + delimiter for context in question.contexts]
        return contexts, [space + continuation for continuation in question.continuations]


def load_task(name: str, seed: int = 0) -> Task:
    """A built-in task by its name, or the questions of a JSONL file: "questions.jsonl" or "name=questions.jsonl".

    Without "name=", a file's task is called as the file. `seed` is that of the built-in tasks' questions.

    Raises ConfigError for a name that is neither, DataError with file and line for a question that is not one (none
    are skipped: a score over a part of a task is another score).
    """
    if name in BUILT_IN:
        return BUILT_IN[name](seed)
    label, equals, path = name.partition("=")
    file = Path(path if equals else name)
    if not file.is_file():
        raise ConfigError(
            f"no task and no file {str(file)!r}", fix=f"a JSONL file, or a built-in task: {', '.join(BUILT_IN)}"
        )
    read = [_question(record, f"{file}:{line}") for line, record in _records(file)]
    if not read:
        raise EmptyError("no question in this file", where=file)
    for line, (kind, _) in enumerate(read, start=1):
        if kind != read[0][0]:
            raise DataError(f"question {line} is of the kind {kind}, the first is {read[0][0]}", where=file)
    stem = file.name.removesuffix(".gz").removesuffix(".jsonl")
    return Task(name=label if equals else stem, kind=read[0][0], questions=tuple(question for _, question in read))


def as_core_task(task: Task, version: str = "v2") -> Task:
    """The task asked as DCLM's CORE asks it, where its name is one of CORE's; other tasks are returned as they are.

    The harness behind CORE takes the choice with the lowest perplexity, which is the likeliest per token.
    """
    chances = core_chances(version)
    if task.name not in CORE_V2:
        return task
    core = CORE_V2[task.name]
    if core.kind != task.kind:
        raise DataError(f"CORE's {task.name} is of the kind {core.kind}, these questions are {task.kind}")
    primary = "accuracy_per_token" if task.kind == "choice" else ""
    return replace(
        task, shots=core.shots, delimiter=core.delimiter, separator="\n", chance=chances[task.name], primary=primary
    )


# -- JSON lines -------------------------------------------------------------------------------------------------------


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of the lines that are not blank."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:  # also what is not UTF-8
                    raise DataError(f"not a line of JSON: {error}", where=f"{file}:{number}") from error
                if not isinstance(record, dict):
                    raise DataError("not a JSON object", where=f"{file}:{number}")
                yield number, record
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", where=file) from error


def _question(record: Mapping[str, Any], where: str) -> tuple[Kind, Question]:
    """Kind and content of a line."""
    get = _Fields(record, where)
    if "choices" in record:
        question = Question((get.text("question", "query"),), get.texts("choices"), get.place("choices"))
        return "choice", question
    if "contexts" in record or "context_options" in record:
        name = "contexts" if "contexts" in record else "context_options"
        return "schema", Question(get.texts(name), (get.text("continuation"),), get.place(name))
    if "continuation" in record:
        return "greedy", Question((get.text("context", "question", "query"),), (get.text("continuation"),))
    if "answer" in record:
        answers = get.texts("answer") if isinstance(record["answer"], list) else (get.text("answer"),)
        accepted = dict.fromkeys(answers + (get.texts("aliases") if record.get("aliases") else ()))
        return "exact", Question((get.text("question", "query", "context"),), tuple(accepted))
    if "text" in record:
        return "documents", Question((), (get.text("text"),))
    raise DataError(
        f"no kind of question has just the fields {sorted(record)}",
        where=where,
        fix="choices; contexts and continuation; context and continuation; question and answer; or text",
    )


@dataclass(frozen=True)
class _Fields:
    """A record whose fields are what they should be, or an error that says which is not."""

    record: Mapping[str, Any]
    where: str

    def text(self, *names: str) -> str:
        """The text under the first of these names that is there; only a question may be empty."""
        name = next((n for n in names if n in self.record), None)
        if name is None:
            raise DataError(f"no field {names[0]!r}", where=self.where)
        value = self.record[name]
        if not isinstance(value, str) or not (value or len(names) > 1):
            raise DataError(f"{name} is {value!r:.80}, which is not a text to work with", where=self.where)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, none of them empty."""
        value = self.record[name]
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
            raise DataError(f"{name} is {value!r:.80}, not a list of texts", where=self.where)
        return tuple(value)

    def place(self, options: str) -> int:
        """The right one's place among at least two options."""
        value = self.record.get("answer", self.record.get("gold"))
        count = len(self.record[options])
        if count < 2:
            raise DataError(f"{options} has a single entry: there is nothing to choose", where=self.where)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise DataError(f"answer is {value!r}, not a place among {count}", where=self.where, fix="counted from 0")
        return value


# -- tasks that need no file ------------------------------------------------------------------------------------------


def arithmetic_task(seed: int = 0) -> Task:
    """Sums, comparisons and work on the digits of numbers of one and two digits, to be answered in writing."""
    problems = islice(arithmetic.examples(difficulty=(1, 2), seed=seed), BUILT_IN_QUESTIONS)
    questions = tuple(Question((f"Question: {p.prompt}\nAnswer:",), (p.answer,)) for p in problems)
    return Task(
        name="arithmetic",
        kind="exact",
        questions=questions,
        shots=4,
        max_new_tokens=12,
        primary="strict_match",  # the usual normalisation would drop a minus sign
    )


def installed_docs_task(seed: int = 0) -> Task:
    """What a class, function or module of the standard library is for: its summary, or one of three of its neighbours.

    Made from the documentation of the running Python (about three seconds), so the questions depend on its version.
    """
    from bloomery.worlds.installed_docs import InstalledDocs

    described: dict[str, dict[str, str]] = defaultdict(dict)  # module -> summary -> question
    for q in InstalledDocs(["stdlib"]).questions():
        if not q.answer.startswith("`"):  # those are names and signatures, which a question gives away
            described[q.module.partition(".")[0]].setdefault(q.answer, q.question)
    asked = [(module, answer) for module, said in described.items() if len(said) >= BUILT_IN_CHOICES for answer in said]
    random = rng(seed, "installed_docs")
    questions = []
    for place in random.choice(len(asked), BUILT_IN_QUESTIONS, replace=False).tolist():
        module, answer = asked[place]
        others = [other for other in described[module] if other != answer]
        wrong = random.choice(len(others), BUILT_IN_CHOICES - 1, replace=False).tolist()
        right = int(random.integers(BUILT_IN_CHOICES))
        choices = [others[i] for i in wrong]
        choices.insert(right, answer)
        questions.append(Question((f"Question: {described[module][answer]}\nAnswer:",), tuple(choices), right))
    return Task(name="installed_docs", kind="choice", questions=tuple(questions), primary="accuracy_per_byte")


BUILT_IN: dict[str, Callable[[int], Task]] = {"arithmetic": arithmetic_task, "installed_docs": installed_docs_task}
