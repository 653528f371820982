"""A trained decoder for longer contexts: the same weights under a stretched rotary embedding.

DeepSeek-V2 (arXiv:2405.04434 §3.1.4) and DeepSeek-Coder-V2 (arXiv:2406.11931 §3.2) stretch a context of 4,096 by YaRN
with factor 40 and go on training for a few thousand steps: see `train.long_context`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bloomery.core.errors import ConfigError
from bloomery.models.decoder import Decoder
from bloomery.nn import YarnScaling

LATENT_MSCALE = 0.707  # of DeepSeek-V2: scores are multiplied by (0.1 · 0.707 · ln factor + 1)²


def extend_context(model: Decoder, factor: float) -> Decoder:
    """The decoder with YaRN by `factor` and a context so many times as long; it shares the weights of `model`.

    `factor` counts from the context before any stretching: a decoder that has YaRN already gets the new factor in
    place of the old, so that 32K and 128K can follow each other. Scores are sharpened as the kind of attention wants
    it: see `YarnScaling`. Nothing has been learned yet: the loss on text within the old context is a little worse
    until training has gone on for a while.

    Raises:
        ConfigError: the rope is stretched in another way, or the factor would make the context shorter.
    """
    config, scaling = model.config, model.config.rope_scaling
    if scaling is None:
        mscale = LATENT_MSCALE if config.mla is not None else None
        scaling = YarnScaling(
            factor=1.0, original_max_positions=config.max_positions, mscale=mscale, mscale_all_dim=mscale
        )
    if not isinstance(scaling, YarnScaling):
        raise ConfigError(
            f"the decoder's rope is stretched by {type(scaling).__name__}",
            where="extend_context",
            fix="extend the decoder as it was before, or train on with that scaling",
        )
    if factor < scaling.factor:
        raise ConfigError(
            f"factor={factor}, but the context is {scaling.factor} times as long as the original already",
            where="extend_context",
            fix="give a larger factor: it counts from the original context",
        )
    longer = replace(
        config,
        rope_scaling=replace(scaling, factor=factor),
        max_positions=max(config.max_positions, int(scaling.original_max_positions * factor)),
    )
    with torch.device("meta"):
        extended = Decoder(longer)
    extended.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    extended.rope.to_empty(device=model.embed.weight.device)  # fills the tables, which no state holds
    return extended.train(model.training)
