"""Writers killed at random moments: the newest committed checkpoint is always there, whole, and nothing else counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bloomery import checkpoint

# Imports torch once, then forks a child for every attempt, which saves step after step until it is killed: by itself at
# a random system call of a save (or of the deletion of an old one), or by the parent after a random while.
SCRIPT = """
import os, random, signal, sys, time
import torch
from bloomery import checkpoint
from bloomery.checkpoint import Checkpoints
from bloomery.core.errors import CheckpointError

root, kills, replacing = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "replacing"
torch.set_num_threads(1)
chance = random.Random(kills + replacing)
CALLS = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.listdir", "os.symlink"}

def state(step):
    moments = [torch.full((7,), float(step)) for _ in range(3)]
    return {"weights": torch.full((300_000,), float(step)), "moments": moments, "step": step}

def write(begin, out, after_calls):
    calls = 0

    def at_call(event, args):
        nonlocal calls
        if event in CALLS and args and root in str(args[0]):
            calls += 1
            if calls == after_calls:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(at_call)
    run = Checkpoints(root + "/run", keep_last=2)
    for step in range(begin, begin + 60):
        content = state(step)
        if replacing:
            handle = checkpoint.save(root + "/one", content, asynchronous=True, overwrite=True)
        else:
            handle = run.save(step, content, asynchronous=step % 4 > 0)
        content["weights"].zero_()  # training goes on
        handle.wait()
        os.write(out, b"%d\\n" % step)
    os._exit(0)

def newest():
    found = {"weights": torch.zeros(300_000), "moments": [torch.zeros(7) for _ in range(3)], "step": 0}
    if replacing:
        try:
            checkpoint.load(root + "/one", found)
        except CheckpointError as error:
            assert "not a complete checkpoint" in str(error), error
            return 0
    else:
        run = Checkpoints(root + "/run")
        if run.latest(check_data=True) is None:
            return 0
        assert run.load(found)[0] == found["step"]
    for tensor in (found["weights"], *found["moments"]):
        assert (tensor == found["step"]).all(), found
    return found["step"]

step = 0
for number in range(kills):
    after_calls = chance.randrange(1, 60) if number % 3 else 0
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        write(step + 1, theirs, after_calls)
    os.close(theirs)
    if not after_calls:
        time.sleep(chance.random() * 0.3)
        os.kill(child, signal.SIGKILL)
    told = b""
    while block := os.read(ours, 4096):
        told += block
    os.close(ours)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    committed = int(told.split()[-1]) if told else step
    step, before = newest(), step
    assert committed <= step <= committed + 1, (committed, step)  # it may have been killed before it could tell
    assert step >= before
print(step)
"""


@pytest.mark.parametrize("way", ["steps", "replacing"])
@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, way: str, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(kills), way], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > kills // 4
    if way == "steps":
        run = checkpoint.Checkpoints(tmp_path / "run", keep_last=2)
        run.save(10_000, {"x": 1})
        names = sorted(path.name for path in (tmp_path / "run").iterdir())
        assert names == [f"step-{int(done.stdout):08d}", "step-00010000"]  # what the killed ones left is gone
    else:
        checkpoint.save(tmp_path / "one", {"x": 1}, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["one"]
