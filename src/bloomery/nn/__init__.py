"""Layers that more than one architecture uses: pure modules and functions, no configuration files, no I/O."""

from __future__ import annotations

from bloomery.nn.attention import GQAttention, attend
from bloomery.nn.cache import KVCache, KVSlot
from bloomery.nn.linear import Linear, PackedWeights, linear
from bloomery.nn.loss import IGNORE, linear_cross_entropy
from bloomery.nn.masks import Causal, Documents
from bloomery.nn.mlp import GatedMLP
from bloomery.nn.norm import RMSNorm
from bloomery.nn.rope import LinearScaling, Llama3Scaling, Rope, RopeScaling, Rotary, rotate

__all__ = [
    "Causal",
    "Documents",
    "GQAttention",
    "GatedMLP",
    "IGNORE",
    "KVCache",
    "KVSlot",
    "Linear",
    "LinearScaling",
    "Llama3Scaling",
    "PackedWeights",
    "RMSNorm",
    "Rope",
    "RopeScaling",
    "Rotary",
    "attend",
    "linear",
    "linear_cross_entropy",
    "rotate",
]
