"""One shell for the Adam family: AdamW and the optimiser of Apple's foundation models are two settings of it.

For each parameter p with gradient g, at its t-th step (arXiv:2407.21075; "adastar" in axlearn):

    m ← average(g, gradient_ema)                      gradient momentum, or g itself
    v ← average(g² + eps_square, square_ema)
    u ← m / (√v + eps)                                raw update: about ±1 in every entry
    u ← u / max(1, RMS(u) / clip)                     no block of weights jumps
    u ← average(u, update_ema)                        update momentum, or u itself
    p ← p - schedule · (peak_lr · multiplier · u + weight_decay · p)

`average` is an exponential moving average, divided by 1 - decayᵗ where its debias flag is set. Unusual: the weight
decay is independent of the learning rate and of the multiplier, and follows the schedule alone, so that changing the
learning rate or the width changes how far updates go and not what they decay against. A block is one parameter tensor;
packed weights of several experts are one block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bloomery.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a gradient becomes an update. The defaults are those of Apple's foundation models."""

    gradient_ema_decay: float | None = None  # None: the gradient as it is
    gradient_ema_debias: bool = False
    gradient_square_ema_decay: float = 0.95
    gradient_square_ema_debias: bool = True
    eps: float = 0.0  # added to the root
    eps_square: float = 1e-30  # added to the squared gradient
    raw_update_clipping_threshold: float | None = 1.0  # largest RMS of a block's raw update; None: no limit
    update_ema_decay: float | None = 0.95  # None: the raw update as it is
    update_ema_debias: bool = False

    def __post_init__(self) -> None:
        for name in ("gradient_ema_decay", "gradient_square_ema_decay", "update_ema_decay"):
            decay = getattr(self, name)
            _check(decay is None or 0 <= decay < 1, name, decay, "0 <= decay < 1")
        _check(self.eps >= 0, "eps", self.eps, ">= 0")
        _check(self.eps_square >= 0, "eps_square", self.eps_square, ">= 0")
        _check(self.eps + self.eps_square > 0, "eps", self.eps, "> 0 when eps_square is 0: a gradient may be 0")
        clip = self.raw_update_clipping_threshold
        _check(clip is None or clip > 0, "raw_update_clipping_threshold", clip, "> 0")

    @classmethod
    def adamw(cls, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8) -> Rule:
        """AdamW's rule (arXiv:1711.05101); the shell's decay is independent of the learning rate, PyTorch's is not."""
        return cls(
            gradient_ema_decay=betas[0],
            gradient_ema_debias=True,
            gradient_square_ema_decay=betas[1],
            eps=eps,
            eps_square=0.0,
            raw_update_clipping_threshold=None,
            update_ema_decay=None,
        )


class Adastar(torch.optim.Optimizer):
    """The optimiser of the module docstring, in PyTorch's interface.

    A parameter group may set `lr`, `weight_decay` and `multiplier` (of the update; for muP). The schedule is read off
    the learning rate: `lr` divided by `peak_lr`, which is the learning rate given at construction. So any scheduler
    that sets `lr` drives both the updates and the decay. State: a step count and up to three tensors per parameter.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, rule: Rule | None = None, weight_decay: float = 3.16e-4
    ) -> None:
        _check(lr > 0, "lr", lr, "> 0")
        _check(weight_decay >= 0, "weight_decay", weight_decay, ">= 0")
        self.rule = rule or Rule()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "multiplier": 1.0})
        for group in self.param_groups:
            group.setdefault("peak_lr", group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step for every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                updates = self._updates(params)
                schedule = group["lr"] / group["peak_lr"]
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - schedule * group["weight_decay"])
                torch._foreach_add_(params, updates, alpha=-group["lr"] * group["multiplier"])
        return loss

    def _updates(self, params: list[Tensor]) -> list[Tensor]:
        """Smoothed updates of `params`, whose state moves on by one step."""
        rule = self.rule
        grads = [p.grad for p in params if p.grad is not None]
        states = [self._state(p) for p in params]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        counts = [int(step) for step in steps]  # on the CPU: nothing waits

        keep = rule.gradient_square_ema_decay
        squares = [state["square_ema"] for state in states]
        torch._foreach_mul_(squares, keep)
        torch._foreach_addcmul_(squares, grads, grads, 1 - keep)
        if rule.eps_square:
            torch._foreach_add_(squares, (1 - keep) * rule.eps_square)
        updates = list(torch._foreach_sqrt(squares))  # the only temporary of the model's size; from here on in place
        if rule.gradient_square_ema_debias:
            torch._foreach_div_(updates, [math.sqrt(1 - keep**count) for count in counts])
        if rule.eps:
            torch._foreach_add_(updates, rule.eps)
        torch._foreach_reciprocal_(updates)
        if rule.gradient_ema_decay is None:
            torch._foreach_mul_(updates, grads)
        else:
            torch._foreach_mul_(updates, _average(states, "gradient_ema", grads, rule.gradient_ema_decay))
            if rule.gradient_ema_debias:
                torch._foreach_div_(updates, [1 - rule.gradient_ema_decay**count for count in counts])
        if rule.raw_update_clipping_threshold is not None:
            clip_block_rms_(updates, rule.raw_update_clipping_threshold)
        if rule.update_ema_decay is not None:
            updates = _average(states, "update_ema", updates, rule.update_ema_decay)
            if rule.update_ema_debias:
                updates = list(torch._foreach_div(updates, [1 - rule.update_ema_decay**count for count in counts]))
        return updates

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)  # float32 on the CPU, as PyTorch's optimisers keep it
            state["square_ema"] = torch.zeros_like(p)
            if self.rule.gradient_ema_decay is not None:
                state["gradient_ema"] = torch.zeros_like(p)
            if self.rule.update_ema_decay is not None:
                state["update_ema"] = torch.zeros_like(p)
        return state


def clip_block_rms_(tensors: list[Tensor], threshold: float) -> None:
    """Divide each tensor, in place, by max(1, RMS / threshold): its RMS is at most `threshold` afterwards."""
    norms = torch._foreach_norm(tensors)
    roots = torch.tensor([math.sqrt(t.numel()) for t in tensors]).to(norms[0])
    excess = torch.stack(list(norms)) / (roots * threshold)  # (tensors,) RMS over threshold
    torch._foreach_div_(tensors, list(excess.clamp_(min=1).unbind()))


def _average(states: list[dict[str, Tensor]], key: str, values: list[Tensor], decay: float) -> list[Tensor]:
    """The running averages under `key`, after `values` have entered them."""
    averages = [state[key] for state in states]
    torch._foreach_lerp_(averages, values, 1 - decay)
    return averages


def _check(holds: bool, field: str, value: object, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value!r}; accepted: {accepted}")
