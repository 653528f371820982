from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import fasttext_file
from bloomery.corpus.fasttext_bin import FastTextModel
from bloomery.corpus.fasttext_train import NEGATIVE, POSITIVE, Hyperparameters, train

SMALL = Hyperparameters(dim=4, bucket=50, epoch=2, lr=0.5)
TEXTS = {POSITIVE: [f"good words {i}\nand more" for i in range(30)], NEGATIVE: [f"bad stuff {i}" for i in range(40)]}


def test_the_same_texts_and_seed_give_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(TEXTS, SMALL, seed=seed).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_a_file_written_is_the_file_read(tmp_path: Path) -> None:
    trained = train(TEXTS, SMALL, held_out=0.0)
    trained.save(tmp_path / "model.bin")
    file = fasttext_file.read(tmp_path / "model.bin")
    assert file.labels == [b"__label__cc", b"__label__hq"]  # the more frequent one first
    assert file.label_counts.tolist() == [40, 30]
    assert file.word_counts.tolist() == sorted(file.word_counts.tolist(), reverse=True)
    assert file.n_tokens == 30 * 7 + 40 * 5  # words, the end of the line, the label
    assert (file.words, file.args) == (trained.file.words, trained.file.args)
    assert np.array_equal(file.input.rows(np.arange(3)), trained.file.input.rows(np.arange(3)))
    fasttext_file.write(file, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "model.bin").read_bytes()


@pytest.mark.parametrize("name", ["quality_model.bin", "language_model.bin"])
def test_files_of_the_library_are_written_back_byte_by_byte(golden_root: Path, tmp_path: Path, name: str) -> None:
    fasttext_file.write(fasttext_file.read(golden_root / "dclm" / name), tmp_path / name)
    assert (tmp_path / name).read_bytes() == (golden_root / "dclm" / name).read_bytes()


def test_what_is_learned_and_reported() -> None:
    texts = {**TEXTS, "__label__x": [f"third kind {i}" for i in range(20)]}
    trained = train(texts, Hyperparameters(dim=8, bucket=200, epoch=30, lr=0.5), held_out=0.3)
    assert trained.report["accuracy"] == trained.report["auc"] == 1.0
    assert trained.report["loss"] < 0.2
    model = FastTextModel(trained.file)
    assert model.labels[int(model.predict(["bad stuff and __label__hq good"])[0].argmax())] == NEGATIVE
    assert not any(word.startswith(b"__label__") for word in trained.file.words)


def test_labels_in_texts_and_rare_words_are_no_features() -> None:
    texts = {
        label: [f"{text} __label__hq __label__new rare{i}" for i, text in enumerate(some)]
        for label, some in TEXTS.items()
    }
    trained = train(texts, Hyperparameters(dim=4, bucket=50, epoch=1, min_count=15), held_out=0.0)
    assert set(trained.file.words) == {b"</s>", b"good", b"words", b"and", b"more", b"bad", b"stuff"}


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="3 texts of __label__hq"):
        train({POSITIVE: ["a", "b", "c", " "], NEGATIVE: TEXTS[NEGATIVE]}, SMALL, held_out=0)
    with pytest.raises(DataError, match="known word"):
        train(TEXTS, Hyperparameters(dim=4, bucket=50, min_count=1_000, word_ngrams=1))
    with pytest.raises(ConfigError, match="iterator"):
        train({POSITIVE: iter(TEXTS[POSITIVE]), NEGATIVE: TEXTS[NEGATIVE]}, SMALL)
    for examples in ({POSITIVE: ["a"]}, {"hq": ["a"], "cc": ["b"]}):
        with pytest.raises(ConfigError, match="label"):
            train(examples, SMALL)
    for fields in ({"dim": 0}, {"lr": -1.0}, {"bucket": 0}):
        with pytest.raises(ConfigError):
            Hyperparameters(**fields)
    with pytest.raises(ConfigError, match="held_out"):
        train(TEXTS, SMALL, held_out=1.0)
