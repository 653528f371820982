"""Architectures, their presets, and their key maps to the published checkpoint formats."""

from __future__ import annotations

from bloomery.models.decoder import Block, Decoder, DecoderConfig, Output
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
    "Output",
    "convert_pretrained",
    "load_config",
    "load_pretrained",
    "preset",
    "presets",
    "save_pretrained",
]
