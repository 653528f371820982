"""The last stage of pretraining: longer sequences, more of them from long documents.

```python
model = models.extend_context(model, factor=40)
for stage in DEEPSEEK_STAGES:
    train(model, next_token, upsample_long(data, stage.seq_len, share=0.5), stage.config(lr=2.4e-5), out=…)
```

A run of `train` has one sequence length, so every stage is a run of its own, which starts with a fresh optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.mixture import Mixture
from bloomery.corpus.packing import TokenWindows
from bloomery.train.config import Phase, TrainConfig


@dataclass(frozen=True, kw_only=True)
class ContextStage:
    """So many optimiser steps at one sequence length."""

    seq_len: int
    steps: int
    batch_size: int

    def config(self, lr: float, **options: Any) -> TrainConfig:
        """The stage as a run with a constant learning rate `lr`, which the first twentieth of it warms up to.

        `options` are further fields of `TrainConfig`.
        """
        tokens = self.steps * self.batch_size * self.seq_len
        phase = Phase(tokens=tokens, lr=lr, schedule="constant", warmup_tokens=tokens // 20)
        return TrainConfig(phases=[phase], seq_len=self.seq_len, batch_size=self.batch_size, **options)


# arXiv:2406.11931 §3.2; the learning rate is not published.
DEEPSEEK_STAGES = (
    ContextStage(seq_len=32_768, steps=1_000, batch_size=1_152),
    ContextStage(seq_len=131_072, steps=1_000, batch_size=288),
)


def upsample_long(data: TokenWindows, longer_than: int, share: float) -> Mixture:
    """Training rows of which `share` come from documents of more than `longer_than` tokens and the rest from all.

    The paper says that long documents are upsampled, not by how much. The long documents are copied in memory.

    Raises:
        DataError: no document is so long.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share={share}", where="upsample_long", fix="between 0 and 1")
    sizes = np.diff(data.boundaries, append=data.n_tokens)
    chosen = np.flatnonzero(sizes > longer_than)
    if not len(chosen):
        what = f"the longest document has {int(sizes.max())} tokens, none more than {longer_than}"
        raise DataError(what, where=data.name, fix="use longer documents (whole repositories) or a lower bound")
    tokens = np.concatenate([data.tokens[data.boundaries[i] : data.boundaries[i] + sizes[i]] for i in chosen])
    begins = np.cumsum(sizes[chosen]) - sizes[chosen]
    n_bytes = round(data.bytes_per_token * len(tokens))
    long = TokenWindows(tokens, begins, n_bytes, f"documents of more than {longer_than} tokens")
    return Mixture({"long": long, "all": data}, {"long": share, "all": 1 - share})
