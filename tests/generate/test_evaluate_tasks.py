"""Questions read from files or made on the spot, and the text around them."""

from __future__ import annotations

import gzip
import inspect
import json
import pydoc
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import BloomeryError, ConfigError, DataError
from bloomery.generate.tasks import Question, Task, as_core_task, load_task

# imported by the test, unlike other modules of the standard library that do things when they are
HARMLESS = {"argparse", "ast", "collections", "concurrent", "email", "http", "importlib", "inspect", "json",
            "logging", "pathlib", "pickle", "unittest", "urllib", "xml", "zipfile"}  # fmt: skip
CHOICE = {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}


@pytest.fixture
def write(tmp_path):
    """A JSONL file of these records."""

    def write(*records, name="q.jsonl"):
        lines = b"".join((r if isinstance(r, str) else json.dumps(r)).encode() + b"\n" for r in records)
        path = tmp_path / name
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("ours", "mosaic", "kind", "question"),
    [
        (CHOICE, {"query": "2 + 2 =", "choices": ["3", "4"], "gold": 1}, "choice", (("2 + 2 =",), ("3", "4"), 1)),
        (
            {"contexts": ["A", "B"], "continuation": "c", "answer": 0},
            {"context_options": ["A", "B"], "continuation": "c", "gold": 0},
            "schema",
            (("A", "B"), ("c",), 0),
        ),
        (
            {"context": "Q", "continuation": "a"},
            {"context": "Q", "continuation": "a", "category": "x"},
            "greedy",
            (("Q",), ("a",), 0),
        ),
        (
            {"question": "Q", "answer": ["a", "b"]},
            {"context": "Q", "answer": "a", "aliases": ["a", "b"]},
            "exact",
            (("Q",), ("a", "b"), 0),
        ),
        ({"text": "é"}, {"text": "é", "id": 3}, "documents", ((), ("é",), 0)),
    ],
)
def test_a_line_tells_its_kind_in_both_spellings(write, ours, mosaic, kind, question):
    for record, name in ((ours, "q.jsonl"), (mosaic, "q.jsonl.gz")):
        task = load_task(write(record, "  ", record, name=name))
        assert (task.name, task.kind) == ("q", kind)
        assert task.questions == (Question(*question),) * 2
    assert load_task("other=" + write(ours)).name == "other"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"q\.jsonl:2: not a line of JSON"),
        ("[1]", r"q\.jsonl:2: not a JSON object"),
        ({"q": 1}, r"q\.jsonl:2: no kind of question has just the fields \['q'\]"),
        ({**CHOICE, "answer": 2}, r"q\.jsonl:2: answer is 2, not a place among 2"),
        ({**CHOICE, "answer": True}, r"answer is True"),
        ({"question": "x", "choices": ["3", "4"]}, "answer is None"),
        ({**CHOICE, "choices": ["3"]}, "nothing to choose"),
        ({**CHOICE, "choices": ["3", ""]}, "not a list of texts"),
        ({"choices": ["3", "4"], "answer": 0}, "no field 'question'"),
        ({"context": "x", "continuation": ""}, "continuation is '', which is not a text"),
        ({"text": "x"}, r"question 2 is of the kind documents, the first is choice"),
    ],
)
def test_a_line_that_is_no_question_is_named(write, bad, message):
    with pytest.raises(DataError, match=message):
        load_task(write(CHOICE, bad))


def test_what_is_no_task_is_refused(write, tmp_path):
    with pytest.raises(ConfigError, match=r"no task and no file 'arithmetics'.*arithmetic, installed_docs"):
        load_task("arithmetics")
    with pytest.raises(DataError, match="no question in this file"):
        load_task(write())
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(CHOICE).encode() * 50)[:40])
    with pytest.raises(DataError, match="cannot be read"):
        load_task(str(tmp_path / "cut.jsonl.gz"))
    task = load_task(write(CHOICE, CHOICE))
    for changes, message in (
        ({"shots": 2}, "shots is 2, but the task has 2"),
        ({"shots": -1}, "shots is -1"),
        ({"kind": "choise"}, "did you mean 'choice'"),
        ({"questions": ()}, "without a question"),
        ({"kind": "documents", "shots": 1}, "no solved examples"),
    ):
        with pytest.raises(BloomeryError, match=message):
            replace(task, **changes)


