"""What a training run is told: phases counted in tokens, and the numbers that hold for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError
from bloomery.train.plateau import BatchGrowth
from bloomery.train.rates import FALLING, SCHEDULES, tokens_until


@dataclass(frozen=True, kw_only=True)
class Change:
    """Another batch size or another source inside a phase, while its learning rate goes on as if nothing had happened.

    The change holds from the first step that begins at or after its place. A batch ramp is a list of changes at so
    many tokens; continued training switches its data when the rate has fallen far enough (arXiv:2407.07263).
    """

    at_tokens: int | None = None  # the place: so many tokens into the phase …
    at_lr: float | None = None  # … or when the rate has fallen to this fraction of the phase's `lr`
    batch_size: int | None = None  # sequences per optimiser step from here on; None: as before
    data: str | None = None  # name of the source from here on; None: as before

    def __post_init__(self) -> None:
        places = (self.at_tokens is None) + (self.at_lr is None)
        _check(places == 1, "change", (self.at_tokens, self.at_lr), "one of at_tokens and at_lr")
        _check(self.at_tokens is None or self.at_tokens > 0, "at_tokens", self.at_tokens, "> 0")
        _check(self.at_lr is None or 0 < self.at_lr < 1, "at_lr", self.at_lr, "between 0 and 1")
        _check(self.batch_size is None or self.batch_size > 0, "batch_size", self.batch_size, "> 0")
        _check(bool(self.batch_size or self.data), "change", encode(self), "a batch_size, data or both")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one learning-rate schedule, and one data source and batch size unless they change."""

    tokens: int  # length of the phase; it runs for as many whole optimiser steps as cover it
    lr: float  # learning rate after warm-up
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt", "step"] = "cosine"
    warmup_tokens: int = 0  # linear climb from the end of the previous phase (0 in the first) to `lr`
    final_lr: float = 0.0  # where linear, cosine, wsd and inverse_sqrt arrive at the end of the phase
    decay_tokens: int = 0  # wsd only: the last so many tokens fall linearly from `lr` to `final_lr`
    step_at: list[float] = field(default_factory=list)  # step only: fractions of `tokens` at which the rate drops …
    step_factor: float = 0.5  # … to so much of what it was
    batch_size: int | None = None  # sequences per optimiser step; None: the run's own
    data: str | None = None  # name of the source, when the run has several
    changes: list[Change] = field(default_factory=list)  # of batch size or data, in order

    def __post_init__(self) -> None:
        _check(self.tokens > 0, "tokens", self.tokens, "> 0")
        _check(self.lr > 0, "lr", self.lr, "> 0")
        _check(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        _check(0 <= self.warmup_tokens <= self.tokens, "warmup_tokens", self.warmup_tokens, "0 … tokens")
        _check(0 <= self.final_lr <= self.lr, "final_lr", self.final_lr, "0 … lr")
        _check(self.batch_size is None or self.batch_size > 0, "batch_size", self.batch_size, "> 0")
        if self.schedule == "wsd":
            room = self.tokens - self.warmup_tokens
            _check(0 < self.decay_tokens <= room, "decay_tokens", self.decay_tokens, "1 … tokens - warmup_tokens")
        else:
            _check(self.decay_tokens == 0, "decay_tokens", self.decay_tokens, "0 unless schedule is wsd")
        if self.schedule == "step":
            inside = all(self.warmup_tokens < at * self.tokens < self.tokens for at in self.step_at)
            rising = all(a < b for a, b in pairwise(self.step_at))
            _check(bool(self.step_at) and inside and rising, "step_at", self.step_at, "rising, between warm-up and 1")
            _check(0 < self.step_factor < 1, "step_factor", self.step_factor, "between 0 and 1")
        else:
            _check(not self.step_at, "step_at", self.step_at, "empty unless schedule is step")
        if self.schedule not in FALLING:
            what = f"0 when schedule is {self.schedule}: it would do nothing"
            _check(self.final_lr == 0, "final_lr", self.final_lr, what)
        if self.schedule == "inverse_sqrt":
            _check(
                self.final_lr > 0, "final_lr", self.final_lr, "> 0 when schedule is inverse_sqrt: it never ends at 0"
            )
        edges = [0, *self.edges(), self.tokens]
        _check(all(a < b for a, b in pairwise(edges)), "changes", edges[1:-1], "places in order inside the phase")
        unnamed = self.data is None and any(change.data for change in self.changes)
        _check(not unnamed, "data", self.data, "a name, when `changes` name other data")

    def edges(self) -> list[int]:
        """Where each of `changes` takes place, in tokens into the phase."""
        return [tokens_until(self, c.at_lr) if c.at_lr else c.at_tokens or 0 for c in self.changes]

    def sources(self) -> list[str | None]:
        """Names of the data, in the order in which the phase reads it."""
        return [self.data, *(change.data for change in self.changes if change.data)]


# The betas and the weight decay of each optimiser when a configuration does not say. PyTorch's AdamW multiplies the
# decay by the learning rate; the other two do not, so theirs is smaller by that factor.
OWN = {
    "adamw": ((0.9, 0.95), 0.1),
    "independent_adamw": ((0.9, 0.95), 1e-4),
    "adastar": ((0.95, 0.95), 3.16e-4),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything `train` needs besides the model, the objective and the data."""

    phases: list[Phase]
    seq_len: int = 512  # predicted tokens per sequence; a batch carries seq_len + 1 tokens
    batch_size: int = 32  # sequences per optimiser step, over all ranks
    micro_batch: int | None = None  # sequences per forward pass on one rank; None: the rank's whole share at once
    growth: BatchGrowth | None = None  # let the batch grow whenever the loss has stopped falling
    optimizer: Literal["adamw", "independent_adamw", "adastar"] = "adamw"  # see `optim.build`
    betas: tuple[float, float] | None = None  # of the running averages; None: the optimiser's own, see `OWN`
    eps: float = 1e-8  # added to the root of the squares' average; adastar adds none
    weight_decay: float | None = None  # on weight matrices only: see `optim.parameter_groups`; None: see `OWN`
    mup_width: int | None = None  # width `lr` was tuned at: wider models move their hidden matrices less (simple muP)
    clip: float = 1.0  # largest global gradient norm; 0 switches clipping off
    skip_norm: float | None = None  # skip a step whose gradient norm reaches this (inf: only one that is not finite)
    skip_multiple: float | None = None  # or so many times the running mean; with neither, not finite is an error
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: bfloat16 on CUDA
    compile: bool = False  # run the model through torch.compile
    seed: int = 0
    log_every: int = 10  # optimiser steps
    eval_every: int = 0  # tokens; 0: only at the end
    checkpoint_every: int = 0  # optimiser steps; 0: only at the end
    keep_last: int = 2  # checkpoints that stay on disk

    def __post_init__(self) -> None:
        _check(len(self.phases) > 0, "phases", self.phases, "at least one")
        for name in ("seq_len", "batch_size", "log_every", "keep_last"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        self._resolve_optimizer()
        for name in ("weight_decay", "clip", "eval_every", "checkpoint_every"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        for name in ("micro_batch", "mup_width", "skip_norm", "skip_multiple"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "> 0")
        _check(all(0 <= beta < 1 for beta in self.betas or ()), "betas", self.betas, "0 <= beta < 1")
        _check(self.eps > 0, "eps", self.eps, "> 0")
        known = ("auto", "float32", "bfloat16")
        _check(self.precision in known, "precision", self.precision, f"one of {', '.join(known)}")
        named = Counter(phase.data is None for phase in self.phases)
        _check(len(named) == 1, "phases", [p.data for p in self.phases], "`data` named in every phase or in none")
        if self.growth:
            fixed = [p.batch_size for p in self.phases] + [c.batch_size for p in self.phases for c in p.changes]
            _check(not any(fixed), "phases", fixed, "no batch_size of their own beside `growth`, which sets it")
            self.growth.sizes_from(self.batch_size)
        self.check_ranks(1)

    def _resolve_optimizer(self) -> None:
        """Fill in what belongs to the optimiser and refuse what it cannot do."""
        _check(self.optimizer in OWN, "optimizer", self.optimizer, f"one of {', '.join(OWN)}")
        betas, weight_decay = OWN[self.optimizer]
        object.__setattr__(self, "betas", betas if self.betas is None else self.betas)
        object.__setattr__(self, "weight_decay", weight_decay if self.weight_decay is None else self.weight_decay)
        if self.optimizer == "adastar":
            _check(self.eps == 1e-8, "eps", self.eps, "the default: adastar adds none")
        if self.optimizer == "adamw":
            why = "None: adamw would scale its decay as well, independent_adamw and adastar do not"
            _check(self.mup_width is None, "mup_width", self.mup_width, why)

    @property
    def skips(self) -> bool:
        """Whether steps with a gradient off the scale are skipped; else one that is not finite is an error."""
        return self.skip_norm is not None or self.skip_multiple is not None

    def check_ranks(self, world: int) -> None:
        """Refuse a batch size, now or later in the run, that does not divide over `world` ranks.

        Sizes that change must also be multiples of `micro_batch` on every rank, so that a larger batch is more
        forward passes of one size.
        """
        for where, size, changes in self._batch_sizes():
            if size % world:
                raise ConfigError(f"{where} {size} does not divide over {world} ranks")
            if changes and self.micro_batch and size % (world * self.micro_batch):
                what = f"{where} {size} is not a multiple of micro_batch {self.micro_batch}"
                raise ConfigError(what + (f" times {world} ranks" if world > 1 else ""))

    def trajectory(self, phases: int) -> dict[str, Any]:
        """The fields that decide the weights up to the end of the first `phases` phases, as plain values.

        Two runs that agree on them train the same model that far; logging, evaluation, checkpointing, the split into
        micro-batches, compilation and phases still to come may differ.
        """
        free = {"micro_batch", "compile", "log_every", "eval_every", "checkpoint_every", "keep_last"}
        values = {name: value for name, value in encode(self).items() if name not in free}
        return {**values, "phases": values["phases"][:phases]}

    def _batch_sizes(self) -> Iterator[tuple[str, int, bool]]:
        """Every batch size the run may take: where it stands, the size, and whether it is one of several."""
        for i, phase in enumerate(self.phases):
            sizes = [c.batch_size for c in phase.changes if c.batch_size]
            where = f"phases[{i}].batch_size" if phase.batch_size else "batch_size"
            yield where, phase.batch_size or self.batch_size, bool(sizes or self.growth)
            yield from ((f"phases[{i}].changes.batch_size", size, True) for size in sizes)
        if self.growth:
            yield from (("growth: batch_size", size, True) for size in self.growth.sizes_from(self.batch_size))


def _check(holds: bool, field: str, value: object, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value!r}; accepted: {accepted}")
