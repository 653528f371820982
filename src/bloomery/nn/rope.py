"""Rotary position embedding (arXiv:2104.09864) in the half layout: feature i turns together with feature i + d/2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bloomery.core.errors import ConfigError

Rotary = tuple[Tensor, Tensor]  # cosines and signed sines, each (seq, 1, head_dim) or (batch, seq, 1, head_dim)


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _require_factor(self.factor)

    def __call__(self, frequencies: Tensor) -> Tensor:
        """The scaled frequencies."""
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling: wavelengths short against the original context stay, long ones stretch by `factor`.

    Between `original_max_positions / high_freq_factor` and `original_max_positions / low_freq_factor` the two are
    interpolated.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        _require_factor(self.factor)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"low_freq_factor={self.low_freq_factor}, high_freq_factor={self.high_freq_factor}",
                fix="they must satisfy 0 < low < high",
            )
        if self.original_max_positions <= 0:
            raise ConfigError(f"original_max_positions={self.original_max_positions}", fix="must be > 0")

    def __call__(self, frequencies: Tensor) -> Tensor:
        """The scaled frequencies."""
        wavelength = 2 * math.pi / frequencies
        low, high = self.low_freq_factor, self.high_freq_factor
        keep = ((self.original_max_positions / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - keep) * frequencies / self.factor + keep * frequencies


RopeScaling = LinearScaling | Llama3Scaling


class Rope(nn.Module):
    """Tables of cosines and sines. Call it with positions, then `rotate` queries and keys with what it returns.

    The tables are float32 whatever the model's dtype and belong to no state dict. They are there from the start, since
    building them in the first forward pass would make torch.compile trace that pass twice, and they are computed anew
    where the module is moved to, which also fills them after a construction on the meta device. They begin with up to
    `FIRST_LENGTH` positions and grow when longer sequences arrive.
    """

    FIRST_LENGTH = 32_768

    def __init__(self, head_dim: int, theta: float, max_positions: int, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.max_positions, self.scaling = head_dim, theta, max_positions, scaling
        self._tables = self._build(min(max_positions, self.FIRST_LENGTH))

    def frequencies(self, device: torch.device | str | None = None) -> Tensor:
        """Angle per position of each feature pair, (head_dim / 2,) float32."""
        exponents = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        frequencies = 1.0 / self.theta**exponents
        return frequencies if self.scaling is None else self.scaling(frequencies)

    def forward(self, positions: Tensor | slice, end: int, device: torch.device) -> Rotary:
        """Cosines and sines of `positions`, a slice or an int64 tensor (batch, seq), all of them below `end`."""
        length = len(self._tables[0])
        if length < end or self._tables[0].device != device:
            self._tables = self._build(length if end <= length else 2 * end, device)
        cos, sin = self._tables
        return cos[positions], sin[positions]

    @torch.inference_mode(False)  # tables that grow while generating must serve training too
    def _build(self, length: int, device: torch.device | None = None) -> Rotary:
        angles = torch.arange(length, device=device).float()[:, None] * self.frequencies(device)  # (length, d/2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        super()._apply(fn, recurse)
        here = self._tables[0].device
        there = fn(torch.empty(0, device=here)).device
        if there != here:
            self._tables = self._build(len(self._tables[0]), there)
        return self


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the feature pairs of x (batch, seq, heads, head_dim) by their positions' angles, in float32."""
    cos, sin = rotary
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _differentiable_rotate(x, cos, sin)
    return _rotate(x, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # rolling by half a head puts each feature's partner in its place; the sign of the rotation sits in the table
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """`_rotate` whose backward is the inverse rotation: nothing of the activations is kept."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotate(x, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


_differentiable_rotate: Callable[..., Tensor] = _Rotate.apply


def _require_factor(factor: float) -> None:
    if not factor >= 1:
        raise ConfigError(f"rope scaling factor={factor}", fix="must be >= 1")
