from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery.checkpoint import Checkpoints, verify
from bloomery.checkpoint.storage import LocalStorage
from bloomery.core.errors import CheckpointError, ConfigError, StorageError
from bloomery.train import Phase, TrainConfig, TrainError, train


def config(steps: int = 12, **changes: Any) -> TrainConfig:
    """`steps` steps of 4 sequences of 8 tokens."""
    phases = [Phase(tokens=32 * steps, lr=0.02, warmup_tokens=64, final_lr=0.001)]
    return TrainConfig(**({"phases": phases, "seq_len": 8, "batch_size": 4, "seed": 5} | changes))


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def run(toy: Callable[..., Any], toy_objective: Any, affine: Any) -> Callable[..., Any]:
    """Train a fresh toy; returns (model, result)."""

    def run(config: TrainConfig, model: Any = None, **kwargs: Any) -> Any:
        model = model or toy(dropout=0.1)
        options = {"objective": toy_objective, "data": affine, "quiet": True} | kwargs
        return model, train(model, options.pop("objective"), options.pop("data"), config, **options)

    return run


def test_it_learns(run: Callable[..., Any]) -> None:
    losses: list[float] = []
    _, result = run(config(150), after_step=[lambda step, values: losses.append(values["loss"])])
    assert losses[0] > 2.3
    assert result.loss < 0.3
    assert (result.steps, result.tokens, len(losses)) == (150, 150 * 32, 150)
    assert result.loss == losses[-1]
    assert result.seconds > 0


def test_what_is_logged(run: Callable[..., Any]) -> None:
    lines: list[tuple[int, dict[str, float]]] = []
    run(config(10, log_every=4), log=lambda step, **values: lines.append((step, values)))
    assert [step for step, _ in lines] == [4, 8, 10]
    for step, values in lines:
        assert {"loss", "accuracy", "grad_norm", "targets", "lr", "tokens", "tokens_per_second"} <= values.keys()
        assert {"memory_gb", "eta_seconds"} <= values.keys()
        assert "mfu" not in values  # no peak is known of a CPU
        assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in values.values())
        assert values["tokens"] == 32 * step
        assert values["tokens_per_second"] > 0
    assert lines[-1][1]["eta_seconds"] == 0


def test_the_rate_follows_the_schedule(run: Callable[..., Any]) -> None:
    rates: list[float] = []
    phases = [Phase(tokens=320, lr=0.02, schedule="linear", warmup_tokens=160, final_lr=0.01)]
    run(config(phases=phases), after_step=[lambda step, values: rates.append(values["lr"])])
    rising = [0.02 * (i + 0.5) / 5 for i in range(5)]
    falling = [0.02 - 0.01 * (i + 0.5) / 5 for i in range(5)]
    assert rates == pytest.approx(rising + falling)


def test_phases_switch_data_batch_size_and_rate(run: Callable[..., Any], affine: Any) -> None:
    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> Mapping[str, torch.Tensor]:
            asked.append((self.name, step, batch_size, seq_len, seed))
            return affine.batch(step, batch_size, seq_len, seed)

    asked: list[tuple[str, int, int, int, int]] = []
    phases = [
        Phase(tokens=96, lr=0.01, schedule="constant", data="web"),
        Phase(tokens=64, lr=0.01, schedule="constant", data="books", batch_size=2),
        Phase(tokens=64, lr=0.01, schedule="constant", data="web", batch_size=8),
    ]
    seen: list[float] = []
    run(
        config(phases=phases),
        data={"web": Recorded("web"), "books": Recorded("books")},
        after_step=[lambda step, values: seen.append(values["tokens"])],
    )
    web = [("web", 0, 4, 8, 5), ("web", 1, 4, 8, 5), ("web", 2, 4, 8, 5)]
    books = [("books", i, 2, 8, 5) for i in range(4)]
    assert asked == [*web, *books, ("web", 3, 4, 8, 5), ("web", 4, 4, 8, 5)]  # rows 12 … 19, in batches of 4
    assert seen == [32, 64, 96, 112, 128, 144, 160, 224]


@pytest.mark.parametrize(
    ("names", "data", "says"),
    [
        (["wbe"], {"web": 1}, "'wbe'.*did you mean 'web'"),
        ([None], {"web": 1}, "no data source None"),
        (["web"], 1, "one source was given"),
    ],
)
def test_phases_and_sources_must_fit(run: Callable[..., Any], names: list[Any], data: Any, says: str) -> None:
    phases = [Phase(tokens=32, lr=0.1, data=name) for name in names]
    with pytest.raises(ConfigError, match=says):
        run(config(phases=phases), data=data)


