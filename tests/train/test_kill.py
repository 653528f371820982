"""Training killed again and again, at random steps and inside checkpoint writes, ends with the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bloomery.checkpoint import Checkpoints, read_manifest

# Imports torch once, then forks a child for every attempt. A child kills itself, so that the moments do not depend on
# how fast the machine is: after a random number of optimiser steps, or at a random system call of a checkpoint write.
SCRIPT = """
import os, random, signal, sys
import torch
import torch._dynamo  # the optimiser would import it in every child
from conftest import Affine, Toy, objective
from bloomery.train import Phase, TrainConfig, train

straight, killed, seed = sys.argv[1:]
torch.set_num_threads(1)
config = TrainConfig(phases=[Phase(tokens=3840, lr=0.02, warmup_tokens=640)], seq_len=8, batch_size=4, micro_batch=3,
                     checkpoint_every=4, keep_last=2)
CALLS = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove"}  # what writing and deleting a checkpoint consists of

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def attempt(out, after_steps=None, after_calls=None):
    child = os.fork()
    if child == 0:
        steps, calls = 0, 0

        def at_step(step, values):
            nonlocal steps
            steps += 1
            if steps - 1 == after_steps:
                die()

        def at_call(event, args):
            nonlocal calls
            if event in CALLS and "step-" in str(args[0]):
                calls += 1
                if calls - 1 == after_calls:
                    die()

        sys.addaudithook(at_call)
        train(Toy(dropout=0.2), objective, Affine(), config, out=out, quiet=True, after_step=[at_step])
        os._exit(0)
    return os.waitpid(child, 0)[1]

def killed_by(status):
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None

assert attempt(straight) == 0
chance = random.Random(int(seed))
for _ in range(4):  # together at most 112 steps further, of 120
    assert killed_by(attempt(killed, after_steps=chance.randrange(14))) == signal.SIGKILL
    assert killed_by(attempt(killed, after_calls=chance.randrange(36))) == signal.SIGKILL
assert attempt(killed) == 0
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(straight), str(killed), str(seed)],
        cwd=Path(__file__).parent,  # for conftest
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    kept = [Checkpoints(out / "checkpoints") for out in (straight, killed)]
    assert [folder.latest(check_data=True) for folder in kept] == [120, 120]
    expected, found = (
        {m.tensors[t].name: int(c) for t, c in zip(m.chunks.tensor, m.chunks.checksum, strict=True)}
        for m in (read_manifest(folder.at(120)) for folder in kept)
    )
    assert expected == found
    assert "model/embed.weight" in expected
    names = sorted(p.name for p in (killed / "checkpoints").iterdir())
    assert names == ["step-00000116", "step-00000120"]  # nothing half-written is left
