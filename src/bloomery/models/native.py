"""Our own folder format, for decoders that no published one can express: the configuration as it is, readable names.

Also the presets of Apple's AFM (arXiv:2407.21075), whose weights were never published: grouped-query attention with
interleaved rope and then RMS norms on queries and keys, SwiGLU, tied embeddings, every weight N(0, 1 / inputs). And
those of DCLM's scales (arXiv:2406.11794, table 1), which are OpenLM's decoder: layer norms without bias, also on the
queries and keys of all heads together, SwiGLU; `train.dclm_scales` has how they are trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bloomery.models.config import DecoderConfig
from bloomery.models.hf_config import Fields
from bloomery.models.keys import Keys

MODEL_TYPE = "bloomery"

_AFM = DecoderConfig(
    vocab_size=49_152, dim=3072, n_layers=26, n_heads=24, n_kv_heads=8, head_dim=128, ffn_dim=8064, max_positions=4096,
    norm_eps=1e-5, qk_norm="post_rope", rope_theta=500_000.0, rope_layout="interleaved", tie_embeddings=True,
    init="fan_in", z_loss=1e-6,
)  # fmt: skip


def _dclm(dim: int, n_layers: int, n_heads: int, z_loss: float) -> DecoderConfig:
    hidden = 256 * -(-(8 * dim // 3) // 256)  # 8/3 of the width, up to a multiple of 256
    return DecoderConfig(
        vocab_size=50_432, dim=dim, n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_heads, head_dim=dim // n_heads,
        ffn_dim=hidden, max_positions=2048, norm="layer", norm_eps=1e-5, qk_norm="all_heads", init="fan_in_depth",
        z_loss=z_loss,
    )  # fmt: skip


PRESETS = {
    "afm-tiny": replace(
        _AFM, vocab_size=2048, dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352, max_positions=512
    ),
    "afm-85m": replace(_AFM, dim=768, n_layers=12, n_heads=12, n_kv_heads=6, head_dim=64, ffn_dim=2304),
    "afm-on-device": _AFM,
    "afm-on-device-32k": replace(_AFM, max_positions=32_768, rope_theta=6_315_089.0),
    "dclm-tiny": replace(_dclm(128, 4, 4, 1e-4), vocab_size=2048, ffn_dim=352, max_positions=512),
    "dclm-400m": _dclm(1024, 24, 8, 1e-4),
    "dclm-1b": _dclm(2048, 24, 16, 1e-4),
    "dclm-3b": _dclm(2560, 32, 32, 1e-4),
    "dclm-7b": _dclm(4096, 32, 32, 5e-6),
}

KEYS = Keys()


def read(fields: Fields) -> DecoderConfig:
    """The decoder that the folder holds."""
    decoder: dict[str, Any] = fields.need("decoder", dict)
    return DecoderConfig.from_dict(decoder, where=f"{fields.where}: decoder")


def write(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json`: every decoder fits."""
    return {"architectures": ["BloomeryDecoder"], "model_type": MODEL_TYPE, "decoder": config.to_dict()}
