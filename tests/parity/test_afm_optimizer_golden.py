"""Golden vectors of Apple's optimiser: updates over 20 steps, block clipping, skipping, schedule (arXiv:2407.21075).

Every case in the folder is run; names, shapes and numbers come from its own JSON.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bloomery.train import Phase, learning_rate
from bloomery.train.adastar import Adastar, Rule, clip_block_rms_
from bloomery.train.guard import Guard
from bloomery.train.ranks import Ranks
from bloomery.train.step import normalise_and_clip

SET = "apple-afm"
RULE = {field.name for field in fields(Rule)}


def cases(root: Path, wanted: Callable[[str, dict[str, Any]], bool]) -> list[Path]:
    found = [p for p in sorted((root / SET).glob("*.json")) if wanted(p.stem, read(p)["config"])]
    assert found, f"no such case under {root / SET}"
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def excess(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over what every JSON of the set allows for `out.*`, which is relative to the tensor."""
    assert ours.shape == expected.shape
    return float((ours - expected).abs().max()) / (2e-5 * max(1e-3, float(expected.abs().max())))


def schedule_of(path: Path, config: dict[str, Any]) -> Callable[[int], float]:
    """The schedule in [0, 1] as a function of the step, counted from 1."""
    given = config.get("update_schedule", "constant")
    if given == "constant":
        return lambda step: 1.0
    if isinstance(given, str):  # "cosine as in <case>"
        given = read(path.with_name(given.rpartition(" ")[2] + ".json"))["config"]["update_schedule"]
    phase = warm_cosine(given)
    return lambda step: learning_rate(phase, step)


def warm_cosine(given: dict[str, Any]) -> Phase:
    assert given.get("begin_value", 0.0) == 0.0
    peak = given["peak"]
    return Phase(tokens=given["max_step"], lr=peak, warmup_tokens=given["warmup_steps"], final_lr=given["alpha"] * peak)


class Holder(torch.nn.Module):
    """Free parameters with names that hold dots."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = list(values)
        self.values = torch.nn.ParameterList([torch.nn.Parameter(value.clone()) for value in values.values()])

    def set_grads(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        for name, p in zip(self.names, self.values, strict=True):
            p.grad = tensors[f"in.grad.{name}"][step].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_over_the_steps(golden_root: Path, dtype: torch.dtype) -> None:
    """Updates are compared in float64: as a difference of float32 parameters they would be rounded too coarsely.

    A case that lists `no_decay` was recorded with an optimiser that has no such mask: its numbers decay every tensor,
    whatever its JSON says. So those cases may agree with either reading, but with one of them in every tensor.
    """
    for path in cases(golden_root, lambda name, config: "gradient_square_ema_decay" in config):
        tensors = {k: v.to(dtype) for k, v in load_file(path.with_suffix(".safetensors")).items()}
        masks = {frozenset(read(path)["config"].get("no_decay", ())), frozenset[str]()}
        worst = []
        for mask in masks:
            found = follow(path, tensors, mask)
            worst.append(max(excess(values, tensors[key]) for key, values in found.items()))
        assert min(worst) <= 1, f"{path.stem}: {min(worst):.3g} times the allowed difference"


def follow(path: Path, tensors: dict[str, torch.Tensor], no_decay: frozenset[str]) -> dict[str, torch.Tensor]:
    """What our optimiser makes of a case's gradients, by the names of the expected tensors."""
    config = read(path)["config"]
    model = Holder({k.removeprefix("w."): v for k, v in tensors.items() if k.startswith("w.")})
    groups = [
        {
            "params": [p],
            "weight_decay": 0.0 if name in no_decay else config["weight_decay"],
            "multiplier": config.get("update_scale", {}).get(name, 1.0),
        }
        for name, p in zip(model.names, model.values, strict=True)
    ]
    peak = config["learning_rate"]
    optimizer = Adastar(groups, peak, rule=Rule(**{k: v for k, v in config.items() if k in RULE}))
    schedule, guard, skip = schedule_of(path, config), Guard(), limits(config)

    steps, taken = len(tensors[f"in.grad.{model.names[0]}"]), 0
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)
    for step in range(steps):
        before = [p.detach().clone() for p in model.values]
        model.set_grads(tensors, step)
        if skip is None or admitted(model, guard, skip, config["max_norm"], step):
            taken += 1
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(taken)
            optimizer.step()
        for name, p, old in zip(model.names, model.values, before, strict=True):
            seen[f"out.param.{name}"].append(p.detach().clone())
            if p.dtype == torch.float64:
                seen[f"out.update.{name}"].append(p.detach() - old)
    assert guard.skipped == (0 if skip is None else steps - taken)
    assert skip is None or 0 < taken < steps, "a case of skipping skips some steps and takes others"
    return {key: torch.stack(values) for key, values in seen.items()}


def limits(config: dict[str, Any]) -> dict[str, float] | None:
    """What the guard is told in a case that skips."""
    drop = config.get("drop_norm")
    if isinstance(drop, dict):
        return {"multiple": min(drop["multipliers"]), "decay": drop["ema_decay"]}
    return None if drop is None else {"limit": drop}


def admitted(model: Holder, guard: Guard, skip: dict[str, float], max_norm: float, step: int) -> bool:
    """Clip the gradients as the training loop does and ask the guard, which sees the norm before clipping."""
    one = torch.ones((), dtype=torch.float64)
    sums = {"loss": one, "weight": one}
    values = normalise_and_clip(model, sums, max_norm, step, Ranks(), must_be_finite=False)
    return guard.admits(values["grad_norm"], **skip)


def test_clipping_by_the_rms_of_a_block(golden_root: Path) -> None:
    for path in cases(golden_root, lambda name, config: name.startswith("clip_block_rms")):
        tensors = load_file(path.with_suffix(".safetensors"))
        inputs = {k.removeprefix("in.x."): v for k, v in tensors.items() if k.startswith("in.x.")}
        expected = [k for k in tensors if k.startswith("out.")]
        for name, value in inputs.items():
            for key in (key for key in expected if key.endswith(f".{name}")):
                threshold = float(key.removeprefix("out.").removesuffix(f".{name}"))
                clipped = [value.clone()]
                clip_block_rms_(clipped, threshold)
                assert excess(clipped[0], tensors[key]) <= 1, f"{path.stem}, {key}"


def test_schedule(golden_root: Path) -> None:
    for path in cases(golden_root, lambda name, config: name.startswith("schedule")):
        tensors, phase = load_file(path.with_suffix(".safetensors")), warm_cosine(read(path)["config"])
        ours = torch.tensor([learning_rate(phase, int(step)) for step in tensors["in.step"]])
        assert excess(ours, tensors["out.scale"]) <= 1, path.stem


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_the_adamw_rule_is_pytorchs_adamw(eps: float) -> None:
    """Beside torch.optim.AdamW, which multiplies its decay by the learning rate: ours is given the product."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 5), (5,), (3, 4, 2)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    lr, decay, betas = 0.03, 0.1, (0.9, 0.97)
    mine = Adastar(ours, lr, rule=Rule.adamw(betas, eps), weight_decay=lr * decay)
    peer = torch.optim.AdamW(theirs, lr=lr, betas=betas, eps=eps, weight_decay=decay)
    for _ in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            q.grad = p.grad.clone()
        mine.step()
        peer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
