"""A small byte-level tokenizer and random decoders for it. float64, so that rounding never decides between tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bloomery.models import LoopedDecoder, ringformer
from bloomery.models.config import MLAConfig, MoEConfig
from bloomery.models.decoder import Decoder, DecoderConfig

TEXT = """The model reads tokens and writes tokens. A token is a piece of text: a word, a part of a word, or a byte.
Ein Übergang von Öl zu Glück, naïve café, façade; 日本語の文字 and emoji 🙂🙃 are bytes each. Stop here. STOP."""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Decoder:
    config = DecoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_positions=96,
        init_std=0.5,  # large enough that the next token depends on the whole prompt
    )
    return Decoder(config, torch.Generator().manual_seed(7)).double()


class Scripted(Decoder):
    """A decoder whose every row says the scripted tokens in order, whatever it is asked."""

    def __init__(self, config: DecoderConfig, script: list[int]) -> None:
        super().__init__(config)
        self.script, self.prompt_length = script, 0

    def forward(self, tokens, *, cache, padding=None, **rest):  # type: ignore[no-untyped-def,override]
        output = super().forward(tokens, cache=cache, padding=padding, **rest)
        if cache.length == tokens.shape[1]:
            self.prompt_length = tokens.shape[1]
        said = self.script[cache.length - self.prompt_length]
        output.hidden = torch.zeros_like(output.hidden)
        output.hidden[..., 0] = 1.0
        self.said = said
        return output

    def logits(self, hidden):  # type: ignore[no-untyped-def]
        weight = torch.zeros_like(self.head_weight)
        weight[self.said, 0] = 50.0
        return hidden @ weight.T


@pytest.fixture
def say(tokenizer: Tokenizer):  # type: ignore[no-untyped-def]
    """A model that continues every prompt with the given token ids."""

    def make(script: list[int]) -> Scripted:
        config = DecoderConfig(
            vocab_size=tokenizer.get_vocab_size(),
            dim=8,
            n_layers=1,
            n_heads=1,
            n_kv_heads=1,
            head_dim=8,
            ffn_dim=8,
            max_positions=512,
        )
        return Scripted(config, script)

    return make


ARCHITECTURES = {
    "mla": {
        "mla": MLAConfig(q_rank=None, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=6),
        "head_dim": 12,
        "n_kv_heads": 4,
    },
    "moe": {"moe": MoEConfig(n_experts=6, top_k=2, expert_dim=16, shared_dim=16, first_dense=1)},
    "capped": {"softcap": 5.0, "post_norm": True, "qk_norm": "post_rope", "head_norm": "hidden", "rope_dim": 4},
}


@pytest.fixture(scope="session", params=[*ARCHITECTURES, "ring"])
def any_model(request: pytest.FixtureRequest, model: Decoder) -> Decoder:
    """Decoders whose caches, feed-forward layers and heads differ from the plain one's."""
    if request.param == "ring":
        return LoopedDecoder(ringformer(model.config, 1, 3), torch.Generator().manual_seed(8)).double()
    config = dataclasses.replace(model.config, **ARCHITECTURES[request.param])
    return Decoder(config, torch.Generator().manual_seed(8)).double()
