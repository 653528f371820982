"""Layers that more than one architecture uses: pure modules and functions, no configuration files, no I/O."""

from __future__ import annotations

from bloomery.nn.attention import GQAttention, QKNorm, attend
from bloomery.nn.cache import KVCache, KVSlot
from bloomery.nn.grouped import grouped_linear
from bloomery.nn.head import HeadNorm, normalised_head
from bloomery.nn.linear import Linear, PackedWeights, linear
from bloomery.nn.loss import IGNORE, linear_cross_entropy
from bloomery.nn.masks import Causal, Documents
from bloomery.nn.mla import MLAttention
from bloomery.nn.mlp import ACTIVATIONS, MLP, Activation, GatedMLP
from bloomery.nn.moe import BalanceScope, GroupScore, MoE, Router, Routing, ScoreKind, balance_losses, load
from bloomery.nn.norm import LayerNorm1p, NormKind, RMSNorm, make_norm
from bloomery.nn.rope import (
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    Rope,
    RopeLayout,
    RopeScaling,
    Rotary,
    YarnScaling,
    rotate,
)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BalanceScope",
    "Causal",
    "Documents",
    "GQAttention",
    "GatedMLP",
    "GroupScore",
    "HeadNorm",
    "IGNORE",
    "KVCache",
    "KVSlot",
    "LayerNorm1p",
    "Linear",
    "LinearScaling",
    "Llama3Scaling",
    "MLAttention",
    "MLP",
    "MoE",
    "NTKScaling",
    "NormKind",
    "PackedWeights",
    "QKNorm",
    "RMSNorm",
    "Rope",
    "RopeLayout",
    "RopeScaling",
    "Rotary",
    "Router",
    "Routing",
    "ScoreKind",
    "YarnScaling",
    "attend",
    "balance_losses",
    "grouped_linear",
    "linear",
    "linear_cross_entropy",
    "load",
    "make_norm",
    "normalised_head",
    "rotate",
]
