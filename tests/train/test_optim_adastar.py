from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.train import Phase, TrainConfig, train
from bloomery.train.adastar import Adastar, Rule, clip_block_rms_
from bloomery.train.optim import build, parameter_groups

SHAPES = [(3, 4), (5,), (2, 3, 2)]
RULES = [Rule(), Rule.adamw(), Rule(gradient_ema_decay=0.8, gradient_ema_debias=True, update_ema_debias=True, eps=1e-3)]


def tensors(seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def trained(
    rule: Rule, steps: int = 4, lr: float = 0.1, scale: float = 1.0, apart: bool = False, **group: float
) -> list[torch.Tensor]:
    """Parameters after `steps` steps with the gradients of seeds 1, 2, …; `apart`: one group for each."""
    params = [torch.nn.Parameter(p) for p in tensors(0)]
    groups = [{"params": [p], **group} for p in params] if apart else [{"params": params, **group}]
    optimizer = Adastar(groups, lr, rule=rule, weight_decay=0.0)
    for step in range(1, steps + 1):
        for p, grad in zip(params, tensors(step, scale), strict=True):
            p.grad = grad
        optimizer.step()
    return [p.detach() for p in params]


def moved(after: list[torch.Tensor]) -> list[torch.Tensor]:
    return [b - a for a, b in zip(tensors(0), after, strict=True)]


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), threshold=st.floats(0.1, 10))
def test_no_block_exceeds_the_threshold_and_small_ones_stay(seed: int, scale: float, threshold: float) -> None:
    before = tensors(seed, scale)
    after = [t.clone() for t in before]
    clip_block_rms_(after, threshold)
    for old, new in zip(before, after, strict=True):
        rms = float(old.square().mean().sqrt())
        if rms <= threshold:
            assert torch.equal(old, new)
        else:
            torch.testing.assert_close(new, old * threshold / rms)


@given(lr=st.floats(1e-5, 1), multiplier=st.floats(0.01, 1), share=st.floats(0, 1), decay=st.floats(0, 0.5))
def test_decay_follows_the_schedule_and_nothing_else(lr: float, multiplier: float, share: float, decay: float) -> None:
    """Without a gradient's push, one step shrinks a weight by schedule · weight_decay, whatever lr and multiplier."""
    params = [torch.nn.Parameter(p) for p in tensors(0)]
    optimizer = Adastar([{"params": params, "multiplier": multiplier}], lr, weight_decay=decay)
    for group in optimizer.param_groups:
        group["lr"] = lr * share
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(tensors(0), params, strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - share * decay))


@pytest.mark.parametrize("rule", RULES)
@given(multiplier=st.floats(0.01, 1))
def test_the_multiplier_scales_the_update(rule: Rule, multiplier: float) -> None:
    full, part = moved(trained(rule)), moved(trained(rule, multiplier=multiplier))
    for a, b in zip(full, part, strict=True):
        torch.testing.assert_close(b, a * multiplier)


@pytest.mark.parametrize("rule", RULES)
def test_parameters_do_not_see_each_other(rule: Rule) -> None:
    for together, alone in zip(trained(rule), trained(rule, apart=True), strict=True):
        assert torch.equal(together, alone)


@given(scale=st.floats(1e-6, 1e6))
def test_the_size_of_a_gradient_does_not_matter(scale: float) -> None:
    for a, b in zip(trained(Rule()), trained(Rule(), scale=scale), strict=True):
        torch.testing.assert_close(a, b)


@given(steps=st.integers(1, 30), clip=st.floats(0.1, 2))
def test_a_step_is_never_longer_than_its_rate_times_the_threshold(steps: int, clip: float) -> None:
    """Averages of clipped updates are clipped: the RMS over a block of what `steps` steps moved is bounded."""
    for move in moved(trained(Rule(raw_update_clipping_threshold=clip), steps=steps, lr=0.01)):
        assert float(move.square().mean().sqrt()) <= 0.01 * clip * steps * (1 + 1e-9)


def test_pytorchs_schedulers_drive_updates_and_decay() -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = Adastar([p], 0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    expected = 1.0
    for step in range(4):
        p.grad = torch.zeros(3, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        expected *= 1 - 0.5 * 0.5**step
        torch.testing.assert_close(p.detach(), torch.full((3,), expected, dtype=torch.float64))


def test_a_parameter_without_gradient_stays_and_counts_for_itself() -> None:
    still, moving = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = Adastar([still, moving], 0.1)
    for late in (False, True):
        still.grad = torch.ones(2) if late else None
        moving.grad = torch.ones(2)
        optimizer.step()
        if not late:
            assert torch.equal(still.detach(), torch.ones(2))
            assert still not in optimizer.state
    assert (int(optimizer.state[still]["step"]), int(optimizer.state[moving]["step"])) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gradient_square_ema_decay": 1.0}, "gradient_square_ema_decay"),
        ({"update_ema_decay": -0.1}, "update_ema_decay"),
        ({"eps_square": 0.0}, "eps is 0.0.*a gradient may be 0"),
        ({"raw_update_clipping_threshold": 0.0}, "raw_update_clipping_threshold"),
    ],
)
def test_rules_that_cannot_work_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Rule(**changes)


