"""Which device and number format to use when the user has not said, and how much memory is left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from bloomery.core.errors import ConfigError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the first CUDA device where there is one, else the CPU."""
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}", fix="use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} asked for, but no CUDA device is visible", fix="use --device cpu")
    return device


def pick_dtype(name: str | torch.dtype | None = None, device: torch.device | None = None) -> torch.dtype:
    """The named dtype; by default bfloat16 on CUDA and float32 elsewhere."""
    if isinstance(name, torch.dtype):
        return name
    if name is None or name == "auto":
        return torch.bfloat16 if device is not None and device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}", fix=nearest(name, DTYPES))
    return DTYPES[name]


def free_memory() -> int:
    """Bytes of main memory that this process may still take; a very large number where the system does not say."""
    free = 1 << 62
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    group = Path("/sys/fs/cgroup")  # a container has a limit of its own; what it caches of files can be taken back
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / "memory.max").read_text())
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, max(limit - int(used["anon"]), 0))
    return free
