"""RMSNorm, rope, linear, the gated feed-forward layer and the cache."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.models import preset
from bloomery.nn import (
    ACTIVATIONS,
    MLP,
    GatedMLP,
    KVCache,
    LayerNorm1p,
    Linear,
    LinearScaling,
    Llama3Scaling,
    NTKScaling,
    PackedWeights,
    RMSNorm,
    Rope,
    YarnScaling,
    linear,
    rotate,
)
from bloomery.nn.linear import matmul_t

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_follows_its_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(24, eps=1e-2).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24).to(dtype) * 3
    accurate = torch.promote_types(dtype, torch.float32)
    normalised = x.to(accurate) / (x.to(accurate).square().mean(-1, keepdim=True) + 1e-2).sqrt()
    expected = normalised.to(dtype) * norm.weight  # rounded before the weight
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), expected, rtol=1e-6 if dtype != torch.bfloat16 else 1e-2, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(m=st.integers(0, 300), n=st.integers(0, 300), shift=st.integers(0, 300))
def test_rope_scores_depend_on_distance_only(m: int, n: int, shift: int) -> None:
    rope = Rope(16, theta=100.0, max_positions=8)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(m)).double()

    def score(i: int, j: int) -> torch.Tensor:
        positions = torch.tensor([[i, j]])
        both = rotate(torch.cat([q, k], 1), rope(positions, int(positions.max()) + 1, CPU))
        return both[0, 0, 0] @ both[0, 1, 0]

    torch.testing.assert_close(score(m, n), score(m + shift, n + shift), rtol=1e-4, atol=1e-4)


def test_rope_keeps_lengths_and_leaves_position_zero() -> None:
    x = torch.randn(2, 9, 3, 8, dtype=torch.float64)
    turned = rotate(x, Rope(8, 10_000.0, 4)(slice(0, 9), 9, CPU))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(turned[:, 0], x[:, 0])


def test_rope_turns_pairs_half_a_head_apart() -> None:
    rope = Rope(4, theta=9.0, max_positions=8)  # frequencies 1 and 1/3
    x = torch.zeros(1, 1, 1, 4)
    x[..., 1] = 1.0
    turned = rotate(x, rope(slice(6, 7), 7, CPU)).flatten()
    torch.testing.assert_close(turned, torch.tensor([0, torch.tensor(2.0).cos(), 0, torch.tensor(2.0).sin()]))


def test_rope_gradient() -> None:
    rotary = Rope(6, 10.0, 8)(slice(0, 5), 5, CPU)
    rotary = rotary._replace(cos=rotary.cos.double(), sin=rotary.sin.double())
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: rotate(x, rotary), x)


def test_rope_tables_grow_and_serve_training_after_generation() -> None:
    rope = Rope(8, 10_000.0, 4)
    with torch.inference_mode():
        short = rope(slice(0, 3), 3, CPU)[0].clone()
    x = torch.randn(1, 9, 1, 8, requires_grad=True)
    rotate(x[:, :3], rope(slice(0, 3), 3, CPU)).sum().backward()
    long = rope(slice(0, 9), 9, CPU)[0]
    assert torch.equal(long[:3], short)
    assert not list(rope.state_dict())
    assert torch.equal(copy.deepcopy(rope)(slice(0, 9), 9, CPU)[0], long)


def test_rope_tables_follow_the_module_and_stay_float32() -> None:
    here = Rope(8, 10_000.0, 4)
    with torch.device("meta"):
        nowhere = Rope(8, 10_000.0, 4)
    moved = nowhere.to(torch.bfloat16).to_empty(device="cpu")
    tables = moved._tables
    for mine, theirs in zip(moved(slice(0, 4), 4, CPU)[:2], here(slice(0, 4), 4, CPU)[:2], strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)
    assert moved._tables is tables  # nothing was built by the call


def test_rope_scalings() -> None:
    plain = Rope(64, 10_000.0, 8).frequencies()
    torch.testing.assert_close(Rope(64, 10_000.0, 8, LinearScaling(factor=4)).frequencies(), plain / 4)
    llama3 = Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=256)
    scaled = Rope(64, 10_000.0, 8, llama3).frequencies()
    wavelength = 2 * torch.pi / plain
    assert torch.equal(scaled[wavelength < 64], plain[wavelength < 64])
    torch.testing.assert_close(scaled[wavelength > 256], plain[wavelength > 256] / 8)
    between = (wavelength >= 64) & (wavelength <= 256)
    assert between.any()
    assert ((scaled <= plain) & (scaled >= plain / 8))[between].all()


def test_ntk_scaling_is_a_larger_base() -> None:
    scaled = Rope(64, 10_000.0, 8, NTKScaling(factor=4.0)).frequencies()
    torch.testing.assert_close(scaled, Rope(64, 10_000.0 * 4 ** (64 / 62), 8).frequencies())
    torch.testing.assert_close(scaled[-1], Rope(64, 10_000.0, 8).frequencies()[-1] / 4)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    plain = Rope(64, 10_000.0, 8).frequencies()
    yarn = YarnScaling(factor=40.0, original_max_positions=4096, mscale=0.707, mscale_all_dim=0.707)
    scaled = Rope(64, 10_000.0, 8, yarn).frequencies()
    turns = 4096 * plain / (2 * torch.pi)
    torch.testing.assert_close(scaled[turns > 40], plain[turns > 40])
    torch.testing.assert_close(scaled[turns < 0.7], plain[turns < 0.7] / 40)
    assert yarn.table_factor == 1.0
    assert yarn.softmax_factor == pytest.approx(1.5896, rel=1e-4)
    generic = YarnScaling(factor=4.0, original_max_positions=64)
    assert generic.table_factor == pytest.approx(1.1386, rel=1e-4)
    assert generic.softmax_factor == 1.0


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_partial_rope_turns_the_first_features_and_passes_the_rest(layout: str) -> None:
    x = torch.randn(2, 5, 3, 10)
    rotary = Rope(6, 100.0, 8, layout=layout)(slice(0, 5), 5, CPU)  # type: ignore[arg-type]
    turned = rotate(x, rotary)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    torch.testing.assert_close(turned[..., :6], rotate(x[..., :6].contiguous(), rotary))
    assert not torch.equal(turned[:, 1:, :, :6], x[:, 1:, :, :6])


def test_layer_norm_counts_its_weight_from_one() -> None:
    norm = LayerNorm1p(7, 1e-5)
    x = torch.randn(3, 7)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (7,)))
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    torch.testing.assert_close(norm(x), F.layer_norm(x, (7,), 1 + norm.weight, norm.bias, 1e-5))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_plain_and_gated_layers(activation: Any) -> None:
    act = {"silu": F.silu, "gelu": F.gelu, "relu2": lambda x: F.relu(x) ** 2}
    act["gelu_tanh"] = lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    x = torch.randn(4, 6)
    plain, gated = MLP(6, 9, True, activation), GatedMLP(6, 9, True, activation)
    torch.testing.assert_close(plain(x), plain.down(act[activation](plain.up(x))))
    gate, up = gated.gate_up(x).chunk(2, -1)
    torch.testing.assert_close(gated(x), gated.down(act[activation](gate) * up))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearScaling(factor=0.5),
        lambda: YarnScaling(factor=0.5, original_max_positions=8),
        lambda: YarnScaling(factor=4.0, original_max_positions=0),
        lambda: YarnScaling(factor=4.0, original_max_positions=8, beta_fast=1.0, beta_slow=2.0),
        lambda: NTKScaling(factor=float("nan")),
        lambda: LinearScaling(factor=float("nan")),
        lambda: Llama3Scaling(factor=8, low_freq_factor=4, high_freq_factor=4, original_max_positions=8),
        lambda: Llama3Scaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=0),
    ],
)
def test_rope_scalings_refuse_nonsense(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="must"):
        make()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (64, 33)])
def test_linear_equals_f_linear(bias: bool, shape: tuple[int, int]) -> None:
    """The shapes lie on both sides of the size from which oneDNN is used."""
    torch.manual_seed(1)
    layer, x = Linear(96, 200, bias=bias), torch.randn(*shape, 96, requires_grad=True)
    grad = torch.randn(*shape, 200)
    exact_layer, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    exact = F.linear(exact_x, exact_layer.weight, exact_layer.bias)
    exact_grads = torch.autograd.grad(exact, [exact_x, *exact_layer.parameters()], grad.double())
    ours = layer(x)
    grads = torch.autograd.grad(ours, [x, *layer.parameters()], grad)
    for a, b in zip([ours, *grads], [exact, *exact_grads], strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.detach()))
        torch.testing.assert_close(matmul_t(x[0], layer.weight), x[0] @ layer.weight.T, rtol=1e-5, atol=1e-5)


def test_linear_second_derivatives_and_frozen_weights() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(80, 64, requires_grad=True), torch.randn(70, 64)
    (grad,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, (2 * weight.T @ weight).sum(0).expand(80, -1), rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_a_trainable_bias_on_frozen_weights_gets_its_gradient() -> None:
    x, weight, bias = torch.randn(80, 64), torch.randn(70, 64), torch.zeros(70, requires_grad=True)
    linear(x, weight, bias).sum().backward()
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.full((70,), 80.0))


def test_packed_weights_step_aside_under_autocast() -> None:
    layer, x = Linear(300, 500), torch.randn(8, 300)
    with torch.no_grad(), PackedWeights([layer.weight]), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_gated_mlp() -> None:
    torch.manual_seed(3)
    mlp, x = GatedMLP(8, 12, bias=True), torch.randn(2, 8)
    gate, up = mlp.gate_up.weight.split(12)
    b_gate, b_up = mlp.gate_up.bias.split(12)
    expected = F.linear(F.silu(x @ gate.T + b_gate) * (x @ up.T + b_up), mlp.down.weight, mlp.down.bias)
    torch.testing.assert_close(mlp(x), expected)


def test_cache_bookkeeping() -> None:
    config = preset("llama-tiny", n_layers=2)
    cache = KVCache(config, batch=3, max_len=5)
    assert cache.nbytes == 2 * 2 * 3 * config.n_kv_heads * 5 * config.head_dim * 4
    k = torch.randn(3, config.n_kv_heads, 2, config.head_dim)
    for slot in cache.slots:
        keys, values = slot.append(k, -k)
        assert torch.equal(keys, k)
        assert torch.equal(values, -k)
    assert cache.length == 2
    cache.start = torch.tensor([0, 1, 2])
    cache.keep(torch.tensor([2, 0]))
    assert cache.batch == 2
    assert cache.start.tolist() == [2, 0]
    assert torch.equal(cache.slots[1].append(k[:2, :, :1], k[:2, :, :1])[0][:, :, :2], k[[2, 0]])
    cache.slots[0].length = 3
    cache.require_room(2)
    with pytest.raises(DataError, match="do not fit a cache of 5"):
        cache.require_room(3)
    cache.truncate(1)
    assert cache.length == cache.slots[1].length == 1
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate(2)
    cache.truncate(0)
    assert cache.start is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 9])
@torch.no_grad()
def test_linear_of_a_few_rows(rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the exchanged product is taken it gives the same numbers and a contiguous result."""
    monkeypatch.setattr(sys.modules["bloomery.nn.linear"], "_EXCHANGE", True)
    monkeypatch.setattr(sys.modules["bloomery.nn.linear"], "_ONEDNN", None)
    x, weight = torch.randn(1, rows, 300), torch.randn(1024, 300)
    offset = torch.randn(1024) if bias else None
    ours = linear(x, weight, offset)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, F.linear(x, weight, offset), rtol=1e-5, atol=1e-4)
