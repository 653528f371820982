"""The linear scorer: features by definition, what it learns, files, and the scoring step."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import quality
from bloomery.corpus.documents import from_texts
from bloomery.corpus.quality import LinearScorer, Score, Scorer, features

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def corpus(seed: int, n: int = 150) -> tuple[list[str], list[str]]:
    """Sentences in order, and the same sentences with their words shuffled."""
    rng = random.Random(seed)
    words = ["the", "small", "cat", "sat", "on", "a", "red", "mat", "and", "then", "slept", "well"]
    good = [" ".join(words[i % 12] for i in range(rng.randint(0, 11), 30)) + "." for _ in range(n)]
    bad = [" ".join(rng.sample(text.split(), len(text.split()))) for text in good]
    return good, bad


@pytest.fixture(scope="module")
def scorer() -> LinearScorer:
    return LinearScorer.train(*corpus(0), bits=16)


def words_of(text: str) -> list[bytes]:
    """The tokens by their definition, one byte at a time."""
    tokens: list[bytes] = []
    last = "space"
    for byte in text.encode():
        character = chr(byte)
        is_word = byte >= 128 or (character.isascii() and character.isalnum())
        kind = "space" if byte <= 32 or byte == 127 else "word" if is_word else "punctuation"
        character = b"0" if character in "0123456789" else bytes([byte])
        if kind != "space":
            if kind == last:
                tokens[-1] += character
            else:
                tokens.append(character)
        last = kind
    return tokens


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_features_are_the_word_and_pair_counts(texts: list[str]) -> None:
    rows = features(texts, 28)
    assert len(rows.starts) == len(texts) + 1
    for i, text in enumerate(texts):
        words = words_of(text)
        counts = Counter(words) + Counter(pairwise(words))
        values = rows.values[rows.starts[i] : rows.starts[i + 1]]
        expected = np.array([1 + math.log(count) for count in counts.values()])
        np.testing.assert_allclose(sorted(values), sorted(expected / np.linalg.norm(expected)), rtol=1e-6)


@given(st.lists(TEXT, max_size=6))
def test_scores_do_not_depend_on_the_batch(scorer: LinearScorer, texts: list[str]) -> None:
    together = scorer.score(texts)
    assert together.shape == (len(texts),)
    assert together.dtype == np.float32
    assert together.tolist() == [scorer.score([text])[0] for text in texts]


def test_chunks_do_not_change_scores(scorer: LinearScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = corpus(5, 40)[0]
    whole = scorer.score(texts)
    monkeypatch.setattr(quality, "CHUNK_CHARS", 100)
    assert scorer.score(texts).tolist() == whole.tolist()


def test_word_order_is_learned(scorer: LinearScorer) -> None:
    good, bad = corpus(1)
    scores, labels = scorer.score([*good, *bad]), np.repeat([1, 0], len(good))
    assert scorer.report["auc"] > 0.95
    assert ((scores > 0.5) == labels).mean() > 0.95
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_probabilities_are_calibrated() -> None:
    rng = random.Random(0)
    texts = {True: [], False: []}
    for _ in range(4000):  # "maybe" texts are good three times out of four, and nothing else tells
        kind = rng.choice(["good", "maybe", "bad"])
        is_good = {"good": 0.95, "maybe": 0.75, "bad": 0.1}[kind] > rng.random()
        texts[is_good].append(f"{kind} {rng.choice('abcdefgh')}")
    scorer = LinearScorer.train(texts[True], texts[False], bits=12)
    scores = scorer.score(["good a", "maybe a", "bad a"])
    np.testing.assert_allclose(scores, [0.95, 0.75, 0.1], atol=0.08)


def test_training_is_deterministic() -> None:
    good, bad = corpus(2, 40)
    first, same = (LinearScorer.train(good, bad, bits=12, seed=1) for _ in range(2))
    assert first.bias == same.bias
    assert np.array_equal(first.weights, same.weights)
    assert first.fingerprint() == same.fingerprint() != LinearScorer.train(good, bad, bits=12, seed=2).fingerprint()


def test_save_and_load(scorer: LinearScorer, tmp_path: Path) -> None:
    scorer.save(tmp_path / "scorer")
    loaded = LinearScorer.load(tmp_path / "scorer")
    texts = corpus(3, 20)[1]
    assert loaded.score(texts).tolist() == scorer.score(texts).tolist()
    assert (loaded.name, loaded.report) == (scorer.name, scorer.report)
    assert isinstance(loaded, Scorer)


def test_damaged_files(scorer: LinearScorer, tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    with pytest.raises(DataError, match="no such file"):
        LinearScorer.load(folder)
    scorer.save(folder)
    about = json.loads((folder / "scorer.json").read_text())
    (folder / "scorer.json").write_text(json.dumps(about | {"bits": 10}))
    with pytest.raises(DataError, match="do not fit"):
        LinearScorer.load(folder)
    (folder / "scorer.json").write_text(json.dumps(about | {"version": 99}))
    with pytest.raises(DataError, match="not a linear scorer"):
        LinearScorer.load(folder)
    (folder / "scorer.json").write_text(json.dumps(about))
    (folder / "weights.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(DataError, match="cannot read the weights"):
        LinearScorer.load(folder)


def test_bad_training_sets() -> None:
    good, bad = corpus(4, 20)
    with pytest.raises(DataError, match="3 negative texts"):
        LinearScorer.train(good, bad[:3])
    with pytest.raises(ConfigError, match="bits = 40"):
        LinearScorer.train(good, bad, bits=40)
    with pytest.raises(ConfigError, match="epochs = 0"):
        LinearScorer.train(good, bad, epochs=0)


def test_score_step(scorer: LinearScorer) -> None:
    good, bad = corpus(6, 10)
    step, batch = Score(scorer), from_texts([*good, *bad, ""])
    scored = step(batch)
    assert step.writes == ("score_quality",)
    assert scored.column("score_quality").to_pylist() == scorer.score([*good, *bad, ""]).tolist()
    assert step(batch.slice(0, 0)).column("score_quality").to_pylist() == []
    assert step.fingerprint() == Score(scorer).fingerprint()


class Broken:
    """A scorer whose second score is not a number."""

    name = "broken"

    def score(self, texts: list[str]) -> np.ndarray:
        return np.array([np.nan if i == 1 else 0.5 for i in range(len(texts))])


def test_a_score_that_is_no_number_names_the_document() -> None:
    with pytest.raises(DataError, match="document second: the scorer broken"):
        Score(Broken())(from_texts(["a", "b", "c"], ids=["first", "second", "third"]))
