"""Which parameters decay, which ones wider models move less, and the optimiser that trains them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bloomery.core.errors import ConfigError
from bloomery.train.adastar import Adastar, Rule
from bloomery.train.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float, mup_width: int | None = None) -> list[dict[str, Any]]:
    """Trainable parameters in groups: weight matrices decay; norms, biases and embeddings do not.

    A norm's scale or a bias has no direction to shrink along, and a row of an embedding table gets a gradient only
    when its token occurs, so that decay would erase the rows of rare tokens. An output head tied to the embedding is
    the same tensor and does not decay either.

    With `mup_width`, matrices inside the model's blocks are a group of their own with the `multiplier` of `mup`.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    kept = [p for p in trainable if id(p) not in chosen]
    inside, multiplier = mup(model, mup_width) if mup_width is not None else (set[int](), 1.0)
    hidden = [p for p in decayed if id(p) in inside]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in decayed if id(p) not in inside], "weight_decay": weight_decay},
        {"params": hidden, "weight_decay": weight_decay, "multiplier": multiplier},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def mup(model: Any, width: int) -> tuple[set[int], float]:
    """Simple muP: the ids of the parameters in `model.blocks` and the multiplier min(width / model's width, 1).

    Hidden matrices of a model k times as wide as the one at which a learning rate was tuned take updates of 1/k, so
    that the change of their output keeps its size; embeddings and norms move as before. The learning rate then carries
    over (arXiv:2407.21075, section 3; simplified from arXiv:2203.03466). The model's width is `model.config.dim`.
    """
    blocks, dim = getattr(model, "blocks", None), getattr(getattr(model, "config", None), "dim", None)
    if blocks is None or dim is None:
        what = f"mup_width needs a model with `blocks` and `config.dim`; {type(model).__name__} lacks them"
        raise ConfigError(what, fix="leave mup_width out, or scale the learning rate yourself")
    return {id(p) for p in blocks.parameters()}, min(width / dim, 1.0)


def build(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that `config.optimizer` names, over `parameter_groups`.

    - `adamw`: PyTorch's, in its fused kernel. Weight decay is multiplied by the learning rate.
    - `independent_adamw`: the same update; weight decay follows the schedule's shape but not its height.
    - `adastar`: that of Apple's foundation models; `betas` are those of the update's and the square's average.
    """
    if config.optimizer == "adamw":
        return adamw(model, config)
    (smooth, square), weight_decay = _resolved(config)
    rule = Rule(update_ema_decay=smooth, gradient_square_ema_decay=square)
    if config.optimizer == "independent_adamw":
        rule = Rule.adamw((smooth, square), config.eps)
    groups = parameter_groups(model, weight_decay, config.mup_width)
    return Adastar(groups, config.phases[0].lr, rule=rule)


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over `parameter_groups`, in PyTorch's fused kernel where the device has one."""
    betas, weight_decay = _resolved(config)
    groups = parameter_groups(model, weight_decay)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=config.phases[0].lr, betas=betas, eps=config.eps, fused=fused)


def _resolved(config: TrainConfig) -> tuple[tuple[float, float], float]:
    """Betas and weight decay, which a configuration has filled in."""
    assert config.betas is not None
    assert config.weight_decay is not None
    return config.betas, config.weight_decay