@given(st.integers(2, 30), st.data())
def test_solved_examples_are_others_and_drawn_by_the_seed(count, data):
    shots = data.draw(st.integers(0, count - 1))
    questions = tuple(Question((f"Q{i}?",), ("no", f"A{i}"), 1) for i in range(count))
    task = Task(name="t", kind="choice", questions=questions, shots=shots, delimiter="\nAnswer: ", separator="\n\n")
    for index in range(count):
        (context,), continuations = task.prompt(index, seed=3)
        *examples, last = context.split("\n\n")
        assert last == f"Q{index}?\nAnswer:"  # the space went to the continuations
        assert continuations == [" no", f" A{index}"]
        solved = {f"Q{i}?\nAnswer: A{i}" for i in range(count) if i != index}
        assert len(set(examples)) == shots
        assert set(examples) <= solved
        assert task.prompt(index, seed=3) == ([context], continuations)
    if shots and count > 20:
        assert any(task.prompt(i, seed=3) != task.prompt(i, seed=4) for i in range(count))


def test_a_schema_is_asked_with_its_right_context_in_examples():
    questions = tuple(Question((f"A{i}", f"B{i}"), (f"c{i}",), i % 2) for i in range(2))
    task = Task(name="t", kind="schema", questions=questions, shots=1)
    assert task.prompt(0) == (["B1 c1\nA0", "B1 c1\nB0"], [" c0"])
    assert task.prompt(1) == (["A0 c0\nA1", "A0 c0\nB1"], [" c1"])


def test_core_tasks_are_asked_as_core_asks(write):
    task = load_task("piqa=" + write(*[CHOICE] * 11))
    core = as_core_task(task, "v1")
    assert (core.shots, core.delimiter, core.chance, core.primary) == (10, "\nAnswer: ", 0.5, "accuracy_per_token")
    assert as_core_task(replace(task, name="mine")) == replace(task, name="mine")
    named = replace(task, name="commonsense_qa")
    assert as_core_task(named, "v1").guessing() == 0.2
    assert as_core_task(named, "v2").guessing() == 0.403
    with pytest.raises(DataError, match="CORE's winograd is of the kind schema"):
        as_core_task(replace(task, name="winograd"))


def test_guessing_is_one_over_the_choices():
    questions = (Question(("a",), ("x", "y")), Question(("a",), ("x", "y", "z", "w")))
    task = Task(name="t", kind="choice", questions=questions)
    assert task.guessing() == 0.375
    assert task.guessing([1]) == 0.25
    assert Task(name="t", kind="exact", questions=questions).guessing() == 0.0


def test_arithmetic_needs_no_file():
    task = load_task("arithmetic")
    assert (task.kind, len(task.questions), task.primary) == ("exact", 200, "strict_match")
    assert task == load_task("arithmetic")
    assert task.questions != load_task("arithmetic", seed=1).questions
    sums = [q for q in task.questions if "+" in q.contexts[0] and "(" not in q.contexts[0] and "*" not in q.contexts[0]]
    plain = [q for q in sums if q.contexts[0].count("+") == 1 and "-" not in q.contexts[0]]
    assert plain
    for q in plain:
        a, b = q.contexts[0].removeprefix("Question: What is ").removesuffix("?\nAnswer:").split(" + ")
        assert q.continuations == (str(int(a) + int(b)),)


def test_installed_docs_asks_for_real_summaries():
    task = load_task("installed_docs")
    assert (task.kind, len(task.questions), task.guessing()) == ("choice", 200, 0.25)
    assert all(len(set(q.continuations)) == 4 for q in task.questions)
    places = Counter(q.answer for q in task.questions)
    assert min(places[i] for i in range(4)) > 25  # the right one is anywhere
    known = [q for q in task.questions if q.contexts[0].split("`")[1].partition(".")[0] in HARMLESS]
    said = [" ".join((inspect.getdoc(pydoc.locate(q.contexts[0].split("`")[1])) or "").split()) for q in known]
    right = sum(q.continuations[q.answer][:30] in text for q, text in zip(known, said, strict=True))
    wrong = sum(q.continuations[q.answer - 1][:30] in text for q, text in zip(known, said, strict=True))
    assert len(known) > 20
    assert right > 0.8 * len(known)
    assert wrong == 0
