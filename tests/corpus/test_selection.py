"""Selection by a score over the whole corpus."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.documents import from_texts, with_column
from bloomery.corpus.selection import Select

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60)


def scored(scores: list[float | None]) -> pa.RecordBatch:
    texts = [f"text {i}" for i in range(len(scores))]
    return with_column(from_texts(texts, ids=texts), "score_quality", pa.array(scores, pa.float32()))


def kept(step: Select, *batches: pa.RecordBatch) -> list[int]:
    """Positions of the documents that survive, the batches taken as one corpus."""
    decided = step.decide(pa.concat_tables([step.sketch(batch) for batch in batches]))
    return [i for i, reason in enumerate(decided.column("_drop").to_pylist()) if reason is None]


@given(SCORES, st.floats(0.05, 1), st.sampled_from(["high", "low"]), st.integers(0, 60))
def test_fraction_is_exact_global_and_stable(scores: list[float], fraction: float, order: str, cut: int) -> None:
    step, batch = Select("score_quality", fraction=fraction, order=order), scored(scores)
    cut = min(cut, len(scores))
    survivors = kept(step, batch.slice(0, cut), batch.slice(cut))
    sign = -1 if order == "high" else 1
    by_rank = sorted(range(len(scores)), key=lambda i: (sign * scores[i], i))
    assert survivors == sorted(by_rank[: round(fraction * len(scores))])


@given(SCORES, st.integers(-5, 5))
def test_threshold(scores: list[float], threshold: int) -> None:
    high = kept(Select("score_quality", threshold=threshold), scored(scores))
    low = kept(Select("score_quality", threshold=threshold, order="low"), scored(scores))
    assert high == [i for i, score in enumerate(scores) if score >= threshold]
    assert low == [i for i, score in enumerate(scores) if score <= threshold]


def test_documents_without_a_score_are_dropped_and_do_not_count() -> None:
    step = Select("score_quality", fraction=0.5)
    batch = scored([1.0, None, 3.0, None, 2.0, 4.0])
    decided = step.decide(step.sketch(batch))
    assert decided.column("_drop").to_pylist() == [
        "score_quality too low",
        "no score",
        None,
        "no score",
        "score_quality too low",
        None,
    ]


def test_errors() -> None:
    with pytest.raises(DataError, match=r"document text 1: score_quality is not a number"):
        Select("score_quality", fraction=0.5).sketch(scored([1.0, np.nan]))
    with pytest.raises(ConfigError, match="score_qualty"):
        Select("score_qualty", fraction=0.5).sketch(scored([1.0]))
    for wrong in ({}, {"fraction": 0.1, "threshold": 1.0}, {"fraction": 0.0}, {"fraction": 1.1}):
        with pytest.raises(ConfigError):
            Select("score_quality", **wrong)
    with pytest.raises(ConfigError, match="finite"):
        Select("score_quality", threshold=float("nan"))
    with pytest.raises(ConfigError, match="high or low"):
        Select("score_quality", threshold=0.0, order="best")
