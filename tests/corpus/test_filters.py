"""The vectorised filters against a plain-Python reading of their definitions, and the rules against hand-made texts."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.corpus import filters
from bloomery.corpus.documents import from_texts, texts
from bloomery.corpus.steps import DROP
from bloomery.corpus.words import BLOCK_BYTES, blocks, hash_words, split_words

DATA = Path(os.environ.get("BLOOMERY_DATA", Path(__file__).parents[3] / "shared" / "data"))

PIECES = [
    *["the", "The", "of", "and", "be", "that", "to", "with", "{", "}", "#", "##", "...", "....", "......", "…"],
    *["•", "●", "-", "*", "- item", "é", "日本語", "abc", "Ünïcode", "12", "3.14", "\U0001d54f\U0001f600", ". . ."],
    *["x" * 70, "ab" * 6, " ", " ", " ", " ", "  ", "\n", "\n", "\n\n", "\n \n", "\t", "\r\n", "\x1c", "\x00"],
    *["\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\u200b", "\u1680", "\u202f", "\u205f"],
]
documents = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
        st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=80).map(" ".join),  # many repeated n-grams
        st.lists(st.sampled_from(["a b c", "d e", "a  b c ", "", "f"]), max_size=20).map("\n".join),
    ),
    max_size=6,
)


# ---------------------------------------------------------------------------------------------------------- the oracle


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n") if line.split()]


def paragraphs_of(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.split():
            found[-1] += line.split()
        else:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def size(words: list[str] | tuple[str, ...]) -> int:
    return sum(map(len, words))


def naive_length(text: str) -> dict[str, float]:
    return {"words": len(text.split()), "mean_length": ratio(size(text.split()), len(text.split()))}


def naive_symbols(text: str) -> dict[str, float]:
    words, lines = text.split(), [line.strip() for line in text.split("\n") if line.split()]
    lower = {"".join(c.lower() if c.isascii() else c for c in word) for word in words}
    return {
        "hashes": ratio(text.count("#"), len(words)),
        "ellipses": ratio(text.count("...") + text.count("…"), len(words)),
        "bullet_lines": ratio(sum(line.startswith(("•", "●", "*", "-")) for line in lines), len(lines)),
        "ellipsis_lines": ratio(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alphabetic": ratio(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "stop_words": len(lower.intersection(filters.STOP_WORDS)),
        "braces": ratio(text.count("{") + text.count("}"), len(words)),
    }


def naive_repetition(text: str) -> dict[str, float]:
    words = text.split()
    total = size(words)
    found = {}
    for name, segments in (("line", lines_of(text)), ("paragraph", paragraphs_of(text))):
        seen: set[tuple[str, ...]] = set()
        copies = []
        for segment in map(tuple, segments):
            if segment in seen:
                copies.append(segment)
            seen.add(segment)
        found[f"{name}s"] = ratio(len(copies), len(segments))
        found[f"{name}_characters"] = ratio(sum(map(size, copies)), total)
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n <= 4:
            most = max(counts.values(), default=0)
            longest = max((size(gram) for gram, count in counts.items() if count == most), default=0)
            found[f"top_{n}gram"] = ratio(most * longest, total) if most > 1 else 0.0
        else:
            covered = {i + k for i, gram in enumerate(grams) if counts[gram] > 1 for k in range(n)}
            found[f"repeated_{n}grams"] = ratio(sum(len(words[i]) for i in covered), total)
    return found


def assert_equal(measured: dict[str, np.ndarray], naive: list[dict[str, float]]) -> None:
    for name, values in measured.items():
        np.testing.assert_allclose(values, [row[name] for row in naive], rtol=1e-12, atol=0, err_msg=name)
    assert set(measured) == set(naive[0])


# ------------------------------------------------------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("measure", "naive"),
    [
        (filters.measure_length, naive_length),
        (filters.measure_symbols, naive_symbols),
        (filters.measure_repetition, naive_repetition),
    ],
)
@given(documents=documents)
@settings(deadline=None, max_examples=120)
def test_measures_equal_their_definitions(measure, naive, documents):
    if documents:
        assert_equal(measure(pa.array(documents, pa.string())), [naive(text) for text in documents])


@given(documents=documents)
@settings(deadline=None, max_examples=60)
def test_words_are_those_of_str_split(documents):
    found = []
    for words in blocks(pa.array(documents, pa.string())):
        raw = words.data.tobytes()
        spans = [raw[a:b].decode() for a, b in zip(words.starts, words.ends, strict=True)]
        found += [spans[a:b] for a, b in zip(words.first[:-1], words.first[1:], strict=True)]
    assert found == [text.split() for text in documents]


def test_every_unicode_white_space_separates():
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    for space in spaces:
        assert filters.measure_length(pa.array([f"a{space}b"]))["words"] == [2], hex(ord(space))
    assert len(spaces) > 20


def test_a_word_never_crosses_documents():
    words = split_words(np.frombuffer(b"abcd", np.uint8), np.array([0, 2, 2, 4]))
    assert words.counts.tolist() == [1, 0, 1]


def test_documents_larger_than_a_block_and_many_blocks():
    big = "word " * (BLOCK_BYTES // 4)
    many = [big, "", "a b", big, *["tiny text"] * 5]
    assert filters.measure_length(pa.array(many))["words"].tolist() == [len(text.split()) for text in many]
    assert filters.measure_repetition(pa.array(many))["top_2gram"][2] == 0


def test_slices_and_empty_arrays():
    array = pa.array(["x y z", "the of #", "a"])
    assert filters.measure_symbols(array.slice(1, 1))["stop_words"].tolist() == [2]
    assert all(len(values) == 0 for values in filters.measure_repetition(pa.array([], pa.string())).values())


def test_word_hashes_differ_in_length_and_content_and_repeat():
    words = ["", "a", "aa", "aaaaaaaa", "aaaaaaaaa", "x" * 64, "x" * 65, "x" * 64 + "y", "\x00", "\x00\x00"]
    assert len(set(hash_words(words).tolist())) == len(words)
    assert hash_words(words).tolist() == hash_words(words).tolist()


# --------------------------------------------------------------------------------------------------------------- steps


def reasons(step, *documents: str) -> list[str | None]:
    batch = step(from_texts(documents))
    return batch.column(DROP).to_pylist() if DROP in batch.schema.names else [None] * len(documents)


def prose(words: int) -> str:
    """Different words of four to six letters with enough stop words."""
    return " ".join(["the", "of"] + [f"w{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}{i}" for i in range(words - 2)])


def test_length_bounds_are_inclusive():
    assert reasons(filters.Length(), prose(50), prose(49)) == [None, "too few words"]
    step = filters.Length(min_words=1, max_words=3)
    assert reasons(step, "abc abc abc", "abc " * 4, "ab", "a" * 11, "") == [
        None,
        "too many words",
        "words too short",
        "words too long",
        "too few words",
    ]


def test_symbols_reasons():
    body = prose(60)
    assert reasons(
        filters.Symbols(),
        body,
        body + " #" * 8,
        body + " ..." * 8,
        "\n".join("- " + word for word in body.split()),
        "\n".join(word + " and so on ..." if i % 3 else word + " w x" for i, word in enumerate(body.split())),
        body + " 12" * 30,
        "some words without enough of them",
        body + " {}" * 8,
    ) == [
        None,
        "too many #",
        "too many ellipses",
        "too many bullet lines",
        "too many ellipses",
        "too few alphabetic words",
        "too few stop words",
        "too many braces",
    ]


def test_repetition_reasons_in_order():
    body = prose(200)
    assert reasons(filters.Repetition(), body, "same line\n" * 3, body + "\n\n" + body, "a b " * 30, "") == [
        None,
        "repeated lines",
        "repeated lines",
        "frequent 2-gram",
        None,
    ]


def test_language_writes_columns_and_drops_others():
    english = "It is a truth universally acknowledged, that a single man in possession of a good fortune must want."
    german = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft begabt."
    batch = filters.Language(keep="en")(from_texts([english, german, "123 !?", ""]))
    assert batch.column("lang").to_pylist() == ["en", "de", None, None]
    assert batch.column(DROP).to_pylist() == [None, "language de", "no language", "no language"]
    assert batch.column("lang_score").type == pa.float32()
    both = filters.Language(keep=("en", "de"), threshold=0.0)(from_texts([english, german]))
    assert DROP not in both.schema.names
    strict = filters.Language(keep="en", threshold=1.0)(from_texts(["tea tea"]))
    assert strict.column(DROP)[0].as_py() in ("language uncertain", f"language {strict.column('lang')[0]}")


def test_language_prefix_cuts_at_a_character():
    assert filters.identify_language(pa.array(["日本語の文章です。" * 20]), prefix=100)[0] == ["ja"]


def test_language_on_the_declaration_of_human_rights():
    path = DATA / "udhr" / "udhr.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    known = {
        "eng": "en",
        "fra": "fr",
        "deu_1996": "de",
        "spa": "es",
        "rus": "ru",
        "arb": "ar",
        "hin": "hi",
        "tha": "th",
    }
    with gzip.open(path) as lines:
        rows = list(map(json.loads, lines))
    rows = [row for row in rows if row["lang"] in known and len(row["text"]) >= 100]
    found, _ = filters.identify_language(pa.array([row["text"] for row in rows]))
    right = sum(known[row["lang"]] == language for row, language in zip(rows, found, strict=True))
    assert right >= 0.98 * len(rows)


def test_filters_keep_columns_and_accept_empty_batches():
    for step in (filters.Length(), filters.Symbols(), filters.Repetition(), filters.Language()):
        empty = step(from_texts([]))
        assert empty.num_rows == 0
        assert set(step.writes) <= set(empty.schema.names)
        out = step(from_texts(["short"], urls=["http://u"]))
        assert texts(out).to_pylist() == ["short"]
        assert out.column("url").to_pylist() == ["http://u"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: filters.Length(min_words=5, max_words=4),
        lambda: filters.Symbols(min_stop_words=9),
        lambda: filters.Repetition(top_ngrams=((1, 0.2),)),
        lambda: filters.Language(threshold=1.5),
    ],
)
def test_impossible_settings(wrong):
    with pytest.raises(ConfigError, match=re.compile("Length|Symbols|Repetition|Language")):
        wrong()
