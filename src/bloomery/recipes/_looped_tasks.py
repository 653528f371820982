"""Models and measures of the looped transformers: what every arm is built of, taught with and examined by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bloomery.core.seeds import generator

if TYPE_CHECKING:
    import torch

    from bloomery.models import DecoderConfig, LoopedConfig, LoopedDecoder
    from bloomery.worlds.pointer_chase import PointerChase

TEST_ROWS = 256


def decoder(vocab: int, dim: int, heads: int, blocks: int, positions: int, theta: float = 10_000.0) -> DecoderConfig:
    """Blocks of 12 dim² weights: plain heads, a feed-forward layer four times as wide without a gate."""
    from bloomery.models import DecoderConfig

    return DecoderConfig(
        vocab_size=vocab,
        dim=dim,
        n_layers=blocks,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=dim // heads,
        ffn_dim=4 * dim,
        max_positions=positions,
        rope_theta=theta,
        activation="gelu",
        gated=False,
        init_std=dim**-0.5,
    )


def made(config: LoopedConfig, seed: int, trial: int) -> LoopedDecoder:
    """A fresh model; the trials of all arms draw from the same streams."""
    from bloomery.core.devices import pick_device
    from bloomery.models import LoopedDecoder

    return LoopedDecoder(config, generator(seed, "init", trial)).to(pick_device())


def cost(config: LoopedConfig, seq_len: int) -> dict[str, int]:
    """Block parameters, and training operations per token."""
    model = made(config, 0, 0)
    return {
        "parameters": sum(p.numel() for p in model.stacks.parameters()),
        "flops": model.flops_per_token(seq_len),
    }


def answers(model: Any, batch: Mapping[str, Any], _: torch.Generator) -> tuple[torch.Tensor, dict[str, Any]]:
    """Objective of the pointer tasks: every place says its answer."""
    from bloomery.nn import linear_cross_entropy

    loss = linear_cross_entropy(model(batch["tokens"]).hidden, model.head_weight, batch["targets"], reduction="sum")
    return loss, {"weight": batch["targets"].numel()}


def closing(model: LoopedDecoder, steps: int) -> Callable[[int, Any], Any]:
    """A hook that trains the routers in three parts of `steps`: the tokens first, then the weights, then the choice.

    To 0.3 all tokens take all steps with equal weights, to 0.5 with weights that are learned; from there to 0.7 the
    fraction falls to its own value, where it stays.
    """
    chosen = [stack.effort.fraction for stack in model.stacks]

    def hook(step: int, batch: Any) -> Any:
        done = step / steps
        closed = min(1.0, max(0.0, (done - 0.5) / 0.2))
        model.set_effort(fraction=[None if f is None else 1 - closed * (1 - f) for f in chosen])
        for stack in model.stacks:
            stack.routers.requires_grad_(done >= 0.3)
        return batch

    return hook


def examined(model: LoopedDecoder, world: PointerChase, seq_len: int, seed: int) -> dict[str, Any]:
    """What a trained model does on sequences it has never seen, and with less or more effort."""
    import torch

    device = model.head_weight.device
    rows = world.batch(0, TEST_ROWS, seq_len, seed + 1_000_003)
    batch = {name: torch.from_numpy(values).to(device) for name, values in rows.items()}
    model.eval()
    end = measured(model, batch)
    end["flops"] = model.flops_per_token(seq_len)
    if end["routes"]:
        shares: dict[int, list[float]] = {}
        for route in end["routes"]:
            shares.setdefault(route["loop"], []).append(route["share"])
        actual = copy.deepcopy(model)
        loops = range(len(model.stacks))
        actual.set_effort(fraction=[sum(shares[i]) / len(shares[i]) if i in shares else None for i in loops])
        end["flops"] = actual.flops_per_token(seq_len)
        end["effort"] = []
        thinks = [len(stack.routers) > 0 for stack in model.stacks]
        most = max(stack.loop.times for stack in model.stacks)
        dials: list[tuple[int, float | None]] = [(steps, None) for steps in range(1, most + 1)]
        for steps, fraction in [*dials, *((most, fraction) for fraction in (0.1, 0.5, 1.0))]:
            changed = copy.deepcopy(model)
            changed.set_effort(
                times=[steps if t else None for t in thinks],
                fraction=[fraction if t else None for t in thinks],
            )
            outcome = {"hard": measured(changed, batch)["hard"], "flops": changed.flops_per_token(seq_len)}
            end["effort"].append({"steps": steps, "fraction": fraction, **outcome})
    return end


def measured(model: LoopedDecoder, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Loss, accuracy by depth, loss on hard tokens; with routers how well they tell hard tokens from fillers.

    Hard are pointers that one look-up does not answer.
    """
    import torch
    import torch.nn.functional as F

    from bloomery.metrics import auc
    from bloomery.worlds.pointer_chase import FILLER

    with torch.no_grad():
        out = model(batch["tokens"])
        logits = out.logits.float()
    depth, targets = batch["depth"], batch["targets"]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    right = (logits.argmax(-1) == targets).float()
    hard = depth > 1
    end: dict[str, Any] = {
        "loss": loss.mean().item(),
        "hard": loss[hard].mean().item(),
        "accuracy": {str(d): right[depth == d].mean().item() for d in depth.unique().tolist()},
        "routes": [
            {
                "loop": route.loop,
                "step": route.step,
                "share": route.chosen.float().mean().item(),
                "by depth": {str(d): route.chosen[depth == d].float().mean().item() for d in depth.unique().tolist()},
            }
            for route in out.routes
        ],
    }
    if out.routes:
        weights = torch.stack([route.weights for route in out.routes]).mean(0)
        clear = hard | (depth == FILLER)
        end["auc"] = auc(hard[clear].cpu().numpy(), weights[clear].cpu().numpy())
    return end


def choose(rates: list[float], loss: Callable[[float], float], tune: Any) -> tuple[float, dict[str, float]]:
    """The best rate and what the tried ones gave; a single rate is taken as it is."""
    if len(rates) == 1:
        return rates[0], {}
    best, tried = tune(rates, loss)
    return best, {f"{rate:g}": value for rate, value in tried.items()}


def by_trial(values: Mapping[Any, Any]) -> dict[int, Any]:
    """The trials' numbers as numbers again, which JSON makes strings of."""
    return {int(trial): value for trial, value in values.items()}


def listed(values: Mapping[int, float]) -> str:
    """Numbers of all trials."""
    return ", ".join(f"{value:.3f}" for value in values.values())


def slug(arm: str) -> str:
    """The arm's name as a folder."""
    return arm.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
