"""Rotary position embedding (arXiv:2104.09864), whole or partial, in both layouts, and its scalings to longer contexts.

A head's first `dim` features turn in pairs, the rest pass. In the half layout feature i turns together with feature
i + dim/2 (Llama, Nemotron); in the interleaved one, feature 2i with 2i + 1 (DeepSeek-V2, AFM). A permutation of the
features turns one into the other, so scores agree and cached keys do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bloomery.core.errors import ConfigError

RopeLayout = Literal["half", "interleaved"]


class Rotary(NamedTuple):
    """Cosines and signed sines of some positions, each (seq, 1, dim) or (batch, seq, 1, dim), and their layout."""

    cos: Tensor
    sin: Tensor
    interleaved: bool


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (arXiv:2306.15595): every frequency divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _require_factor(self.factor)

    def __call__(self, frequencies: Tensor, theta: float) -> Tensor:
        """The scaled frequencies (dim/2,) of the base `theta`."""
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class NTKScaling:
    """ "NTK-aware" scaling: the base grows so that the slowest pair stretches by `factor` and the fastest by nothing.

    Frequency i of dim/2 is divided by factor^(2i / (dim - 2)), which is the base theta · factor^(dim / (dim - 2)).
    """

    kind: Literal["ntk"] = "ntk"
    factor: float

    def __post_init__(self) -> None:
        _require_factor(self.factor)

    def __call__(self, frequencies: Tensor, theta: float) -> Tensor:
        """The scaled frequencies (dim/2,) of the base `theta`."""
        pairs = len(frequencies)
        places = torch.arange(pairs, device=frequencies.device, dtype=frequencies.dtype) / max(pairs - 1, 1)
        return frequencies / self.factor**places


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

    def __call__(self, frequencies: Tensor, theta: float) -> Tensor:
        """The scaled frequencies (dim/2,) of the base `theta`."""
        wavelength = 2 * math.pi / frequencies
        low, high = self.low_freq_factor, self.high_freq_factor
        keep = ((self.original_max_positions / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - keep) * frequencies / self.factor + keep * frequencies


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): fast pairs stay, slow ones stretch by `factor`, with a ramp between, and sharper scores.

    The ramp runs between the pairs that turn `beta_fast` and `beta_slow` times over the original context. Scores are
    sharpened in one of two places. Where `mscale_all_dim` is given (DeepSeek-V2, arXiv:2405.04434 §3.1.4) latent
    attention multiplies them by m², m = 0.1 · mscale_all_dim · ln(factor) + 1 (`softmax_factor`; forgetting it is the
    classic bug); otherwise cosines and sines are multiplied by 0.1 · ln(factor) + 1, or by `attention_factor`.
    """

    kind: Literal["yarn"] = "yarn"
    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True  # round the ramp's ends outwards to whole pairs

    def __post_init__(self) -> None:
        _require_factor(self.factor)
        if not 0 < self.beta_slow < self.beta_fast:
            raise ConfigError(
                f"beta_slow={self.beta_slow}, beta_fast={self.beta_fast}", fix="they must satisfy 0 < slow < fast"
            )
        if self.original_max_positions <= 0:
            raise ConfigError(f"original_max_positions={self.original_max_positions}", fix="must be > 0")

    def __call__(self, frequencies: Tensor, theta: float) -> Tensor:
        """The scaled frequencies (dim/2,) of the base `theta`."""
        dim = 2 * len(frequencies)
        low, high = (self._pair(turns, dim, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        pairs = torch.arange(dim // 2, device=frequencies.device, dtype=frequencies.dtype)
        stretch = ((pairs - low) / (high - low if high != low else 1e-3)).clamp(0, 1)
        return frequencies / self.factor * stretch + frequencies * (1 - stretch)

    @property
    def table_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._m(self.mscale) / self._m(self.mscale_all_dim)
        return self._m(1.0)

    @property
    def softmax_factor(self) -> float:
        """What latent attention multiplies its scores by, beside 1 / sqrt(width)."""
        return self._m(self.mscale_all_dim or 0.0) ** 2

    def _m(self, strength: float) -> float:
        return 0.1 * strength * math.log(self.factor) + 1.0

    def _pair(self, turns: float, dim: int, theta: float) -> float:
        """Where in the list of pairs the one is that turns so often over the original context."""
        return dim * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


RopeScaling = LinearScaling | NTKScaling | Llama3Scaling | YarnScaling


class Rope(nn.Module):
    """Tables of cosines and sines. Call it with positions, then `rotate` queries and keys with what it returns.

    The tables are float32 whatever the model's dtype and belong to no state dict. They are there from the start, since
    building them in the first forward pass would make torch.compile trace that pass twice, and they are computed anew
    where the module is moved to, which also fills them after a construction on the meta device. They begin with up to
    `FIRST_LENGTH` positions and grow when longer sequences arrive.
    """

    FIRST_LENGTH = 32_768

    def __init__(
        self,
        dim: int,
        theta: float,
        max_positions: int,
        scaling: RopeScaling | None = None,
        layout: RopeLayout = "half",
    ) -> None:
        super().__init__()
        self.dim, self.theta, self.max_positions, self.scaling, self.layout = dim, theta, max_positions, scaling, layout
        self._tables = self._build(min(max_positions, self.FIRST_LENGTH))

    def frequencies(self, device: torch.device | str | None = None) -> Tensor:
        """Angle per position of each feature pair, (dim / 2,) float32."""
        exponents = torch.arange(0, self.dim, 2, device=device).float() / self.dim
        frequencies = 1.0 / self.theta**exponents
        return frequencies if self.scaling is None else self.scaling(frequencies, self.theta)

    def forward(self, positions: Tensor | slice, end: int, device: torch.device) -> Rotary:
        """Cosines and sines of `positions`, a slice or an int64 tensor (batch, seq), all of them below `end`."""
        length = len(self._tables[0])
        if length < end or self._tables[0].device != device:
            self._tables = self._build(length if end <= length else 2 * end, device)
        cos, sin = self._tables
        return Rotary(cos[positions], sin[positions], self.layout == "interleaved")

    @torch.inference_mode(False)  # tables that grow while generating must serve training too
    def _build(self, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        angles = torch.arange(length, device=device).float()[:, None] * self.frequencies(device)  # (length, dim/2)
        factor = self.scaling.table_factor if isinstance(self.scaling, YarnScaling) else 1.0
        cos, sin = factor * angles.cos(), factor * angles.sin()
        if self.layout == "interleaved":
            cos, sin = torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)
        else:
            cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return cos[:, None], sin[:, None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        super()._apply(fn, recurse)
        here = self._tables[0].device
        there = fn(torch.empty(0, device=here)).device
        if there != here:
            self._tables = self._build(len(self._tables[0]), there)
        return self


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the feature pairs of x (batch, seq, heads, head_dim) by their positions' angles, in float32.

    Where the tables are narrower than head_dim, the features behind them pass unchanged.
    """
    cos, sin, interleaved = rotary
    if (turning := cos.shape[-1]) < x.shape[-1]:
        return torch.cat([rotate(x[..., :turning], rotary), x[..., turning:]], dim=-1)
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _differentiable_rotate(x, cos, sin, interleaved)
    return _rotate(x, cos, sin, interleaved)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    # each feature's partner is put in its place; the sign of the rotation sits in the table
    partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, partner, sin).to(x.dtype)


class _Rotate(torch.autograd.Function):
    """`_rotate` whose backward is the inverse rotation: nothing of the activations is kept."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        return _rotate(x, cos, sin, interleaved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, cos, sin, ctx.interleaved = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin, ctx.interleaved), None, None, None


_differentiable_rotate: Callable[..., Tensor] = _Rotate.apply


def _require_factor(factor: float) -> None:
    if not factor >= 1:
        raise ConfigError(f"rope scaling factor={factor}", fix="must be >= 1")
