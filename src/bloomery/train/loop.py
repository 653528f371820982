"""The training loop: batches, an objective, an optimiser, a schedule, checkpoints; no architecture, no modality.

A step is a pure function of the weights, the optimiser state and the step's number: data is addressed by step, the
schedule is a function of tokens, and generators are seeded from (seed, step, rank). So a checkpoint holds all there is
to resume from, and a resumed run follows the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bloomery import checkpoint
from bloomery.core.devices import pick_dtype
from bloomery.core.errors import ConfigError, nearest
from bloomery.core.log import logger
from bloomery.core.progress import Progress
from bloomery.core.seeds import derive
from bloomery.train.config import TrainConfig
from bloomery.train.meter import Meter
from bloomery.train.optim import build
from bloomery.train.plateau import Watch
from bloomery.train.ranks import Ranks, join
from bloomery.train.schedule import Plan, Position
from bloomery.train.state import Store, TrainResult
from bloomery.train.step import Batch, Objective, accumulate, admits, micro_batches, normalise_and_clip, prepare

notes = logger("train")


class Source(Protocol):
    """Training data as an endless sequence of rows, a pure function of the arguments."""

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Rows `step · batch_size` … `(step + 1) · batch_size - 1`: the same sequence for every batch size."""


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
    init_from: Path | str | None = None,
    before_batch: Sequence[Callable[[int, Batch], Batch]] = (),
    after_step: Sequence[Callable[[int, Mapping[str, float]], None]] = (),
    quiet: bool = False,
) -> TrainResult:
    """Train `model` in place, on the device where it is, and return how far training has come.

    `objective` is described in `bloomery.train.step`. `data` is one source, or several by the names that the phases
    use. With `out`, checkpoints go to `out/checkpoints` and a run found there is continued; without `resume` such a
    folder is refused. A run that begins takes weights and optimiser state from the checkpoint `init_from` (or the
    newest one of that run's output folder); its steps count from 0. `evaluate(model, step)` returns values to log and
    `sample(model, step)` shows what the model does: both run in eval mode without gradients, every
    `config.eval_every` tokens and at the end. `log(step, **values)` takes numbers. `before_batch` hooks may replace the
    batch of a step (all ranks' rows), `after_step` hooks see its values. Under torchrun every rank calls this function
    with the same arguments; all of them evaluate, the first one logs, samples and saves.
    """
    device = next(model.parameters()).device
    dtype = pick_dtype(config.precision, device)
    sources = _sources(data, config)
    optimizer = build(model, config)
    ranks = join(device)
    config.check_ranks(ranks.world)
    store = Store(out, config, ranks)
    micro_batch = config.micro_batch or (config.batch_size // ranks.world if config.growth else None)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        result = store.begin(model, optimizer, resume=resume, init_from=init_from)
        plan = Plan(config, result.growth)
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
                pieces = micro_batches(batch, micro_batch, ranks)
                sums = accumulate(forward, pieces, generator, device, dtype)
                upcoming = next(batches, None)  # read on the CPU while the GPU is at work
                guard = result.guard if config.skips else None
                values = normalise_and_clip(model, sums, config.clip, step, ranks, must_be_finite=guard is None)
                for group in optimizer.param_groups:
                    group["lr"], group["peak_lr"] = position.lr, position.peak_lr
                admitted = guard is None or admits(guard, values, config, step)
                if admitted:
                    optimizer.step()

                # ---- say what happened ----
                tokens = position.batch_size * config.seq_len
                seconds = time.perf_counter() - began
                meter.step(tokens, seconds)
                result.steps, result.tokens = step + 1, position.tokens + tokens
                result.loss, result.seconds = values["loss"], result.seconds + seconds
                values |= {"lr": position.lr, "tokens": result.tokens, "batch_size": position.batch_size}
                values |= {"skipped": float(guard.skipped)} if guard else {}
                shown.advance(tokens, loss=result.loss)
                for after in after_step:
                    after(step, values)
                last = result.steps == plan.steps
                if log and ranks.first and (last or result.steps % config.log_every == 0):
                    log(result.steps, **values, **meter.read(), eta_seconds=shown.eta or 0.0)
                if admitted and not last and _grows(result, position, plan, config):
                    plan = Plan(config, result.growth)
                    batches = _batches(result.steps, plan, sources, config)
                    upcoming = next(batches)
                    if log and ranks.first:
                        log(result.steps, batch_size=upcoming[1].batch_size)

                # ---- evaluate, then save: a kill in between evaluates again and loses nothing ----
                if last or _crossed(config.eval_every, position.tokens, result.tokens):
                    _show(model, result, evaluate, sample, log, ranks)
                if last or _crossed(config.checkpoint_every, step, step + 1):
                    store.save(model, optimizer, result)
        checkpoint.finish()
    return result


def _sources(data: Source | Mapping[str, Source], config: TrainConfig) -> dict[str | None, Source]:
    """The sources by the names that the phases use (None for the only one)."""
    if not isinstance(data, Mapping):
        if config.phases[0].data is not None:
            raise ConfigError("the phases name their data, but one source was given", fix="pass data={name: source}")
        return {None: data}
    names = [name for phase in config.phases for name in phase.sources()]
    for name in names:
        if name not in data:
            raise ConfigError(f"no data source {name!r}", where="phases", fix=nearest(str(name), data))
    return {name: data[str(name)] for name in names}


def _batches(
    start: int, plan: Plan, sources: Mapping[str | None, Source], config: TrainConfig
) -> Iterator[tuple[int, Position, Batch]]:
    """Steps from `start` on, each with its position in the plan and its global batch."""
    for step in range(start, plan.steps):
        at = plan.at(step)
        yield step, at, _rows(sources[at.source], at.row, at.batch_size, config)


def _rows(source: Source, first: int, count: int, config: TrainConfig) -> Batch:
    """Rows `first` … `first + count - 1` of a source, as batches of the largest size that divides both numbers."""
    size = math.gcd(first, count)
    numbers = range(first // size, (first + count) // size)
    pieces = [source.batch(number, size, config.seq_len, config.seed) for number in numbers]
    return pieces[0] if len(pieces) == 1 else {name: _join([piece[name] for piece in pieces]) for name in pieces[0]}


def _join(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [item for part in parts for item in part]


def _grows(result: TrainResult, position: Position, plan: Plan, config: TrainConfig) -> bool:
    """Whether the batch is larger from the next step on; if so, `result.growth` says it."""
    larger = config.growth and config.growth.next_size(position.batch_size)
    if not config.growth or not larger:
        return False
    following = plan.at(result.steps)
    if (following.phase, following.source) != (position.phase, position.source):
        result.watch = Watch()  # other data, another loss
        return False
    if not result.watch.plateau(result.loss, config.growth):
        return False
    result.growth.append((result.tokens, larger))
    notes.info("step %d: the loss has stopped falling; the batch grows to %d sequences", result.steps, larger)
    return True


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
