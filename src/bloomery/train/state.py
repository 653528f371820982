"""What a run is beside its weights, and how it is saved, taken up again, or begun from another run's checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bloomery import checkpoint
from bloomery.checkpoint import Checkpoints
from bloomery.checkpoint.manifest import MANIFEST
from bloomery.core.config import decode, encode
from bloomery.core.errors import CheckpointError
from bloomery.core.files import explain_os_errors
from bloomery.core.hashing import file_digest
from bloomery.train.config import TrainConfig
from bloomery.train.guard import Guard
from bloomery.train.plateau import Watch
from bloomery.train.ranks import Ranks
from bloomery.train.schedule import Plan


@dataclass
class TrainResult:
    """How far training has come. This is also the state that a checkpoint keeps."""

    steps: int = 0
    tokens: int = 0
    loss: float = math.nan  # mean per target in the last step
    seconds: float = 0.0  # in optimiser steps, over all resumed pieces of the run
    evaluation: dict[str, float] = field(default_factory=dict)  # what `evaluate` last returned
    growth: list[tuple[int, int]] = field(default_factory=list)  # tokens seen, batch size from then on: `plateau`
    watch: Watch = field(default_factory=Watch, repr=False)
    guard: Guard = field(default_factory=Guard, repr=False)
    origin: str = ""  # digest of the checkpoint that the run began from (`init_from`)
    checkpoint: Path | None = None  # the newest one


class Store:
    """The checkpoints of one run, under `out/checkpoints`; without `out`, nothing is kept."""

    def __init__(self, out: Path | str | None, config: TrainConfig, ranks: Ranks) -> None:
        self.folder = None if out is None else Path(out) / "checkpoints"
        self.config, self.ranks = config, ranks
        self.kept = Checkpoints(self.folder or "", keep_last=config.keep_last)

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, resume: bool, init_from: Path | str | None
    ) -> TrainResult:
        """Fill model and optimiser from this run's newest valid checkpoint, else from `init_from`, else leave them.

        A run that began from one checkpoint is not continued from another.
        """
        base = None if init_from is None else _find(Path(init_from))
        origin = "" if base is None else file_digest(base / MANIFEST)
        if self.folder is not None:
            with explain_os_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)  # fails now rather than at the first save
            if self.kept.steps():
                return self._resume(model, optimizer, resume, origin)
        if base is not None:
            checkpoint.load(base, {"model": model, "optimizer": optimizer})
        return TrainResult(origin=origin)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, result: TrainResult) -> None:
        """Write a checkpoint, then delete the oldest; every rank writes its share.

        On a GPU training goes on while the copy in host memory is written; a failure is raised by the next save, or at
        the end. On a CPU a copy would cost the memory and the cores that training needs.
        """
        if self.folder is None:
            return
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        if self.ranks.first:  # seconds differ between ranks; a folder may move
            state |= {"result": encode(replace(result, checkpoint=None)), "config": encode(self.config)}
        on_gpu = next(model.parameters()).is_cuda
        self.kept.save(result.steps, state, asynchronous=on_gpu)
        result.checkpoint = Path(self.kept.at(result.steps).path)

    def _resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, resume: bool, origin: str) -> TrainResult:
        assert self.folder is not None
        if not resume:
            fix = "resume, or use another folder"
            raise CheckpointError("the folder already holds checkpoints", where=self.folder, fix=fix)
        step = self.kept.latest(check_data=True)
        if step is None:  # a kill cannot do this: starting afresh over it is for the user to decide
            fix = "move the folder away to start afresh"
            raise CheckpointError("no checkpoint here is intact", where=self.folder, fix=fix)
        path = Path(self.kept.at(step).path)
        state: dict[str, Any] = {"result": None, "config": None}
        checkpoint.load(path, state)
        result = decode(TrainResult, state["result"], where=f"{path}: result")
        saved = decode(TrainConfig, state["config"], where=f"{path}: config")
        phases = Plan(saved, result.growth).at(result.steps - 1).phase + 1
        then, now = saved.trajectory(phases), self.config.trajectory(phases)
        changed = [f"{name} was {then[name]!r}, now {now[name]!r}" for name in then if then[name] != now[name]]
        if result.origin != origin:
            changed.append(f"init_from was {'another checkpoint' if result.origin else 'not given'}")
        if changed:
            fix = "use the same values, or another output folder"
            raise CheckpointError(f"the run here was started differently: {'; '.join(changed)}", where=path, fix=fix)
        checkpoint.load(path, {"model": model, "optimizer": optimizer})
        result.checkpoint = path
        return result


def _find(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest valid one of the run whose output folder it is."""
    if (path / MANIFEST).is_file():
        return path  # its bytes are checked while they are loaded
    kept = Checkpoints(path / "checkpoints")
    step = kept.latest(check_data=True)
    if step is None:
        fix = "give a step-… folder, or the output folder of a run"
        raise CheckpointError("no valid checkpoint to begin from", where=path, fix=fix)
    return Path(kept.at(step).path)
