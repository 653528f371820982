"""Our training of fastText classifiers against the fastText library: weights, files, predictions, accuracy."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from bloomery.corpus import fasttext_file
from bloomery.corpus.fasttext_bin import FastTextModel, FastTextScorer, one_line
from bloomery.corpus.fasttext_file import DenseMatrix
from bloomery.corpus.fasttext_train import NEGATIVE, POSITIVE, Hyperparameters, Trained, _encode, fit, train

fasttext = pytest.importorskip("fasttext")

SMALL = Hyperparameters(dim=10, bucket=1_000, epoch=3, lr=0.5)


def example_texts(seed: int, count: int = 300, overlap: float = 0.7) -> dict[str, list[str]]:
    """Two kinds of text that share most words; only pairs of words tell half of them apart."""
    rng = random.Random(seed)
    shared = [f"wört{i}" for i in range(80)]
    own = {POSITIVE: [f"good{i}" for i in range(40)], NEGATIVE: [f"bad{i}" for i in range(40)]}
    texts: dict[str, list[str]] = {}
    for label, words in own.items():
        texts[label] = []
        for _ in range(count):
            length = rng.randrange(3, 40)
            texts[label].append(
                " ".join(rng.choice(shared if rng.random() < overlap else words) for _ in range(length))
            )
    return texts


def library_model(path: Path, lines: list[tuple[str, str]], parameters: Hyperparameters, **changes: object) -> object:
    path.write_text("".join(f"{label} {text}\n" for label, text in lines), "utf-8")
    options = {"dim": parameters.dim, "wordNgrams": parameters.word_ngrams, "bucket": parameters.bucket}
    options |= {"epoch": parameters.epoch, "lr": parameters.lr, "minCount": parameters.min_count, "verbose": 0}
    return fasttext.train_supervised(input=str(path), **{"thread": 1, **options, **changes})


@pytest.mark.parametrize(("word_ngrams", "min_count"), [(2, 1), (2, 3), (3, 4)])
def test_weights_are_those_of_the_library(tmp_path: Path, word_ngrams: int, min_count: int) -> None:
    # One thread of the library leaves most of the start as the system gave it: zero, if larger than 32 MiB.
    parameters = Hyperparameters(bucket=90_000, epoch=8, lr=1.0, word_ngrams=word_ngrams, min_count=min_count)
    texts = example_texts(word_ngrams, 120)
    lines = [
        (label, text) for pair in zip(*texts.values(), strict=True) for label, text in zip(texts, pair, strict=True)
    ]
    start = library_model(tmp_path / "lines", lines, parameters, lr=0.0)
    start.save_model(str(tmp_path / "start.bin"))
    file = fasttext_file.read(tmp_path / "start.bin")
    object.__setattr__(file, "input", DenseMatrix(file.input.values.copy()))
    object.__setattr__(file, "output", DenseMatrix(np.zeros_like(file.output.values)))
    encoded = _encode(file, texts, 0.0, 0, tmp_path, quiet=True)
    order = np.arange(len(lines)).reshape(2, -1).T.ravel()  # the lines of the file: one label and the other in turns
    fit(file, encoded, order, parameters)
    theirs = library_model(tmp_path / "lines", lines, parameters)
    assert theirs.get_words() == [word.decode() for word in file.words]
    np.testing.assert_allclose(file.output.values, theirs.get_output_matrix(), atol=2e-5)
    np.testing.assert_allclose(file.input.values, theirs.get_input_matrix(), atol=2e-5)
    assert np.abs(file.output.values).max() > 0.3


def test_the_library_reads_our_file_and_predicts_the_same(tmp_path: Path) -> None:
    texts = example_texts(7)
    trained = train(texts, SMALL, seed=1)
    trained.save(tmp_path / "model.bin")
    theirs = fasttext.load_model(str(tmp_path / "model.bin"))
    ours = FastTextModel(tmp_path / "model.bin")
    assert theirs.get_labels() == ours.labels
    assert (theirs.get_dimension(), theirs.f.getArgs().wordNgrams, theirs.f.getArgs().bucket) == (10, 2, 1_000)
    for text in [*texts[POSITIVE][:50], *texts[NEGATIVE][:50], "", "unknown", "__label__hq good1"]:
        found = dict(zip(*theirs.predict(text, k=2), strict=True))
        for label, probability in zip(ours.labels, ours.predict([text])[0], strict=True):
            assert abs(found[label] - probability) < 1e-5
    theirs.save_model(str(tmp_path / "theirs.bin"))
    assert (tmp_path / "theirs.bin").read_bytes() == (tmp_path / "model.bin").read_bytes()


def test_as_accurate_as_the_library(tmp_path: Path) -> None:
    texts = example_texts(3, 1_500, overlap=0.9)
    training = {label: some[:1_000] for label, some in texts.items()}
    test = [(label, text) for label, some in texts.items() for text in some[1_000:]]
    trained = train(training, SMALL, held_out=0.0)
    lines = [(label, text) for label, some in training.items() for text in some]
    random.Random(0).shuffle(lines)
    theirs = library_model(tmp_path / "lines", lines, SMALL, thread=12)
    right = {"ours": 0, "theirs": 0}
    for label, text in test:
        right["ours"] += trained.model.labels[int(trained.model.predict([text])[0].argmax())] == label
        right["theirs"] += theirs.predict(text)[0][0] == label
    assert right["ours"] >= right["theirs"] - 0.01 * len(test)
    assert right["theirs"] > 0.75 * len(test)


def test_held_out_scores_are_those_of_the_saved_file(tmp_path: Path) -> None:
    texts = {label: [text.replace(" ", "\n", 2) for text in some] for label, some in example_texts(5).items()}
    trained: Trained = train(texts, SMALL, held_out=0.2)
    assert trained.report["accuracy"] > 0.9
    assert trained.report["auc"] > 0.95
    assert 60 < trained.report["held_out"] < 180
    trained.save(tmp_path / "model.bin")
    scores = FastTextScorer.load(tmp_path / "model.bin").score(texts[POSITIVE])
    library = fasttext.load_model(str(tmp_path / "model.bin"))
    for text, score in zip(texts[POSITIVE][:40], scores, strict=False):
        labels, (probability, *_) = library.predict(one_line(text))
        assert score == pytest.approx(probability if labels[0] == POSITIVE else 1 - probability, abs=1e-5)
