"""The stages that follow a stretched context: their length, and the share of long documents in their rows."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.bytes_stream import ByteStream
from bloomery.models import Decoder, DecoderConfig, extend_context
from bloomery.train import next_token, train
from bloomery.train.long_context import DEEPSEEK_STAGES, ContextStage, upsample_long

SHORT, LONG = b"short text. " * 5, b"a much longer text; " * 20  # 62 and 402 tokens with their edges


def corpus() -> ByteStream:
    return ByteStream([SHORT] * 40 + [LONG] + [SHORT] * 40 + [LONG])


def test_the_published_stages():
    tokens = [stage.config(lr=1e-5).phases[0].tokens for stage in DEEPSEEK_STAGES]
    assert tokens == [37_748_736_000, 37_748_736_000]
    config = DEEPSEEK_STAGES[1].config(lr=2e-5, seed=3)
    assert (config.seq_len, config.batch_size, config.seed) == (131_072, 288, 3)
    assert (config.phases[0].schedule, config.phases[0].lr) == ("constant", 2e-5)


def test_long_documents_make_up_their_share_of_the_rows():
    data = corpus()
    mixed = upsample_long(data, longer_than=100, share=0.6)
    rows = mixed.rows(np.arange(65_536), 64, 0)
    assert (rows["source"] == 0).mean() == pytest.approx(0.6, abs=1e-4)  # dealt exactly
    long = rows["tokens"][rows["source"] == 0]
    assert not np.isin(long, list(set(SHORT) - set(LONG))).any()
    other = rows["tokens"][rows["source"] == 1]  # all documents in their own proportion
    assert np.isin(other, list(set(SHORT) - set(LONG))).any(1).mean() > 0.8
    assert mixed.sources["long"].n_documents == 2
    assert mixed.sources["long"].n_bytes == pytest.approx(2 * len(LONG), rel=0.05)


def test_nothing_long_and_shares_that_are_none():
    with pytest.raises(DataError, match="the longest document has 402 tokens, none more than 402"):
        upsample_long(corpus(), longer_than=402, share=0.5)
    for share in (0.0, 1.0, -1):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            upsample_long(corpus(), longer_than=100, share=share)


def test_a_stretched_model_learns_on_longer_sequences():
    config = DecoderConfig(
        vocab_size=257, dim=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, ffn_dim=64, max_positions=32
    )
    stage = ContextStage(seq_len=128, steps=12, batch_size=4)
    losses: list[float] = []
    model = extend_context(Decoder(config), factor=4)
    train(
        model, next_token, upsample_long(corpus(), 128, share=0.5), stage.config(lr=3e-3), quiet=True,
        after_step=[lambda step, values: losses.append(values["loss"])],
    )  # fmt: skip
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 1
