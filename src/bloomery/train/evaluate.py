"""Held-out loss: every window of a packed corpus once, in nats per token and per byte of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bloomery.core.devices import pick_dtype
from bloomery.core.errors import EmptyError
from bloomery.metrics import text
from bloomery.train.objectives import next_token
from bloomery.train.step import Batch, Objective


class Windows(Protocol):
    """A corpus that can be read from end to end."""

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all its text."""

    def windows(self, seq_len: int) -> Iterable[Mapping[str, Any]]:
        """Windows of up to seq_len + 1 tokens in order, each beginning with the last token of the one before."""


@dataclass(frozen=True)
class HeldOut:
    """The loss of a model on a text."""

    nats: float  # summed over all targets
    tokens: int  # targets
    bytes: int  # UTF-8 bytes of the text they spell

    @property
    def nats_per_token(self) -> float:
        """Mean loss in nats; comparable only between models of one tokenizer."""
        return self.nats / self.tokens

    @property
    def nats_per_byte(self) -> float:
        """Loss in nats over bytes of text; comparable between tokenizers."""
        return text.nats_per_byte(self.nats, self.bytes)

    def values(self) -> dict[str, float]:
        """What `evaluate` callbacks log."""
        return {"nats_per_token": self.nats_per_token, "nats_per_byte": self.nats_per_byte}


def held_out(
    model: nn.Module,
    data: Windows,
    *,
    seq_len: int,
    batch_size: int = 16,
    objective: Objective = next_token,
    precision: str = "auto",
) -> HeldOut:
    """The model's loss over all windows of `data`, without gradients and in eval mode (restored afterwards).

    The windows overlap by one token, so every token but a document's first (its begin token) is a target exactly once,
    the end token included. At the left edge of a window the model sees nothing of the document's earlier text.
    """
    device = next(model.parameters()).device
    dtype = pick_dtype(precision, device)
    training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            for batch in _batches(data.windows(seq_len), batch_size, device):
                loss, metrics = objective(model, batch, torch.Generator(device))
                nats, tokens = nats + float(loss), tokens + int(metrics["weight"])
    finally:
        model.train(training)
    if tokens == 0:
        raise EmptyError("the held-out text has no token to predict", fix="hold out more documents")
    return HeldOut(nats, tokens, data.n_bytes)


def _batches(windows: Iterable[Mapping[str, Any]], batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Up to `batch_size` consecutive windows of one length, stacked; only these are in memory."""
    for _, run in groupby(windows, key=lambda window: len(window["tokens"])):
        while chunk := list(islice(run, batch_size)):
            yield {k: torch.as_tensor(np.stack([w[k] for w in chunk])).to(device) for k in chunk[0]}
