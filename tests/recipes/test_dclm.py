"""The smoke preset of DCLM: every stage leaves less, claims come from the stages, the web is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.dclm import ARMS, DCLM, DEDUPLICATED, FILTERED, RANDOM, RAW, SELECTED, duplicates
from bloomery.worlds.noisy_pages import KINDS, noisy_pages


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_smoke_run(tmp_path: Path) -> None:
    lab.run("dclm", "smoke", tmp_path / "run", quiet=True)
    results = {stage["name"]: stage["result"] for stage in read(tmp_path / "run" / "stages.json")}
    found = results["curate/0"]
    left = found["survivors"]
    assert left[RAW] > left[FILTERED] > left[DEDUPLICATED] > left[SELECTED] > 0
    assert left[RANDOM] == left[RAW] // 10
    assert found["good"][SELECTED] / left[SELECTED] > found["good"][RAW] / left[RAW]
    removed, lost, raw, random, ranks = read(tmp_path / "run" / "claims.json")["claims"]
    assert removed["ours"]["0"] == found["duplicates"]["removed"]
    assert lost["ours"]["0"] == found["duplicates"]["lost"]
    assert (raw["ours"]["0"], raw["baseline"]["0"]) == (found["losses"][SELECTED], found["losses"][RAW])
    assert random["baseline"]["0"] == found["losses"][RANDOM]
    assert ranks["ours"]["0"] == found["auc"]["classifier"]
    assert set(found["losses"]) == set(ARMS)
    assert "<svg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_web_is_what_it_says() -> None:
    good = [f"Documentation of part {i}.\n\nIt says what part {i} is for and how it is used." for i in range(50)]
    pages = noisy_pages(good, ["x = 1\ny = 2"], 300, seed=4)
    assert pages == noisy_pages(good, ["x = 1\ny = 2"], 300, seed=4)
    assert {page.kind for page in pages} == set(KINDS)
    assert len({page.url for page in pages}) == 300
    for page in pages:
        assert page.kind in page.url
        assert "<nav>" in page.html
    repeated = [p for page in pages if page.kind == "good" for p in page.paragraphs]
    assert len(set(repeated)) < len(repeated)


def test_what_counts_as_a_duplicate() -> None:
    one, two, other = (" ".join(f"{name}{i}" for i in range(20)) for name in "abc")
    before = {"x": f"{one}\nshort", "y": f"{one}\n{two}\n{other}", "z": f"{one}\n{two}\n{one}\n{other}\nnew words"}
    everything = dict(before)
    assert duplicates(before, everything) == {"repeated": 5, "removed": 0.0, "lost": 0.0}
    careful = {"x": f"{one}\nshort", "y": f"{two}\n{other}"}
    assert duplicates(before, careful) == {"repeated": 5, "removed": 1.0, "lost": 0.0}
    assert duplicates(before, {"x": "short"}) == {"repeated": 5, "removed": 1.0, "lost": 1.0}


@pytest.mark.parametrize("fields", [{"pages": 0}, {"keep": 1.0}, {"order": 0}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        DCLM(**fields)
