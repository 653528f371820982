"""Unicode words: equal to an independent implementation of UAX #29, alone or in any company."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.corpus.word_breaks import WHITE_SPACE, alphanumeric, split_tokens, tokens

# Characters of every property, and of none, so that short random strings meet every rule.
ALPHABET = "ab1_ \t\r\n\x0b'\".,:;-é́‍­अᄀかカゎא״׳٣①🇩🇪👩👍🏽❤️・．。中\u2028\u00a0\u3000…"


def expected(text: str) -> list[str]:
    uniseg = pytest.importorskip("uniseg.wordbreak")
    white = set(map(chr, WHITE_SPACE))
    return [word for word in uniseg.words(text) if not set(word) <= white]


def found(texts: list[str], only_alphanumeric: bool = False) -> list[list[str]]:
    out: list[list[str]] = []
    for words in tokens(pa.array(texts, pa.string())):
        if only_alphanumeric:
            words = alphanumeric(words)
        data = words.data.tobytes()
        for document in range(words.documents):
            span = range(words.first[document], words.first[document + 1])
            out.append([data[words.starts[i] : words.ends[i]].decode() for i in span])
    return out


@given(st.lists(st.text(alphabet=ALPHABET, max_size=12), min_size=1, max_size=4))
def test_equal_to_uniseg_whatever_stands_beside(texts: list[str]) -> None:
    assert found(texts) == [expected(text) for text in texts]


@given(st.text(max_size=30))
def test_equal_to_uniseg_on_any_text(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    assert found([text]) == [expected(text)]


def test_what_a_token_is() -> None:
    text = "It can't cost $3.14 (or 1,000), e.g. at u.s.a.\nnew_name 🇩🇪🇫🇷🇪"
    assert found([text])[0] == [
        "It", "can't", "cost", "$", "3.14", "(", "or", "1,000", ")", ",", "e.g", ".", "at", "u.s.a", ".",
        "new_name", "🇩🇪", "🇫🇷", "🇪",
    ]  # fmt: skip
    assert found([text], only_alphanumeric=True)[0] == [
        "It", "can't", "cost", "3.14", "or", "1,000", "e.g", "at", "u.s.a", "new_name",
    ]  # fmt: skip


def test_blocks_are_whole_documents() -> None:
    texts = ["word " * 50_000 + str(i) for i in range(12)]
    assert [len(words) for words in found(texts)] == [50_001] * 12


def test_empty() -> None:
    assert found(["", " \n", ""]) == [[], [], []]
    assert len(split_tokens(np.zeros(0, dtype=np.uint8), np.array([0, 0])).starts) == 0
