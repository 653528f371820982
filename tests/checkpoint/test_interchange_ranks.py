"""Two ranks: a DCP folder of FSDP and our checkpoint of the same state hold the same bits, and each loads the other's.

One start of two processes for everything that needs them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bloomery import checkpoint
from bloomery.checkpoint.dcp import import_dcp
from bloomery.checkpoint.offline import Reader

SCRIPT = """
import json, os, sys, warnings
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from bloomery import checkpoint
from bloomery.checkpoint.dcp import export_dcp
from bloomery.checkpoint.megatron import ShardedTensor, from_sharded

out, port = sys.argv[1:]
warnings.simplefilter("ignore")
torch.set_num_threads(1)

def build(fill=None):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.Linear(13, 1, bias=False))
    mesh = init_device_mesh("cpu", (2,))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for p in model.parameters():
        p.grad = p.detach() * 0.3 + 0.01 if fill is None else torch.full_like(p, fill)
    optimizer.step()
    return model, optimizer

def bits(model, optimizer):
    values = [*model.parameters()] + [v for p in model.parameters() for v in optimizer.state[p].values()]
    return [getattr(v, "_local_tensor", v).tolist() for v in values]

def megatron(rank):
    weight = torch.arange(40.0).view(4, 10)  # columns over two tensor-parallel ranks
    mine = weight[:, 5 * rank : 5 * rank + 5].clone()
    moment = torch.arange(15.0)  # of one replicated tensor, its flat buffer cut after 4 elements
    piece = moment[:4] if rank == 0 else moment[4:]
    kind = weight.dtype
    return {
        "w": ShardedTensor("w", mine, kind, (4, 5), (4, 10), (0, 5 * rank), (1, 2), (0, 0, 0)),
        "b": ShardedTensor("b", torch.arange(3.0), kind, (3,), (3,), (0,), (1,), (0, rank, 0)),
        "m": ShardedTensor("m", piece.clone(), kind, (3, 5), (3, 5), (0, 0), (1, 1), 0, 0,
                           slice(0, 4) if rank == 0 else slice(4, 15)),
    }

def work(rank):
    model, optimizer = build()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optim": moments, "step": 3}, checkpoint_id=f"{out}/dcp")
    checkpoint.save(f"{out}/ours", {"model": model, "optim": optimizer, "step": 3})
    if rank == 0:
        export_dcp(f"{out}/ours", f"{out}/exported")  # one rank alone: no collective
    dist.barrier()
    other, its = build(fill=0.5)
    assert bits(other, its) != bits(model, optimizer)
    weights, moments = get_state_dict(other, its)
    state = {"model": weights, "optim": moments, "step": 0}
    dcp.load(state, checkpoint_id=f"{out}/exported")
    set_state_dict(other, its, model_state_dict=state["model"], optim_state_dict=state["optim"])
    assert bits(other, its) == bits(model, optimizer)
    assert state["step"] == 3
    sharded = megatron(rank)
    checkpoint.save(f"{out}/megatron", {"model": from_sharded(sharded)[0]})
    for value in sharded.values():
        value.data.fill_(-1)
    checkpoint.load(f"{out}/megatron", {"model": from_sharded(sharded)[0]})
    assert all(torch.equal(value.data, expected.data) for value, expected in zip(
        sharded.values(), megatron(rank).values(), strict=True))

children = []
for rank in range(2):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        dist.init_process_group("gloo")
        try:
            work(rank)
        finally:
            dist.destroy_process_group()
        sys.exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SCRIPT, str(out), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return out


def test_an_fsdp_folder_of_dcp_holds_what_ours_holds(written: Path, tmp_path: Path) -> None:
    manifest = import_dcp(written / "dcp", tmp_path / "imported")
    assert len(manifest.files) == 2  # what each rank wrote, in that order
    difference = checkpoint.diff(written / "ours", tmp_path / "imported")
    assert not difference
    assert difference.equal == 3 + 3 * 3
    again = checkpoint.diff(written / "ours", written / "ours")
    assert again.equal == difference.equal


def test_one_process_loads_it(written: Path, tmp_path: Path) -> None:
    import_dcp(written / "dcp", tmp_path / "imported")
    model = nn.Sequential(nn.Linear(7, 13), nn.Linear(13, 1, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model, "optim": optimizer, "step": 0}
    checkpoint.load(tmp_path / "imported", state)
    torch.manual_seed(0)
    expected = nn.Sequential(nn.Linear(7, 13), nn.Linear(13, 1, bias=False))
    its = torch.optim.AdamW(expected.parameters(), lr=0.01)
    for p in expected.parameters():
        p.grad = p.detach() * 0.3 + 0.01
    its.step()
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert optimizer.state[p].keys() == its.state[q].keys()
        assert all(torch.equal(value, its.state[q][name]) for name, value in optimizer.state[p].items())
    assert (state["step"], optimizer.param_groups[0]["lr"]) == (3, 0.01)


def test_megatron_shards_of_two_ranks(written: Path) -> None:
    reader = Reader(written / "megatron")
    assert torch.equal(reader.read("model/w"), torch.arange(40.0).view(4, 10))
    assert torch.equal(reader.read("model/b"), torch.arange(3.0))
    assert torch.equal(reader.read("model/m"), torch.arange(15.0).view(3, 5))
    stored = {name: len(range(*reader.manifest.chunks.of(i).indices(99))) for name, i in reader.manifest.index.items()}
    assert stored == {"model/w": 2, "model/b": 1, "model/m": 3}  # the replica once; the flat pieces as 1 + 2 boxes
    assert json.loads((written / "megatron/manifest.json").read_text())["body"]["about"]["world"] == 2
    assert os.listdir(written / "megatron/data") != []
