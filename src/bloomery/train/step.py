"""The gradient of one optimiser step: micro-batches and ranks added up, divided once by the number of targets.

    loss, metrics = objective(model, batch, generator)

`loss` is the SUM over the batch's targets, `metrics["weight"]` their number, and every other metric a sum as well.
Gradients of sums add up over micro-batches and ranks; one division by the targets of the whole step then gives the
gradient of the mean, however the step was cut up and however unequally the targets fell on its pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.train.config import TrainConfig
from bloomery.train.guard import Guard
from bloomery.train.ranks import Ranks

PATIENCE = 100  # steps skipped in a row before training is given up

Batch = Mapping[str, Any]  # tensors, arrays or lists whose first axis is the batch
Objective = Callable[[Any, Batch, torch.Generator], tuple[torch.Tensor, Mapping[str, Any]]]


class TrainError(BloomeryError):
    """Training cannot go on: a loss or gradient that is not finite, or a step without targets."""


class Forward(nn.Module):
    """The objective as a module, so that DistributedDataParallel sees every use of a parameter inside `forward`."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Summed loss and metrics of one micro-batch."""
        return self.objective(self.model, batch, generator)


def prepare(model: nn.Module, objective: Objective, *, compiled: bool, ranks: Ranks) -> nn.Module:
    """`model` and `objective` as one module, compiled and made data-parallel where asked."""
    runnable: Any = torch.compile(model) if compiled else model
    forward = Forward(runnable, objective)
    return DistributedDataParallel(forward) if ranks.world > 1 else forward


def micro_batches(batch: Batch, size: int | None, ranks: Ranks) -> list[Batch]:
    """This rank's rows of the global batch, `size` rows at a time (None: all at once)."""
    rows = len(next(iter(batch.values())))
    share, rest = divmod(rows, ranks.world)
    if rest:
        raise ConfigError(f"batch_size {rows} does not divide over {ranks.world} ranks")
    first, end = ranks.rank * share, (ranks.rank + 1) * share
    starts = range(first, end, size or share)
    return [{name: v[i : min(i + starts.step, end)] for name, v in batch.items()} for i in starts]


def accumulate(
    forward: nn.Module, pieces: Sequence[Batch], generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Add up the gradients of the pieces; returns the sums of loss, weight and metrics as float64 on the device."""
    sums: dict[str, torch.Tensor] = {}
    for index, piece in enumerate(pieces):
        with _exchange(forward, index + 1 == len(pieces)):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss, metrics = forward(_on(device, piece), generator)
            loss.backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            value = torch.as_tensor(value, dtype=torch.float64, device=device)
            sums[name] = sums[name] + value if name in sums else value
    return sums


def normalise_and_clip(
    model: nn.Module,
    sums: Mapping[str, torch.Tensor],
    clip: float,
    step: int,
    ranks: Ranks,
    *,
    must_be_finite: bool = True,
) -> dict[str, float]:
    """Turn summed gradients into those of the mean over all targets, clip their norm to `clip` (0: do not).

    Returns means over all targets, `grad_norm` (before clipping) and `targets`. This is the one place of a step where
    the host waits for the device. A loss or gradient that is not finite is a `TrainError`, before any weight changes,
    unless the caller looks at the values itself (`must_be_finite=False`, then `admits`).
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm_of_sum = torch.nn.utils.get_total_norm(grads).double()
    totals = ranks.sum(torch.stack(list(sums.values())))
    *numbers, norm = torch.cat([totals, norm_of_sum[None]]).tolist()
    values = dict(zip(sums, numbers, strict=True))
    weight = values.pop("weight")
    if weight == 0:
        raise TrainError(f"step {step}: the batch has no targets", fix="check loss masks and document lengths")
    scale = ranks.world / weight  # DistributedDataParallel has divided by the number of ranks
    norm *= scale
    if must_be_finite and not (math.isfinite(values["loss"]) and math.isfinite(norm)):
        raise _not_finite(model, step, values["loss"] / weight)
    torch._foreach_mul_(grads, scale * min(1.0, clip / (norm + 1e-6)) if clip else scale)
    return {name: value / weight for name, value in values.items()} | {"grad_norm": norm, "targets": weight}


def admits(guard: Guard, values: Mapping[str, float], config: TrainConfig, step: int) -> bool:
    """Whether the guard lets the step with these values be taken; `PATIENCE` refusals in a row are a `TrainError`."""
    norm = values["grad_norm"] if math.isfinite(values["loss"]) else math.nan
    if guard.admits(norm, limit=config.skip_norm, multiple=config.skip_multiple):
        return True
    if guard.in_a_row >= PATIENCE:
        what = f"step {step}: {PATIENCE} steps in a row were skipped; the last had loss {values['loss']:.4g}"
        what += f" and gradient norm {values['grad_norm']:.4g}, where norms had a running mean of {guard.mean:.4g}"
        raise TrainError(what, fix="raise skip_norm or skip_multiple, or lower lr and resume from a checkpoint")
    return False


def _exchange(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients once per step: in the backward pass of the last micro-batch."""
    return nullcontext() if last or not isinstance(forward, DistributedDataParallel) else forward.no_sync()


def _on(device: torch.device, batch: Batch) -> Batch:
    """Tensors and arrays moved to the device; lists stay as they are."""
    return {
        name: torch.as_tensor(v).to(device, non_blocking=True) if isinstance(v, (torch.Tensor, np.ndarray)) else v
        for name, v in batch.items()
    }


def _not_finite(model: nn.Module, step: int, loss: float) -> TrainError:
    bad = (name for name, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all()))
    name = next(bad, None)
    gradient = "every gradient is finite" if name is None else f"the first gradient that is not finite is {name}"
    return TrainError(
        f"step {step}: the loss is {loss:.4g} and {gradient}; the weights are still those before this step",
        fix="the last checkpoint is untouched: resume from it with a lower lr, a longer warm-up or stronger clipping",
    )
