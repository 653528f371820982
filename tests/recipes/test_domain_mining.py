"""The smoke preset of domain mining: both arms, claims from the stages, fields checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.recipes.domain_mining import MINING, SELF_TRAINING, DomainMining


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_smoke_run(tmp_path: Path) -> None:
    lab.run("domain_mining", "smoke", tmp_path / "run", quiet=True)
    results = {stage["name"]: stage["result"] for stage in read(tmp_path / "run" / "stages.json")}
    rounds, alone = read(tmp_path / "run" / "claims.json")["claims"]
    precision = results[f"{MINING}-0"]["precision"]
    assert (rounds["ours"]["0"], rounds["baseline"]["0"]) == (precision[1], precision[0])
    assert alone["baseline"]["0"] == results[f"{SELF_TRAINING}-0"]["precision"][-1]
    assert 0 < results[f"{MINING}-0"]["topic"] < results[f"{MINING}-0"]["pages"]
    assert "<svg" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_pool_has_its_topic_on_few_hosts() -> None:
    from bloomery.corpus.domain_mining import host_of

    recipe = DomainMining(pieces=2_000)
    pool, seeds, topic, good = recipe.pool(0)
    assert len(seeds) == recipe.seeds
    assert not set(seeds) & set(pool.content)
    on = [host_of(url) in good for url, is_topic in zip(pool.urls, topic, strict=True) if is_topic]
    off = [host_of(url) in good for url, is_topic in zip(pool.urls, topic, strict=True) if not is_topic]
    assert sum(on) / len(on) > 0.9
    assert sum(off) / len(off) < 0.1


@pytest.mark.parametrize("fields", [{"hosts": 0}, {"seeds": 5}, {"accuracy": 0.2}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        DomainMining(**fields)
