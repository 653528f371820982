"""Looped decoders where a decoder is expected: the training loop, held-out loss, generation, speculation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bloomery.core.errors import BloomeryError
from bloomery.corpus.bytes_stream import ByteStream
from bloomery.generate import generate, stream
from bloomery.models import DecoderConfig, LoopedConfig, LoopedDecoder, inner_thinking, ringformer
from bloomery.train import Phase, TrainConfig, held_out, next_token, train

TEXT = "the quick brown fox jumps over the lazy dog; the dog sleeps. " * 40


def sizes(blocks: int, vocab: int = 257) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab, dim=32, n_layers=blocks, n_heads=2, n_kv_heads=2, head_dim=16, ffn_dim=64, max_positions=64,
        init="fan_in",
    )  # fmt: skip


LAYOUTS = {
    "ring": ringformer(sizes(1), 3, 4, std=0.02, norm_place="pre"),
    "itt": inner_thinking(sizes(2), [1, 3], 0.5),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trains_and_is_evaluated_as_a_decoder(layout: str, tmp_path: Any) -> None:
    model, data = LoopedDecoder(LAYOUTS[layout]), ByteStream([TEXT])
    config = TrainConfig(
        phases=[Phase(tokens=8_000, lr=5e-3, warmup_tokens=800)], seq_len=32, batch_size=4, log_every=5, seed=1
    )
    train(model, next_token, data, config, out=tmp_path, quiet=True)
    after = held_out(model, data, seq_len=32)
    assert after.nats_per_token < 0.6 * math.log(257)
    again = LoopedDecoder(LAYOUTS[layout])  # a finished run is taken up: weights and routers' quantiles come back
    train(again, next_token, data, config, out=tmp_path, quiet=True)
    assert held_out(again, data, seq_len=32).nats == after.nats
    if layout == "itt":
        shares = [r.chosen.float().mean() for r in again.eval()(torch.from_numpy(_window(data))).routes]
        assert all(0.25 < share < 0.75 for share in shares)


def _window(data: ByteStream) -> Any:
    return next(iter(data.windows(63)))["tokens"].astype("int64")[None]


def calibrated(layout: LoopedConfig, vocab: int) -> LoopedDecoder:
    config = LoopedConfig(
        decoder=DecoderConfig.from_dict(layout.decoder.to_dict() | {"vocab_size": vocab}), loops=layout.loops
    )
    model = LoopedDecoder(config, torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "routers" in name or "signals" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    for seed in range(5):
        model(torch.randint(vocab, (4, 32), generator=torch.Generator().manual_seed(seed)))
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generation_equals_recomputation(layout: str, tokenizer: Tokenizer) -> None:
    """Greedy, in a padded batch and left in training mode: `generate` switches to thresholds by itself."""
    model = calibrated(LAYOUTS[layout], tokenizer.get_vocab_size()).train()
    prompts = ["the quick", "a", "dogs sleep over the"]
    done = generate(model, tokenizer, prompts, max_new_tokens=8, eos=[])  # type: ignore[arg-type]
    assert model.training
    model.eval()
    for prompt, completion in zip(prompts, done, strict=True):
        ids = tokenizer.encode(prompt).ids
        for token in completion.tokens:
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    pieces = stream(model, tokenizer, prompts[0], max_new_tokens=8, eos=[])  # type: ignore[arg-type]
    assert "".join(pieces) == done[0].text


def test_a_looped_decoder_with_less_effort_drafts_for_itself(tokenizer: Tokenizer) -> None:
    model = calibrated(LAYOUTS["itt"], tokenizer.get_vocab_size()).eval()
    draft = calibrated(LAYOUTS["itt"], tokenizer.get_vocab_size()).eval()
    draft.load_state_dict(model.state_dict())
    draft.set_effort(times=[1, 1])
    plain = generate(model, tokenizer, ["the lazy"], max_new_tokens=12, eos=[])  # type: ignore[arg-type]
    fast = generate(model, tokenizer, ["the lazy"], max_new_tokens=12, eos=[], draft=draft)  # type: ignore[arg-type]
    assert fast[0].tokens == plain[0].tokens
    assert fast[0].acceptance is not None


def test_generation_without_thresholds_is_refused(tokenizer: Tokenizer) -> None:
    model = LoopedDecoder(inner_thinking(sizes(2), [1, 3], 0.5))
    with pytest.raises(BloomeryError, match="no threshold yet"):
        generate(model, tokenizer, ["the"], max_new_tokens=2, eos=[])  # type: ignore[arg-type]
