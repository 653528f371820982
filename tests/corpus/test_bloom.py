"""The Bloom filter and deduplication with it: rates, files, and the same decisions as one paragraph at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery import corpus
from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import from_texts, texts
from bloomery.corpus.bloom import BloomFilter, false_positive_rate, size_for
from bloomery.corpus.bloom_dedup import (
    CUT,
    BloomDedup,
    CutParagraphs,
    bloom_dedup,
    paragraph_ngrams,
    settle,
    without_paragraphs,
)
from bloomery.corpus.interleaved import Part, from_parts, parts_of
from bloomery.corpus.steps import DROP, REMOVED
from bloomery.corpus.word_breaks import tokens
from bloomery.corpus.words import FACTOR, rolling


def hashes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("rate", [0.01, 0.001, 0.1])
def test_the_rate_is_that_of_the_formula(rate: float) -> None:
    bloom = BloomFilter(100_000, rate)
    bloom.add(hashes(1, 100_000))
    asked = 200_000 if rate >= 0.01 else 2_000_000
    found = bloom.contains(hashes(2, asked)).mean()
    assert found == pytest.approx(bloom.rate, rel=0.1)
    assert bloom.rate <= rate * 1.01


def test_what_is_added_is_found() -> None:
    bloom = BloomFilter(1_000)
    some = hashes(3, 5_000)  # beyond its load
    bloom.add(some)
    assert bloom.contains(some).all()
    assert bloom.rate > 0.3


def test_a_file_is_the_filter(tmp_path: Path) -> None:
    bloom = BloomFilter(1_000, seed=5)
    some = hashes(4, 1_000)
    bloom.add(some)
    bloom.save(tmp_path / "filter")
    again = BloomFilter.open(tmp_path / "filter")
    assert isinstance(again.words, np.memmap)
    assert again.contains(some).all()
    assert (again.count, again.hashers, again.seed) == (bloom.count, bloom.hashers, bloom.seed)
    again.add(hashes(6, 10))  # in memory only
    assert np.array_equal(BloomFilter.open(tmp_path / "filter").words, bloom.words)
    other = BloomFilter(1_000, seed=5)
    more = hashes(7, 1_000)
    other.add(more)
    other.merge(again)
    assert other.contains(some).all()
    assert other.contains(more).all()
    with pytest.raises(ConfigError, match="differ"):
        other.merge(BloomFilter(1_000, seed=6))


@pytest.mark.parametrize("damage", [lambda b: b[:-8], lambda b: b"x" + b, lambda b: b"", lambda b: b[:100]])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "filter"
    BloomFilter(100).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="filter"):
        BloomFilter.open(path)


@given(st.integers(1, 10**6), st.sampled_from([0.5, 0.1, 0.01, 1e-6]))
def test_the_size_is_the_least_that_will_do(elements: int, rate: float) -> None:
    from bloomery.corpus.bloom import best_hashers

    size = size_for(elements, rate)
    assert false_positive_rate(size, elements, best_hashers(size, elements)) <= rate
    if size > 1:
        assert false_positive_rate(size - 1, elements, best_hashers(size - 1, elements)) > rate


def test_too_large_a_filter_names_the_shards() -> None:
    with pytest.raises(ConfigError, match="shards"):
        BloomFilter(10**13)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(1, 20))
def test_rolling_hashes(values: list[int], size: int) -> None:
    if len(values) < size:
        return
    found = rolling(np.array(values, dtype=np.uint64), size)
    expected = []
    for start in range(len(values) - size + 1):
        total = 0
        for value in values[start : start + size]:
            total = (total * int(FACTOR) + value) % 2**64
        expected.append(total)
    assert found.tolist() == expected


@given(
    st.lists(st.lists(st.integers(0, 12), min_size=0, max_size=8), min_size=1, max_size=12),
    st.sampled_from([0.3, 0.5, 0.8]),
    st.sets(st.integers(0, 12), max_size=4),
)
def test_settling_a_block_is_as_if_one_by_one(units: list[list[int]], threshold: float, before: set[int]) -> None:
    bloom = BloomFilter(100, 1e-12)
    name = hashes(8, 13)
    seen = set(before)
    bloom.add(name[sorted(before)])
    removed, contained = [], []
    for unit in units:
        count = sum(gram in seen for gram in unit)
        contained.append(count)
        removed.append(bool(unit) and count / len(unit) > threshold)
        if not removed[-1]:
            seen.update(unit)
    sizes = np.array([len(unit) for unit in units], dtype=np.int32)
    grams = name[np.array([gram for unit in units for gram in unit], dtype=np.int64)]
    found, count = settle(bloom, grams, sizes, threshold)
    assert found.tolist() == removed
    assert count.tolist() == contained
    assert set(np.flatnonzero(bloom.contains(name)).tolist()) == seen


@given(st.lists(st.text(alphabet="ab \n.", max_size=30), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 2))
def test_paragraphs_and_their_ngrams(content: list[str], most: int, less: int) -> None:
    least = max(1, most - less)
    (block,) = list(tokens(pa.array(content)))
    (_, of_document), (sizes, paragraphs) = paragraph_ngrams(block, least, most)
    assert paragraphs.tolist() == [text.count("\n") + 1 for text in content]
    expected = []
    for text in content:
        for line in text.split("\n"):
            (words,) = list(tokens(pa.array([line])))
            count = len(words.starts)
            expected.append(count - most + 1 if count >= most else int(count >= least))
    assert sizes.tolist() == expected
    assert of_document.sum() == sum(expected)


LINE = "the quick brown fox jumps over the lazy dog while another fox sleeps under a tree"
OTHER = "every document needs some words of its own so that nobody takes it for a copy of one"


def run(content: list[str], **fields: Any) -> list[str | None]:
    step = BloomDedup(**fields)
    batch = from_texts(content, ids=[str(i) for i in range(len(content))])
    answer = step.decide(step.sketch(batch))
    batch = batch.append_column(CUT, answer.column(CUT).combine_chunks())
    batch = batch.append_column(DROP, answer.column(DROP).combine_chunks())
    after = CutParagraphs()(batch)
    kept = after.column(DROP).is_null().to_pylist()
    return [text if k else None for text, k in zip(texts(after).to_pylist(), kept, strict=True)]


def test_a_repeated_paragraph_goes_and_a_repeated_document_too() -> None:
    assert run([LINE, f"{OTHER}\n{LINE}\nshort", LINE]) == [LINE, f"{OTHER}\nshort", None]
    assert run([LINE, f"{OTHER}\n{LINE}"], mode="document") == [LINE, f"{OTHER}\n{LINE}"]
    assert run([LINE, LINE], mode="exact") == [LINE, None]
    assert run([LINE, f"{LINE}\n{LINE}"], mode="paragraph") == [LINE, None]


def test_documents_with_images_lose_the_same_paragraphs_and_keep_their_images() -> None:
    image, another = Part(ref="i"), Part(ref="j")
    documents = [
        [Part(LINE), image],
        [Part(f"{OTHER}\n{LINE}\nshort"), another, Part(LINE), image, Part(f"{LINE}\nlast")],
        [image, Part(LINE)],
        [Part("no\nimage"), Part("and short")],
    ]
    batch = from_parts(documents, ids=list("abcd"))
    step = BloomDedup(mode="paragraph")
    answer = step.decide(step.sketch(batch))
    after = CutParagraphs()(batch.append_column(CUT, answer.column(CUT).combine_chunks()))
    assert after.column(DROP).to_pylist() == [None, None, "duplicate text", None]
    left = [parts for parts in parts_of(after)]
    assert left[1] == [Part(f"{OTHER}\nshort"), another, image, Part("last")]
    assert (left[0], left[3]) == (documents[0], documents[3])
    assert after.column(REMOVED).to_pylist() == [[], ["duplicate paragraph"] * 3, ["duplicate paragraph"], []]


@given(
    st.lists(st.lists(st.sampled_from([LINE, OTHER, f"{LINE}\nx", f"x\n{OTHER}\n", "y", ""]), min_size=1, max_size=4)),
    st.integers(0, 5),
)
def test_cuts_do_not_depend_on_what_else_is_in_the_batch(documents: list[list[str]], at: int) -> None:
    batch = from_parts(
        [[Part(text) for text in some] for some in documents], ids=[str(i) for i in range(len(documents))]
    )
    step = BloomDedup(mode="paragraph")
    answer = step.decide(step.sketch(batch))
    batch = batch.append_column(CUT, answer.column(CUT).combine_chunks())
    whole = list(parts_of(CutParagraphs()(batch)))
    pieces = [CutParagraphs()(batch.slice(0, at)), CutParagraphs()(batch.slice(at))]
    assert [parts for piece in pieces for parts in parts_of(piece)] == whole
    for before, cut, after in zip(documents, answer.column(CUT).to_pylist(), whole, strict=True):
        stay = [line for i, line in enumerate("\n\n".join(before).split("\n")) if i not in (cut or ())]
        assert [line for part in after for line in (part.text or "").split("\n") if line] == [k for k in stay if k]


def test_shards_do_not_see_each_other() -> None:
    kept = run([LINE] * 20, shards=4)
    assert 1 < sum(text is not None for text in kept) <= 4


def test_an_overfull_filter_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run([f"{i} {LINE} {i}" for i in range(50)], expected=20)
    assert "false positives" in caplog.text


def test_cutting_keeps_line_ends_where_they_were() -> None:
    assert without_paragraphs("a\nb\n\nc", [1]) == "a\n\nc"
    assert without_paragraphs("a\nb", [0]) == "\nb"


def test_in_a_run_the_workers_do_not_matter(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = [f"{OTHER} number {i} of many {i * 7}" for i in range(40)]
    for file in range(3):
        rows = ["\n".join(lines[k] for k in random.integers(40, size=4)) for _ in range(30)]
        (tmp_path / f"{file}.jsonl").write_text("".join(f'{{"text": {row!r}}}\n'.replace("'", '"') for row in rows))
    steps = bloom_dedup()
    for engine in ("inline", "processes"):
        corpus.run(steps, sorted(tmp_path.glob("*.jsonl")), tmp_path / engine, engine=engine, workers=2, quiet=True)
    one, two = ([p.read_bytes() for p in sorted((tmp_path / e).glob("*.parquet"))] for e in ("inline", "processes"))
    assert one == two
    assert corpus.Report.load(tmp_path / "inline" / "report.json").documents_out < 90


@pytest.mark.parametrize(
    "fields",
    [{"mode": "naive-both"}, {"min_ngram": 5, "max_ngram": 4}, {"threshold": 0.0}, {"rate": 2.0}, {"shards": 0}],
)
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        BloomDedup(**fields)