# --- groups, configuration -------------------------------------------------------------------------------------------


class Blocks(torch.nn.Module):
    """An embedding, one block with a matrix and a norm, a head: what muP tells apart."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.config = type("Config", (), {"dim": dim})()
        self.embed = torch.nn.Embedding(7, dim)
        self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(dim, dim), torch.nn.LayerNorm(dim))])
        self.head = torch.nn.Linear(dim, 7, bias=False)


@pytest.mark.parametrize(("dim", "multiplier"), [(32, 0.25), (8, 1.0), (4, 1.0)])
def test_matrices_of_wide_blocks_move_less(dim: int, multiplier: float) -> None:
    model = Blocks(dim)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1, mup_width=8)
    found = {names[id(p)]: (g["weight_decay"], g.get("multiplier", 1.0)) for g in groups for p in g["params"]}
    plain = {"embed.weight", "blocks.0.0.bias", "blocks.0.1.weight", "blocks.0.1.bias"}
    assert found == {
        "blocks.0.0.weight": (0.1, multiplier),
        "head.weight": (0.1, 1.0),
        **dict.fromkeys(plain, (0.0, 1.0)),
    }


def test_mup_needs_a_model_with_blocks_and_a_width(toy: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="Toy lacks them"):
        parameter_groups(toy(), 0.1, mup_width=8)


def config(**changes: Any) -> TrainConfig:
    phases = [Phase(tokens=32 * 12, lr=0.02, warmup_tokens=64, final_lr=0.001)]
    return TrainConfig(**({"phases": phases, "seq_len": 8, "batch_size": 4, "optimizer": "adastar"} | changes))


def test_each_optimizer_brings_its_own_betas_and_decay() -> None:
    assert (config(optimizer="adamw").betas, config(optimizer="adamw").weight_decay) == ((0.9, 0.95), 0.1)
    assert (config().betas, config().weight_decay) == ((0.95, 0.95), 3.16e-4)
    assert config(betas=(0.5, 0.6), weight_decay=0.0).betas == (0.5, 0.6)
    assert config(weight_decay=0.0).weight_decay == 0.0


def test_what_the_configuration_names_is_built(toy: Callable[..., Any]) -> None:
    model = toy()
    assert isinstance(build(model, config(optimizer="adamw")), torch.optim.AdamW)
    shell = build(model, config())
    assert isinstance(shell, Adastar)
    assert shell.rule == Rule()
    adamw = build(model, config(optimizer="independent_adamw", betas=(0.8, 0.9), eps=1e-4))
    assert isinstance(adamw, Adastar)
    assert adamw.rule == Rule.adamw((0.8, 0.9), 1e-4)
    assert {g["weight_decay"] for g in adamw.param_groups} == {0.0, 1e-4}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam'.*adastar"),
        ({"optimizer": "adamw", "mup_width": 64}, "mup_width is 64.*independent_adamw"),
        ({"eps": 1e-6}, "eps is 1e-06.*adastar adds none"),
        ({"mup_width": 0}, "mup_width is 0"),
        ({"skip_norm": 0.0}, "skip_norm"),
        ({"skip_multiple": -1.0}, "skip_multiple"),
    ],
)
def test_configurations_that_contradict_themselves_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config(**changes)


# --- in the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["independent_adamw", "adastar"])
def test_it_learns_and_resumes_bit_for_bit(
    optimizer: str, toy: Callable[..., Any], toy_objective: Any, affine: Any, tmp_path: Any
) -> None:
    """One run from end to end; the same killed at step 7, one step after a checkpoint, and taken up again."""

    def killer(step: int, values: Any) -> None:
        if step == 7:
            raise KeyboardInterrupt

    phases = [Phase(tokens=32 * 150, lr=0.02, warmup_tokens=64, final_lr=0.001)]
    setting = config(optimizer=optimizer, phases=phases, checkpoint_every=7, skip_multiple=50.0)
    whole, pieces = toy(), toy()
    result = train(whole, toy_objective, affine, setting, quiet=True)
    assert result.loss < 0.3

    with pytest.raises(KeyboardInterrupt):
        train(pieces, toy_objective, affine, setting, out=tmp_path, after_step=[killer], quiet=True)
    pieces = toy()
    again = train(pieces, toy_objective, affine, setting, out=tmp_path, quiet=True)
    assert again.guard == result.guard
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loop_hands_the_schedule_to_the_decay(toy: Callable[..., Any], affine: Any) -> None:
    """With a loss that pulls nothing, weights shrink by 1 - schedule · weight_decay in each step of each phase."""

    def idle(model: Any, batch: Any, generator: Any) -> Any:
        return model(batch["tokens"]).sum() * 0.0, {"weight": 1}

    phases = [
        Phase(tokens=64, lr=0.02, schedule="constant"),
        Phase(tokens=64, lr=0.5, schedule="linear", final_lr=0.0),
    ]
    model = toy()
    before = model.mix.weight.detach().clone()
    train(model, idle, affine, config(phases=phases, weight_decay=0.1), quiet=True)
    shrunk = math.prod(1 - 0.1 * share for share in (1.0, 1.0, 0.75, 0.25))
    torch.testing.assert_close(model.mix.weight.detach(), before * shrunk)
