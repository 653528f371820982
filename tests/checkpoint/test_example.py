"""`examples/fsdp2_resume.py`: killed, it ends with the bits of a run that was not, and goes on elsewhere."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bloomery import checkpoint
from bloomery.checkpoint.offline import Reader

EXAMPLE = Path(__file__).parents[2] / "examples" / "fsdp2_resume.py"

# As torchrun: a process for each rank, and none survives another's death. Torch is imported once and forked.
SCRIPT = """
import os, runpy, signal, sys
import torch
import torch._dynamo
from torch.distributed.fsdp import fully_shard

example, folder, ports = sys.argv[1], sys.argv[2], sys.argv[3:]
torch.set_num_threads(1)

class DiesAt:
    def __init__(self, step, real):
        self.step, self.real = step, real
    def write(self, text):
        if text.startswith(f"step {self.step}:"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.real.write(text)
    def flush(self):
        self.real.flush()

def launch(out, world, steps, die=None):
    port, children = ports.pop(), []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            sys.stdout = DiesAt(die, open(f"{folder}/{out}-{rank}.log", "a"))
            sys.argv = [example, f"{folder}/{out}", "--steps", str(steps), "--every", "5"]
            runpy.run_path(example, run_name="__main__")
            sys.stdout.flush()
            sys.exit(0)
        children.append(child)
    codes = []
    while children:
        pid, code = os.wait()
        children.remove(pid)
        codes.append(code)
        if code:
            for child in children:
                os.kill(child, signal.SIGKILL)
    return codes

assert launch("straight", 2, 18) == [0, 0]
assert any(launch("killed", 2, 18, die=13))
assert launch("killed", 2, 18) == [0, 0]
assert launch("killed", 1, 22) == [0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, ports = tmp_path_factory.mktemp("example"), []
    sockets = [socket.socket() for _ in range(4)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
        ports.append(str(free.getsockname()[1]))
    for free in sockets:
        free.close()
    command = [sys.executable, "-c", SCRIPT, str(EXAMPLE), str(folder), *ports]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_killed_and_resumed_equals_uninterrupted(folder: Path) -> None:
    straight = checkpoint.Checkpoints(folder / "straight")
    killed = checkpoint.Checkpoints(folder / "killed")
    assert straight.steps() == [15, 18]
    assert killed.steps() == [20, 22]
    lines = {name: (folder / f"{name}-0.log").read_text().splitlines() for name in ("straight", "killed")}
    once = [line for line in lines["straight"] if int(line.split(":")[0].split()[1]) > 10]
    resumed = [line for line in lines["killed"] if 10 < int(line.split(":")[0].split()[1]) <= 18]
    assert resumed[-8:] == once  # steps 11 to 18 again, from what was durable when it was killed


def test_it_went_on_with_one_rank(folder: Path) -> None:
    reader = Reader(folder / "killed" / "step-00000022")
    assert reader.manifest.about["world"] == 1
    assert reader.manifest.values["data"]["tree"]["consumed"] == 22 * 32
    before = Reader(folder / "straight" / "step-00000018")
    assert before.manifest.about["world"] == 2
    assert not torch.equal(reader.read("model/0.weight"), before.read("model/0.weight"))
