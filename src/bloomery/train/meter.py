"""How fast training goes: tokens per second, utilisation against the hardware's stated peak, and memory."""

from __future__ import annotations

import sys

import torch
from torch import nn

# Dense bfloat16 tensor-core peaks in FLOP/s, from the vendors' data sheets (no sparsity); the first match counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "A10": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's bfloat16 peak in FLOP/s, or None where it is not known (CPUs, other accelerators)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def training_flops_per_token(model: nn.Module, seq_len: int) -> float:
    """FLOPs of forward and backward for one token: the model's own count, or 6 per parameter outside embeddings."""
    own = getattr(model, "flops_per_token", None)
    if own is not None:
        return float(own(seq_len))
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return 6.0 * sum(p.numel() for p in model.parameters() if id(p) not in tables)


class Meter:
    """Sums up steps between two readings; time spent outside steps (evaluation, checkpoints) does not count."""

    def __init__(self, model: nn.Module, device: torch.device, seq_len: int, world: int) -> None:
        self._device = device
        peak = peak_flops(device)
        self._flops = training_flops_per_token(model, seq_len)
        self._peak = None if peak is None else peak * world
        self._tokens, self._seconds = 0, 0.0

    def step(self, tokens: int, seconds: float) -> None:
        """Count one optimiser step of `tokens` tokens over all ranks."""
        self._tokens += tokens
        self._seconds += seconds

    def read(self) -> dict[str, float]:
        """`tokens_per_second`, `memory_gb` and, where the peak is known, `mfu` (0 … 1) since the last reading."""
        rate = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        values = {"tokens_per_second": rate, "memory_gb": memory_gb(self._device)}
        if self._peak is not None:
            values["mfu"] = rate * self._flops / self._peak
        return values


def memory_gb(device: torch.device) -> float:
    """Peak memory in GB: allocated on a CUDA device, resident set of the process elsewhere (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
