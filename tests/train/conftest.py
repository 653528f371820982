"""A model and data small enough to train in milliseconds; neither knows anything of bloomery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

VOCAB = 13


class Toy(nn.Module):
    """Predicts the next token from the present one: an embedding, a norm with bias, a tied or separate head."""

    def __init__(self, dim: int = 8, tied: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(VOCAB, dim)
        self.mix = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(dim, VOCAB, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.mix(self.embed(tokens)))))  # (batch, seq, vocab)


def objective(model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, Any]]:
    """Summed cross-entropy over the tokens that `keep` marks; half of the metrics are tensors, half numbers."""
    tokens, keep = batch["tokens"], batch["keep"][:, 1:]
    logits = model(tokens[:, :-1])
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view_as(keep)
    right = ((logits.argmax(-1) == tokens[:, 1:]) * keep).sum()
    return (each * keep).sum(), {"weight": int(keep.sum()), "accuracy": right}


class Affine:
    """x → (5x + 3) mod 13 from random starts; `keep` marks a different number of targets in every row."""

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        columns = [torch.randint(VOCAB, (batch_size,), generator=generator)]
        for _ in range(seq_len):
            columns.append((5 * columns[-1] + 3) % VOCAB)
        share = torch.rand(batch_size, 1, generator=generator)
        keep = torch.rand(batch_size, seq_len + 1, generator=generator) < 0.2 + 0.8 * share
        return {"tokens": torch.stack(columns, 1), "keep": keep}


@pytest.fixture
def toy() -> Callable[..., Toy]:
    return Toy


@pytest.fixture
def toy_objective() -> Any:
    return objective


@pytest.fixture
def affine() -> Affine:
    return Affine()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
