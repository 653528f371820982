"""The training loop: batches, an objective, AdamW, a schedule, checkpoints. It knows no architecture and no modality.

A step is a pure function of the weights, the optimiser state and the step's number: data is addressed by step, the
schedule is a function of tokens, and generators are seeded from (seed, step, rank). So a checkpoint holds all there is
to resume from, and a resumed run follows the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bloomery.core.config import decode, encode
from bloomery.core.devices import pick_dtype
from bloomery.core.errors import CheckpointError, ConfigError, nearest
from bloomery.core.files import explain_os_errors
from bloomery.core.progress import Progress
from bloomery.core.seeds import derive
from bloomery.train import checkpoint
from bloomery.train.config import TrainConfig
from bloomery.train.meter import Meter
from bloomery.train.optim import adamw
from bloomery.train.ranks import Ranks, join
from bloomery.train.schedule import Plan, Position
from bloomery.train.step import Batch, Objective, accumulate, micro_batches, normalise_and_clip, prepare


class Source(Protocol):
    """Training data whose batches are a pure function of the arguments."""

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Batch number `step`."""


@dataclass
class TrainResult:
    """How far training has come. This is also the state that a checkpoint keeps."""

    steps: int = 0
    tokens: int = 0
    loss: float = math.nan  # mean per target in the last step
    seconds: float = 0.0  # in optimiser steps, over all resumed pieces of the run
    evaluation: dict[str, float] = field(default_factory=dict)  # what `evaluate` last returned
    checkpoint: Path | None = None  # the newest one


