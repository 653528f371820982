"""Two processes with gloo train as one process does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import json, os, sys
import torch
import torch._dynamo  # the optimiser would import it in every child
from conftest import Affine, Toy, objective
from bloomery.core.errors import ConfigError
from bloomery.train import BatchGrowth, Phase, TrainConfig, train

out, port = sys.argv[1:]
torch.set_num_threads(1)

def run(name, **changes):
    config = TrainConfig(**({"phases": [Phase(tokens=960, lr=0.02)], "seq_len": 8, "batch_size": 6, "micro_batch": 2,
                             "checkpoint_every": 7, "log_every": 5} | changes))
    model, logged = Toy(), []
    try:
        result = train(model, objective, Affine(), config, out=None if name is None else f"{out}/{name}", quiet=True,
                       log=lambda step, **values: logged.append((step, values.get("loss"), values.get("grad_norm"))))
    except ConfigError as error:
        return str(error)
    weights = {key: p.tolist() for key, p in model.named_parameters()}
    return {"weights": weights, "loss": result.loss, "logged": logged, "growth": result.growth}

children = []
for rank in range(3):
    child = os.fork()
    if child == 0:
        if rank < 2:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=port)
        name = "alone" if rank == 2 else "together"
        grown = BatchGrowth(window=4, epsilon=0.9, max_batch_size=12)  # no loss falls so fast: decided on every rank
        results = [run(name), run(name), run(None, batch_size=5, micro_batch=None),
                   run(None, growth=grown, batch_size=4), run(None, growth=grown, batch_size=3, micro_batch=None)]
        json.dump(results, open(f"{out}/{rank}.json", "w"))
        sys.exit(0)  # ends the process group as any process does
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(port)],
        cwd=Path(__file__).parent,  # for conftest
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    first, second, alone = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3))
    assert first[0]["weights"] == second[0]["weights"]  # the ranks hold the same bits
    for name, expected in alone[0]["weights"].items():
        assert np.abs(np.array(first[0]["weights"][name]) - np.array(expected)).max() <= 1e-6
    assert first[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)  # of all ranks' targets
    assert first[0]["logged"] == [pytest.approx(line, rel=1e-5) for line in alone[0]["logged"]]
    assert second[0]["logged"] == []  # the first rank speaks for all
    assert first[1]["weights"] == second[1]["weights"] == first[0]["weights"]  # both read the finished run back
    assert first[2] == second[2] == "batch_size 5 does not divide over 2 ranks"
    assert first[3]["growth"] == second[3]["growth"] == alone[3]["growth"] == [[160, 8], [416, 12]]
    for name, expected in alone[3]["weights"].items():
        assert np.abs(np.array(first[3]["weights"][name]) - np.array(expected)).max() <= 1e-6
    assert first[4] == second[4] == "batch_size 3 does not divide over 2 ranks"
    assert [p.name for p in sorted((tmp_path / "together" / "checkpoints").iterdir())] == [
        "step-00000014",
        "step-00000020",
    ]
