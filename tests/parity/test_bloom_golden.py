"""Bloom-filter deduplication against the reference's decision rule, document by document."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bloomery.corpus import from_texts, texts
from bloomery.corpus.bloom import best_hashers, false_positive_rate, size_for
from bloomery.corpus.bloom_dedup import CUT, BloomDedup, CutParagraphs
from bloomery.corpus.documents import with_column
from bloomery.corpus.steps import DROP, drop_reasons

OURS = {"old-both": "both", "paragraph": "paragraph", "document": "document", "exact": "exact"}
LEFT_OUT = {"both", "naive-both", "substring"}  # the module says why


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def folder(golden_root: Path) -> Path:
    if not (golden_root / "dclm" / "bloom.json").exists():
        pytest.skip(f"no dclm/bloom.json in {golden_root}")
    return golden_root / "dclm"


def test_what_is_removed(folder: Path) -> None:
    documents = {row["id"]: row["text"] for row in rows(folder / "bloom_documents.jsonl.gz")}
    outputs: dict[int, list[dict[str, Any]]] = {}
    for row in rows(folder / "bloom_outputs.jsonl.gz"):
        outputs.setdefault(row["config"], []).append(row)
    compared = 0
    for config in json.loads((folder / "bloom.json").read_text())["configs"]:
        if config["mode"] in LEFT_OUT:
            continue
        expected = outputs[config["config"]]
        before = [documents[row["id"]] for row in expected]
        batch = from_texts(before, [str(row["id"]) for row in expected])
        exact = config["mode"] == "exact"
        step = BloomDedup(
            mode=OURS[config["mode"]],  # type: ignore[arg-type]
            threshold=0.5 if exact else config["filtering_threshold"],
            min_ngram=config.get("min_ngram_size", 1),
            max_ngram=config.get("max_ngram_size", 1),
            rate=1e-9,  # the reference rows were made without false positives
        )
        sketch = step.sketch(batch)
        answer = step.decide(sketch)
        marked = with_column(batch, CUT, answer.column(CUT).combine_chunks())
        reasons = answer.column(DROP).combine_chunks()
        after = CutParagraphs()(drop_reasons(marked, reasons))
        content, dropped = texts(after).to_pylist(), after.column(DROP).to_pylist()
        for i, row in enumerate(expected):
            where = (config, row["id"])
            if not before[i].strip():
                continue
            assert (dropped[i] is None) == row["written"], where
            if row["written"]:
                assert content[i] == (before[i] if row.get("unchanged") else row["text"]), where
            if not exact:
                assert sketch["grams"][i].values is None or len(sketch["grams"][i].values) == row["total"], where
            compared += 1
        if not exact:
            notes = json.loads(answer.schema.metadata[b"notes"])
            assert notes["seen_before"] == sum(row["contained"] for row in expected), config
    assert compared > len(documents)


def test_sizes(folder: Path) -> None:
    """The reference's search may end a byte off; ours never ends above the wanted rate."""
    for row in json.loads((folder / "bloom.json").read_text())["sizes"]:
        out, elements, rate = row["out"], row["expected_ngram_count"], row["fp_rate"]
        size = size_for(elements, rate)
        assert abs(size - out["bytes"]) <= 1, row
        assert best_hashers(out["bytes"], elements) == out["hashers"], row
        assert false_positive_rate(out["bytes"], elements, out["hashers"]) == pytest.approx(
            out["expected_fp"], rel=1e-6
        )
        assert false_positive_rate(size, elements, best_hashers(size, elements)) <= rate, row
