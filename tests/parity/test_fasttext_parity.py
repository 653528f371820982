"""Predictions of our fastText reader against the fastText library and against golden scores."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from bloomery.corpus.fasttext_bin import FastTextModel, FastTextScorer

fasttext = pytest.importorskip("fasttext")

TOLERANCE = 1e-6
WORDS = ["alpha", "grün", "日本語", "naïve", "x", "don't", "emoji😀", "co-op", *(f"w{i}" for i in range(300))]
ODD = ["unknown", "ŋŋŋ", "</s>", "__label__L1", "__label__other", "a\0b", "ünk😀😀", "e\u0301", "\u2003"]


def write_training_file(path: Path, labels: int, lines: int = 1200) -> None:
    rng = random.Random(labels)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(lines):
            label = int(labels * rng.random() ** 1.5)
            words = [WORDS[(label * 7 + int(len(WORDS) * rng.random() ** 2)) % len(WORDS)] for _ in range(12)]
            file.write(f"__label__L{label} {' '.join(words)}\n")


def odd_texts() -> list[str]:
    rng = random.Random(1)
    texts = [" ".join(rng.choice(WORDS + ODD) for _ in range(rng.randint(0, 30))) for _ in range(120)]
    return [*texts, "", " ", "\t\r", "x" * 500, "日" * 200, "alpha " * 3000]


def library_predictions(model: object, texts: list[str]) -> np.ndarray:
    """(texts, labels), 0 where the library leaves a label out."""
    labels = model.get_labels()
    table = np.zeros((len(texts), len(labels)), np.float32)
    for row, text in enumerate(texts):
        for label, probability in zip(*model.predict(text, k=-1), strict=True):
            table[row, labels.index(label)] = probability
    return table


# With fewer than eleven threads the library leaves a part of the input matrix uninitialised.
CASES = [
    ("softmax", 1, 0, 0, None),
    ("softmax", 2, 0, 0, None),
    ("softmax", 3, 2, 4, None),
    ("hs", 2, 1, 3, None),
    ("ova", 2, 3, 6, None),
    ("ns", 1, 2, 3, None),
    ("softmax", 2, 2, 3, {"qnorm": True, "cutoff": 600}),
    ("hs", 2, 0, 0, {"qnorm": False, "dsub": 3}),
    ("ova", 1, 2, 4, {"qnorm": True, "dsub": 2, "cutoff": 400}),
]


@pytest.mark.parametrize(("loss", "ngrams", "minn", "maxn", "quantized"), CASES)
def test_predictions_equal_the_library(
    tmp_path: Path, loss: str, ngrams: int, minn: int, maxn: int, quantized: dict | None
) -> None:
    train, saved = tmp_path / "train.txt", str(tmp_path / "model.bin")
    write_training_file(train, labels=5)
    options = {"loss": loss, "wordNgrams": ngrams, "minn": minn, "maxn": maxn}
    model = fasttext.train_supervised(str(train), dim=7, epoch=3, lr=0.3, bucket=1000, thread=12, verbose=0, **options)
    if quantized:
        model.quantize(input=str(train), retrain=False, verbose=0, **quantized)
    model.save_model(saved)
    ours, texts = FastTextModel(saved), odd_texts()
    assert ours.labels == model.get_labels()
    np.testing.assert_allclose(ours.predict(texts), library_predictions(model, texts), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("loss", ["softmax", "hs", "ova"])
@pytest.mark.parametrize("qnorm", [True, False])
def test_quantised_output_equals_the_library(tmp_path: Path, loss: str, qnorm: bool) -> None:
    train, saved = tmp_path / "train.txt", str(tmp_path / "model.ftz")
    write_training_file(train, labels=300, lines=4000)  # quantising the output takes at least 256 labels
    model = fasttext.train_supervised(str(train), loss=loss, dim=8, epoch=2, lr=0.5, thread=12, verbose=0)
    model.quantize(input=str(train), retrain=False, qout=True, qnorm=qnorm, dsub=3, verbose=0)
    model.save_model(saved)
    texts = odd_texts()[::3]
    np.testing.assert_allclose(
        FastTextModel(saved).predict(texts), library_predictions(model, texts), rtol=0, atol=TOLERANCE
    )


def golden_texts(root: Path) -> dict[str, str]:
    with gzip.open(root / "dclm" / "documents.jsonl.gz", "rt", encoding="utf-8") as file:
        return {record["id"]: record["text"] for record in map(json.loads, file)}


def test_golden_quality_scores(golden_root: Path) -> None:
    folder = golden_root / "dclm"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    texts = golden_texts(golden_root)
    rows = [json.loads(line) for line in (folder / "quality.jsonl").read_text("utf-8").splitlines()]
    scores = FastTextScorer.load(folder / "quality_model.bin").score([texts[row["id"]] for row in rows])
    np.testing.assert_allclose(scores, [row["score"] for row in rows], rtol=0, atol=TOLERANCE)
    thresholds = json.loads((folder / "config.json").read_text("utf-8"))["quality_thresholds"]
    for row, score in zip(rows, scores.tolist(), strict=True):
        assert [score >= threshold for threshold in thresholds] == row["keep"]


def test_golden_language_model_equals_the_library(golden_root: Path) -> None:
    path = golden_root / "dclm" / "language_model.bin"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    texts = [text.replace("\n", " ") for text in golden_texts(golden_root).values()]
    expected = library_predictions(fasttext.load_model(str(path)), texts)
    np.testing.assert_allclose(FastTextModel(path).predict(texts), expected, rtol=0, atol=TOLERANCE)
