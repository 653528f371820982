"""Packed copies give the products of the weights they were made from, where and only where they should."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from bloomery.nn import PackedWeights, linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 5), (300, 64)])
def test_products_are_those_of_the_weight(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(shape, generator=generator, dtype=dtype), torch.randn(shape[0], dtype=dtype)
    for rows in (1, 8):
        x = torch.randn(rows, 3, shape[1], generator=generator, dtype=dtype)[:, -1:]
        with torch.no_grad():
            expected = linear(x, weight, bias)
            with PackedWeights([weight]):
                torch.testing.assert_close(linear(x, weight, bias), expected, atol=1e-5, rtol=1e-5)


def test_copies_are_a_snapshot_for_products_without_gradients_inside_the_block():
    weight = torch.nn.Parameter(torch.ones(300, 64))
    x = torch.ones(2, 64)
    packed = PackedWeights([weight])
    with torch.no_grad():
        weight.fill_(2.0)
        with packed:
            assert linear(x, weight)[0, 0] in (64.0, 128.0)  # the copy, or the weight where oneDNN does not suit
        assert linear(x, weight)[0, 0] == 128.0
    with packed:
        product = linear(x, weight)
    assert product[0, 0] == 128.0
    product.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("case", ["intel", "avx2", "no operator", "other signature", "wrong result"])
def test_the_plain_product_serves_where_onednn_does_not(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["bloomery.nn.linear"]
    operators = {
        "no operator": SimpleNamespace(),
        "other signature": SimpleNamespace(_linear_pointwise=lambda x, w: x, _reorder_linear_weight=lambda w: w),
        "wrong result": SimpleNamespace(_linear_pointwise=lambda x, *_: x, _reorder_linear_weight=lambda w: w),
    }
    good = SimpleNamespace(_linear_pointwise=lambda x, w, *_: x @ w.T, _reorder_linear_weight=lambda w: w)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if case == "avx2" else "AVX512")
    monkeypatch.setattr(module, "_is_intel", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", good)
    assert (module._find_onednn() is None) == (case == "avx2")
    monkeypatch.setattr(module, "_is_intel", lambda: case == "intel")
    monkeypatch.setattr(torch.ops, "mkldnn", operators.get(case, good))
    assert module._find_onednn() is None
