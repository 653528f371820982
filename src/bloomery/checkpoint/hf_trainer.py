"""Checkpoints for the `Trainer` of transformers (extra `hf`): saved while it trains on, resumed on any number of ranks.

    callback = CheckpointCallback("runs/tuned/checkpoints", every=500, keep_last=3)
    trainer = Trainer(model, args, callbacks=[callback], …)          # args: save_strategy="no"
    trainer.train(resume_from_checkpoint=callback.resume(trainer))

Model, optimiser, schedule, generators and the trainer's own state. Not covered: a gradient scaler (float16), DeepSpeed,
and log lines of the very step that was saved, which the trainer writes afterwards.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bloomery.checkpoint.elastic import Rng
from bloomery.checkpoint.folder import Checkpoints
from bloomery.checkpoint.offline import Reader
from bloomery.checkpoint.saving import finish
from bloomery.core.errors import CheckpointError, require

transformers: Any = require("transformers", "hf")
STATE = "trainer_state.json"  # where the trainer looks for how far a run has come


class CheckpointCallback(transformers.TrainerCallback):
    """Saves every `every` optimiser steps and at the end; a step waits only for the copy to host memory.

    `options` are those of `Checkpoints`: keep_last, protect, durable. An error of a save is raised by the next one, or
    at the end of training.
    """

    def __init__(self, root: str | os.PathLike[str], *, every: int, seed: int = 0, **options: Any) -> None:
        if every < 1:
            raise CheckpointError(f"every is {every}", where=root, fix="1 or more steps")
        self.checkpoints, self.every = Checkpoints(root, **options), every
        self._rng = Rng(seed)
        self._loaded: dict[str, Any] | None = None  # the state of the generators, until the first step
        self._resume: int | None = None
        self._saved = 0

    def resume(self, trainer: Any) -> str | None:
        """What to give to `trainer.train(resume_from_checkpoint=…)`; None where there is no whole checkpoint.

        The trainer finds its own state in the folder, and with it the epoch and the batches to skip. Weights it would
        look for there as well: that one method of this trainer is put aside, since they are filled in place later.
        """
        self._resume = self.checkpoints.latest()
        if self._resume is None:
            return None
        record = Reader(self.checkpoints.at(self._resume)).manifest.values["trainer"]["tree"]
        self._folder = tempfile.TemporaryDirectory(prefix="resume-")  # goes with this object
        (Path(self._folder.name) / STATE).write_text(record, encoding="utf-8")
        trainer._load_from_checkpoint = _nothing
        return self._folder.name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fill model, optimiser and schedule."""
        self._saved = state.global_step
        if self._resume is None:
            return
        wanted = self._state(state, kwargs) | {"rng": (caught := _Caught())}
        self.checkpoints.load(wanted)
        self._loaded, self._resume = caught.state, None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Generators as they were: at the border of two epochs they are drawn from before the first step."""
        if self._loaded is not None:
            self._rng.load_state_dict(self._loaded)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Generators as they were, after batches were skipped."""
        border = self._loaded is None or state.epoch == int(state.epoch)
        if self._loaded is not None and not border:
            self._rng.load_state_dict(self._loaded)
        self._loaded = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save, if it is time."""
        if state.global_step % self.every == 0:
            self._save(state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the last step; all is durable when training returns."""
        if state.global_step > self._saved:
            self._save(state, kwargs)
        finish()

    def _save(self, state: Any, parts: dict[str, Any]) -> None:
        self.checkpoints.save(state.global_step, self._state(state, parts), asynchronous=True)
        self._saved = state.global_step

    def _state(self, state: Any, parts: dict[str, Any]) -> dict[str, Any]:
        optimizer = parts["optimizer"]
        return {
            "model": parts["model"],
            "optimizer": getattr(optimizer, "optimizer", optimizer),  # accelerate wraps it
            "schedule": parts["lr_scheduler"],
            "rng": self._rng,
            "trainer": json.dumps(asdict(state), sort_keys=True),
        }


class _Caught:
    """Takes a state without acting on it."""

    state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return Rng().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def _nothing(*args: object, **kwargs: object) -> None:
    """Instead of loading weights from a folder that has none."""
