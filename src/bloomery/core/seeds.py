"""Randomness comes from a seed and a name, never from global state: `generator(seed, "init")`, `rng(seed, doc_id)`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on `seed` and every name; different names give independent streams."""
    text = "\x1f".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng(seed: int, *names: object) -> np.random.Generator:
    """NumPy generator for (seed, names)."""
    return np.random.default_rng(derive(seed, *names))


def generator(seed: int, *names: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Torch generator for (seed, names) on `device`."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, *names))
