"""Training killed with SIGKILL at random moments, again and again, ends with the bits of the uninterrupted run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from bloomery.train import checkpoint

# Imports torch once, then forks a child for every attempt: the parent only watches and kills.
SCRIPT = """
import os, random, signal, sys, time
import torch
import torch._dynamo  # the optimiser would import it in every child
from conftest import Affine, Toy, objective
from bloomery.train import Phase, TrainConfig, train

straight, killed = sys.argv[1:]
torch.set_num_threads(1)
config = TrainConfig(phases=[Phase(tokens=3840, lr=0.02, warmup_tokens=640)], seq_len=8, batch_size=4, micro_batch=3,
                     checkpoint_every=4, keep_last=2)

def attempt(out):
    child = os.fork()
    if child == 0:
        train(Toy(dropout=0.2), objective, Affine(), config, out=out, quiet=True)
        os._exit(0)
    return child

began = time.monotonic()
assert os.waitpid(attempt(straight), 0)[1] == 0
whole = time.monotonic() - began
chance, kills = random.Random(), 0
while True:
    child = attempt(killed)
    if kills < 5:
        time.sleep(whole * chance.uniform(0.02, 0.4))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        assert status == 0, status
        break
print(kills)
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(straight), str(killed)],
        cwd=Path(__file__).parent,  # for conftest
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    folders = [checkpoint.latest(out / "checkpoints") for out in (straight, killed)]
    assert [f.name for f in folders if f] == ["step-00000120"] * 2
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected, found = (load_file(f / name) for f in folders if f)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    names = sorted(p.name for p in (killed / "checkpoints").iterdir())
    assert names == ["step-00000116", "step-00000120"]  # nothing half-written is left