def test_evaluation_and_sampling_every_so_many_tokens(run: Callable[..., Any]) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    seen: list[tuple[str, int, bool, bool]] = []

    def evaluate(model: torch.nn.Module, step: int) -> dict[str, float]:
        seen.append(("evaluate", step, model.training, torch.is_grad_enabled()))
        torch.rand(7)  # must not change the training that follows
        return {"held_out": float(step)}

    def sample(model: torch.nn.Module, step: int) -> None:
        seen.append(("sample", step, model.training, torch.is_grad_enabled()))

    model, result = run(
        config(7, eval_every=70, log_every=100),
        evaluate=evaluate,
        sample=sample,
        log=lambda step, **values: logged.append((step, values)),
    )
    steps = [3, 5, 7]  # after 96, 160 and 224 tokens: the first steps past 70, 140 and 210, the last of which ends it
    assert seen == [(what, step, False, False) for step in steps for what in ("evaluate", "sample")]
    assert [entry for entry in logged if "held_out" in entry[1]] == [(s, {"held_out": float(s)}) for s in steps]
    assert result.evaluation == {"held_out": 7.0}
    plain, _ = run(config(7))
    assert same(model, plain)


def test_the_callers_random_state_is_left_alone(run: Callable[..., Any], toy: Callable[..., Any]) -> None:
    model = toy(dropout=0.1)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(config(2), model=model)
    assert torch.equal(torch.rand(2), expected)


def test_same_seed_same_weights_other_seed_other_weights(run: Callable[..., Any]) -> None:
    first, _ = run(config())
    torch.rand(5)
    assert same(first, run(config())[0])
    assert not same(first, run(config(seed=6))[0])


def test_the_generator_is_the_steps_own(run: Callable[..., Any], toy_objective: Any) -> None:
    drawn: list[float] = []

    def objective(model: Any, batch: Any, generator: torch.Generator) -> Any:
        drawn.append(float(torch.rand((), generator=generator)))
        return toy_objective(model, batch, generator)

    run(config(3, micro_batch=2), objective=objective)
    first = list(drawn)
    assert len(set(first)) == 6  # each micro-batch of each step draws its own numbers
    run(config(3, micro_batch=2), objective=objective)
    assert drawn[6:] == first


def test_micro_batches_leave_the_result_alone(run: Callable[..., Any], toy: Callable[..., Any]) -> None:
    whole, _ = run(config(), model=toy().double())
    cut, _ = run(config(micro_batch=3), model=toy().double())
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_hooks_replace_the_batch_and_see_the_step(run: Callable[..., Any], affine: Any) -> None:
    fixed = affine.batch(0, 4, 8, 0)
    steps: list[int] = []
    losses: list[float] = []

    def before(step: int, batch: Any) -> Any:
        steps.append(step)
        return fixed

    _, result = run(config(40), before_batch=[before], after_step=[lambda step, values: losses.append(values["loss"])])
    assert steps == list(range(40))
    assert result.loss < losses[0] / 3  # the one batch is learnt by heart


