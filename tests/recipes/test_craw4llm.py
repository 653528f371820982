"""The smoke preset of Craw4LLM: every order on both webs, claims from the stages, a second start repeats nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.craw4llm import IN_LINKS, ORDERS, PARENT, QUALITY, RANDOM, READ_ORDERS, Craw4LLM


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("craw4llm") / "run"
    lab.run("craw4llm", "smoke", folder, quiet=True)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_claims_are_computed_from_the_stages(smoke: Path) -> None:
    results = {stage["name"]: stage["result"] for stage in read(smoke / "stages.json")}
    found = results["generated/0.8-0"]
    assert set(found) == set(ORDERS)
    precise, imprecise, *real = read(smoke / "claims.json")["claims"]
    assert precise["ours"]["0"] == found[QUALITY]["precision"]
    assert imprecise["baseline"]["0"] == max(found[IN_LINKS]["precision"], found[RANDOM]["precision"])
    for claim, rival in zip(real, (RANDOM, IN_LINKS), strict=True):
        assert claim["ours"]["0"] == results["real/quality-0"]["loss"]
        assert claim["baseline"]["0"] == results[f"real/{rival}-0"]["loss"]
    assert {f"real/{order}-0" for order in READ_ORDERS} <= set(results)


def test_reading_before_selecting_is_what_pays(smoke: Path) -> None:
    results = {stage["name"]: stage["result"] for stage in read(smoke / "stages.json")}
    found = results["generated/0.8-0"]
    assert found[QUALITY]["precision"] > found[PARENT]["precision"] > found[RANDOM]["precision"]
    assert found[QUALITY]["fetched"] > found[QUALITY]["selected"]  # and what it costs is reported
    assert found[RANDOM]["fetched"] == found[RANDOM]["selected"]
    for result in found.values():
        counts = [count for count, _ in result["curve"]]
        assert counts == sorted(counts)
        assert 0 <= result["precision"] <= 1


def test_a_second_start_repeats_nothing(smoke: Path) -> None:
    before = read(smoke / "stages.json")
    lab.run("craw4llm", "smoke", smoke, quiet=True)
    assert read(smoke / "stages.json") == before


def test_what_it_leaves_behind(smoke: Path) -> None:
    for name in ("report.html", "claims.json", "config.yaml"):
        assert (smoke / name).exists()
    report = (smoke / "report.html").read_text(encoding="utf-8")
    assert "fetched" in report
    assert report.count("<svg") >= 2


@pytest.mark.parametrize("fields", [{"pages": 0}, {"share": 1.0}, {"homophily": []}, {"homophily": [2.0]}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Craw4LLM(**fields)
