from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bloomery.models.decoder import Decoder, DecoderConfig
from bloomery.train import meter

CPU = torch.device("cpu")


def test_rates_are_since_the_last_reading(toy: Callable[..., Any]) -> None:
    measured = meter.Meter(toy(), CPU, 8, 1)
    measured.step(100, 2.0)
    measured.step(300, 2.0)
    assert measured.read()["tokens_per_second"] == pytest.approx(100)
    measured.step(50, 0.1)
    values = measured.read()
    assert values["tokens_per_second"] == pytest.approx(500)
    assert 0.05 < values["memory_gb"] < 100
    assert "mfu" not in values


def test_utilisation_against_a_stated_peak(toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "peak_flops", lambda device: 1e6)
    model = toy()
    measured = meter.Meter(model, CPU, 8, world=2)
    measured.step(1000, 1.0)
    weights = sum(p.numel() for name, p in model.named_parameters() if name != "embed.weight")
    assert measured.read()["mfu"] == pytest.approx(1000 * 6 * weights / 2e6)


def test_a_model_counts_its_own_flops() -> None:
    config = DecoderConfig(vocab_size=64, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=32)
    model = Decoder(config)
    assert meter.training_flops_per_token(model, 128) == model.flops_per_token(128)
    assert meter.training_flops_per_token(model, 256) > meter.training_flops_per_token(model, 128)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Some Future Card", None),
    ],
)
def test_peaks_by_device_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = meter.peak_flops(torch.device("cuda"))
    assert found == peak or (found is not None and peak is not None and math.isclose(found, peak))