def train(
    model: nn.Module,
    objective: Objective,
    data: Source | Mapping[str, Source],
    config: TrainConfig,
    *,
    out: Path | str | None = None,
    evaluate: Callable[[Any, int], Mapping[str, float]] | None = None,
    sample: Callable[[Any, int], None] | None = None,
    log: Callable[..., None] | None = None,
    resume: bool = True,
    before_batch: Sequence[Callable[[int, Batch], Batch]] = (),
    after_step: Sequence[Callable[[int, Mapping[str, float]], None]] = (),
    quiet: bool = False,
) -> TrainResult:
    """Train `model` in place, on the device where it is, and return how far training has come.

    `objective` is described in `bloomery.train.step`. `data` is one source, or several by the names that the phases
    use. With `out`, checkpoints go to `out/checkpoints` and a run found there is continued; without `resume` such a
    folder is refused. `evaluate(model, step)` returns values to log and `sample(model, step)` shows what the model
    does: both run in eval mode without gradients, every `config.eval_every` tokens and at the end.
    `log(step, **values)` takes numbers. `before_batch` hooks may replace the batch of a step (all ranks' rows),
    `after_step` hooks see its values. Under torchrun every rank calls this function with the same arguments; all of
    them evaluate, the first one logs, samples and saves.
    """
    device = next(model.parameters()).device
    dtype = pick_dtype(config.precision, device)
    plan, sources = Plan(config), _sources(data, config)
    optimizer = adamw(model, config)
    folder = None if out is None else Path(out) / "checkpoints"
    ranks = join(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result = _resume(folder, resume, model, optimizer, config)
        batches = _batches(result.steps, plan, sources, config)
        forward = prepare(model, objective, compiled=config.compile, ranks=ranks)
        generator = torch.Generator(device)
        meter = Meter(model, device, config.seq_len, ranks.world)
        model.train()

        shown = Progress("train", plan.tokens, "tokens", done=result.tokens, quiet=quiet or not ranks.first)
        with shown:
            upcoming = next(batches, None)
            while upcoming is not None:
                # ---- one step ----
                began = time.perf_counter()
                step, position, batch = upcoming
                for hook in before_batch:
                    batch = hook(step, batch)
                seed = derive(config.seed, "train", step, ranks.rank)
                torch.manual_seed(seed)  # dropout and the like; the caller's state comes back at the end
                generator.manual_seed(seed)
                optimizer.zero_grad(set_to_none=True)
                pieces = micro_batches(batch, config.micro_batch, ranks)
                sums = accumulate(forward, pieces, generator, device, dtype)
                upcoming = next(batches, None)  # read on the CPU while the GPU is at work
                values = normalise_and_clip(model, sums, config.clip, step, ranks)
                for group in optimizer.param_groups:
                    group["lr"] = position.lr
                optimizer.step()

                # ---- say what happened ----
                tokens = position.batch_size * config.seq_len
                seconds = time.perf_counter() - began
                meter.step(tokens, seconds)
                result.steps, result.tokens = step + 1, position.tokens + tokens
                result.loss, result.seconds = values["loss"], result.seconds + seconds
                values |= {"lr": position.lr, "tokens": result.tokens}
                shown.advance(tokens, loss=result.loss)
                for after in after_step:
                    after(step, values)
                last = result.steps == plan.steps
                if log and ranks.first and (last or result.steps % config.log_every == 0):
                    log(result.steps, **values, **meter.read(), eta_seconds=shown.eta or 0.0)

                # ---- evaluate, then save: a kill in between evaluates again and loses nothing ----
                if last or _crossed(config.eval_every, position.tokens, result.tokens):
                    _show(model, result, evaluate, sample, log, ranks)
                if folder and (last or _crossed(config.checkpoint_every, step, step + 1)):
                    _save(folder, model, optimizer, config, result, ranks)
    return result


def _sources(data: Source | Mapping[str, Source], config: TrainConfig) -> dict[str | None, Source]:
    """The sources by the names that the phases use (None for the only one)."""
    if not isinstance(data, Mapping):
        if config.phases[0].data is not None:
            raise ConfigError("the phases name their data, but one source was given", fix="pass data={name: source}")
        return {None: data}
    for phase in config.phases:
        if phase.data not in data:
            raise ConfigError(f"no data source {phase.data!r}", where="phases", fix=nearest(str(phase.data), data))
    return {phase.data: data[str(phase.data)] for phase in config.phases}


def _batches(
    start: int, plan: Plan, sources: Mapping[str | None, Source], config: TrainConfig
) -> Iterator[tuple[int, Position, Batch]]:
    """Steps from `start` on, each with its position in the plan and its global batch."""
    for step in range(start, plan.steps):
        at = plan.at(step)
        yield step, at, sources[at.source].batch(at.data_step, at.batch_size, config.seq_len, config.seed)


def _crossed(every: int, before: int, after: int) -> bool:
    """Whether counting from `before` to `after` reached a multiple of `every` (0: never)."""
    return every > 0 and after // every > before // every


def _show(model: nn.Module, result: TrainResult, evaluate: Any, sample: Any, log: Any, ranks: Ranks) -> None:
    """Run the callbacks in eval mode without gradients; every rank evaluates, the first one logs and samples."""
    model.eval()
    with torch.no_grad():
        if evaluate:
            result.evaluation = dict(evaluate(model, result.steps))
            if log and ranks.first:
                log(result.steps, **result.evaluation)
        if sample and ranks.first:
            sample(model, result.steps)
    model.train()


def _resume(
    folder: Path | None, resume: bool, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> TrainResult:
    """Fill model and optimiser from the newest valid checkpoint; a fresh result where there is none."""
    if folder is None:
        return TrainResult()
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)  # fails now rather than at the first save
    if not checkpoint.checkpoints(folder):
        return TrainResult()
    if not resume:
        raise CheckpointError("the folder already holds checkpoints", where=folder, fix="resume, or use another folder")
    path = checkpoint.latest(folder)
    if path is None:  # a kill cannot do this: starting afresh over it is for the user to decide
        raise CheckpointError("no checkpoint here is intact", where=folder, fix="move the folder away to start afresh")
    state = checkpoint.read_state(path)
    result, saved = TrainResult(**state["result"]), decode(TrainConfig, state["config"], where=f"{path}: config")
    phases = Plan(saved).at(result.steps - 1).phase + 1
    then, now = saved.trajectory(phases), config.trajectory(phases)
    changed = [f"{name} was {then[name]!r}, now {now[name]!r}" for name in then if then[name] != now[name]]
    if changed:
        fix = "use the same values, or another output folder"
        raise CheckpointError(f"the run here was started differently: {'; '.join(changed)}", where=path, fix=fix)
    checkpoint.load(path, model, optimizer)
    result.checkpoint = path
    return result


def _save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    result: TrainResult,
    ranks: Ranks,
) -> None:
    """Write a checkpoint, then delete the oldest; the first rank does, the others wait."""
    path = checkpoint.step_folder(folder, result.steps)
    if ranks.first:
        progress = encode(replace(result, checkpoint=None))  # a folder may move
        checkpoint.save(path, model, optimizer, {"result": progress, "config": encode(config)})
        checkpoint.prune(folder, config.keep_last, path)
    result.checkpoint = path
    ranks.wait()
