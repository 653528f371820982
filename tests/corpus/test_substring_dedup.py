from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.corpus import graphemes, repeats, run, tokenizer
from bloomery.corpus.documents import from_texts, texts
from bloomery.corpus.steps import DROP, decision_notes
from bloomery.corpus.substring_dedup import CUT, CutSubstrings, SubstringDedup, substring_dedup, without


def decide(step: SubstringDedup, documents: list[str], batch_size: int = 1_000) -> pa.Table:
    batch = from_texts(documents)
    starts = range(0, max(len(documents), 1), batch_size)
    return step.decide(pa.concat_tables([step.sketch(batch.slice(start, batch_size)) for start in starts]))


def cuts(step: SubstringDedup, documents: list[str], batch_size: int = 1_000) -> list[list[int]]:
    return decide(step, documents, batch_size)[CUT].to_pylist()


def every_pair(documents: list[str], length: int, keep: str) -> list[list[int]]:
    """The definition: all pairs of windows."""
    windows = [(d, i, text[i : i + length]) for d, text in enumerate(documents) for i in range(len(text) - length + 1)]
    gone = [[False] * len(text) for text in documents]
    for d, i, content in windows:
        for e, j, other in windows:
            earlier = e < d or (e == d and j + length <= i)
            if content == other and (earlier if keep == "first" else (d, i) != (e, j)):
                gone[d][i : i + length] = [True] * length
                break
    found = []
    for flags in gone:
        edges = np.flatnonzero(np.diff([False, *flags, False]))
        found.append(edges.tolist())
    return found


small = st.lists(st.text(alphabet="ab", max_size=25) | st.sampled_from(["a" * 40, "ab" * 20, "aab" * 9]), max_size=6)


@given(small, st.integers(2, 9), st.sampled_from(["first", "none"]), st.integers(1, 4))
def test_equals_the_comparison_of_all_pairs(documents, length, keep, batch_size):
    step = SubstringDedup(length=length, keep=keep)
    assert cuts(step, documents, batch_size) == every_pair(documents, length, keep)


