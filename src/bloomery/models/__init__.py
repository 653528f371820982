"""Architectures, their presets, and their key maps to the published checkpoint formats."""

from __future__ import annotations

from bloomery.models.config import DecoderConfig, MLAConfig, MoEConfig
from bloomery.models.context import extend_context
from bloomery.models.decoder import Block, Decoder, Output
from bloomery.models.looped import LoopedDecoder
from bloomery.models.loops import Loop, LoopedConfig, LowRank, Thinking, inner_thinking, ringformer
from bloomery.models.pretrained import (
    convert_pretrained,
    load_config,
    load_pretrained,
    preset,
    presets,
    save_pretrained,
)

__all__ = [
    "Block",
    "Decoder",
    "DecoderConfig",
    "Loop",
    "LoopedConfig",
    "LoopedDecoder",
    "LowRank",
    "MLAConfig",
    "MoEConfig",
    "Output",
    "Thinking",
    "convert_pretrained",
    "extend_context",
    "inner_thinking",
    "load_config",
    "load_pretrained",
    "preset",
    "presets",
    "ringformer",
    "save_pretrained",
]
