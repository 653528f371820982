"""Normalisation of the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
