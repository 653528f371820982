"""What a training run is told: phases counted in tokens, and the numbers that hold for all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one data source, one learning-rate schedule and one batch size."""

    tokens: int  # length of the phase; it runs for ceil(tokens / (batch_size · seq_len)) optimiser steps
    lr: float  # learning rate after warm-up
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_tokens: int = 0  # linear climb from the end of the previous phase (0 in the first) to `lr`
    final_lr: float = 0.0  # where linear, cosine and wsd arrive at the end of the phase
    decay_tokens: int = 0  # wsd only: the last so many tokens fall linearly from `lr` to `final_lr`
    batch_size: int | None = None  # sequences per optimiser step; None: the run's own
    data: str | None = None  # name of the source, when the run has several

    def __post_init__(self) -> None:
        _check(self.tokens > 0, "tokens", self.tokens, "> 0")
        _check(self.lr > 0, "lr", self.lr, "> 0")
        known = ("constant", "linear", "cosine", "wsd")
        _check(self.schedule in known, "schedule", self.schedule, f"one of {', '.join(known)}")
        _check(0 <= self.warmup_tokens <= self.tokens, "warmup_tokens", self.warmup_tokens, "0 … tokens")
        _check(0 <= self.final_lr <= self.lr, "final_lr", self.final_lr, "0 … lr")
        _check(self.batch_size is None or self.batch_size > 0, "batch_size", self.batch_size, "> 0")
        if self.schedule == "wsd":
            room = self.tokens - self.warmup_tokens
            _check(0 < self.decay_tokens <= room, "decay_tokens", self.decay_tokens, "1 … tokens - warmup_tokens")
        else:
            _check(self.decay_tokens == 0, "decay_tokens", self.decay_tokens, "0 unless schedule is wsd")
        if self.schedule == "constant":
            _check(self.final_lr == 0, "final_lr", self.final_lr, "0 when schedule is constant: it would do nothing")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything `train` needs besides the model, the objective and the data."""

    phases: list[Phase]
    seq_len: int = 512  # predicted tokens per sequence; a batch carries seq_len + 1 tokens
    batch_size: int = 32  # sequences per optimiser step, over all ranks
    micro_batch: int | None = None  # sequences per forward pass on one rank; None: the rank's whole share at once
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1  # on weight matrices only: see `optim.parameter_groups`
    clip: float = 1.0  # largest global gradient norm; 0 switches clipping off
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products; auto: bfloat16 on CUDA
    compile: bool = False  # run the model through torch.compile
    seed: int = 0
    log_every: int = 10  # optimiser steps
    eval_every: int = 0  # tokens; 0: only at the end
    checkpoint_every: int = 0  # optimiser steps; 0: only at the end
    keep_last: int = 2  # checkpoints that stay on disk

    def __post_init__(self) -> None:
        _check(len(self.phases) > 0, "phases", self.phases, "at least one")
        for field in ("seq_len", "batch_size", "log_every", "keep_last"):
            _check(getattr(self, field) > 0, field, getattr(self, field), "> 0")
        for field in ("weight_decay", "clip", "eval_every", "checkpoint_every"):
            _check(getattr(self, field) >= 0, field, getattr(self, field), ">= 0")
        _check(self.micro_batch is None or self.micro_batch > 0, "micro_batch", self.micro_batch, "> 0")
        _check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "0 <= beta < 1")
        _check(self.eps > 0, "eps", self.eps, "> 0")
        known = ("auto", "float32", "bfloat16")
        _check(self.precision in known, "precision", self.precision, f"one of {', '.join(known)}")
        named = Counter(phase.data is None for phase in self.phases)
        _check(len(named) == 1, "phases", [p.data for p in self.phases], "`data` named in every phase or in none")

    def trajectory(self, phases: int) -> dict[str, Any]:
        """The fields that decide the weights up to the end of the first `phases` phases, as plain values.

        Two runs that agree on them train the same model that far; logging, evaluation, checkpointing, the split into
        micro-batches, compilation and phases still to come may differ.
        """
        free = {"micro_batch", "compile", "log_every", "eval_every", "checkpoint_every", "keep_last"}
        values = {name: value for name, value in encode(self).items() if name not in free}
        return {**values, "phases": values["phases"][:phases]}


def _check(holds: bool, field: str, value: object, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{field} is {value!r}; accepted: {accepted}")
