"""DCLM's competition scales (arXiv:2406.11794, §3.2 and table 1): only the data differs between two entries.

A scale fixes model, tokens and every hyperparameter, so that two trainings at one scale compare two corpora. Tokens are
20 times the parameters times the number behind the name (Chinchilla's optimum, once or twice). In a training file it is
one line: `scale: dclm-400m-1x`.

Differs from the reference: embeddings and norms do not decay (there embeddings do), and the run is in bfloat16 by this
trainer's rules. `params` is the published count, which leaves the scales of the norms of queries and keys out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError, nearest
from bloomery.train.config import Phase, TrainConfig

SEQ_LEN = 2048
VOCAB = 50_432  # GPT-NeoX's tokenizer, padded
TOKENS_PER_PARAMETER = 20
FINAL_LR = 3e-5
SEED = 124


@dataclass(frozen=True)
class Scale:
    """One row of the table. `pool_tokens`: size of the raw pool that the competition's filtering track starts from."""

    model: str
    params: int
    multiplier: int
    lr: float
    weight_decay: float
    warmup: int  # optimiser steps
    batch_size: int  # sequences of 2,048 tokens
    pool_tokens: int

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return TOKENS_PER_PARAMETER * self.params * self.multiplier

    def config(self) -> TrainConfig:
        """The schedule: linear warm-up, then a cosine to 3e-5."""
        warmup = self.warmup * self.batch_size * SEQ_LEN
        phase = Phase(tokens=self.tokens, lr=self.lr, schedule="cosine", warmup_tokens=warmup, final_lr=FINAL_LR)
        return TrainConfig(
            phases=[phase],
            seq_len=SEQ_LEN,
            batch_size=self.batch_size,
            betas=(0.9, 0.95),
            weight_decay=self.weight_decay,
            clip=1.0,
            seed=SEED,
        )

    def job(self) -> dict[str, Any]:
        """`model` and `train` of a training file."""
        return {"model": {"preset": self.model, "vocab_size": VOCAB}, "train": encode(self.config())}


SCALES = {
    "dclm-400m-1x": Scale("dclm-400m", 411_616_256, 1, 3e-3, 0.033, 2_000, 512, 469 * 10**9),
    "dclm-1b-1x": Scale("dclm-1b", 1_439_795_200, 1, 3e-3, 0.033, 5_000, 256, 1_640 * 10**9),
    "dclm-3b-1x": Scale("dclm-3b", 2_795_932_160, 1, 3e-3, 0.033, 5_000, 256, 3_180 * 10**9),
    "dclm-7b-1x": Scale("dclm-7b", 6_889_410_560, 1, 2e-3, 0.05, 5_000, 2_048, 7_850 * 10**9),
    "dclm-7b-2x": Scale("dclm-7b", 6_889_410_560, 2, 2e-3, 0.05, 5_000, 2_048, 15_700 * 10**9),
}


def scale(name: str) -> Scale:
    """The scale of that name; ConfigError with the nearest one there is."""
    if name not in SCALES:
        raise ConfigError(f"unknown scale {name!r}", where="scale", fix=nearest(name, SCALES))
    return SCALES[name]
