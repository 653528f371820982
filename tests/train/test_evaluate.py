from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloomery import checkpoint
from bloomery.core.errors import EmptyError
from bloomery.models.decoder import Decoder, DecoderConfig
from bloomery.train import Phase, TrainConfig, held_out, next_token, train

CONFIG = DecoderConfig(vocab_size=300, dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=24)


class Text:
    """Windows of one stream of tokens in documents, as a packed corpus gives them."""

    n_bytes = 1000

    def __init__(self, documents: list[int]) -> None:
        self.documents = np.repeat(np.arange(len(documents)), documents)
        self.tokens = np.random.default_rng(0).integers(0, 300, len(self.documents))

    def windows(self, seq_len: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.tokens) - 1, seq_len):
            piece = slice(start, start + seq_len + 1)
            yield {"tokens": self.tokens[piece], "documents": self.documents[piece]}


def test_every_token_but_a_documents_first_counts_once() -> None:
    model, text = Decoder(CONFIG), Text([17, 30, 1, 12])
    model.train()
    measured = held_out(model, text, seq_len=8, batch_size=3)
    assert model.training
    assert measured.tokens == 60 - 4
    total = 0.0
    for window in text.windows(8):
        rows = {name: torch.as_tensor(values)[None] for name, values in window.items()}
        total += next_token(model.eval(), rows)[0].item()
    assert measured.nats == pytest.approx(total, rel=1e-5)
    assert measured.nats_per_token == pytest.approx(total / 56, rel=1e-5)
    assert measured.nats_per_byte == pytest.approx(total / 1000, rel=1e-5)
    assert measured.values() == {"nats_per_token": measured.nats_per_token, "nats_per_byte": measured.nats_per_byte}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    model, text = Decoder(CONFIG).double(), Text([64, 9])
    expected = held_out(model, text, seq_len=10, batch_size=7)
    assert held_out(model, text, seq_len=10, batch_size=batch_size).nats == pytest.approx(expected.nats, rel=1e-12)


def test_an_uninformed_model_pays_the_logarithm_of_the_vocabulary() -> None:
    model = Decoder(CONFIG)
    torch.nn.init.zeros_(model.head_weight)
    assert held_out(model, Text([50]), seq_len=16).nats_per_token == pytest.approx(math.log(300), rel=1e-5)


def test_nothing_to_predict_is_an_error() -> None:
    with pytest.raises(EmptyError, match="no token to predict"):
        held_out(Decoder(CONFIG), Text([1, 1, 1]), seq_len=4)


def test_a_packed_corpus_trains_a_decoder(tmp_path: Path) -> None:
    """The whole chain: text, tokenizer, pack, train on it with evaluation, the loss on it falls."""
    from bloomery.corpus import packing, tokenizer

    texts = [f"the {animal} sat on the {thing}" for animal in ("cat", "dog", "owl") for thing in ("mat", "log", "oak")]
    tok = tokenizer.train(texts * 4, vocab_size=300)
    packed = packing.pack(texts * 4, tok, tmp_path / "pack", quiet=True)
    model = Decoder(CONFIG)
    logged: list[dict[str, float]] = []

    def evaluate(model: Any, step: int) -> dict[str, float]:
        return held_out(model, packed, seq_len=24).values()

    def log(step: int, **values: float) -> None:
        logged.extend([values] if "nats_per_byte" in values else [])

    start = held_out(model, packed, seq_len=24)
    config = TrainConfig(
        phases=[Phase(tokens=24 * 8 * 60, lr=0.01, warmup_tokens=24 * 8 * 5)], seq_len=24, batch_size=8, eval_every=5760
    )
    result = train(model, next_token, packed, config, evaluate=evaluate, log=log, quiet=True)
    assert len(logged) == 2
    assert result.evaluation == logged[-1]
    assert result.evaluation["nats_per_byte"] < start.nats_per_byte / 3
    assert logged[-1]["nats_per_byte"] < logged[0]["nats_per_byte"]


class Windows:
    """Random tokens in packed documents, addressed by step."""

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, np.ndarray]:
        tokens = np.random.default_rng([seed, step]).integers(0, 300, (batch_size, seq_len + 1))
        return {"tokens": tokens, "documents": np.cumsum(tokens < 20, axis=1)}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_is_the_same_training(tmp_path: Path) -> None:
    losses: dict[bool, list[float]] = {False: [], True: []}
    for compiled, seen in losses.items():
        config = TrainConfig(
            phases=[Phase(tokens=32 * 4 * 8, lr=1e-2)], seq_len=32, batch_size=4, eval_every=400, compile=compiled
        )
        after = lambda step, values, seen=seen: seen.append(values["loss"])  # noqa: E731
        model = Decoder(CONFIG)
        train(model, next_token, Windows(), config, out=tmp_path / str(compiled), after_step=[after], quiet=True)
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)
    other = Decoder(CONFIG)  # the checkpoint of a compiled model is that of the model
    checkpoint.load(tmp_path / "True" / "checkpoints" / "step-00000008", {"model": other})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_decoder_resumes_bit_for_bit(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, values: Any) -> None:
        if step == 6:
            raise Stop

    config = TrainConfig(phases=[Phase(tokens=16 * 4 * 8, lr=0.01)], seq_len=16, batch_size=4, checkpoint_every=4)
    straight, resumed = Decoder(CONFIG), Decoder(CONFIG)
    train(straight, next_token, Windows(), config, quiet=True)
    with pytest.raises(Stop):
        train(Decoder(CONFIG), next_token, Windows(), config, out=tmp_path, after_step=[stop], quiet=True)
    train(resumed, next_token, Windows(), config, out=tmp_path, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
