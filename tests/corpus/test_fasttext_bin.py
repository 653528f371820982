"""The fastText reader on files written by hand: hashing, features, damaged and contradictory files."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.fasttext_bin import FastTextModel, FastTextScorer, fnv1a

DIM, BUCKET, WORDS, LABELS = 3, 11, ["</s>", "good", "bad"], ["__label__cc", "__label__hq"]


def model_bytes(
    *,
    words: list[str] = WORDS,
    labels: list[str] = LABELS,
    magic: int = 793712314,
    version: int = 12,
    model: int = 3,
    loss: int = 3,
    bucket: int = BUCKET,
    rows: int | None = None,
    pruned: int = -1,
) -> bytes:
    """A small supervised model with word pairs; the rows are those of a fixed random matrix."""
    random = np.random.default_rng(0)
    out = struct.pack("<ii", magic, version)
    out += struct.pack("<12id", DIM, 5, 5, 1, 5, 2, loss, model, bucket, 0, 0, 100, 1e-4)
    out += struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), 100, pruned)
    for kind, entries in enumerate((words, labels)):
        for entry in entries:
            out += entry.encode() + b"\0" + struct.pack("<qb", 10 - kind, kind)
    rows = len(words) + bucket if rows is None else rows
    out += b"\0" + struct.pack("<qq", rows, DIM) + random.normal(size=(rows, DIM)).astype("<f4").tobytes()
    out += b"\0" + struct.pack("<qq", len(labels), DIM)
    return out + random.normal(size=(len(labels), DIM)).astype("<f4").tobytes()


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(model_bytes())
    return path


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_hash_of_many_equals_the_definition(tokens: list[bytes]) -> None:
    def one(token: bytes) -> int:
        h = 2166136261
        for byte in token:
            h = ((h ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
        return h

    assert fnv1a(tokens).tolist() == [one(token) for token in tokens]


def test_features_follow_the_definition(model_file: Path) -> None:
    model = FastTextModel(model_file)
    ids, counts = model.features(["good bad unknown", "bad\n", "</s> good", "__label__hq good"])
    assert counts.tolist() == [6, 3, 1, 3]  # words in the vocabulary, and a pair for each neighbouring two

    def pair(a: bytes, b: bytes) -> int:
        first, second = (int(np.int32(np.uint32(h))) for h in fnv1a([a, b]).tolist())
        return len(WORDS) + ((first * 116049371 + second) & (2**64 - 1)) % BUCKET

    expected = [1, 2, 0, pair(b"good", b"bad"), pair(b"bad", b"unknown"), pair(b"unknown", b"</s>")]
    assert ids[:6].tolist() == expected
    assert ids[6:9].tolist() == [2, 0, pair(b"bad", b"</s>")]
    assert ids[9] == 0  # the line ends at the end-of-line token in the text
    assert ids[10:].tolist() == [1, 0, pair(b"good", b"</s>")]  # a label in the text is not text


def test_predictions_do_not_depend_on_the_batch(model_file: Path) -> None:
    model = FastTextModel(model_file)
    texts = ["good " * n + "bad" for n in range(40)]
    together = model.predict(texts)
    assert np.array_equal(together, np.concatenate([model.predict([text]) for text in texts]))
    assert model.predict([]).shape == (0, 2)


def test_scorer_joins_lines_and_gives_the_probability_of_the_positive_label(model_file: Path) -> None:
    scorer = FastTextScorer.load(model_file)
    probabilities = scorer.model.predict(["good bad"])[0]
    top = int(probabilities.argmax())
    expected = probabilities[top] if top == 1 else 1 - probabilities[top]
    assert scorer.score(["  good\r\nbad\n"]) == pytest.approx([expected], abs=1e-7)
    other = FastTextScorer.load(model_file, positive_label="__label__cc")
    assert scorer.score(["good"]) + other.score(["good"]) == pytest.approx([1.0])
    assert pickle.loads(pickle.dumps(scorer)).score(["bad"]) == scorer.score(["bad"])


def test_scorer_is_known_by_the_bytes_of_its_file(model_file: Path, tmp_path: Path) -> None:
    first = FastTextScorer.load(model_file)
    assert first.score([]).shape == (0,)
    copy = tmp_path / "copy.bin"
    copy.write_bytes(model_file.read_bytes())
    assert FastTextScorer.load(copy).fingerprint() == first.fingerprint()
    copy.write_bytes(model_bytes(bucket=13))
    assert FastTextScorer.load(copy).fingerprint() != first.fingerprint()


def test_scorer_refuses_other_label_sets(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="__label__hq"):
        FastTextScorer.load(model_file, positive_label="__label__high")
    three = tmp_path / "three.bin"
    three.write_bytes(model_bytes(labels=[*LABELS, "__label__x"]))
    with pytest.raises(ConfigError, match="two labels"):
        FastTextScorer.load(three)


def test_every_truncation_is_a_data_error_that_names_the_file(model_file: Path) -> None:
    whole = model_file.read_bytes()
    for size in range(len(whole)):
        model_file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"model\.bin"):
            FastTextModel(model_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": 1}, "not a fastText model"),
        ({"version": 13}, "version 13"),
        ({"model": 1}, "word vectors"),
        ({"loss": 9}, "loss code 9"),
        ({"rows": 5}, "the input matrix has 5 rows"),
        ({"bucket": 0, "rows": 3}, "no hash buckets"),
        ({"pruned": 0}, "pruned"),
        ({"pruned": 2**40}, "pruned buckets needs"),
        ({"words": ["same", "same"]}, "twice"),
    ],
)
def test_contradictory_files(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(model_bytes(**change))
    with pytest.raises(DataError, match=message):
        FastTextModel(path)


@given(st.data())
def test_damaged_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(model_bytes(loss=data.draw(st.sampled_from([1, 2, 3, 4]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(200, len(whole) - 1)))
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.bin"
    path.write_bytes(whole)
    try:
        model = FastTextModel(path)
    except DataError:
        return
    assert model.predict(["good bad thing"]).shape == (1, len(model.labels))


def test_missing_file() -> None:
    with pytest.raises(DataError, match="no such model file"):
        FastTextModel("nowhere.bin")
