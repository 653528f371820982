"""The smoke preset, and the parts of the experiment that its numbers rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.core.seeds import rng
from bloomery.corpus import fim
from bloomery.corpus.bytes_stream import EDGE
from bloomery.corpus.fim import BYTE_MARKS, Parts
from bloomery.models import Decoder
from bloomery.recipes.deepseek_coder_v2 import (
    DeepSeekCoderV2,
    HeldOutCode,
    asked,
    cut_gap,
    cut_pieces,
    expert_loads,
    full_rows,
)

SMALL = DeepSeekCoderV2.configure("smoke")


@pytest.fixture(scope="module")
def test_set() -> HeldOutCode:
    return HeldOutCode(SMALL)


# --- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "smoke"
    lab.run("deepseek_coder_v2", "smoke", out=out, quiet=True)
    return out


def test_the_exact_claims_hold_and_the_others_have_a_verdict(folder: Path) -> None:
    claims = json.loads((folder / "claims.json").read_text("utf-8"))["claims"]
    assert len(claims) == 6
    size, decoding, load, loss, gap, left = claims
    assert size["passes"]
    assert size["ours"] == {"0": 0.0}
    assert "192 bytes a token instead of 256" in size["note"] or "is 0.75" in size["note"]
    assert decoding["passes"]
    assert 0 < decoding["ours"]["0"] < 1e-5  # the two ways of computing are two, and agree
    assert load["margin"] == 0.7
    assert all(1 <= side["0"] <= 4 for side in (load["ours"], load["baseline"]))  # of four experts
    for claim in (loss, gap, left):
        assert claim["unit"].startswith("nats/byte")
        assert all(0.5 < side["0"] < 5.6 for side in (claim["ours"], claim["baseline"]))
    assert (loss["margin"], gap["margin"], left["margin"]) == (-0.02, 0.1, -0.03)
    assert loss["ours"] == left["baseline"]  # one trained arm stands for both


def test_it_leaves_figures_a_table_and_a_report(folder: Path) -> None:
    assert {file.stem for file in (folder / "figures").glob("*.svg")} == {"load", "experts", "gap"}
    assert (folder / "report.html").exists()
    stages = [stage["name"] for stage in json.loads((folder / "stages.json").read_text())]
    assert stages == ["cache", "plain-0", "unbalanced-0", "fim-0"]


def test_a_second_run_repeats_nothing_and_says_the_same(folder: Path) -> None:
    before = json.loads((folder / "claims.json").read_text())["claims"]
    lab.run("deepseek_coder_v2", "smoke", out=folder, quiet=True)
    assert json.loads((folder / "claims.json").read_text())["claims"] == before
    assert all(stage["attempts"] == 1 for stage in json.loads((folder / "stages.json").read_text()))


# --- documents -------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("ab \né"), max_size=200), st.integers(1, 20))
def test_pieces_have_their_length_begin_at_lines_and_do_not_overlap(text: str, length: int) -> None:
    expected, free = [], 0
    for begin in [0, *(i + 1 for i, character in enumerate(text) if character == "\n")]:
        if begin >= free and begin + length <= len(text):
            expected.append(text[begin : begin + length])
            free = begin + length + 1
    assert list(cut_pieces(text, length)) == [piece for piece in expected if piece.isascii()]


def test_the_arms_see_the_same_documents_in_rows_without_room(test_set: HeldOutCode) -> None:
    plain, told = SMALL.training_rows(0.0, trial=0), SMALL.training_rows(0.5, trial=0)
    pairs = list(zip(plain.examples, told.examples, strict=True))
    assert len(pairs) == SMALL.steps * SMALL.batch_size
    rearranged = 0
    for (one, _), (other, mask) in pairs:
        assert len(one) == len(other) == SMALL.seq_len + 1
        assert mask.all()
        found = fim.restore_ids(other[1:-1], BYTE_MARKS)
        if found is None:
            np.testing.assert_array_equal(one, other)
        else:
            rearranged += 1
            np.testing.assert_array_equal(np.concatenate(found[0]), one[1:-4])  # room for the sentinels
    assert 0.25 < rearranged / len(pairs) < 0.75
    held = set(test_set.pieces)
    assert not any(bytes(ids[1:-1].tolist()).decode() in held for ids, _ in plain.examples)
    batch = plain.batch(0, 4, SMALL.seq_len, 0)
    assert full_rows(0, batch).keys() == {"tokens", "loss_mask"}
    assert (batch["documents"] == batch["documents"][:, :1]).all()  # one document to a row, so the mask is not missed


@given(st.text(st.sampled_from("abc =\n"), max_size=120), st.integers(0, 5))
def test_a_gap_lies_inside_an_inner_line(text: str, seed: int) -> None:
    gap = cut_gap(text, rng(seed, "gap"))
    if gap is None:
        assert all(len(line.strip()) < 6 for line in text.split("\n")[1:-1])
        return
    assert "".join(gap) == text
    assert gap.middle
    assert "\n" not in gap.middle
    assert "\n" in gap.prefix
    assert "\n" in gap.suffix
    line = gap.prefix.rpartition("\n")[2] + gap.middle + gap.suffix.partition("\n")[0]
    assert len(line.strip()) >= 6


def test_only_the_middle_is_asked_for_and_the_suffix_only_when_it_is_given() -> None:
    gap = Parts("ab\n", "cd", "e\nf")
    ids, mask = asked(gap, with_suffix=True)
    assert ids.tolist() == [EDGE, 257, *b"ab\n", 258, *b"e\nf", 259, *b"cd"]
    assert ids[mask == 1].tolist() == list(b"cd")
    ids, mask = asked(gap, with_suffix=False)
    assert ids.tolist() == [EDGE, *b"ab\ncd"]
    assert ids[mask == 1].tolist() == list(b"cd")


def test_the_loss_in_the_gap_is_that_of_the_models_logits(test_set: HeldOutCode) -> None:
    model = Decoder(SMALL.decoder_config(balanced=True)).eval()
    found = test_set.measure(model, fills=True)
    for name, with_suffix in (("gap", True), ("prefix_only", False)):
        nats, size = 0.0, 0
        for gap in test_set.gaps:
            ids, mask = asked(gap, with_suffix)
            with torch.no_grad():
                logs = model(torch.tensor(ids)[None, :-1]).logits[0].log_softmax(-1)
            nats -= float(logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][torch.tensor(mask[1:] == 1)].sum())
            size += int(mask.sum())
        assert found[name] == pytest.approx(nats / size, rel=1e-4)


def test_loads_are_shares_of_every_layer_with_experts(test_set: HeldOutCode) -> None:
    model = Decoder(SMALL.decoder_config(balanced=True)).eval()
    loads = expert_loads(model, test_set.rows)
    assert loads.shape == (SMALL.layers - 1, SMALL.experts)
    np.testing.assert_allclose(loads.sum(-1), 1, rtol=1e-5)
    assert not model.training  # as it was


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"dim": 48}, {"layers": 1}, {"experts": 1}, {"seq_len": 16}, {"tokens": 1}, {"trials": 0}]
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DeepSeekCoderV2(**wrong)
