"""Depth up-scaling: a trained decoder made deeper by running some of its layers twice (Yi, arXiv:2403.04652 §7.3).

```text
base ─ layer_similarity ─ cosine per layer ─ best_window | best_layers | window_losses ─ GrowthPlan ─ grow ─ train on
```

A layer whose output is almost parallel to its input changes little, so a model that runs it twice starts close to the
base. `GrowthPlan` is the list of base layers in the order in which the grown model runs them; three ways to make one:

- `block` (Yi-9B): the window [start, stop) runs twice as a whole: 0 … stop-1, then start … L-1.
- `interleave`: every chosen layer is followed at once by its copy.
- `solar` (arXiv:2312.15166): the base without its last m layers, then the base without its first m. Written out that
  is the block layout with the window [m, L-m): SOLAR and Yi differ in where the window lies, not in kind.

A copy's two branches may be scaled by `alpha`: 1 is a plain copy, 0 leaves the function of the base exactly as it was
(block expansion, arXiv:2401.02415). Copies are parameters of their own. Nothing is drawn anew, so the residual
initialisation keeps the scale that the base's depth gave it.

Yi publishes neither its list of layers nor its selection code. Choosing by cosine is what its text says; choosing by
the measured loss of the grown model is ours. Checkpoint folders are grown by `models.growth_folder`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.core.errors import BloomeryError, ConfigError, EmptyError
from bloomery.models.decoder import Block, Decoder, DecoderConfig
from bloomery.nn import LayerNorm1p, RMSNorm

# --- which layers do little ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSimilarity:
    """Mean cosine between the residual stream before and after each layer, in the order of the layers."""

    cosine: tuple[float, ...]  # over all tokens but padding
    without_first: tuple[float, ...]  # and without each sequence's first token, whose norm is often huge
    tokens: int  # that `without_first` is a mean over


@torch.no_grad()
def layer_similarity(model: Decoder, batches: Iterable[Mapping[str, Tensor]]) -> LayerSimilarity:
    """Run `batches` and compare what enters each layer with what leaves it, token by token, in float32.

    A batch has "tokens" (batch, seq) int64 and may have "padding" (batch,) int64, left-padding slots per row. The last
    layer's output is taken before the final norm. A value that is not finite is a BloomeryError naming the layer.
    """
    training, device = model.training, next(model.parameters()).device
    sums = torch.zeros(2, len(model.blocks), dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.int64)
    model.eval()
    try:
        for batch in batches:
            tokens, padding = batch["tokens"].to(device), batch.get("padding")
            begin = torch.zeros(len(tokens), dtype=torch.int64) if padding is None else padding.cpu()
            place = torch.arange(tokens.shape[1]) - begin[:, None]  # (batch, seq), 0 at a row's first token
            cosines = _stream_cosines(model, tokens, None if padding is None else padding.to(device))
            for i, kept in enumerate((place >= 0, place > 0)):
                sums[i] += (cosines * kept).sum((1, 2))
                counts[i] += kept.sum()
    finally:
        model.train(training)
    if counts[1] == 0:
        raise EmptyError("the text for the layer report has no sequence of two tokens", fix="give more text")
    cosine, without_first = (sums / counts[:, None]).tolist()
    return LayerSimilarity(tuple(cosine), tuple(without_first), int(counts[1]))


def _stream_cosines(model: Decoder, tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Cosine of the stream before and after each layer, (layers, batch, seq) float64 on the CPU."""
    cosines: list[Tensor] = []
    before: Tensor | None = None

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal before
        after = inputs[0].float()  # (batch, seq, dim)
        if before is not None:
            cosines.append(F.cosine_similarity(before, after, dim=-1).cpu().double())
            if not bool(cosines[-1].isfinite().all()):
                raise BloomeryError(f"layer {len(cosines) - 1} gives values that are not finite", where="layer report")
        before = after

    # what enters layer i + 1 is what leaves layer i; what enters the final norm leaves the last layer
    handles = [module.register_forward_pre_hook(look) for module in (*model.blocks, model.norm)]
    try:
        _ = model(tokens, padding=padding).hidden
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(cosines)


def best_window(cosine: Sequence[float], count: int) -> tuple[int, int]:
    """The window [start, stop) of `count` layers with the highest mean cosine; the first of several equals."""
    _require_count(count, len(cosine))
    start = max(range(len(cosine) - count + 1), key=lambda i: sum(cosine[i : i + count]))
    return start, start + count


