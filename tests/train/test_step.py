from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bloomery.core.errors import ConfigError
from bloomery.train import TrainError
from bloomery.train.ranks import Ranks
from bloomery.train.step import accumulate, micro_batches, normalise_and_clip, prepare

CPU, ALONE = torch.device("cpu"), Ranks()


def gradient(
    model: Any, objective: Any, batch: Any, size: int | None, clip: float = 0.0
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    model.zero_grad()
    forward = prepare(model, objective, compiled=False, ranks=ALONE)
    sums = accumulate(forward, micro_batches(batch, size, ALONE), torch.Generator(), CPU, torch.float32)
    values = normalise_and_clip(model, sums, clip, 0, ALONE)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, values


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    toy: Callable[..., Any], toy_objective: Any, affine: Any, size: int
) -> None:
    model, batch = toy().double(), affine.batch(0, 8, 11, 0)
    counts = [int(piece["keep"][:, 1:].sum()) for piece in micro_batches(batch, size, ALONE)]
    assert len(counts) == 1 or len(set(counts)) > 1  # the pieces hold different numbers of targets
    whole, values = gradient(model, toy_objective, batch, None)
    cut, cut_values = gradient(model, toy_objective, batch, size)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-12, atol=1e-14)
    assert cut_values == pytest.approx(values, rel=1e-12)
    assert values["targets"] == sum(counts)


def test_it_is_the_gradient_of_the_mean_over_targets(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> None:
    model, batch = toy().double(), affine.batch(3, 4, 9, 0)
    ours, values = gradient(model, toy_objective, batch, 1)
    model.zero_grad()
    loss, metrics = toy_objective(model, batch, torch.Generator())
    (loss / metrics["weight"]).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad)
    assert values["loss"] == pytest.approx(loss.item() / metrics["weight"])
    assert values["accuracy"] == pytest.approx(float(metrics["accuracy"]) / metrics["weight"])
    assert values["grad_norm"] == pytest.approx(float(norm))


def test_clipping_scales_the_whole_gradient(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> None:
    model, batch = toy(), affine.batch(0, 8, 11, 0)
    free, values = gradient(model, toy_objective, batch, None)
    limit = values["grad_norm"] / 3
    clipped, clipped_values = gradient(model, toy_objective, batch, 2, clip=limit)
    assert clipped_values["grad_norm"] == pytest.approx(values["grad_norm"], rel=1e-5)  # as it was before clipping
    for name in free:
        torch.testing.assert_close(clipped[name], free[name] / 3, rtol=1e-4, atol=1e-7)
    loose, _ = gradient(model, toy_objective, batch, None, clip=10 * values["grad_norm"])
    assert all(torch.equal(loose[name], free[name]) for name in free)


def test_a_batch_without_targets_is_refused(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> None:
    batch = affine.batch(0, 4, 8, 0)
    batch["keep"].zero_()
    with pytest.raises(TrainError, match=r"step 0.*no targets.*loss masks"):
        gradient(toy(), toy_objective, batch, None)


def test_rows_are_shared_out_whole_and_once() -> None:
    batch = {"tokens": torch.arange(12), "array": np.arange(12), "names": [str(i) for i in range(12)]}
    pieces = [p for rank in range(3) for p in micro_batches(batch, 3, Ranks(rank, 3))]
    assert [len(p["tokens"]) for p in pieces] == [3, 1] * 3
    assert torch.cat([p["tokens"] for p in pieces]).tolist() == list(range(12))
    assert np.concatenate([p["array"] for p in pieces]).tolist() == list(range(12))
    assert [name for p in pieces for name in p["names"]] == batch["names"]
    with pytest.raises(ConfigError, match="12 does not divide over 5 ranks"):
        micro_batches(batch, None, Ranks(0, 5))
