"""A Trainer that is stopped and resumed through the callback ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bloomery import checkpoint
from bloomery.core.errors import CheckpointError

pytest.importorskip("accelerate", reason="accelerate is not installed, and the Trainer of transformers needs it")
transformers = pytest.importorskip("transformers")


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(8) * (i + 1)) % 32
        return {"input_ids": ids, "labels": ids}


class Stop(transformers.TrainerCallback):
    """Ends the program, as a kill would, after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def trainer(folder: Path, seed: int, *callbacks: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, attention_dropout=0.2,
    )  # fmt: skip
    args = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=12,
        save_strategy="no", logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=0.01,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    return transformers.Trainer(model, args, train_dataset=Rows(), callbacks=list(callbacks))


@pytest.mark.parametrize(("every", "stop", "resumed_at"), [(4, 7, 4), (5, 8, 5)])
def test_resumed_equals_uninterrupted(tmp_path: Path, every: int, stop: int, resumed_at: int) -> None:
    """Five optimiser steps an epoch: once within one, once at the border of two."""
    from bloomery.checkpoint.hf_trainer import CheckpointCallback

    whole = trainer(tmp_path / "a", 0)
    whole.train()
    root = tmp_path / "checkpoints"
    first = CheckpointCallback(root, every=every, keep_last=2)
    stopped = trainer(tmp_path / "b", 0, first, Stop(stop))
    assert first.resume(stopped) is None
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    checkpoint.finish()
    assert checkpoint.Checkpoints(root).latest() == resumed_at
    second = CheckpointCallback(root, every=every, keep_last=2)
    again = trainer(tmp_path / "b", 1, second)  # other weights, other generators
    again.train(resume_from_checkpoint=second.resume(again))
    assert again.state.global_step == 12
    for (name, one), two in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, again)]
    assert losses[0][resumed_at:] == losses[1][-(12 - resumed_at) :]
    assert checkpoint.Checkpoints(root).steps()[-1] == 12
    assert len(checkpoint.Checkpoints(root).steps()) == 2
    saved = {"model": trainer(tmp_path / "c", 2).model}
    checkpoint.Checkpoints(root).load(saved)
    assert torch.equal(saved["model"].lm_head.weight, whole.model.lm_head.weight)


def test_bad_input(tmp_path: Path) -> None:
    from bloomery.checkpoint.hf_trainer import CheckpointCallback

    with pytest.raises(CheckpointError, match="every is 0"):
        CheckpointCallback(tmp_path, every=0)