def best_layers(cosine: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` layers with the highest cosines, wherever they lie, in order."""
    _require_count(count, len(cosine))
    return tuple(sorted(sorted(range(len(cosine)), key=lambda i: -cosine[i])[:count]))


def window_losses(
    model: Decoder,
    count: int,
    loss: Callable[[Decoder], float],
    layout: Literal["block", "interleave"] = "block",
    alpha: float = 1.0,
) -> dict[GrowthPlan, float]:
    """What each window of `count` layers would cost: `loss` of the model grown by it, before any training.

    The most honest criterion and the dearest: one call of `loss` for every window. The models measured share the base's
    weights, so memory stays at the base (with another alpha: and the copies).
    """
    layers = len(model.blocks)
    _require_count(count, layers)
    windows = [(start, start + count) for start in range(layers - count + 1)]
    if layout == "block":
        plans = [GrowthPlan.block(layers, start, stop, alpha) for start, stop in windows]
    else:
        plans = [GrowthPlan.interleave(layers, range(start, stop), alpha) for start, stop in windows]
    return {plan: loss(preview(model, plan)) for plan in plans}


def _require_count(count: int, layers: int) -> None:
    if not 0 < count <= layers:
        raise ConfigError(f"{count} layers to run twice", where="growth plan", fix=f"1 to {layers}")


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GrowthPlan:
    """Which layer of the base stands at each layer of the grown model.

    Every layer of the base stays, in its order. The second and later uses of a layer are its copies.
    """

    base_layers: int
    sources: tuple[int, ...]  # base layer by grown layer
    alpha: float = 1.0  # what a copy's branches are scaled by; with 0 the grown model computes what the base does
    layout: Literal["block", "interleave", "solar", "free"] = "free"

    def __post_init__(self) -> None:
        if foreign := [i for i in self.sources if not 0 <= i < self.base_layers]:
            raise ConfigError(
                f"layer {foreign[0]} does not exist",
                where="growth plan",
                fix=f"the base has 0 to {self.base_layers - 1}",
            )
        if len(self.sources) <= self.base_layers:
            raise ConfigError(
                f"{len(self.sources)} layers do not grow a base of {self.base_layers}",
                where="growth plan",
                fix=f"more than {self.base_layers} layers",
            )
        if list(dict.fromkeys(self.sources)) != list(range(self.base_layers)):
            raise ConfigError(
                f"the layers {list(self.sources)} leave out or reorder layers of the base",
                where="growth plan",
                fix="name all of them, each for the first time in the base's order",
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha}", where="growth plan", fix="0 (no effect) to 1 (a plain copy)")

    @classmethod
    def block(cls, base_layers: int, start: int, stop: int, alpha: float = 1.0) -> GrowthPlan:
        """The window [start, stop) twice in a row; Yi-9B is `block(32, 12, 28)`."""
        if start >= stop:
            raise ConfigError(f"the window [{start}, {stop}) is empty", where="growth plan", fix="start below stop")
        if start < 0 or stop > base_layers:
            raise ConfigError(
                f"the window [{start}, {stop}) does not lie within the base",
                where="growth plan",
                fix=f"0 <= start < stop <= {base_layers}",
            )
        return cls(base_layers, (*range(stop), *range(start, base_layers)), alpha, "block")

    @classmethod
    def interleave(cls, base_layers: int, chosen: Iterable[int], alpha: float = 1.0) -> GrowthPlan:
        """Each chosen layer followed by its copy."""
        chosen = list(chosen)
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"a layer of {chosen} is chosen twice", where="growth plan", fix="name it once")
        sources = [i for layer in range(base_layers) for i in [layer] * (1 + (layer in chosen))]
        return cls(base_layers, (*sources, *set(chosen).difference(sources)), alpha, "interleave")

    @classmethod
    def solar(cls, base_layers: int, n_layers: int, alpha: float = 1.0) -> GrowthPlan:
        """The base without its last m layers, then without its first m, so that 2 · (base_layers - m) = n_layers."""
        if n_layers % 2 or not base_layers < n_layers <= 2 * base_layers:
            raise ConfigError(
                f"two equal parts of {base_layers} layers cannot make {n_layers}",
                where="growth plan",
                fix=f"an even number from {base_layers + 1} to {2 * base_layers}",
            )
        half = n_layers // 2
        return cls(base_layers, (*range(half), *range(base_layers - half, base_layers)), alpha, "solar")

    @property
    def n_layers(self) -> int:
        """Depth of the grown model."""
        return len(self.sources)

    @property
    def copies(self) -> tuple[int, ...]:
        """The layers of the grown model that are copies."""
        return tuple(i for i, source in enumerate(self.sources) if source in self.sources[:i])

    def runs(self) -> list[tuple[range, range, bool]]:
        """The index map as stretches: (layers of the grown model, layers of the base, whether they are copies)."""
        copies = set(self.copies)
        keys = ((source - i, i in copies) for i, source in enumerate(self.sources))
        found, begin = [], 0
        for (shift, copied), stretch in groupby(keys):
            layers = range(begin, begin + len(list(stretch)))
            found.append((layers, range(layers.start + shift, layers.stop + shift), copied))
            begin = layers.stop
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: what a grown folder says of its origin."""
        return {
            "layout": self.layout,
            "alpha": self.alpha,
            "base_layers": self.base_layers,
            "layers": self.n_layers,
            "sources": list(self.sources),
            "copies": list(self.copies),
        }

    def require_fit(self, config: DecoderConfig) -> None:
        """Raise unless the plan is one for `config`: its depth, and dense layers where the configuration has them."""
        if self.base_layers != config.n_layers:
            raise ConfigError(
                f"the plan grows a base of {self.base_layers} layers, this one has {config.n_layers}",
                where="growth plan",
                fix="make the plan for this base",
            )
        dense = config.moe.first_dense if config.moe else 0
        for i, source in enumerate(self.sources):
            if (i < dense) != (source < dense):
                raise ConfigError(
                    f"layer {i} would be made from layer {source}, but the first {dense} layers are dense and those "
                    "after them mixtures of experts",
                    where="growth plan",
                    fix=f"choose layers from {dense} on",
                )


# --- growing ---------------------------------------------------------------------------------------------------------


def grow(model: Decoder, plan: GrowthPlan) -> Decoder:
    """A deeper decoder in memory of its own. Its configuration is the base's but for `n_layers`; dtype and device stay.

    Optimiser state is for the caller to start afresh: moments of a layer do not fit its copy.
    """
    grown = _assemble(model, plan, copy.deepcopy)
    _scale_copies(grown, plan)
    return grown


def preview(model: Decoder, plan: GrowthPlan) -> Decoder:
    """The grown decoder over the base's own weights, to measure it without the memory; do not train it."""
    grown = _assemble(model, plan, lambda module: module)
    if plan.alpha != 1:
        for i in plan.copies:
            grown.blocks[i] = copy.deepcopy(grown.blocks[i])
        _scale_copies(grown, plan)
    return grown


def branch_ends(block: nn.Module) -> list[nn.Parameter]:
    """The parameters that a layer's two branches are linear in: scaling them scales what the layer adds."""
    assert isinstance(block, Block)
    if isinstance(block.post1, LayerNorm1p):
        what = "the branches end in a LayerNorm1p, which its weights do not scale"
        raise ConfigError(what, where="growth plan", fix="use alpha 1")
    if isinstance(block.post1, (RMSNorm, nn.LayerNorm)):
        return [*block.post1.parameters(), *block.post2.parameters()]
    ffn = [p for name, p in block.ffn.named_parameters() if "down" in name.split(".")]  # of all experts, if any
    return [*block.attn.get_submodule("out").parameters(), *ffn]


def _assemble(model: Decoder, plan: GrowthPlan, take: Callable[[Any], Any]) -> Decoder:
    """The grown decoder out of what `take` makes of the base's parts."""
    if not isinstance(model, Decoder):
        raise ConfigError(f"a {type(model).__name__} cannot be grown", where="growth plan", fix="it takes a Decoder")
    plan.require_fit(model.config)
    names = [id(p) for _, p in model.blocks.named_parameters(remove_duplicate=False)]
    if len(set(names)) < len(names):
        what = "layers of this model share their weights, so their copies would too"
        raise ConfigError(what, where="growth plan", fix="grow a model whose layers are its own")
    with torch.device("meta"):
        grown = Decoder(replace(model.config, n_layers=plan.n_layers))
    for name, part in model.named_children():
        setattr(grown, name, nn.ModuleList(take(part[i]) for i in plan.sources) if part is model.blocks else take(part))
    return grown.train(model.training)


@torch.no_grad()
def _scale_copies(grown: Decoder, plan: GrowthPlan) -> None:
    if plan.alpha != 1:
        for i in plan.copies:
            for end in branch_ends(grown.blocks[i]):
                end.mul_(plan.alpha)
