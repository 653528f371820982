"""Labels are kept, noise is averaged away, and what cannot be learned from is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.llm_selection import LabelCache, distil
from bloomery.corpus.quality import Scorer

random = np.random.default_rng(0)
GOOD, BAD = ["learn", "because", "example", "theorem"], ["click", "buy", "now", "sale"]
KIND = random.random(400) < 0.5
TEXTS = [" ".join(random.choice([*(GOOD if k else BAD), "the", "a", "of", str(i)], 30)) for i, k in enumerate(KIND)]
NOISY = np.where(random.random(400) < 0.8, KIND, ~KIND).astype(float)


def counts(texts: Sequence[str]) -> np.ndarray:
    return np.array([[text.count(word) for word in (*GOOD, *BAD)] for text in texts], dtype=float)


def test_each_text_is_labelled_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def labeler(texts: Sequence[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([len(text) % 10 / 10 for text in texts])

    cache = LabelCache(tmp_path / "labels.jsonl", labeler, identity={"model": "m", "prompt": "p"})
    first = cache([*TEXTS[:50], TEXTS[0]])
    assert len(asked) == 50
    again = LabelCache(tmp_path / "labels.jsonl", labeler, identity={"model": "m", "prompt": "p"})
    assert np.array_equal(again([*TEXTS[:50], TEXTS[0]]), first)
    assert len(asked) == 50
    LabelCache(tmp_path / "labels.jsonl", labeler, identity={"model": "m", "prompt": "another"})(TEXTS[:1])
    assert len(asked) == 51
    path = tmp_path / "labels.jsonl"
    path.write_text(path.read_text()[:-20])  # killed while it wrote
    assert LabelCache(path, labeler, identity={"model": "m", "prompt": "p"})(TEXTS[:50]).tolist() == first[:50].tolist()


@pytest.mark.parametrize("bad", [[1.5], [float("nan")], [0.1, 0.2]])
def test_labels_must_be_numbers_from_0_to_1(tmp_path: Path, bad: list[float]) -> None:
    with pytest.raises(DataError, match="labels"):
        LabelCache(tmp_path / "l", lambda texts: np.array(bad), "x")(["one text"])


@pytest.mark.parametrize("backend", ["linear", "embedding"])
def test_what_is_distilled_is_better_than_the_labels(backend: str) -> None:
    scorer = distil(TEXTS[:300], NOISY[:300], backend=backend, embed=counts, name="judge")
    assert isinstance(scorer, Scorer)
    found = np.asarray(scorer.score(TEXTS[300:])) > 0.5
    assert (found == KIND[300:]).mean() > 0.95 > (NOISY[:300] == KIND[:300]).mean()
    assert scorer.name == "judge"
    same = distil(TEXTS[:300], NOISY[:300], backend=backend, embed=counts, name="judge")
    assert scorer.fingerprint() == same.fingerprint()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "match"),
    [({"backend": "fastext"}, "embedding"), ({"backend": "embedding"}, "embed"), ({"labels": NOISY[:5]}, "labels")],
)
def test_bad_input_is_refused(options: dict[str, Any], match: str) -> None:
    labels = options.pop("labels", NOISY)
    with pytest.raises((ConfigError, DataError), match=match):
        distil(TEXTS, labels, **options)
