"""Domain mining and decontamination: hosts are found, decisions kept, drift seen, benchmarks left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import from_texts
from bloomery.corpus.decontaminate import Decontaminate
from bloomery.corpus.domain_mining import Decisions, FolderPool, MemoryPool, host_of, mine, under
from bloomery.corpus.steps import DROP

random = np.random.default_rng(0)
MATHS = ["triangle", "angle", "prove", "sum", "square", "root", "prime", "integer", "divide", "theorem"]
NEWS = ["minister", "said", "report", "police", "city", "market", "price", "team", "match", "weather"]


def page(words: list[str]) -> str:
    return " ".join(random.choice([*words, "the", "of", "and", "is"], 60))


# Half of a maths site writes about other things, which no classifier of single pages can know.
PAGES = [(f"https://maths.example/{i}", page(MATHS if i % 2 else NEWS)) for i in range(40)]
PAGES += [(f"https://news{i % 10}.example/{i}", page(NEWS)) for i in range(200)]
POOL = MemoryPool([url for url, _ in PAGES], [text for _, text in PAGES])
SEEDS = [page(MATHS) for _ in range(40)]


def on_topic(host: str, urls: Sequence[str]) -> list[str]:
    return [f"{host}/"] if "maths" in host else []


def test_a_host_is_found_and_taken_whole() -> None:
    rounds = list(mine(POOL, SEEDS, on_topic, top=20, rounds=3, positives=400, negatives=100, seed=1))
    first = rounds[0]
    assert first.candidates["https://maths.example"] >= 0.4
    assert first.prefixes == ["https://maths.example/"]
    assert first.collected[:40].all()
    assert not first.collected[40:].any()
    assert first.added == 40
    assert rounds[-1].added == 0  # and then there is nothing more to find
    assert len(rounds) == 2
    assert first.seed_recall > 0.5
    assert len(first.lengths) == 11


def test_the_same_seed_mines_the_same() -> None:
    one, two = (
        list(mine(POOL, SEEDS, on_topic, top=20, rounds=1, positives=400, negatives=100, seed=3)) for _ in range(2)
    )
    assert np.array_equal(one[0].scores, two[0].scores)


def test_decisions_are_asked_for_once_and_can_be_edited(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(host: str, urls: Sequence[str]) -> list[str]:
        asked.append(host)
        return on_topic(host, urls)

    file = tmp_path / "hosts.yaml"
    decisions = Decisions(file, ask)
    assert decisions("https://maths.example", []) == ["https://maths.example/"]
    assert decisions("https://maths.example", []) == ["https://maths.example/"]
    assert asked == ["https://maths.example"]
    values = yaml.safe_load(file.read_text())
    values["https://news1.example"] = ["https://news1.example/science/"]
    file.write_text(yaml.safe_dump(values))
    assert Decisions(file, ask)("https://news1.example", []) == ["https://news1.example/science/"]
    file.write_text("- a list")
    with pytest.raises(DataError, match=r"hosts\.yaml"):
        Decisions(file, ask)


def test_a_folder_is_a_pool(tmp_path: Path) -> None:
    import json

    for number in range(3):
        rows = PAGES[number::3]
        lines = "".join(json.dumps({"url": url, "text": text}) + "\n" for url, text in rows)
        (tmp_path / f"{number}.jsonl").write_text(lines)
    pool = FolderPool(tmp_path)
    assert sorted(pool.urls) == sorted(POOL.urls)
    some = np.array([100, 3, 239, 0])
    by_url = dict(PAGES)
    assert pool.texts(some) == [by_url[pool.urls[i]] for i in some]

    class Length:
        name = "length"

        def score(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([len(text) for text in texts])

    assert pool.scores(Length()).tolist() == [len(by_url[url]) for url in pool.urls]


def test_drift_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Turning:
        """A scorer that stops liking the seed."""

        name = "turning"
        turn = 0

        def __init__(self) -> None:
            Turning.turn += 1
            self.sign = 1 if Turning.turn == 1 else -1

        def score(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([self.sign * float("theorem" in text) for text in texts])

    with caplog.at_level(logging.WARNING):
        list(mine(POOL, SEEDS, lambda h, u: [], top=20, rounds=2, train=lambda good, bad, seed: Turning()))
    assert "drifts" in caplog.text


@pytest.mark.parametrize(
    ("fields", "match"), [({"top": 0}, "top"), ({"top": 10_000}, "top"), ({"top": 5, "texts": SEEDS[:5]}, "seed texts")]
)
def test_bad_input_is_refused(fields: dict[str, Any], match: str) -> None:
    seeds = fields.pop("texts", SEEDS)
    with pytest.raises((ConfigError, DataError), match=match):
        list(mine(POOL, seeds, on_topic, **fields))


def test_hosts_and_prefixes() -> None:
    assert host_of("https://a.example:8080/x?y#z") == "https://a.example:8080"
    assert under(["https://a/x", "https://b/x"], ["https://a/"]).tolist() == [True, False]
    assert under(["https://a/x"], []).tolist() == [False]


# --------------------------------------------------------------------------------------------------- decontamination

BENCHMARK = "How many positive integers less than one hundred are divisible by three or by five but not both"


def dropped(step: Decontaminate, texts: list[str]) -> list[bool]:
    batch = step(from_texts(texts))
    return [False] * len(texts) if DROP not in batch.schema.names else batch.column(DROP).is_valid().to_pylist()


def test_ten_words_of_a_benchmark_are_found_anywhere() -> None:
    step = Decontaminate([BENCHMARK, "What is pi", "ok"])
    ten, nine = " ".join(BENCHMARK.split()[3:13]), " ".join(BENCHMARK.split()[3:12])
    assert dropped(step, [f"x {ten} y", f"x {nine} y", f"X {ten.upper()}\nY", "well, what is pi then", "ok", ""]) == [
        True, False, True, True, False, False,
    ]  # fmt: skip


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), min_size=3, max_size=14))
def test_equal_to_a_search_for_every_ngram(page: list[str], benchmark: list[str]) -> None:
    grams = (
        {tuple(benchmark)} if len(benchmark) < 10 else {tuple(benchmark[i : i + 10]) for i in range(len(benchmark) - 9)}
    )
    expected = any(tuple(page[i : i + len(gram)]) == gram for gram in grams for i in range(len(page)))
    step = Decontaminate([" ".join(benchmark)])
    assert dropped(step, ["before it", " ".join(page)]) == [False, expected]


def test_a_benchmark_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="long enough"):
        Decontaminate(["too short"])
