"""One small training job in six layouts, saved in one and taken up in another.

    DDP 2            weights and AdamW's state on both ranks
    FSDP2 2          sharded by rows
    FSDP2 x TP 2x2   both, on four ranks
    TP 2             tensor parallel alone
    ZeRO 3           AdamW's state as one flat buffer, cut in three in the middle of rows
    one process      no parallelism; only loaded into

Hardly a width divides evenly. A loaded job is compared with one whose weights and state were handed over without a
file: cut by PyTorch itself from the whole tensors, so that nothing of `bloomery.checkpoint` is on that way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from bloomery import checkpoint
from bloomery.checkpoint import FlatShard, Rows
from bloomery.core.seeds import generator

DDP, FSDP, FSDP_TP, TP, ZERO, ALONE = "DDP 2", "FSDP2 2", "FSDP2 x TP 2x2", "TP 2", "ZeRO 3", "one process"
WORLDS = {DDP: 2, FSDP: 2, FSDP_TP: 4, TP: 2, ZERO: 3, ALONE: 1}
SAVED = (DDP, FSDP, FSDP_TP, TP, ZERO)
FEATURES, WIDTH, CLASSES, BATCH = 33, 102, 29, 12  # tensor parallelism needs an even width between two layers
SAMPLES = 101  # numbers in the data queue, shared out over the data-parallel ranks
MOMENTS = ("exp_avg", "exp_avg_sq")


class Net(nn.Module):
    """A classifier of three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(FEATURES, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH, bias=False)
        self.down = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (batch, classes) of features (batch, features)."""
        return F.log_softmax(self.down(torch.relu(self.middle(torch.relu(self.up(x))))), -1)


class AdamW(torch.optim.AdamW):
    """AdamW as ZeRO shards it: a rank keeps and updates one range of all parameters laid end to end.

    Named as what it computes, which is what a checkpoint compares.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], **options: Any) -> None:
        super().__init__(parameters, **options)
        rank, world = dist.get_rank(), dist.get_world_size()
        total = sum(p.numel() for p in parameters)
        self.bounds = [total * r // world for r in range(world + 1)]
        begin, end = self.bounds[rank : rank + 2]
        self.flat = {name: torch.zeros(end - begin) for name in MOMENTS}
        at = 0
        for p in parameters:
            low, high = (min(max(edge - at, 0), p.numel()) for edge in (begin, end))
            own = slice(max(at + low - begin, 0), max(at + high - begin, 0))
            self.state[p] = {"step": torch.tensor(0.0)} | {
                name: FlatShard(flat[own], low, p.shape) for name, flat in self.flat.items()
            }
            at += p.numel()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Average the gradients, update the own range, collect everybody's."""
        parameters, rank = self.param_groups[0]["params"], dist.get_rank()
        gradient = torch.cat([p.grad.reshape(-1) for p in parameters])
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
        weights = torch.cat([p.reshape(-1) for p in parameters])
        own = slice(*self.bounds[rank : rank + 2])
        group = self.param_groups[0]
        first, second = self.flat.values()
        adamw(
            [weights[own]], [gradient[own]], [first], [second], [], [self.state[parameters[0]]["step"]],
            foreach=False, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        for r in range(dist.get_world_size()):
            dist.broadcast(weights[self.bounds[r] : self.bounds[r + 1]], r)
        for p, new in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
            p.copy_(new.view_as(p))
            self.state[p]["step"].copy_(self.state[parameters[0]]["step"])


class Job:
    """A model, its optimiser and its share of the data, in one layout."""

    def __init__(self, layout: str, whole: Mapping[str, Tensor] | None = None, seed: int = 0) -> None:
        """Fresh weights from `seed`, or weights and AdamW's state from `whole` tensors."""
        self.layout, self.seed = layout, seed
        net = Net()
        drawn = generator(seed, "weights")
        with torch.no_grad():
            for p in net.parameters():
                p.uniform_(-0.1, 0.1, generator=drawn)
        self.replicas, self.replica = {DDP: 2, FSDP: 2, FSDP_TP: 2, ZERO: 3}.get(layout, 1), 0
        if self.replicas > 1:
            self.replica = dist.get_rank() * self.replicas // dist.get_world_size()
        self.model = parallel(filled(net, whole, "") if whole else net, layout)
        make = AdamW if layout == ZERO else torch.optim.AdamW
        self.optimizer = make(list(self.model.parameters()), lr=1e-2)
        share = checkpoint.tree.share(SAMPLES, self.replica, self.replicas)
        self.queue = list(range(SAMPLES))[share]
        if whole:
            self._hand_over(whole)

    def state(self, step: int) -> dict[str, Any]:
        """What is saved and loaded."""
        rows = Rows(self.queue, self.replica, self.replicas)
        return {"model": self.model, "optimizer": self.optimizer, "queue": rows, "step": step}

    def train(self, begin: int, end: int) -> list[float]:
        """The loss of steps `begin` … `end - 1`, over the whole batch."""
        return [self._step(number) for number in range(begin, end)]

    def whole(self) -> dict[str, Tensor]:
        """Every tensor of the state unsharded, on every rank."""
        found = {}
        for name, p in self.named():
            found[name] = full(p)
            for key, value in self.optimizer.state[p].items():
                found[f"{key}/{name}"] = full(value)
        return found

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters by the model's own names."""
        return [(name.removeprefix("module."), p) for name, p in self.model.named_parameters()]

    def _step(self, number: int) -> float:
        drawn = generator(self.seed, "batch", number)
        features, classes = torch.randn(BATCH, FEATURES, generator=drawn), torch.arange(BATCH) * 5 % CLASSES
        features[torch.arange(BATCH), classes] += 2.0  # something to learn
        mine = slice(BATCH // self.replicas * self.replica, BATCH // self.replicas * (self.replica + 1))
        loss = F.nll_loss(self.model(features[mine]), classes[mine])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        total = loss.detach().double()
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def _hand_over(self, whole: Mapping[str, Tensor]) -> None:
        """AdamW's state from whole tensors: cut as the weights of a model are that holds them."""
        if isinstance(self.optimizer, AdamW):
            names = [name for name, _ in self.named()]
            own = slice(*self.optimizer.bounds[dist.get_rank() : dist.get_rank() + 2])
            for key, flat in self.optimizer.flat.items():
                flat.copy_(torch.cat([whole[f"{key}/{name}"].reshape(-1) for name in names])[own])
            for name, p in self.named():
                self.optimizer.state[p]["step"].copy_(whole[f"step/{name}"])
            return
        carriers = {key: parallel(filled(Net(), whole, f"{key}/"), self.layout) for key in MOMENTS}
        for name, p in self.named():
            moments = {key: _named(carrier)[name].detach() for key, carrier in carriers.items()}
            self.optimizer.state[p] = {"step": whole[f"step/{name}"].clone()} | moments


def parallel(net: nn.Module, layout: str) -> nn.Module:
    """The module in a layout of all ranks, cut by PyTorch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if layout == DDP:
        return nn.parallel.DistributedDataParallel(net)
    if layout in (ZERO, ALONE):
        return net
    world = dist.get_world_size()
    shape, axes = (
        ((2, world // 2), ("dp", "tp")) if layout == FSDP_TP else ((world,), ("dp" if layout == FSDP else "tp",))
    )
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=axes)
    if "tp" in axes:
        plan = {"up": ColwiseParallel(), "middle": RowwiseParallel(),
                "down": ColwiseParallel(output_layouts=Replicate())}  # fmt: skip
        parallelize_module(net, mesh["tp"], plan)
    if "dp" in axes:
        for child in net.children():
            fully_shard(child, mesh=mesh["dp"])
        fully_shard(net, mesh=mesh["dp"])
    return net


def filled(net: Net, whole: Mapping[str, Tensor], prefix: str) -> Net:
    """The module with whole tensors in place of its weights."""
    net.load_state_dict({name: whole[f"{prefix}{name}"] for name, _ in net.named_parameters()})
    return net


def full(value: Any) -> Tensor:
    """The whole tensor, on every rank."""
    if isinstance(value, FlatShard):
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (value.begin, value.data))
        joined = torch.zeros(prod(value.shape))
        for begin, data in parts:
            joined[begin : begin + len(data)] = data
        return joined.view(*value.shape)
    tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return tensor.detach().clone()


# ---------------------------------------------------------------------------------------------- what the ranks are told


def save_run(rank: int, world: int, layout: str, folder: Path, seed: int, before: int, after: int) -> list[float]:
    """Train `before` steps, save while training goes on, train `after` more: the losses of those."""
    from safetensors.torch import save_file

    job = Job(layout, seed=seed)
    job.train(0, before)
    handle = checkpoint.save(folder / "checkpoint", job.state(before), asynchronous=True)
    whole = job.whole()
    if rank == 0:
        save_file({name: value.contiguous() for name, value in whole.items()}, folder / "whole.safetensors")
    losses = job.train(before, before + after)
    handle.wait()
    return losses


def load_runs(
    rank: int, world: int, layout: str, sources: Mapping[str, Path], seed: int, before: int, after: int
) -> dict[str, dict[str, Any]]:
    """For each saved run: what differs after loading it in this layout, and the losses that follow."""
    from safetensors.torch import load_file

    found = {}
    for name, folder in sources.items():
        whole = load_file(folder / "whole.safetensors")
        job = Job(layout, seed=seed + 1)  # other weights, all of which must go
        job.seed = seed
        state = job.state(0)
        checkpoint.load(folder / "checkpoint", state)
        job.queue = state["queue"].items
        loaded = job.whole()
        different = [key for key in whole if not _same(loaded[key], whole[key])]
        queues: list[Any] = [None] * world
        dist.all_gather_object(queues, (job.replica, job.queue))
        together = [n for _, part in sorted({r: tuple(q) for r, q in queues}.items()) for n in part]
        found[name] = {
            "tensors": len(whole),
            "different": different,
            "step": state["step"],
            "queue": together == list(range(SAMPLES)),
            "losses": job.train(before, before + after),
            "handed_over": Job(layout, whole, seed).train(before, before + after),
        }
    return found


def _named(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name.removeprefix("module."): p for name, p in module.named_parameters()}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))
