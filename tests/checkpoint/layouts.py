"""Run by test_ranks.py: real ranks over gloo save one state in several layouts and go on from each other's files.

Every layout takes the same origin, saves it, and trains on: those losses are what any layout must reach that loads any
of the files. Ranks are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the optimiser would import it in every child
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from bloomery import checkpoint
from bloomery.checkpoint import FlatShard, PerRank, Rows, loading
from bloomery.checkpoint.comm import forget
from bloomery.core.errors import CheckpointError

WORLDS = {"one": 1, "ddp": 2, "tp": 2, "fsdp": 3, "zero": 3, "hsdp": 4, "fsdp_tp": 4}
ROWS = 12  # of a batch, of all ranks together


class Net(nn.Module):
    """Ten rows over three ranks are 4, 4 and 2; five over two are 3 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(7, 10), nn.Linear(10, 10, bias=False), nn.Linear(10, 6)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.mid(torch.tanh(self.up(x)))))


class Layout:
    """A model and its optimiser on this rank."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.name, world = name, WORLDS[name]
        self.bare = self.model = Net()
        self.part, self.parts = dist.get_rank(), world  # of the batch
        if name == "ddp":
            self.model = nn.parallel.DistributedDataParallel(self.bare)
        elif name in ("fsdp", "hsdp"):
            shape, names = ((world,), ("shard",)) if name == "fsdp" else ((2, 2), ("replica", "shard"))
            mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
            for module in [*self.bare.children(), self.bare]:
                fully_shard(module, mesh=mesh)
        elif name in ("tp", "fsdp_tp"):
            names = ("dp", "tp")[-1 if name == "tp" else 0 :]
            mesh = init_device_mesh("cpu", (2,) * len(names), mesh_dim_names=names)
            down = ColwiseParallel(output_layouts=Replicate())
            parallelize_module(
                mesh_part := self.bare, mesh["tp"], {"up": ColwiseParallel(), "mid": RowwiseParallel(), "down": down}
            )
            self.part, self.parts = (0, 1) if name == "tp" else (mesh["dp"].get_local_rank(), 2)
            if name == "fsdp_tp":
                for module in [*mesh_part.children(), mesh_part]:
                    fully_shard(module, mesh=mesh["dp"])
        self.optimizer = torch.optim.AdamW(self.bare.parameters(), lr=0.02)
        if name == "zero":
            self._divide()

    def _divide(self) -> None:
        """ZeRO: parameters on all ranks; their moments are cut out of one flat buffer anywhere."""
        parameters = list(self.bare.parameters())
        total = sum(p.numel() for p in parameters)
        cuts = [0, total // 3 - 2, total // 2 + 1, total]
        begin, end = cuts[self.part], cuts[self.part + 1]
        self.range = slice(begin, end)
        self.flat = nn.Parameter(torch.zeros(end - begin))
        self.inner = torch.optim.AdamW([self.flat], lr=0.02)
        self.flat.grad = torch.zeros_like(self.flat)
        self.inner.step()  # makes its state
        state, at = self.inner.state[self.flat], 0
        for p in parameters:
            a, b = max(begin, at), min(end, at + p.numel())
            mine = slice(a - begin, max(a, b) - begin)
            self.optimizer.state[p] = {"step": state["step"]} | {
                key: FlatShard(state[key][mine], a - at if b > a else 0, p.shape) for key in ("exp_avg", "exp_avg_sq")
            }
            at += p.numel()

    def step(self, number: int) -> float:
        """One step on the batch of that number; the loss over all ranks."""
        generator = torch.Generator().manual_seed(number)
        x, y = torch.randn(ROWS, 7, generator=generator), torch.randn(ROWS, 6, generator=generator)
        mine = slice(self.part * ROWS // self.parts, (self.part + 1) * ROWS // self.parts)
        self.bare.zero_grad()
        loss = (self.model(x[mine]) - y[mine]).square().mean()
        loss.backward()
        self.bare.seen += 1
        if self.name == "zero":
            self._step_divided()
        else:
            self.optimizer.step()
        dist.all_reduce(total := loss.detach().clone())
        return float(total) / dist.get_world_size()

    def _step_divided(self) -> None:
        parameters = list(self.bare.parameters())
        gradient = torch.cat([p.grad.flatten() for p in parameters]) / self.parts
        dist.all_reduce(gradient)
        self.flat.grad = gradient[self.range]
        with torch.no_grad():
            everything = torch.cat([p.flatten() for p in parameters])
            self.flat.copy_(everything[self.range])
            self.inner.step()
            everything.zero_()[self.range] = self.flat
            dist.all_reduce(everything)
            torch._foreach_copy_(
                parameters,
                [
                    t.view_as(p)
                    for t, p in zip(everything.split([p.numel() for p in parameters]), parameters, strict=True)
                ],
            )

    def state(self) -> dict[str, Any]:
        loader = {"buffer": Rows([f"sample {i}" for i in range(7)] if self.part == 0 else [], self.part, self.parts)}
        return {"model": self.model, "optimizer": self.optimizer, "step": 5, "loader": loader}

    def whole(self) -> dict[str, torch.Tensor]:
        """All that is held, put together from all ranks."""
        found = {name: _whole(value) for name, value in self.bare.state_dict().items()}
        for name, p in self.bare.named_parameters():
            found |= {f"{name}/{key}": _whole(value) for key, value in self.optimizer.state[p].items()}
        return found


def _whole(value: Any) -> torch.Tensor:
    if isinstance(value, FlatShard):
        full = torch.zeros(value.shape).flatten()
        full[value.begin : value.begin + len(value.data)] = value.data
        dist.all_reduce(full)
        return full.view(value.shape)
    return value.full_tensor() if hasattr(value, "full_tensor") else value.detach().clone()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def make_origin(root: Path, names: list[str], steps: int) -> None:
    layout = Layout("one", seed=0)
    for number in range(5):
        layout.step(number)
    checkpoint.save(root / "origin", layout.state())
    torch.save(layout.whole(), root / "origin.pt")


def save_in(root: Path, names: list[str], steps: int) -> None:
    """Take the origin over, save it, go on without a break."""
    origin = torch.load(root / "origin.pt")
    for name in names:
        layout = Layout(name, seed=1)
        checkpoint.load(root / "origin", layout.state())
        assert equal(layout.whole(), origin), name
        rank = {"rank": PerRank(dist.get_rank())}
        handle = checkpoint.save(root / name, layout.state() | rank, asynchronous=True)
        losses = [layout.step(5 + number) for number in range(steps)]
        handle.wait()
        again = checkpoint.save(root / f"{name}-later", layout.state() | rank)
        assert again.known_plan, name
        if dist.get_rank() == 0:
            (root / f"{name}.json").write_text(json.dumps(losses))


def load_in(root: Path, names: list[str], steps: int) -> None:
    """Go on from every file."""
    origin = torch.load(root / "origin.pt")
    for name in names:
        expected = json.loads((root / f"{name}.json").read_text())
        for source in sorted(path.name for path in root.iterdir() if path.name in WORLDS):
            layout = Layout(name, seed=2)
            state = layout.state()
            report = checkpoint.load(root / source, state)
            assert equal(layout.whole(), origin), (source, name)
            read = torch.tensor([report.bytes_read])
            dist.all_reduce(read)
            assert int(read) == sum(file.stat().st_size for file in (root / source / "data").iterdir()), (source, name)
            rows: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(rows, (layout.part, state["loader"]["buffer"].items))
            assert list(chain(*dict(sorted(rows)).values())) == [f"sample {i}" for i in range(7)], rows
            assert [layout.step(5 + number) for number in range(steps)] == expected, (source, name)
            if WORLDS[source] == WORLDS[name]:
                here = {"rank": None}
                checkpoint.load(root / source, here)
                assert here["rank"].value == dist.get_rank()
    refuse(root)


def refuse(root: Path) -> None:
    """What is wrong on one rank is an error on all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if world == 1:
        return
    for state, message in (
        ({"x": object() if rank == 1 else 1}, "x is a object, which only pickle could store"),
        ({"x": rank}, "x differs between ranks 0 and 1"),
        ({"x": torch.tensor([rank])}, "x# differs between ranks 0 and 1"),
        ({"x": torch.ones(2, 2).to_sparse() if rank == 1 else torch.ones(2, 2)}, "x is a sparse tensor"),
        ({"x": FlatShard(torch.ones(3), rank, (world + 5,))}, "x of shape"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.save(root / "refused", state)
        assert "\n" not in str(caught.value)
        assert not (root / "refused").exists()


def ranks(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """`work` in `world` forked processes that are one gloo group."""
    store = Path(arguments[0]) / f"store-{work.__name__}-{world}"
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
                try:
                    work(*arguments)
                    status = 0
                finally:
                    checkpoint.finish()
                    forget()
                    dist.destroy_process_group()
            except BaseException:
                import traceback

                traceback.print_exc()
            os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), (work.__name__, world, statuses)


if __name__ == "__main__":
    torch.set_num_threads(1)
    loading.GAP = 0  # no bytes are read along, so that all together read every byte once
    loading.LARGE = 300  # some parts travel alone, some in a message
    root, names, steps = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
    ranks(1, make_origin, root, names, steps)
    for work in (save_in, load_in):
        for world in sorted({WORLDS[name] for name in names}):
            ranks(world, work, root, [name for name in names if WORLDS[name] == world], steps)
