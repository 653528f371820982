"""Training, saving and loading byte-level BPE tokenizers."""

from __future__ import annotations

import gzip
import logging
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError, EmptyError
from bloomery.corpus import tokenizer as tokenizers_

RANDOM = random.Random(0)
LETTERS = [
    " ".join("".join(RANDOM.choices("abcdefgh", k=5)) for _ in range(50)) for _ in range(40)
]  # many equal counts
TEXTS = (
    LETTERS
    + ["The quick brown fox jumps over the lazy dog, 1234 times.\n\n", "def f(x):\n    return x + 1\n", "日本語 naïve"]
    * 40
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return tokenizers_.train(TEXTS, 400)


def test_special_tokens_come_first(trained: Tokenizer) -> None:
    assert [trained.token_to_id(token) for token in tokenizers_.SPECIAL_TOKENS] == list(range(7))


def test_training_is_deterministic(trained: Tokenizer) -> None:
    again = tokenizers_.train(iter(TEXTS), 400)
    assert again.to_str() == trained.to_str()
    assert tokenizers_.digest(again) == tokenizers_.digest(trained)
    assert tokenizers_.digest(tokenizers_.train(TEXTS, 390)) != tokenizers_.digest(trained)


@given(TEXT)
def test_any_text_survives_the_round_trip(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text).ids
    assert trained.decode(ids, skip_special_tokens=False) == text


@given(st.lists(TEXT, max_size=5))
def test_batches_equal_single_texts(trained: Tokenizer, texts: list[str]) -> None:
    assert [ids.tolist() for ids in tokenizers_.encode_batch(trained, texts)] == [
        tokenizers_.plain(trained).encode(text).ids for text in texts
    ]


def test_special_tokens_in_a_page_stay_text(trained: Tokenizer) -> None:
    page = "an <|eos|> in <|assistant|> text"
    (ids,) = tokenizers_.encode_batch(trained, [page])
    assert ids.min() >= len(tokenizers_.SPECIAL_TOKENS)
    assert trained.decode(ids.tolist()) == page
    assert trained.token_to_id("<|eos|>") in trained.encode(page).ids  # the tokenizer itself is left as it was


def test_pre_tokenization(trained: Tokenizer) -> None:
    words = [word for word, _ in trained.pre_tokenizer.pre_tokenize_str("it's 2024: two  words\n\n  indented")]
    assert words == ["it", "'s", "Ġ", "2", "0", "2", "4", ":", "Ġtwo", "Ġ", "Ġwords", "ĊĊ", "Ġ", "Ġindented"]


def test_save_and_load(trained: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    tokenizers_.save(trained, folder)
    for source in (folder, folder / "tokenizer.json"):
        assert tokenizers_.load(source).to_str() == trained.to_str()
    assert tokenizers_.chat_template(folder) == tokenizers_.DEFAULT_CHAT_TEMPLATE
    assert tokenizers_.chat_template(tmp_path) is None


def test_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="263"):
        tokenizers_.train(TEXTS, 262)
    with pytest.raises(EmptyError, match="no text"):
        tokenizers_.train(["", " \n"], 300)
    with pytest.raises(DataError, match="no such tokenizer"):
        tokenizers_.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        tokenizers_.load(tmp_path)
    with caplog.at_level(logging.WARNING, "bloomery.corpus"):
        small = tokenizers_.train(["ab ab"], 1000)
    assert small.get_vocab_size() < 1000
    assert "instead of 1000" in caplog.text


def test_published_json_vocabularies_load(data_root: Path, tmp_path: Path) -> None:
    found = sorted((data_root / "tokenizers").glob("*.json*")) if (data_root / "tokenizers").is_dir() else []
    if not found:
        pytest.skip(f"no tokenizer JSON under {data_root}")
    for path in found:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (tmp_path / "tokenizer.json").write_bytes(content)
        loaded = tokenizers_.load(tmp_path)
        ids = loaded.encode("a published vocabulary").ids
        assert max(ids) < loaded.get_vocab_size()
        assert "vocabulary" in loaded.decode(ids)
