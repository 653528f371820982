"""From logits to the next token: pure functions on logits of shape (batch, vocab).

The order is fixed and the same as in `transformers`: repetition penalty, temperature, top-k, top-p, min-p, draw.
A draw inverts the cumulative distribution at one uniform number per row, so a row's token depends on its own logits
and its own number only, never on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bloomery.core import seeds
from bloomery.core.errors import ConfigError

TOP_P_CANDIDATES = 512  # enough for nearly every nucleus; the full sort of the vocabulary is the exception


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is picked. The defaults pick the most likely token."""

    temperature: float = 0.0  # 0 = greedy; logits are divided by it otherwise
    top_k: int = 0  # keep the k most likely tokens; 0 = all
    top_p: float = 1.0  # keep the smallest set of tokens with at least this probability; 1 = all
    min_p: float = 0.0  # drop tokens less likely than min_p times the most likely one; 0 = none
    repetition_penalty: float = 1.0  # > 1 discourages tokens of the prompt and of the text so far
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a finite number ≥ 0")
        _check("top_k", self.top_k, self.top_k >= 0, "an integer ≥ 0, where 0 keeps all tokens")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1, where 1 keeps all tokens")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1, where 0 keeps all tokens")
        _check(
            "repetition_penalty",
            self.repetition_penalty,
            0 < self.repetition_penalty < float("inf"),
            "a finite number above 0, where 1 is none",
        )


def sample(
    logits: Tensor, params: SamplingParams, uniforms: Tensor | None = None, seen: Tensor | None = None
) -> Tensor:
    """The next token of every row: (batch, vocab) logits -> (batch,) int64.

    `uniforms` (batch,) float64 in [0, 1) is needed unless greedy, `seen` (batch, vocab) bool (tokens of the prompt and
    of the text so far) when there is a repetition penalty.
    """
    logits = adjust(logits, params, seen)
    if params.temperature == 0.0:
        return logits.argmax(-1)
    assert uniforms is not None, "sampling needs one uniform number per row"
    return draw(logits, uniforms)


def adjust(logits: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """Logits (batch, vocab) of what `sample` draws from: penalised and, unless greedy, tempered and truncated."""
    if params.repetition_penalty != 1.0:
        assert seen is not None, "a repetition penalty needs the tokens seen so far"
        logits = penalise_repetition(logits, seen, params.repetition_penalty)
    if params.temperature == 0.0:
        return logits
    # A tiny temperature must not lead to inf - inf or 0 / 0; below the floor the draw is the likeliest token anyway.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(params.temperature, 1e-30)
    if params.top_k:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p < 1.0:
        logits = keep_top_p(logits, params.top_p)
    if params.min_p > 0.0:
        logits = keep_min_p(logits, params.min_p)
    return logits


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of `seen` tokens by `penalty` (CTRL, arXiv:1909.05858 §4.1).

    The published form divides always; multiplying the negative ones, so that a penalty above 1 never helps a token, is
    what every implementation since does.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the `k` largest logits of a row to -inf (ties with the k-th are kept)."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (batch, 1)
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches `p` (nucleus, arXiv:1904.09751 §3.1).

    A token stays when the tokens before it, in falling order of probability, sum to less than `p`; the first always
    stays. Sorting a whole vocabulary costs more than a small model's forward pass, so the leading candidates are tried
    first and everything is sorted only when they do not reach `p`.
    """
    probabilities = logits.softmax(-1)
    values, indices = probabilities.topk(min(TOP_P_CANDIDATES, logits.shape[-1]))
    if bool((values.sum(-1) < p).any()):
        values, indices = probabilities.sort(-1, descending=True)
    before = values.cumsum(-1) - values  # probability of all likelier tokens
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, indices, before < p)
    return logits.masked_fill(~kept, -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Drop tokens whose probability is below `p` times that of the most likely one (arXiv:2407.01082 §3)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Token of each row where the cumulative softmax first exceeds the row's uniform number: -> (batch,) int64."""
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (batch, vocab)
    # u ≤ 1 - 2^-53 keeps u * total < total in float64, so a token of probability 0 is never reached
    target = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp_(max=logits.shape[-1] - 1)  # NaN logits point past the end; the caller reports them


class Uniforms:
    """Uniform numbers for the rows of a batch; a row's k-th number depends on (seed, row, k) only."""

    def __init__(self, seed: int, rows: Iterable[int]) -> None:
        self._generators = [seeds.rng(seed, "sampling", row) for row in rows]

    def next(self) -> np.ndarray:
        """The next number of every row, (rows,) float64 in [0, 1)."""
        return np.array([generator.random() for generator in self._generators])

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (positions in the current order)."""
        self._generators = [self._generators[row] for row in rows]


def _check(field: str, value: float, valid: bool, accepted: str) -> None:
    if not valid:
        raise ConfigError(f"{field} is {value!r}", fix=f"{field} must be {accepted}")
