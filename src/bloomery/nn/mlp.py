"""Feed-forward layers: gated (SwiGLU, GeGLU) and plain, and the activations they use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.nn.linear import Linear

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)² (arXiv:2109.08668 §3): no gradient below zero, quadratic growth above (float16 overflows)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,  # exact, by the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # what JAX calls gelu
    "relu2": relu2,
}


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)) (arXiv:2002.05202): SwiGLU with silu, GeGLU with a gelu.

    gate and up are one matrix, gate's rows first.
    """

    def __init__(self, dim: int, hidden: int, bias: bool = False, activation: Activation = "silu") -> None:
        super().__init__()
        self.activation = activation
        self.gate_up = Linear(dim, 2 * hidden, bias=bias)
        self.down = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(ACTIVATIONS[self.activation](gate) * up)
        return out


class MLP(nn.Module):
    """down(act(up(x))): two matrices and no gate (Nemotron-4 with relu2, GPT-2 with gelu)."""

    def __init__(self, dim: int, hidden: int, bias: bool = False, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(dim, hidden, bias=bias)
        self.down = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.down(ACTIVATIONS[self.activation](self.up(x)))
        return out