def test_bfloat16_autocast_trains_float32_weights(run: Callable[..., Any]) -> None:
    exact, _ = run(config())
    model, result = run(config(precision="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not same(exact, model)
    assert result.loss == pytest.approx(run(config())[1].loss, rel=0.1)


# ---- resuming ----


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_an_interrupted_run_ends_with_the_same_bits(run: Callable[..., Any], tmp_path: Path, cut: int) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, values: Mapping[str, float]) -> None:
        if step == cut:
            raise Stop

    settings = config(phases=[*config(6).phases, Phase(tokens=192, lr=0.01, batch_size=2)], checkpoint_every=2)
    straight, expected = run(settings)
    with pytest.raises(Stop):
        run(settings, out=tmp_path, after_step=[stop])
    resumed_from: list[int] = []
    model, result = run(settings, out=tmp_path, after_step=[lambda step, values: resumed_from.append(step)])
    assert resumed_from[0] == cut // 2 * 2
    assert same(model, straight)
    assert (result.steps, result.tokens, result.loss) == (expected.steps, expected.tokens, expected.loss)


def test_a_finished_run_is_returned_as_it_ended(run: Callable[..., Any], tmp_path: Path) -> None:
    evaluated: list[int] = []

    def evaluate(model: Any, step: int) -> dict[str, float]:
        evaluated.append(step)
        return {"score": 0.5}

    model, first = run(config(), out=tmp_path, evaluate=evaluate)
    again, second = run(config(), out=tmp_path, evaluate=evaluate)
    assert same(model, again)
    assert second == first
    assert first.checkpoint == tmp_path / "checkpoints" / "step-00000012"
    assert evaluated == [12]


def test_retention(run: Callable[..., Any], tmp_path: Path) -> None:
    run(config(12, checkpoint_every=2, keep_last=3), out=tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8, 10, 12]


def test_a_damaged_newest_checkpoint_costs_only_its_steps(run: Callable[..., Any], tmp_path: Path) -> None:
    straight, _ = run(config(12))
    run(config(12, checkpoint_every=4, keep_last=3), out=tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000012" / "data" / "00000-0.bin"
    newest.write_bytes(newest.read_bytes()[:-7])
    steps: list[int] = []
    model, _ = run(config(12), out=tmp_path, after_step=[lambda step, values: steps.append(step)])
    assert steps == [8, 9, 10, 11]
    assert same(model, straight)
    verify(newest.parents[1])


def test_damaged_checkpoints_ahead_do_not_crowd_out_new_ones(run: Callable[..., Any], tmp_path: Path) -> None:
    run(config(12, checkpoint_every=4, keep_last=3), out=tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000012" / "data" / "00000-0.bin"
    newest.write_bytes(newest.read_bytes()[:-7])

    def stop(step: int, values: Any) -> None:
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(12, checkpoint_every=2, keep_last=1), out=tmp_path, after_step=[stop])
    assert Checkpoints(tmp_path / "checkpoints").steps() == [10]
    verify(tmp_path / "checkpoints" / "step-00000010")


def test_only_damaged_checkpoints_are_not_silently_started_over(run: Callable[..., Any], tmp_path: Path) -> None:
    run(config(4), out=tmp_path)
    (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"no checkpoint here is intact.*start afresh"):
        run(config(4), out=tmp_path)


def test_a_folder_is_continued_only_by_the_same_run(run: Callable[..., Any], tmp_path: Path) -> None:
    run(config(4), out=tmp_path)
    with pytest.raises(CheckpointError, match=r"started differently: seq_len was 8, now 16; batch_size was 4, now 2"):
        run(config(4, seq_len=16, batch_size=2), out=tmp_path)
    with pytest.raises(CheckpointError, match="phases was"):
        run(config(3), out=tmp_path)
    with pytest.raises(CheckpointError, match="already holds checkpoints"):
        run(config(4), out=tmp_path, resume=False)


def test_a_further_phase_continues_a_finished_run(run: Callable[..., Any], tmp_path: Path) -> None:
    two = [*config(4).phases, Phase(tokens=96, lr=0.01)]
    straight, _ = run(config(phases=two))
    run(config(4), out=tmp_path)
    model, result = run(config(phases=two, keep_last=5), out=tmp_path)
    assert result.steps == 7
    assert same(model, straight)


def test_a_checkpoint_of_another_model_is_refused(
    run: Callable[..., Any], toy: Callable[..., Any], tmp_path: Path
) -> None:
    run(config(4), out=tmp_path)
    with pytest.raises(CheckpointError, match=r"another model: model/embed\.weight is 13×8 in the checkpoint, 13×6"):
        run(config(4), out=tmp_path, model=toy(dim=6))


# ---- failing ----


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    steps: list[int] = []
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"read-only.*another output folder"):
        run(config(), out=tmp_path, after_step=[lambda step, values: steps.append(step)])
    assert steps == []


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    run: Callable[..., Any], toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, written = LocalStorage.create, []

    def fill(storage: LocalStorage, draft: str, name: str) -> Any:
        written.append(name)
        if len(written) == 8:  # the table of chunks of the third checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(storage, draft, name)

    straight, _ = run(config())
    monkeypatch.setattr(LocalStorage, "create", fill)
    with pytest.raises(StorageError, match="disk is full"):
        run(config(checkpoint_every=2), out=tmp_path)
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "checkpoints").latest(check_data=True) == 4
    model, _ = run(config(checkpoint_every=2), out=tmp_path)
    assert same(model, straight)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_weights_change(
    run: Callable[..., Any], toy: Callable[..., Any], toy_objective: Any, tmp_path: Path, broken: str
) -> None:
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * math.inf

    calls = 0

    def objective(model: Any, batch: Any, generator: torch.Generator) -> Any:
        nonlocal calls
        calls += 1
        loss, metrics = toy_objective(model, batch, generator)
        if calls == 6:
            loss = loss * math.nan if broken == "loss" else loss + Spoil.apply(model.mix.bias.sum())
        return loss, metrics

    model = toy()
    before: list[list[torch.Tensor]] = []
    first = "embed.weight" if broken == "loss" else "mix.bias"
    with pytest.raises(TrainError, match=rf"step 5: the loss is .*not finite is {first}.*last checkpoint"):
        run(
            config(checkpoint_every=2),
            model=model,
            objective=objective,
            out=tmp_path,
            before_batch=[lambda step, batch: before.append(weights(model)) or batch],
        )
    assert all(torch.equal(a, b) for a, b in zip(before[5], model.parameters(), strict=True))
    assert Checkpoints(tmp_path / "checkpoints").latest(check_data=True) == 4


def test_a_config_that_differs_only_in_cadence_resumes(run: Callable[..., Any], tmp_path: Path) -> None:
    base = config(checkpoint_every=5)
    straight, _ = run(base)
    run(base, out=tmp_path)
    (tmp_path / "checkpoints" / "step-00000012").rename(tmp_path / "aside")
    model, _ = run(replace(base, log_every=1, checkpoint_every=3, keep_last=1, eval_every=64), out=tmp_path)
    assert same(model, straight)
