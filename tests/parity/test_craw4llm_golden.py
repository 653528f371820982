"""Crawl orders against the official crawler: every page of every round, what was visited, what still waits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.corpus import FastTextScorer
from bloomery.web.scheduling.crawl import Crawl
from bloomery.web.scheduling.sources import ClueWeb22, Pages, write_clueweb22
from bloomery.web.scheduling.upstream_yaml import make_crawl

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folder(golden_root: Path) -> Path:
    if not (golden_root / "craw4llm" / "runs.jsonl.gz").exists():
        pytest.skip(f"no craw4llm in {golden_root}")
    return golden_root / "craw4llm"


class Explicit:
    """The score that a page's text ends with."""

    name = "explicit"

    def __init__(self, graph: list[Row]) -> None:
        self.scores = {" ".join(row["text"].strip().splitlines()): row["score"] for row in graph if row.get("text")}

    def score(self, texts: list[str]) -> np.ndarray:
        return np.array([self.scores[text] for text in texts])


def crawl_of(run: Row, graph: list[Row], folder: Path, source: Any = None) -> Crawl:
    source = source or Pages(
        {row["id"]: row.get("text") for row in graph},
        {row["id"]: row.get("outlinks") or [] for row in graph},
        {row["id"]: row.get("inlink_count") or 0 for row in graph},
    )

    def load_scorer(path: str) -> Any:
        return Explicit(graph) if path.startswith("explicit") else FastTextScorer.load(folder / path)

    return make_crawl(run["config"], source, load_scorer)


def test_every_round_of_every_run(folder: Path) -> None:
    runs = rows(folder / "runs.jsonl.gz")
    assert runs
    for run in runs:
        graph = rows(folder / run["graph"])
        crawl = crawl_of(run, graph, folder)
        crawl.seed(run.get("seed_sample") or run["seed_file"])
        rounds = [iteration.pages for iteration in crawl.run()]
        if run["error"]:  # there the program stops with an error where ours goes on
            assert rounds[: len(run["iterations"])] == run["iterations"], run["case"]
            assert crawl.status == "exhausted"
            continue
        assert rounds == run["iterations"], run["case"]
        assert len(crawl.crawled) == run["selected"]
        assert sorted(crawl.visited) == run["visited"], run["case"]
        waiting = {page: ratings for page, ratings in run["frontier"]}
        assert set(crawl.ratings) == set(waiting), run["case"]
        for page, expected in waiting.items():
            for name, value in expected.items():
                tolerance = 1e-5 if name.startswith("fasttext") else 1e-9
                assert crawl.ratings[page][name] == pytest.approx(value, abs=tolerance), (run["case"], page, name)


def test_the_same_from_a_corpus_in_the_layout_of_clueweb22(folder: Path, tmp_path: Path) -> None:
    """The graph written as gzip members with offset files, read back by id."""
    for name in sorted({run["graph"] for run in rows(folder / "runs.jsonl.gz")}):
        graph = {row["id"]: row for row in rows(folder / name)}
        for kind in ("txt", "outlink"):
            records: dict[str, Row] = {}
            files: dict[str, int] = {}
            for page in graph:
                base, _, number = page.rpartition("-")
                files[base] = max(files.get(base, -1), int(number))
            for base, last in files.items():
                for number in range(last + 1):
                    page = f"{base}-{number:05d}"
                    row = graph.get(page, {})
                    if kind == "txt":
                        records[page] = {"ClueWeb22-ID": page, "Clean-Text": row.get("text") or ""}
                    else:
                        records[page] = {"outlinks": [[target, "http://x"] for target in row.get("outlinks_raw") or []]}
            write_clueweb22(tmp_path / name, kind, records)
        source = ClueWeb22(tmp_path / name)
        pages = [page for page, row in graph.items() if row.get("text")]
        assert source.texts(pages) == [graph[page]["text"] for page in pages]
        assert source.links(pages) == [graph[page]["outlinks"] for page in pages]
        assert source.texts(["clueweb22-en0099-00-00000", f"{pages[0][:-5]}99999"]) == [None, None]
