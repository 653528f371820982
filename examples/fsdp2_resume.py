"""A plain PyTorch loop that survives being killed: FSDP2, any number of ranks, nothing of bloomery but its checkpoints.

torchrun --nproc-per-node 2 examples/fsdp2_resume.py runs/example --steps 60
torchrun --nproc-per-node 4 examples/fsdp2_resume.py runs/example --steps 90    # goes on, on other ranks
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from bloomery.checkpoint import Checkpoints, ElasticSampler, Rng


def main() -> None:
    """Train, saving every few steps without waiting for the disk."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())

    torch.manual_seed(0)
    inputs = torch.randn(512, 16)
    targets = inputs @ torch.randn(16, 1) + 0.1
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1)).to(device)
    for layer in (*model, model):
        fully_shard(layer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    data = ElasticSampler(len(inputs), batch_size=32 // world, part=rank, parts=world)
    torch.manual_seed(rank)

    state = {
        "model": model, "optimizer": optimizer, "schedule": schedule, "data": data, "rng": Rng(), "step": 0,
    }  # fmt: skip
    checkpoints = Checkpoints(options.out, keep_last=2)
    checkpoints.load(state)  # the newest that is whole; nothing, in a new folder
    begin = state["step"]
    for step, batch in zip(range(begin + 1, options.steps + 1), data, strict=False):
        loss = (model(inputs[batch].to(device)) - targets[batch].to(device)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        data.trained()
        state["step"] = step
        if step % options.every == 0 or step == options.steps:
            handle = checkpoints.save(step, state, asynchronous=True)
        if rank == 0:
            print(f"step {step}: loss {loss.item():.6f}", flush=True)
    if begin < options.steps:
        handle.wait()  # the last one is durable before we leave
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
