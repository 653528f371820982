"""The language-model loss without the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bloomery.nn.linear import matmul_t

IGNORE = -100  # target value of positions that carry no loss
CPU_CHUNK = 256  # positions: measured fastest of 64 to 2048 for vocabularies of 8k to 32k
GPU_CHUNK_BYTES = 512 << 20  # float32 logits alive at a time: large products, small beside the model


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits `hidden @ weight.T`, which never exist all at once.

    hidden (..., dim), weight (vocab, dim), targets (...) int64 where -100 carries no loss. Returns a float32 scalar
    (float64 for float64 input): the sum in nats, or the mean over the targets that count (nan when none does, as
    `F.cross_entropy`). `z_loss` adds that much of logsumexp(logits)² to each position's loss, which keeps the softmax's
    normaliser near 1 (arXiv:2204.02311 §5). `chunk` is the number of positions whose logits are alive together.

    Both gradients are computed during the forward pass, chunk by chunk, while the logits are at hand, so backward
    only scales them; gradients of gradients are not defined. Under autocast the products run in autocast's dtype, and
    in any case softmax, sums and the weight's gradient are accumulated in float32.
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not belong together")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if chunk is None:
        chunk = CPU_CHUNK if hidden.device.type == "cpu" else max(CPU_CHUNK, GPU_CHUNK_BYTES // (4 * len(weight)))
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(hidden.device.type, enabled=False):
        total = _summed_cross_entropy(hidden, weight, targets, z_loss, chunk, differentiate)
    return total if reduction == "sum" else total / (targets != IGNORE).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the losses; forward also leaves d(sum)/d(hidden) and d(sum)/d(weight)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int, differentiate: bool
    ) -> Tensor:
        accurate = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=accurate)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2] if differentiate else (False, False)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=accurate) if needs_weight else None
        for begin in range(0, len(hidden), chunk):
            h, target = hidden[begin : begin + chunk], targets[begin : begin + chunk, None]
            counted = target != IGNORE  # (chunk, 1)
            target = target.clamp_min(0)
            logits = matmul_t(h, weight).to(accurate)  # (chunk, vocab)
            log_z = logits.logsumexp(-1, keepdim=True) if z_loss else None  # (chunk, 1)
            log_p = F.log_softmax(logits, dim=-1)
            total -= (log_p.gather(1, target) * counted).sum()
            if log_z is not None:
                total += z_loss * (log_z.square() * counted).sum()
            if not differentiate:
                continue
            # d loss / d logits = softmax · (1 + 2 z_loss log_z) - one-hot of the target, zero where nothing is counted
            grad = log_p.exp_()
            if log_z is not None:
                grad *= 1 + 2 * z_loss * log_z
            grad.scatter_add_(1, target, grad.new_full((1, 1), -1.0).expand_as(target))
            grad = grad.mul_(counted).to(h.dtype)
            if grad_hidden is not None:
                grad_hidden[begin : begin + chunk] = matmul_t(grad, weight.t())
            if grad_weight is not None:
                grad_weight += matmul_t(grad.t(), h.t())
        if differentiate:
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


_summed_cross_entropy: Callable[..., Tensor] = _LinearCrossEntropy.apply
