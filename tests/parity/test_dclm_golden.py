"""DCLM's filters against the reference's own outputs: every step alone, the pipeline, addresses, quality scores.

Every row of the folder is compared; steps, arguments and lists come from its `config.json`.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bloomery.corpus import FastTextScorer, from_texts, texts
from bloomery.corpus.refinedweb import pages
from bloomery.corpus.refinedweb.language import FastTextLanguage
from bloomery.corpus.refinedweb.lines import RemovalRatio, removed_ratio
from bloomery.corpus.refinedweb.upstream_yaml import make_step
from bloomery.corpus.steps import DROP, kept
from bloomery.corpus.steps import Step as CorpusStep

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folder(golden_root: Path) -> Path:
    if not (golden_root / "dclm" / "config.json").exists():
        pytest.skip(f"no dclm in {golden_root}")
    return golden_root / "dclm"


@pytest.fixture(scope="module")
def documents(folder: Path) -> dict[str, Row]:
    return {row["id"]: row for row in rows(folder / "documents.jsonl.gz")}


@pytest.fixture(scope="module")
def steps(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CorpusStep | None]:
    config = json.loads((folder / "config.json").read_text())
    tlds = tmp_path_factory.mktemp("lists") / "tlds.txt"
    tlds.write_text("\n".join(config["tlds"]))
    made: dict[str, CorpusStep | None] = {}
    for item in config["pipeline"]:
        arguments = {key: value for key, value in item.items() if key not in ("step", "func")}
        if item["func"] == "url_removal_modifier":
            arguments["tlds_filepath"] = str(tlds)
        step = make_step(item["func"], arguments, language_model=folder / "language_model.bin")
        assert step is None or isinstance(step, CorpusStep)
        made[item["step"]] = step
    return made


def batch_of(documents: list[Row]) -> pa.RecordBatch:
    return from_texts([d["text"] for d in documents], [d["id"] for d in documents], [d["url"] for d in documents])


def is_kept(batch: pa.RecordBatch) -> list[bool]:
    if DROP not in batch.schema.names:
        return [True] * batch.num_rows
    return [reason is None for reason in batch.column(DROP).to_pylist()]


def close(found: float, expected: float) -> bool:
    return abs(found - expected) <= 1e-12


def test_every_step_alone(folder: Path, documents: dict[str, Row], steps: dict[str, CorpusStep | None]) -> None:
    by_step: dict[str, list[Row]] = defaultdict(list)
    for row in rows(folder / "steps.jsonl.gz"):
        by_step[row["step"]].append(row)
    edits = [name for name in steps if "line_modifier" in name or name.endswith("line_length_modifier")]
    compared = 0
    for name, expected in by_step.items():
        step = steps[name]
        before = [documents[row["id"]] for row in expected]
        batch = batch_of(before)
        if isinstance(step, RemovalRatio):  # starts from the text after the line edits
            for earlier in ("17:word_counter_enricher", *edits):
                editor = steps[earlier]
                assert editor is not None
                batch = editor(batch)
            batch = batch.drop_columns([DROP]) if DROP in batch.schema.names else batch
        assert step is not None or "value" in expected[0], name
        if step is None:  # the language's enricher and filter are one step here
            continue
        after = step(batch)
        for i, row in enumerate(expected):
            where = f"{name} {row['id']}"
            if "keep" in row:
                assert is_kept(after)[i] == row["keep"], where
            if "text" in row or row.get("unchanged"):
                assert texts(after)[i].as_py() == (row.get("text") or "" if "text" in row else before[i]["text"]), where
            compared += 1
        check_values(name, step, batch, after, expected)
    assert compared > len(documents)


def check_values(
    name: str, step: CorpusStep, batch: pa.RecordBatch, after: pa.RecordBatch, expected: list[Row]
) -> None:
    """The numbers that the decisions were made from."""
    content = texts(batch)
    values = [row.get("value") for row in expected]
    if isinstance(step, pages.PageLength):
        assert list(pages.count_words(content)) == [value["words"] for value in values]
    elif isinstance(step, pages.WordLength):
        compare(pages.mean_word_length(content), values, "mean")
    elif isinstance(step, pages.SymbolRatio):
        compare(pages.symbol_ratio(content), values, "ratio")
    elif isinstance(step, pages.BulletLines | pages.EllipsisLines):
        matches = pages._begins_with_bullet if isinstance(step, pages.BulletLines) else pages._ends_with_ellipsis
        count, lines = pages.line_matches(content, matches)
        assert list(zip(count, lines, strict=True)) == [(value["count"], value["lines"]) for value in values]
    elif isinstance(step, pages.AlphabeticWords):
        compare(pages.without_letters(content), values, "ratio")
    elif isinstance(step, pages.StopWords):
        assert [int(n) for n in pages.stop_words(content)] == [value["count"] for value in values]
    elif isinstance(step, RemovalRatio):
        before = batch.column(step.key).to_numpy()
        compare(removed_ratio(before, pages.count_words(content)), values, "ratio")
    elif isinstance(step, pages.MassiveRepetition):
        found = pages.repetition(content)
        for i, value in enumerate(values):
            for key, number in value.items():
                if not isinstance(number, str):
                    assert close(found[key][i], number), (name, expected[i]["id"], key)
    elif isinstance(step, FastTextLanguage):
        for value, language, score in zip(values, *step.identify(content.to_pylist()), strict=True):
            assert (language is None and not value) or abs(value[language] - score) <= 1e-5
    elif name.endswith("word_counter_enricher"):
        assert after.column("previous_word_count").to_pylist() == values


def compare(found: np.ndarray, values: list[Any], key: str) -> None:
    for number, value in zip(found, values, strict=True):
        expected = (value or {}).get(key)
        assert np.isnan(number) if expected is None else close(number, expected), (number, value)


def test_the_pipeline(folder: Path, documents: dict[str, Row], steps: dict[str, CorpusStep | None]) -> None:
    expected: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows(folder / "pipeline.jsonl.gz"):
        expected[row["variant"]][row["id"]] = row
    assert expected
    for variant, wanted in expected.items():
        batch = batch_of([documents[name] for name in wanted])
        for name, step in steps.items():
            if step is None or (variant == "no-language" and isinstance(step, FastTextLanguage)):
                continue
            if variant == "full" or not isinstance(step, FastTextLanguage):
                marked = step(batch)
                for row, keeps in zip(batch.column("id").to_pylist(), is_kept(marked), strict=True):
                    if not keeps:
                        place = wanted[row]["dropped_at"]
                        assert place == name or isinstance(step, FastTextLanguage), (variant, row, name)
                batch = kept(marked)
        found = dict(zip(batch.column("id").to_pylist(), texts(batch).to_pylist(), strict=True))
        assert set(found) == {name for name, row in wanted.items() if row["kept"]}, variant
        for name, text in found.items():
            row = wanted[name]
            assert text == (documents[name]["text"] if row.get("unchanged") else row["text"]), (variant, name)


def test_addresses(folder: Path, steps: dict[str, CorpusStep | None]) -> None:
    bans = [step for name, step in steps.items() if "url_substring_filter" in name]
    names = list(dict.fromkeys(row["step"] for row in rows(folder / "url_filters.jsonl")))
    assert len(names) == len(bans)
    for row in rows(folder / "url_filters.jsonl"):
        ban = bans[names.index(row["step"])]
        hits = ban.hits(row["url"])  # type: ignore[union-attr]
        assert (hits < ban.num_banned_substrs) == row["keep"], row  # type: ignore[union-attr]
        if row.get("hits") is not None:
            assert hits == row["hits"], row


def test_length_at_its_upper_bound(folder: Path, steps: dict[str, CorpusStep | None]) -> None:
    step = next(step for step in steps.values() if isinstance(step, pages.PageLength))
    for row in rows(folder / "page_length_upper.jsonl"):
        assert is_kept(step(from_texts([("w " * row["words"]).strip()]))) == [row["keep"]]


def test_quality(folder: Path, documents: dict[str, Row]) -> None:
    thresholds = json.loads((folder / "config.json").read_text())["quality_thresholds"]
    scorer = FastTextScorer.load(folder / "quality_model.bin")
    expected = rows(folder / "quality.jsonl")
    scores = scorer.score([documents[row["id"]]["text"] for row in expected])
    for row, score in zip(expected, scores, strict=True):
        assert abs(row["score"] - score) <= 1e-5, row["id"]
        sure = [abs(row["score"] - threshold) > 1e-5 for threshold in thresholds]
        decided = [bool(score >= threshold) for threshold in thresholds]
        assert [d for d, s in zip(decided, sure, strict=True) if s] == [
            k for k, s in zip(row["keep"], sure, strict=True) if s
        ], row["id"]
