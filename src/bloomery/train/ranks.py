"""Data parallelism over the processes that torchrun starts; one process alone is the special case of one rank."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise sum over all ranks (in place)."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return once every rank has come this far."""
        if self.world > 1:
            dist.barrier()


def join(device: torch.device) -> Ranks:
    """The ranks of this run: those of a process group that exists already, else torchrun's, else one alone.

    torchrun's group (NCCL on CUDA, gloo elsewhere) is started once and serves every later call: starting a second one
    at the same address can meet the end of the first. It is ended when the process exits.
    """
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Ranks(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
