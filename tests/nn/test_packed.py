"""Packed copies give the products of the weights they were made from, where and only where they should."""

from __future__ import annotations

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
