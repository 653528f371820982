"""The smoke preset of ByteCheckpoint: what is counted holds at any size, claims come from the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.recipes._bytecheckpoint_plans import balance, large, planning, skewed
from bloomery.recipes._bytecheckpoint_ranks import Ranks
from bloomery.recipes.bytecheckpoint import ByteCheckpoint


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytecheckpoint") / "run"
    lab.run("bytecheckpoint", "smoke", folder, quiet=True)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results(folder: Path) -> dict[str, Any]:
    return {stage["name"]: stage["result"] for stage in read(folder / "stages.json")}


def test_every_layout_loads_into_every_other(smoke: Path) -> None:
    found = results(smoke)["reshard"]
    assert set(found["pairs"]) == {"DDP 2", "FSDP2 2", "one process"}
    for target, row in found["pairs"].items():
        assert set(row) == {"DDP 2", "FSDP2 2"}
        for source, cell in row.items():
            assert cell["different"] == []
            assert cell["tensors"] == 20  # five parameters, each with two moments and a step
            assert (cell["step"], cell["queue"]) == (2, True)
            assert cell["losses"] == cell["handed_over"]
            assert len(set(cell["losses"])) == 3  # it learns something
            if source == target:
                assert cell["losses"] == found["uninterrupted"][source]


def test_what_is_counted_holds_at_any_size(smoke: Path) -> None:
    found = results(smoke)
    reads, plans = found["reads"], found["plans"]
    assert reads["told"] < 1.1 * reads["state"]  # in all, though two ranks want all of it
    assert reads["DCP"] > 2 * reads["state"]
    assert plans["balance"]["ours"]["ratio"] < 1.05
    assert plans["balance"]["lowest rank"]["ratio"] == 4
    assert plans["many"]["cached"] < plans["many"]["first"]
    assert (plans["large"]["ranks"], plans["large"]["tensors"]) == (128, 4 * (16 * 9 + 3))
    assert found["flips"]["ours"] == {"refused": 6, "wrong": 0, "unchanged": 0}
    for trial in found["kills"]["trials"]:
        assert trial["wrong"] == []
        assert trial["latest"] >= trial["reported"] >= 2
        assert trial["latest"] == max(trial["accepted"])


def test_claims_come_from_the_stages(smoke: Path) -> None:
    found = results(smoke)
    claims = {claim["statement"]: claim for claim in read(smoke / "claims.json")["claims"]}
    assert len(claims) == 20
    times = found["time-FSDP2"]
    stall = claims["An asynchronous save holds training up for less time than DCP's (FSDP2)"]
    assert (stall["ours"]["0"], stall["baseline"]["0"]) == (times["ours"]["stall"][0], times["DCP"]["stall"][0])
    assert claims["A flipped bit is never loaded"]["passes"]
    assert claims["A job that is killed while it saves loses nothing that was committed"]["passes"]
    report = (smoke / "report.html").read_text(encoding="utf-8")
    assert "bits, losses" in report
    assert report.count("<svg") >= 2


def test_balance_is_better_than_in_order_of_names() -> None:
    for seed in range(3):
        found = balance(skewed(100, seed), 4)
        assert found["ours"]["ratio"] <= 1.05 < found["DCP"]["ratio"]
        assert len({values["total"] for values in found.values()}) == 1  # all write the same, once


def test_a_simulated_plan_holds_all_bytes() -> None:
    shapes = {name: shard.shape for rank in range(128) for name, shard in large(128, 16)(rank).items()}
    total = 0
    for name, (first, *rest) in shapes.items():
        total += first * (rest[0] if rest else 1) * (2 if name.startswith("model/") else 4)
    assert planning(large(128, 16), 128)["bytes"] == total


def fail(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("rank one cannot")


def test_a_rank_that_fails_is_named() -> None:
    with Ranks(2) as ranks, pytest.raises(BloomeryError, match=r"rank 1 of 2 failed(.|\n)*rank one cannot"):
        ranks.run(2, fail)


@pytest.mark.parametrize(
    "fields", [{"rounds": 0}, {"dim": 100}, {"planned_ranks": 12}, {"layouts": ["PP 2"]}, {"peers": []}]
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ByteCheckpoint(**fields)
