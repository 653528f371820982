"""Nemotron-4's recipe: what its parts promise, and what the smoke preset leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.nemotron4 import ARMS, CONTINUED, GENERAL, Nemotron4, Texts, ask, example, zeros
from bloomery.train import Plan
from bloomery.worlds.stdlib_source import SourceFile, sources

STAGES = [
    *(f"tune/{arm}" for arm in ARMS),
    *(f"pretrain/{arm}-0" for arm in (*ARMS, "ramp")),
    "continue/flat-0",
    "continue/decay-0",
    "continue/switch-at-0.2-0",
    "continue/switch-at-0.5-0",
    "continue/switch-at-once-0",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemotron4")
    lab.run("nemotron4", preset="smoke", out=folder / "run", quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def small() -> Nemotron4:
    return Nemotron4.configure("smoke")


@pytest.fixture(scope="module")
def texts(small: Nemotron4) -> Texts:
    return small.texts()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_run_leaves_stages_claims_and_figures(finished: Path) -> None:
    assert [stage["name"] for stage in read(finished / "stages.json")] == STAGES
    claims = read(finished / "claims.json")["claims"]
    assert [claim["margin"] for claim in claims] == [0.6, -0.02, 0.01, 0.0, -0.02, 0.15, -0.02, 0.0]
    assert [claim["names"] for claim in claims] == [
        ["relu2", "GELU"],
        ["relu2", "SwiGLU"],
        ["relu2", "GELU"],
        ["ramp", "constant"],
        ["ramp", "constant"],
        ["switch at 0.2", "flat"],
        ["switch at 0.2", "flat"],
        ["switch at once", "decay"],
    ]
    zeros, *losses = claims
    assert zeros["baseline"]["0"] == 0 < zeros["ours"]["0"] < 1
    for claim in losses:
        assert all(0.5 < claim[side]["0"] < 5.6 for side in ("ours", "baseline"))  # untrained: ln 257 = 5.55
    assert {path.stem for path in (finished / "figures").glob("*.svg")} >= {"continued", "ramp", "activations"}


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = read(finished / "claims.json")["claims"]
    stages = read(finished / "stages.json")
    lab.run("nemotron4", preset="smoke", out=finished, quiet=True)
    assert read(finished / "claims.json")["claims"] == before
    assert [s["seconds"] for s in read(finished / "stages.json")] == [s["seconds"] for s in stages]


def test_results_agree_with_each_other(finished: Path, small: Nemotron4) -> None:
    results = {stage["name"]: stage["result"] for stage in read(finished / "stages.json")}
    base, ramp = results["pretrain/relu2-0"], results["pretrain/ramp-0"]
    assert base["tokens"] >= small.tokens
    assert ramp["steps"] > 1.2 * base["steps"]
    assert [size for _, _, size in ramp["rates"]] == sorted(size for _, _, size in ramp["rates"])
    assert {size for _, _, size in ramp["rates"]} == {1, 2, 4}
    last = base["rates"][-1][1]
    for arm in CONTINUED:
        rates = [rate for _, rate, _ in results[f"continue/{arm.replace(' ', '-')}-0"]["rates"]]
        assert rates[0] <= small.rates[0] / 10 * 1.0001 <= last * 1.5  # goes on where the base ended
        assert (rates[-1] < rates[0] / 5) == (arm != "flat")
    assert results["continue/flat-0"]["curve"][0] != results["continue/decay-0"]["curve"][0]


@pytest.mark.parametrize("dim", [48, 96, 384])
def test_the_activations_are_compared_at_equal_parameters(dim: int) -> None:
    recipe = Nemotron4(dim=dim, depth=2)
    with torch.device("meta"):
        from bloomery.models import Decoder

        counts = {arm: Decoder(recipe.decoder_config(arm)).num_parameters() for arm in ARMS}
    assert len(set(counts.values())) == 1


def test_the_ramp_reads_the_rows_that_the_constant_batch_reads(small: Nemotron4, texts: Texts) -> None:
    rows: dict[bool, list[np.ndarray]] = {}
    for ramp in (False, True):
        plan = Plan(small.settings(small.phase(small.tokens, 1e-3, ramp), 0, 1))
        ats = [plan.at(step) for step in range(plan.steps)]
        numbers = np.concatenate([np.arange(at.row, at.row + at.batch_size) for at in ats])
        assert numbers.tolist() == list(range(plan.rows[None]))
        rows[ramp] = list(small.blend(texts).rows(numbers, small.seq_len, 0)["tokens"])
    shared = min(map(len, rows.values()))
    assert np.array_equal(rows[False][:shared], rows[True][:shared])
    assert abs(len(rows[False]) - len(rows[True])) < small.batch_size


def test_blends_follow_each_other_without_reading_a_row_twice(small: Nemotron4, texts: Texts) -> None:
    """Pretraining, the general blend of continued training, the second blend: the questions' ranks go on."""
    first = small.blend(texts)
    second = small.blend(texts, starts=first.given(96, 0))
    third = small.blend(texts, {"source": 1, "questions": 1}, second.given(40, 0))
    ranks: list[int] = []
    for blend, rows in ((first, 96), (second, 40), (third, 64)):
        source, rank = blend.assign(np.arange(rows), 0)
        ranks += (rank[source == 1] + blend.starts["questions"]).tolist()
    assert ranks == list(range(len(ranks)))
    assert second.weights == pytest.approx(GENERAL)


def test_questions_are_made_of_first_lines_of_docstrings() -> None:
    text = '''
def plain():
    """Give the thing back. At once.

    More of it.
    """

class Box:
    async def open(self):
        """Open it up carefully."""

    def short(self):
        """Too short."""

    def none(self): ...
'''
    files = [SourceFile("a.py", text), SourceFile("b.py", text), SourceFile("c.py", "def broken(:")]
    assert ask(files) == [
        ("Q: what does plain do? A: ", "Give the thing back. At once."),
        ("Q: what does open do? A: ", "Open it up carefully."),
    ]


def test_no_probe_answer_was_taught(small: Nemotron4, texts: Texts) -> None:
    taught = {answer for _, answer in ask(sources(small.seed).train)}
    assert len(texts.probe) == small.test_questions
    for ids, mask in texts.probe.examples:
        answer = bytes(ids[(mask == 1) & (ids < 256)].astype(np.uint8).tolist()).decode()
        assert answer not in taught
        assert len(answer) > 5


def test_only_the_answer_and_its_end_count() -> None:
    ids, mask = example("Q? A: ", "yes")
    assert bytes(ids[1:-1]) == b"Q? A: yes"
    assert (ids[0], ids[-1]) == (256, 256)
    assert [i for i, m in zip(ids, mask, strict=True) if m] == [*b"yes", 256]


def test_zeros_counts_what_is_zero(small: Nemotron4, texts: Texts) -> None:
    model = small.model("relu2", 0)
    model.blocks[0].ffn.up.weight.data.fill_(0.0)
    assert zeros(model, texts.held_out, 64) == [1.0]
    assert zeros(small.model("GELU", 0), texts.held_out, 64) == [0.0]
    fresh = zeros(small.model("relu2", 0), texts.held_out, 64)
    assert 0.3 < fresh[0] < 0.7


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dim": 64}, "dim is 64"),
        ({"batch_size": 6}, "batch_size is 6"),
        ({"questions": 1.0}, "questions 1.0"),
        ({"rates": [2e-3, 1e-3]}, "ascending"),
        ({"trials": 0}, "trials is 0"),
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Nemotron4(**change)