@pytest.mark.parametrize("keep", ["first", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_small_blocks_parts_and_clashing_hashes_change_nothing(monkeypatch, seed, keep):
    rng = random.Random(seed)
    pieces = ["".join(rng.choices("abcd", k=rng.randrange(5, 60))) for _ in range(12)]
    documents = ["".join(rng.choices(pieces, k=rng.randrange(4))) for _ in range(12)]
    step = SubstringDedup(length=14, keep=keep)
    expected = every_pair(documents, 14, keep)
    assert cuts(step, documents) == expected
    for name, value in (("BLOCK", 32), ("PART", 64), ("CHAIN", 5), ("COMPARED", 40)):
        monkeypatch.setattr(repeats, name, value)
    assert cuts(step, documents, 3) == expected
    whole = repeats._hash
    monkeypatch.setattr(repeats, "_hash", lambda units, size: whole(units, size) & np.uint64(7 << 61))
    assert cuts(step, documents, 5) == expected


def by_suffix_array(documents: list[str], length: int) -> list[np.ndarray]:
    """Which bytes stand in a repeated window anywhere, from a suffix array and the lengths that neighbours share."""
    pydivsufsort = pytest.importorskip("pydivsufsort")
    data = b"".join(text.encode() + bytes([255, i % 251, i // 251]) for i, text in enumerate(documents))
    order = pydivsufsort.divsufsort(data)
    shared = pydivsufsort.kasai(data, order)
    gone = np.zeros(len(data), bool)
    for rank in np.flatnonzero(shared >= length):
        for place in order[rank : rank + 2]:
            gone[place : place + shared[rank]] = True
    bounds = np.cumsum([0, *(len(text.encode()) + 3 for text in documents)])
    return [gone[a : b - 3] for a, b in itertools.pairwise(bounds)]


def test_equals_a_suffix_array_on_real_text():
    documents = [path.read_text("utf-8") for path in sorted(Path(repeats.__file__).parent.glob("*.py"))]
    found = cuts(SubstringDedup(length=60, keep="none"), documents)
    total = 0
    for text, edges, gone in zip(documents, found, by_suffix_array(documents, 60), strict=True):
        ours = np.zeros(len(text.encode()), bool)
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            ours[begin:end] = True
        inside = ours & ~gone
        assert not inside.any()
        assert (gone & ~ours).sum() <= 6 * len(edges)  # at the border of a character of several bytes
        total += int(ours.sum())
    assert total > 5_000


def random_text(rng: random.Random, size: int) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz    ", k=size))


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_does_not_depend_on_batches_and_removes_only_what_stands_earlier(seed, batch_size):
    rng = random.Random(seed)
    pieces = [random_text(rng, rng.randrange(20, 400)) for _ in range(8)]
    documents = [" ".join(rng.choices(pieces, k=rng.randrange(1, 6))) for _ in range(9)]
    step = SubstringDedup(length=50)
    found = cuts(step, documents)
    assert cuts(step, documents, batch_size) == found
    seen: set[str] = set()
    for text, edges in zip(documents, found, strict=True):
        for begin, end in zip(edges[::2], edges[1::2], strict=True):  # every byte is in a window that stands earlier
            old = [i for i in range(begin, end - 49) if text[i : i + 50] in seen or text[i : i + 50] in text[:i]]
            assert {place for i in old for place in range(i, i + 50)} == set(range(begin, end))
        seen.update(text[i : i + 50] for i in range(len(text) - 49))


@pytest.mark.parametrize("period", [1, 2, 97, 5_000])
def test_long_periodic_text_takes_linear_time_and_keeps_one_copy(period):
    unit = random_text(random.Random(0), period)
    size = 400_000
    text = (unit * (size // period + 1))[:size]
    started = time.process_time()
    ((begin, end),) = cuts(SubstringDedup(length=100), [text])
    first = time.process_time() - started
    assert (begin, end) == (max(period, -(-100 // period) * period) if period > 1 else 100, size)
    started = time.process_time()
    cuts(SubstringDedup(length=100), [text * 4])
    assert time.process_time() - started < 12 * first + 1


def test_cuts_never_tear_a_character():
    same = "x" * 30
    documents = [
        f"é{same}日本語",
        f"ê{same}日本誠",
        "e\u0301" + same,
        "e\u0301\u0302" + same + "\r\n",
        "🇩🇪" + same,
        "🇫🇪" + same,
    ]
    for length in (20, 31, 32):
        step = SubstringDedup(length=length)
        for text, edges in zip(documents, cuts(step, documents), strict=True):
            left = without(text, edges)
            assert set(left) <= set(text)
            assert ("\u0301" in left) == ("\u0301" in text)
            assert left.startswith(text[: text.index("x")])


def test_borders_are_those_of_grapheme_clusters():
    uniseg = pytest.importorskip("uniseg.graphemecluster")
    rng = random.Random(0)
    special = "\r\n\u200d\u0301\u0e33\u1100\u1161\u11a8가각\U0001f1e9\U0001f1ea👩🏽\u094d\u0915\u0937\u0903"
    special += "\ufe0f\u0600aé日\u0d4eक़"
    allowed = borders = 0
    for _ in range(3_000):
        text = "".join(rng.choices(special, k=8))
        data = text.encode()
        clusters = list(uniseg.grapheme_clusters(text))
        true = set(np.cumsum([0, *(len(cluster.encode()) for cluster in clusters)]).tolist())
        ours = {place for place in range(len(data) + 1) if graphemes.is_border(data, place)}
        assert ours <= true, ascii(text)
        allowed, borders = allowed + len(ours), borders + len(true)
    assert allowed > 0.6 * borders
    assert all(graphemes.may_cut(a, b) for a, b in [("a", "日"), ("日", "本"), ("가", "나"), ("é", " "), ("😀", "😀")])


def test_tokens_as_units(tmp_path):
    rng = random.Random(1)
    words = ["über", "naïve", "日本", "plain", "text", "🙂", "and", "more"]
    shared = " ".join(rng.choices(words, k=60))
    documents = [
        " ".join(rng.choices(words, k=20)) + " | " + shared,
        "another begin: " + shared + " and its own end",
        shared[:40],
    ]
    tokenizer.save(tokenizer.train(documents, 300), tmp_path / "words")
    step = SubstringDedup(tokenizer=tmp_path / "words", length=10)
    first, second, _ = (without(t, c) for t, c in zip(documents, cuts(step, documents), strict=True))
    assert first.endswith(shared)
    assert shared[10:-10] not in second
    assert second.startswith("another begin:")
    assert second.endswith("its own end")
    assert SubstringDedup(tokenizer=tmp_path / "words").length == 50
    tokenizer.save(tokenizer.train(documents, 280), tmp_path / "other")
    assert SubstringDedup(tokenizer=tmp_path / "other", length=10).fingerprint() != step.fingerprint()


def test_as_steps_of_a_run(tmp_path):
    rng = random.Random(2)
    footer = random_text(rng, 150)
    documents = [random_text(rng, 300) + str(number) + footer for number in range(6)] + [footer, "short"]
    for number in range(2):
        lines = [f'{{"text": "{text}"}}\n' for text in documents[number::2]]
        (tmp_path / f"{number}.jsonl").write_text("".join(lines))
    inputs = sorted(tmp_path.glob("*.jsonl"))
    report = run(substring_dedup(), inputs, tmp_path / "out", quiet=True)
    order = documents[::2] + documents[1::2]
    removed = sum(len(footer) for text in order[1:] if footer in text)
    assert report.text_bytes_in - report.text_bytes_out == removed
    assert report.steps[1].name == "SubstringDedup"
    assert report.steps[1].notes["bytes_removed"] == removed
    assert report.steps[1].notes["documents_cut"] == 6
    assert [step.dropped for step in report.steps if step.dropped] == [{"duplicate text": 1}]
    run(substring_dedup(), inputs, tmp_path / "pool", engine="processes", workers=2, quiet=True)
    for name in ("00000-0.parquet", "00001-1.parquet", "dropped/00000-0.1.parquet"):
        assert (tmp_path / "pool" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_plan_grows_slower_than_the_text_and_bad_values_are_refused(tmp_path):
    small, large = (SubstringDedup().plan(size // 4_000, size) for size in (10**9, 10**11))
    assert large.ram_bytes < 2e11
    assert large.ram_bytes < 100 * small.ram_bytes
    assert large.disk_bytes > 1e11
    for fields in ({"length": 1}, {"length": 10**6}, {"keep": "last"}):
        with pytest.raises(ConfigError):
            SubstringDedup(**fields)


def test_documents_without_text_pass():
    batch = from_texts(["", "a", ""])
    step = SubstringDedup(length=5)
    decided = step.decide(step.sketch(batch))
    assert decided[CUT].to_pylist() == [[], [], []]
    assert decision_notes(decided)["bytes"] == 1
    assert step.decide(step.sketch(batch.slice(0, 0))).num_rows == 0
    after = CutSubstrings()(batch.append_column(CUT, decided[CUT].combine_chunks()))
    assert texts(after).to_pylist() == ["", "a", ""]
    assert DROP not in after.schema.names
