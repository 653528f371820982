"""Normalisation of the residual stream, and of queries and keys."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKind = Literal["rms", "ln1p", "layer"]


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv:1910.07467) over the last dimension: x / sqrt(mean(x²) + eps) · weight.

    Statistics are float32 whatever the input; the normalised value is rounded to the input's dtype *before* it meets
    the weight, as Llama and Qwen do (this matters in bfloat16 only).
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.dtype == torch.float32:  # no rounding in between: one fused kernel, twice as fast as the written-out form
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, None, self.eps) * self.weight

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.weight.shape[0]}, eps={self.eps}"


class LayerNorm1p(nn.Module):
    """Layer norm whose stored scale is the distance from one (Nemotron-4, arXiv:2402.16819): (1 + weight) · x̂ + bias.

    x̂ has mean 0 and variance 1. A fresh norm has weight 0 and bias 0, so that weight decay would pull towards the
    identity. `transformers` initialises the weight to 1, a gain of 2; only the meaning of a stored weight is shared.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.layer_norm(x, self.weight.shape, 1 + self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.weight.shape[0]}, eps={self.eps}"


def make_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    """The norm of that kind; "layer" is a layer norm with a scale and no bias."""
    if kind == "layer":
        return nn.LayerNorm(dim, eps, bias=False)
    return RMSNorm(dim, eps) if kind == "rms" else LayerNorm1p(dim, eps)
