"""A run whose batch and data change inside a phase, and runs that begin from another run's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery import checkpoint
from bloomery.core.errors import CheckpointError, ConfigError
from bloomery.train import Change, Phase, TrainConfig, train

VOCAB = 13


class Rows:
    """An endless sequence: row k is made from k alone."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift
        self.asked: list[int] = []

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> Mapping[str, Any]:
        numbers = range(step * batch_size, (step + 1) * batch_size)
        self.asked += numbers
        tokens = torch.tensor([[(k + self.shift) % VOCAB] * (seq_len + 1) for k in numbers])
        return {"tokens": tokens, "keep": torch.ones_like(tokens), "numbers": list(numbers)}


def config(**changes: Any) -> TrainConfig:
    ramp = [Change(at_tokens=100, batch_size=6), Change(at_tokens=300, batch_size=16, data="b")]
    phases = [Phase(tokens=1000, lr=0.02, final_lr=0.002, batch_size=4, data="a", changes=ramp)]
    return TrainConfig(**({"phases": phases, "seq_len": 8, "seed": 3, "micro_batch": 2} | changes))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_ramp_reads_every_row_once_and_hands_over_whole_batches(toy: Callable[..., Any], toy_objective: Any) -> None:
    sources = {"a": Rows(), "b": Rows(1)}
    batches: list[list[int]] = []

    def note(step: int, batch: Any) -> Any:
        batches.append(batch["numbers"])
        return batch

    train(toy(), toy_objective, sources, config(), quiet=True, before_batch=[note])
    assert [len(numbers) for numbers in batches] == [4] * 4 + [6] * 4 + [16] * 6
    for source, rows in (("a", batches[:8]), ("b", batches[8:])):
        flat = [number for batch in rows for number in batch]
        assert flat == list(range(len(flat))) == sources[source].asked


@pytest.mark.parametrize("cut", [2, 4, 6, 8, 11])
def test_an_interrupted_ramp_ends_with_the_same_bits(
    toy: Callable[..., Any], toy_objective: Any, tmp_path: Path, cut: int
) -> None:
    def stop(step: int, values: Mapping[str, float]) -> None:
        if step == cut:
            raise KeyboardInterrupt

    def run(**kwargs: Any) -> tuple[Any, dict[str, Rows]]:
        model, sources = toy(dropout=0.1), {"a": Rows(), "b": Rows(1)}
        train(model, toy_objective, sources, config(checkpoint_every=1), quiet=True, **kwargs)
        return model, sources

    straight, read = run()
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path, after_step=[stop])
    resumed, reread = run(out=tmp_path)
    assert same(straight, resumed)
    for name in read:  # the rest of the same rows
        assert read[name].asked[len(read[name].asked) - len(reread[name].asked) :] == reread[name].asked


def test_sources_of_changes_must_be_there(toy: Callable[..., Any], toy_objective: Any) -> None:
    with pytest.raises(ConfigError, match=r"no data source 'b'"):
        train(toy(), toy_objective, {"a": Rows()}, config(), quiet=True)


# ---- beginning from a checkpoint ----


def one(tokens: int, lr: float, **changes: Any) -> TrainConfig:
    phase = Phase(tokens=tokens, lr=lr, schedule="constant")
    return TrainConfig(**({"phases": [phase], "seq_len": 8, "batch_size": 4, "seed": 3} | changes))


class Later(Rows):
    """The same rows from number `start` on."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> Mapping[str, Any]:
        tokens = torch.tensor(
            [[(self.start + k) % VOCAB] * (seq_len + 1) for k in range(step * batch_size, (step + 1) * batch_size)]
        )
        return {"tokens": tokens, "keep": torch.ones_like(tokens)}


def test_weights_and_moments_are_carried_over_and_steps_are_not(
    toy: Callable[..., Any], toy_objective: Any, tmp_path: Path
) -> None:
    """Ten steps, then ten begun from their end, move the weights as twenty in a row do."""
    straight = toy()
    train(straight, toy_objective, Rows(), one(640, 0.01), quiet=True)
    train(toy(), toy_objective, Rows(), one(320, 0.01), quiet=True, out=tmp_path / "base")
    steps: list[int] = []
    second = toy()
    result = train(
        second,
        toy_objective,
        Later(40),
        one(320, 0.01),
        quiet=True,
        out=tmp_path / "next",
        init_from=tmp_path / "base",
        after_step=[lambda step, values: steps.append(step)],
    )
    assert steps == list(range(10))
    assert (result.steps, result.tokens) == (10, 320)
    assert same(straight, second)
    fresh = toy()
    checkpoint.load(tmp_path / "base" / "checkpoints" / "step-00000010", {"model": fresh})
    train(fresh, toy_objective, Later(40), one(320, 0.01), quiet=True)  # without the moments it goes elsewhere
    assert not same(straight, fresh)


def test_a_run_that_was_begun_from_a_checkpoint_resumes_as_that(
    toy: Callable[..., Any], toy_objective: Any, tmp_path: Path
) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    train(toy(), toy_objective, Rows(), one(320, 0.01), quiet=True, out=base)
    train(toy(), toy_objective, Rows(), one(160, 0.01), quiet=True, out=other)
    start = base / "checkpoints" / "step-00000010"
    straight = toy()
    train(straight, toy_objective, Rows(), one(320, 0.005), quiet=True, init_from=start)
    settings = one(320, 0.005, checkpoint_every=3, keep_last=9)
    train(toy(), toy_objective, Rows(), settings, quiet=True, out=tmp_path / "next", init_from=start)
    (tmp_path / "next" / "checkpoints" / "step-00000010").rename(tmp_path / "aside")
    resumed = toy()
    train(resumed, toy_objective, Rows(), settings, quiet=True, out=tmp_path / "next", init_from=base)  # the same one
    assert same(straight, resumed)
    with pytest.raises(CheckpointError, match="init_from was another checkpoint"):
        train(toy(), toy_objective, Rows(), settings, quiet=True, out=tmp_path / "next", init_from=other)
    with pytest.raises(CheckpointError, match="init_from was another checkpoint"):
        train(toy(), toy_objective, Rows(), settings, quiet=True, out=tmp_path / "next")
    with pytest.raises(CheckpointError, match="init_from was not given"):
        train(toy(), toy_objective, Rows(), one(160, 0.01), quiet=True, out=other, init_from=base)


def test_nothing_to_begin_from(toy: Callable[..., Any], toy_objective: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no valid checkpoint to begin from.*output folder"):
        train(toy(), toy_objective, Rows(), one(32, 0.01), quiet=True, init_from=tmp_path)
    train(toy(), toy_objective, Rows(), one(320, 0.01), quiet=True, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"another model: model/embed\.weight is 13×8"):
        train(toy(dim=6), toy_objective, Rows(), one(32, 0.01), quiet=True, init_from=tmp_path)


def test_lists_and_arrays_are_joined_across_batch_sizes(toy: Callable[..., Any], toy_objective: Any) -> None:
    phase = Phase(tokens=160, lr=0.01, batch_size=4, changes=[Change(at_tokens=32, batch_size=8)])
    seen: list[list[int]] = []
    train(
        toy(),
        toy_objective,
        Rows(),
        replace(one(1, 1.0), phases=[phase]),
        quiet=True,
        before_batch=[lambda step, batch: seen.append(batch["numbers"]) or batch],
    )
    assert seen == [list(range(4)), list(range(4, 12)), list(range(12, 20))]
