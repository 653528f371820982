"""The small transformer that learns labels: better than chance on new texts, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.core.errors import DataError
from bloomery.train.distil import TransformerScorer

random = np.random.default_rng(0)
KIND = random.random(240) < 0.5
TEXTS = ["".join(random.choice(list("abc " if kind else "xyz "), 24)) for kind in KIND]


def test_it_learns_and_repeats_itself() -> None:
    options = {"dim": 32, "depth": 1, "seq_len": 24, "epochs": 3}
    scorer, again = (TransformerScorer.train(TEXTS[:200], KIND[:200], **options) for _ in range(2))
    found = scorer.score(TEXTS[200:])
    assert found.dtype == np.float32
    assert ((found > 0.5) == KIND[200:]).mean() > 0.9
    assert scorer.fingerprint() == again.fingerprint()
    alone = np.concatenate([scorer.score([text]) for text in TEXTS[200:210]])
    assert found[:10] == pytest.approx(alone, abs=1e-5)  # what stands beside a text in a batch does not matter
    assert scorer.score(["", TEXTS[0]]).shape == (2,)


def test_every_text_needs_a_label() -> None:
    with pytest.raises(DataError, match="labels"):
        TransformerScorer.train(["a"], np.array([0.5, 0.5]))
