"""`bloomery evaluate` on a model of a few thousand random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(100)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder, not trained."""
    from bloomery.corpus import tokenizer
    from bloomery.models import Decoder, preset, save_pretrained

    folder = tmp_path_factory.mktemp("model") / "model"
    words = tokenizer.train(TEXTS, 300)
    config = preset("llama-tiny", vocab_size=300, n_layers=1, dim=32, ffn_dim=64)
    save_pretrained(Decoder(config), folder, words)
    return folder


def questions(name, *records):
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def choices(name="q.jsonl", count=8):
    records = ({"question": f"Number {i} is", "choices": ["a path", "a part"], "answer": i % 2} for i in range(count))
    return questions(name, *records)


def test_every_kind_of_task_gives_its_metrics(model, ok, bloomery):
    files = [
        choices(),
        questions("w.jsonl", *({"contexts": ["It", "A"], "continuation": "returns", "answer": 0} for _ in range(3))),
        questions("g.jsonl", {"context": "The", "continuation": "path"}, {"context": "The", "continuation": "part"}),
        questions("e.jsonl", {"question": "The", "answer": "path"}),
        questions("d.jsonl", *({"text": text} for text in TEXTS[:3])),
    ]
    result = ok("evaluate", model, "--task", *files, "--limit", 5, "--samples", "answers.jsonl", "--quiet")
    tasks = {task["task"]: task for task in result["tasks"]}
    assert {name: set(task["metrics"]) for name, task in tasks.items()} == {
        "q": {"accuracy", "accuracy_per_token", "accuracy_per_byte"},
        "w": {"accuracy"},
        "g": {"accuracy"},
        "e": {"exact_match", "strict_match", "f1"},
        "d": {"bits_per_byte", "perplexity"},
    }
    assert [tasks[name]["questions"] for name in "qwged"] == [5, 3, 2, 1, 3]
    assert tasks["e"]["metrics"]["exact_match"]["error"] is None  # one question
    assert 1 < tasks["d"]["value"] < 8
    assert tasks["d"]["centred"] is None
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == list("qqqqq" + "www" + "gg" + "e" + "ddd")
    nats, size = (sum(line[key] for line in lines[-3:]) for key in ("nats", "bytes"))
    assert tasks["d"]["value"] == pytest.approx(nats / math.log(2) / size)

    code, out, _ = bloomery("evaluate", model, "--task", *files, "--quiet")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert ["accuracy" in row for row in rows] == [True, False, False, True, True, *[False] * 5]


def test_core_is_no_score_without_its_tasks(model, ok, bloomery):
    file = choices(count=12)
    result = ok("evaluate", model, "--task", f"piqa={file}", f"copa={file}", "--core", "v2", "--quiet")
    assert result["core"]["score"] is None
    assert set(result["core"]["centred"]) == {"piqa", "copa"}
    assert len(result["core"]["missing"]) == 20
    shots = {task["task"]: task["shots"] for task in result["tasks"]}
    assert shots == {"piqa": 10, "copa": 0}
    assert result["tasks"][0]["primary"] == "accuracy_per_token"
    _, out, _ = bloomery("evaluate", model, "--task", f"piqa={file}", "--core", "v1", "--quiet")
    assert "CORE v1: no score, as 21 tasks are missing: hellaswag_zeroshot, jeopardy," in out


def test_the_built_in_arithmetic_runs_and_says_what_it_cut(model, ok, bloomery):
    result = ok("evaluate", model, "--task", "arithmetic", "--limit", 6, "--shots", 1, "--quiet")
    (task,) = result["tasks"]
    assert (task["questions"], task["shots"], task["primary"]) == (6, 1, "strict_match")
    file = questions("long.jsonl", {"question": "path " * 5000, "choices": ["a", "b"], "answer": 0})
    code, _, err = bloomery("evaluate", model, "--task", file, "--quiet")
    assert code == 0
    assert "1 of 1 questions are longer than the model's context" in err


def test_bad_input_gives_one_line(model, refused):
    file = choices()
    assert "no task" in refused("evaluate", model)
    assert "no task and no file 'arithmetc'" in refused("evaluate", model, "--task", "arithmetc")
    assert "two tasks are called 'q'" in refused("evaluate", model, "--task", file, file)
    assert "shots is 8, but the task has 8" in refused("evaluate", model, "--task", file, "--shots", 8)
    assert "--core and --shots" in refused("evaluate", model, "--task", file, "--shots", 1, "--core", "v2")
    assert "limit is 0" in refused("evaluate", model, "--task", file, "--limit", 0, "--quiet")
    assert "batch_tokens is 0" in refused("evaluate", model, "--task", file, "--batch-tokens", 0)
    assert "nowhere: not a Hugging Face model folder" in refused("evaluate", "nowhere", "--task", file)
    Path("bad.jsonl").write_text('{"question": "x"}\n')
    assert "bad.jsonl:1: no kind of question" in refused("evaluate", "nowhere", "--task", "bad.jsonl")
