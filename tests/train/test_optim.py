from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bloomery.train import Phase, TrainConfig
from bloomery.train.optim import adamw, parameter_groups


@pytest.mark.parametrize("tied", [False, True])
def test_only_weight_matrices_decay(toy: Callable[..., Any], tied: bool) -> None:
    model = toy(tied=tied)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert {names[id(p)] for p in decayed["params"]} == {"mix.weight"} | (set() if tied else {"head.weight"})
    assert {names[id(p)] for p in kept["params"]} == {"embed.weight", "mix.bias", "norm.weight", "norm.bias"}


def test_frozen_parameters_stay_out(toy: Callable[..., Any]) -> None:
    model = toy()
    model.embed.requires_grad_(False)
    handled = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert id(model.embed.weight) not in handled
    assert len(handled) == 5


def test_the_fused_kernel_takes_adamws_step(toy: Callable[..., Any]) -> None:
    """One step by the formula: p ← p (1 - lr·wd) - lr · m̂ / (√v̂ + eps), with m̂ = g and v̂ = g² in the first step."""
    model = toy()
    config = TrainConfig(phases=[Phase(tokens=1, lr=0.01)], weight_decay=0.3, eps=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.linspace(-1, 1, p.numel()).view_as(p)
    adamw(model, config).step()
    for name, p in model.named_parameters():
        decay = 0.3 if name in ("mix.weight", "head.weight") else 0.0
        assert p.grad is not None
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * p.grad / (p.grad.abs() + 1e-3)
        torch.testing.assert_close(p.detach(), expected)
