"""The product with a weight matrix, through the faster of the two libraries PyTorch carries for it on a CPU.

On a CPU, `F.linear` in float32 goes to MKL, which uses AVX-512 on Intel's processors only. oneDNN, which PyTorch ships
too, uses it everywhere: on an AMD EPYC (Zen 5) it is 2.2 times as fast (220 against 98 GFLOP/s per core, 2048×384 by
384×2048). So oneDNN is taken exactly where MKL is known to hold back: AVX-512 on a processor that is not Intel's.
Everything else (Intel, GPUs, other dtypes, autocast, torch.compile, sharded weights, tiny products) takes `F.linear`,
and so does a PyTorch without these operators or with others of their names: they are internal to it, hence the trial
at import.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 8  # rows up to which, and from two on, MKL is faster on an AMD processor with the operands exchanged
SMALL = 1 << 18  # below so many multiplications oneDNN's set-up (some 10 µs) is not earned back


def _find_onednn() -> Any:
    """oneDNN's product for plain float32 tensors, or None where it would not help or does not work."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _is_intel():
        return None
    x = torch.arange(6.0).view(2, 3)
    try:
        product = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(x)
        works = all(torch.equal(product(x, w, None, "none", [], ""), x @ x.T) for w in (x, packed))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    return product if works else None


def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


_ONEDNN = _find_onednn()
_EXCHANGE = _ONEDNN is None and not _is_intel() and torch.backends.mkl.is_available()
_PACKED: ContextVar[dict[int, Tensor]] = ContextVar("packed weights", default={})  # noqa: B039 - never written to


class Linear(nn.Linear):
    """`nn.Linear`, same parameters and function, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias for x (..., in), weight (out, in), bias (out,): `F.linear`, possibly faster."""
    if not _onednn_takes(x, weight):
        return _few_rows(x, weight, bias) if _few_rows_help(x, weight) else F.linear(x, weight, bias)
    recording = torch.is_grad_enabled()
    if not recording and (packed := _PACKED.get().get(id(weight))) is not None:
        return _product(x, packed, bias)
    if x.numel() * weight.shape[0] < SMALL:
        return F.linear(x, weight, bias)
    return _differentiable_product(x, weight, bias) if recording else _product(x, weight, bias)


def matmul_t(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b.T for matrices a (m, k) and b (n, k), into `out` (m, n) where it is given; not differentiable."""
    if _onednn_takes(a, b) and a.numel() * b.shape[0] >= SMALL:
        return _product(a, b) if out is None else out.copy_(_product(a, b))
    return torch.mm(a, b.t(), out=out)


class PackedWeights:
    """Copies of weights in the blocked layout that oneDNN's products want.

    Inside `with packed:` and without gradients, `linear` uses the copies. Few rows gain most, as in decoding, where a
    product does little but read the weight: 1.3 times the speed at one row, 1.7 times at eight (Zen 5). Packing takes
    as long as some twenty one-row products, doubles the memory of the weights while it is in use, and the copies do
    not follow later changes: pack for one long generation at a time. Weights that oneDNN does not suit are left out.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = [w for w in weights if _packable(w)]  # keeps them alive: the copies go by their ids
        self._copies = {id(w): torch.ops.mkldnn._reorder_linear_weight(w.detach()) for w in self._weights}

    def __enter__(self) -> None:
        self._outer = _PACKED.set(self._copies)

    def __exit__(self, *error: object) -> None:
        _PACKED.reset(self._outer)


def _few_rows_help(x: Tensor, weight: Tensor) -> bool:
    """Whether the product is one of a few rows with a large matrix, without gradients, on an AMD processor's MKL.

    MKL multiplies two to eight rows by a weight at half the speed of the same product transposed (8192×768 on Zen 3:
    9.2 against 5.5 ms for eight rows). Batched decoding and the check of a draft consist of such products.
    """
    return (
        _EXCHANGE
        and 1 < x.numel() // max(x.shape[-1], 1) <= FEW
        and x.numel() * weight.shape[0] >= SMALL
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = torch.mm(weight, x.flatten(0, -2).t()).t().contiguous().view(*x.shape[:-1], -1)
    return product if bias is None else product + bias


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and _packable(weight)
        and type(x) is Tensor
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _packable(weight: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and weight.dim() == 2
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)  # not a sharded or fake tensor
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = _ONEDNN(x, weight, bias, "none", [], "")
    return product


class _OneDNNLinear(torch.autograd.Function):
    """All three products of a linear layer, each written as one with a transposed weight."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.t()) if need_x else None,
            linear(rows.t(), x.flatten(0, -2).t()) if need_weight else None,
            rows.sum(0) if need_bias else None,
        )


_differentiable_product: Callable[..., Tensor] = _OneDNNLinear.apply
