"""Objectives of the training loop: a model and a batch in, a summed loss out (the contract is in `train.step`)."""

from __future__ import annotations

from typing import Any

import torch

from bloomery.core.errors import ConfigError
from bloomery.nn.loss import IGNORE, linear_cross_entropy
from bloomery.nn.masks import Causal, Documents
from bloomery.train.step import Batch


def next_token(
    model: Any, batch: Batch, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Cross-entropy of every token given those before it, in nats, summed.

    `batch["tokens"]` (batch, seq + 1) int64 gives inputs and targets. With `batch["documents"]` (same shape, one number
    per packed document) attention stays inside a document and no token is predicted from another document. With
    `batch["loss_mask"]` (same shape) only tokens whose mask is not 0 are targets, as in instruction tuning.
    The logits are never held at once: see `nn.loss.linear_cross_entropy`.

    In training a decoder's own terms are added, weighted as its configuration says: the penalty on the softmax's
    normaliser and the auxiliary losses of a mixture of experts. Those are reported as `moe_<name>`, and `moe_load` is
    the largest load of an expert over the mean (all sums over targets, as every metric).
    """
    tokens, head = batch["tokens"], model.head_weight
    if tokens.device.type == "cpu" and int(tokens.max()) >= len(head):  # on a GPU asking would stall it
        what = f"the data holds token {int(tokens.max())}, the model knows 0 to {len(head) - 1}"
        raise ConfigError(what, fix="use the tokenizer the model was made for, or a model with a larger vocabulary")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # (batch, seq)
    mask: Causal | None = None
    counted = torch.ones_like(targets, dtype=torch.bool)
    if "documents" in batch:
        documents = batch["documents"]
        mask = Documents(documents[:, :-1])
        counted &= documents[:, 1:] == documents[:, :-1]
    if "loss_mask" in batch:
        counted &= batch["loss_mask"][:, 1:] != 0
    targets = targets.masked_fill(~counted, IGNORE)
    output = model(inputs, mask=mask)
    z_loss = model.config.z_loss if model.training else 0.0
    loss = linear_cross_entropy(output.hidden, head, targets, reduction="sum", z_loss=z_loss)
    weight = counted.sum()
    metrics = {"weight": weight}
    if output.aux:
        loss = loss + output.aux_loss * weight
        metrics |= {f"moe_{name}": value.detach() * weight for name, value in output.aux.items()}
        metrics["moe_load"] = output.loads.amax(-1).mean() * output.loads.shape[-1] * weight
    return loss, metrics
