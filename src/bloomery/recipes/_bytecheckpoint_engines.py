"""The libraries that are compared, each behind the same four calls, all with the durability that a checkpoint needs.

    ours                  bloomery.checkpoint
    DCP                   torch.distributed.checkpoint with its own state-dict functions and a stager that is kept, so
                          that its buffers are reused as ours are
    torch_checkpointing   where it is installed; without direct I/O, which does not take its unaligned writes on every
                          disk. It does not flush: its files are flushed here, after it says that they are written
    torch.save            every rank its own part, flushed: no resharding, no commit; the cost of serialising alone

All ranks call all methods together.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from bloomery import checkpoint

OURS, DCP, TC, PLAIN = "ours", "DCP", "torch_checkpointing", "torch.save"
State = dict[str, Any]  # modules and optimisers by name


class Engine(Protocol):
    """One library, bound to one state."""

    def save(self, path: Path) -> None:
        """Return when everything is on the disk."""

    def begin(self, path: Path) -> Callable[[], None]:
        """Return when training may change the state; what comes back returns when everything is on the disk."""

    def load(self, path: Path) -> None:
        """Fill the state in place."""

    def close(self) -> None:
        """Let go of processes and buffers."""


class Ours:
    """`bloomery.checkpoint`."""

    def __init__(self, state: State) -> None:
        self.state = state

    def save(self, path: Path) -> None:
        """Synchronously."""
        checkpoint.save(path, self.state)

    def begin(self, path: Path) -> Callable[[], None]:
        """Asynchronously."""
        return checkpoint.save(path, self.state, asynchronous=True).wait

    def load(self, path: Path) -> None:
        """In place."""
        checkpoint.load(path, self.state)

    def close(self) -> None:
        """Nothing to let go of."""


class Dcp:
    """torch.distributed.checkpoint."""

    def __init__(self, state: State) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.state = state
        cuda = torch.cuda.is_available()
        self.stager = DefaultStager(StagingOptions(cuda, False, False, cuda))
        self.group = dist.new_group(backend="gloo")  # its thread talks while training does

    def save(self, path: Path) -> None:
        """`save`, which flushes by default."""
        import torch.distributed.checkpoint as dcp

        dcp.save(self._dict(), checkpoint_id=path, process_group=self.group)

    def begin(self, path: Path) -> Callable[[], None]:
        """`async_save` on a thread."""
        import torch.distributed.checkpoint as dcp

        written: Any = dcp.async_save(
            self._dict(), checkpoint_id=path, async_stager=self.stager, process_group=self.group
        )
        return written.result

    def load(self, path: Path) -> None:
        """`load` and the functions that give the state back to its owners."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        content = self._dict()
        dcp.load(content, checkpoint_id=path, process_group=self.group)
        model = self.state["model"]
        set_model_state_dict(model, content["model"])
        set_optimizer_state_dict(model, self.state["optimizer"], content["optimizer"])

    def close(self) -> None:
        """The stager's threads."""
        self.stager.close()
        dist.destroy_process_group(self.group)

    def _dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        model = self.state["model"]
        optimizer = get_optimizer_state_dict(model, self.state["optimizer"])
        return {"model": get_model_state_dict(model), "optimizer": optimizer}


class TorchCheckpointing:
    """torch_checkpointing: a process of its own writes."""

    def __init__(self, state: State) -> None:
        from torch_checkpointing import CheckpointManager  # type: ignore[import-not-found]
        from torch_checkpointing.checkpoint_process import CheckpointProcessConfig  # type: ignore[import-not-found]
        from torch_checkpointing.config import (  # type: ignore[import-not-found]
            AsyncCheckpointSaverConfig,
            SyncCheckpointSaverConfig,
        )
        from torch_checkpointing.storage.filesystem import (  # type: ignore[import-not-found]
            LocalFileSystemStorageConfig,
        )

        self.state = state
        place = LocalFileSystemStorageConfig(use_direct_io=False)
        patient = CheckpointProcessConfig(subprocess_init_timeout_secs=300)
        background = AsyncCheckpointSaverConfig(process_config=patient)
        self.sync, self.background = (
            CheckpointManager(CheckpointManager.Config(save=how, storage_config=place, subprocess_init_fn=_calm))
            for how in (SyncCheckpointSaverConfig(), background)
        )

    def save(self, path: Path) -> None:
        """Synchronously, and flush."""
        self.sync.save(str(path), self._dict())
        self._flush(path)

    def begin(self, path: Path) -> Callable[[], None]:
        """Asynchronously; training may change the state once its lock is free."""
        written = self.background.save(str(path), self._dict())
        with self.background.lock():
            pass

        def wait() -> None:
            written.result()
            self._flush(path)

        return wait

    def load(self, path: Path) -> None:
        """In place."""
        self.sync.load(str(path), into=self._dict())

    def close(self) -> None:
        """Its processes."""
        self.sync.close()
        self.background.close()

    def _flush(self, path: Path) -> None:
        dist.barrier()  # the last rank to finish renames the folder
        _flush(path)

    def _dict(self) -> dict[str, Any]:
        model, optimizer = self.state["model"], self.state["optimizer"]
        moments = {
            f"{number}.{key}": value
            for number, state in enumerate(optimizer.state.values())
            for key, value in state.items()
        }
        return {"model": dict(model.state_dict()), "optimizer": moments}


class TorchSave:
    """A file for each rank with what lies in its memory."""

    def __init__(self, state: State) -> None:
        self.state = state

    def save(self, path: Path) -> None:
        """`torch.save` and flush."""
        path.mkdir(parents=True, exist_ok=True)
        torch.save(_local(self.state), path / f"{dist.get_rank()}.pt")
        _flush(path)

    def begin(self, path: Path) -> Callable[[], None]:
        """Not asynchronous: all of it holds training up."""
        self.save(path)
        return lambda: None

    def load(self, path: Path) -> None:
        """Into the same memory."""
        found = torch.load(path / f"{dist.get_rank()}.pt", weights_only=True)
        with torch.no_grad():
            for target, source in zip(_local(self.state), found, strict=True):
                target.copy_(source)

    def close(self) -> None:
        """Nothing to let go of."""


def engines(state: State, names: tuple[str, ...]) -> dict[str, Engine]:
    """The engines of that name."""
    known: dict[str, Callable[[State], Engine]] = {OURS: Ours, DCP: Dcp, TC: TorchCheckpointing, PLAIN: TorchSave}
    return {name: known[name](state) for name in names}


def available() -> tuple[str, ...]:
    """Ours and the peers that are installed."""
    found = importlib.util.find_spec("torch_checkpointing") is not None
    return (OURS, DCP, *((TC,) if found else ()), PLAIN)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds from when all ranks start until the last is done, and what the function gave here."""
    dist.barrier()
    begin = time.perf_counter()
    answer = function()
    seconds = torch.tensor(time.perf_counter() - begin)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds), answer


def discard(path: Path) -> None:
    """Remove what was saved, once all ranks are done with it."""
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(path, ignore_errors=True)
    dist.barrier()


def _calm(*_: Any) -> None:
    """Keep a remark about torch.compile out of the terminal, in the process that writes."""
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def _flush(path: Path) -> None:
    """Make the files that this rank wrote durable."""
    for file in [*path.glob(f"*_{dist.get_rank()}.pt"), *path.glob(f"{dist.get_rank()}.pt"), path]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _local(state: State) -> list[torch.Tensor]:
    tensors = [*state["model"].state_dict().values()]
    for moments in state["optimizer"].state.values():
        tensors += moments.values()
    return [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
