"""Which parameters decay, and the AdamW that trains them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bloomery.train.config import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weight matrices decay; norms, biases and embeddings do not.

    A norm's scale or a bias has no direction to shrink along, and a row of an embedding table gets a gradient only
    when its token occurs, so that decay would erase the rows of rare tokens. An output head tied to the embedding is
    the same tensor and does not decay either.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in embeddings]
    chosen = {id(p) for p in decayed}
    kept = [p for p in trainable if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101) over `parameter_groups`, in PyTorch's fused kernel where the device has one."""
    groups = parameter_groups(model, config.weight_decay)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=config.phases[0].lr, betas=config.betas, eps=config.eps, fused=fused)
