"""Products of groups of rows with a matrix of their own each: the inside of a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bloomery.nn.linear import matmul_t


def _works_on_cpu() -> bool:
    """Whether this PyTorch's grouped product takes float32 on a CPU."""
    try:
        rows, weight = torch.eye(4), torch.eye(4).expand(2, 4, 4)
        return torch.equal(F.grouped_mm(rows, weight, offs=torch.tensor([1, 4], dtype=torch.int32)), rows)
    except (AttributeError, RuntimeError):
        return False


_ON_CPU = _works_on_cpu()


def grouped_linear(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Each group of rows times its own matrix: (rows, in) and (groups, out, in) give (rows, out).

    The first counts[0] rows belong to group 0, the next counts[1] to group 1, and so on; `counts` is (groups,) int64
    and a group may be empty. Every matrix gets a gradient, zero where its group is empty. This is PyTorch's grouped
    product where it can be had (CUDA; on a CPU float32 with widths that are multiples of 4), and else one product per
    group over contiguous slices.
    """
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight = rows.to(dtype), weight.to(dtype)
    # On a CPU that kernel is the same loop without Python's share in it; it wants float32 and rows of whole 16 bytes.
    aligned = all(width * rows.element_size() % 16 == 0 for width in weight.shape[1:])
    if rows.device.type == "cuda" or (_ON_CPU and aligned and rows.dtype == torch.float32):
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    return _differentiable_grouped(rows, weight, counts.tolist())


def _slices(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """The groups that are not empty, and where their rows lie."""
    begin = 0
    for group, count in enumerate(counts):
        if count:
            yield group, slice(begin, begin + count)
        begin += count


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        out = rows.new_empty(len(rows), weight.shape[1])
        for group, place in _slices(counts):
            matmul_t(rows[place], weight[group], out=out[place])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, weight, ctx.counts = inputs
        ctx.save_for_backward(rows, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        need_rows, need_weight, _ = ctx.needs_input_grad
        grad_rows = torch.empty_like(rows) if need_rows else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        if grad_weight is not None:
            for group, count in enumerate(ctx.counts):
                if not count:
                    grad_weight[group].zero_()
        for group, place in _slices(ctx.counts):
            if grad_rows is not None:
                matmul_t(grad[place], weight[group].t(), out=grad_rows[place])
            if grad_weight is not None:
                matmul_t(grad[place].t(), rows[place].t(), out=grad_weight[group])
        return grad_rows, grad_weight, None


_differentiable_grouped: Callable[..., Tensor] = _GroupedLinear.apply
