"""The mixture of experts against a written-out loop, its losses against their formulas, its routing's invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bloomery.nn import MoE, Router, Routing, balance_losses, grouped_linear, load


def moe(n_experts: int = 6, top_k: int = 2, **options: object) -> MoE:
    torch.manual_seed(0)
    router = Router(10, n_experts, top_k, **options.pop("router", {}))  # type: ignore[arg-type]
    return MoE(10, n_experts, top_k, 7, router=router, **options).double()  # type: ignore[arg-type]


def by_hand(layer: MoE, x: Tensor) -> Tensor:
    """Every token through its experts, one at a time."""
    routing = layer.router(x)
    out = torch.zeros_like(x)
    for token, (experts, weights) in enumerate(zip(routing.experts, routing.weights, strict=True)):
        for expert, weight in zip(experts.tolist(), weights, strict=True):
            gate, up = (layer.gate_up[expert] @ x[token]).chunk(2)
            out[token] += weight * (layer.down[expert] @ (F.silu(gate) * up))
    return out if layer.shared is None else out + layer.shared(x)


@given(tokens=st.integers(1, 30), n_experts=st.integers(1, 9), data=st.data())
def test_sorting_and_grouping_change_nothing(tokens: int, n_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, n_experts))
    layer = moe(n_experts, top_k, shared_dim=data.draw(st.sampled_from([0, 5])))
    x = torch.randn(1, tokens, 10, dtype=torch.float64, requires_grad=True)
    expected = by_hand(layer, x[0])
    torch.testing.assert_close(layer(x)[0], expected)
    parameters = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).sin().sum(), parameters)
    theirs = torch.autograd.grad(expected.sin().sum(), parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


@torch.no_grad()
@given(n_experts=st.integers(1, 9), data=st.data())
def test_one_token_alone_is_no_exception(n_experts: int, data: st.DataObject) -> None:
    layer = moe(n_experts, data.draw(st.integers(1, n_experts)), shared_dim=5)
    x = torch.randn(1, 4, 10, dtype=torch.float64)
    alone = torch.cat([layer(token) for token in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(alone, layer(x))


def test_an_expert_without_tokens_still_has_a_gradient() -> None:
    layer = moe(n_experts=9, top_k=1)
    layer(torch.randn(1, 2, 10, dtype=torch.float64)).sum().backward()
    assert layer.gate_up.grad is not None
    assert (layer.gate_up.grad.abs().sum((1, 2)) == 0).sum() >= 7


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_grouped_product_gradient(counts: list[int]) -> None:
    rows = torch.randn(sum(counts), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(counts), 2, 3, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor(counts)
    expected = [part @ w.T for part, w in zip(rows.split(counts), weight, strict=True)]
    torch.testing.assert_close(grouped_linear(rows, weight, sizes), torch.cat(expected))
    if rows.numel():
        torch.autograd.gradcheck(lambda r, w: grouped_linear(r, w, sizes), (rows, weight))


@given(seed=st.integers(0, 99), top_groups=st.integers(1, 4), score=st.sampled_from(["softmax", "sigmoid"]))
def test_tokens_stay_within_their_groups(seed: int, top_groups: int, score: str) -> None:
    layer = moe(12, 3, router={"n_groups": 4, "top_groups": top_groups, "score": score})
    x = torch.randn(20, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    routing = layer.router(x)
    groups = [len(set((row // 3).tolist())) for row in routing.experts]
    assert max(groups) <= top_groups
    if top_groups == 4:
        plain = moe(12, 3, router={"score": score})
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(plain.router(x).experts.sort().values, routing.experts.sort().values)


def test_weights_of_every_kind() -> None:
    x = torch.randn(15, 10, dtype=torch.float64)
    raw, renormalised, scaled = (moe(6, 3, router=r) for r in ({}, {"renormalise": True}, {"scale": 16.0}))
    logits = raw.router(x).logits
    best = logits.softmax(-1).topk(3).values
    torch.testing.assert_close(raw.router(x).weights, best)
    torch.testing.assert_close(scaled.router(x).weights, 16 * best)
    torch.testing.assert_close(renormalised.router(x).weights, logits.topk(3).values.softmax(-1))
    sigmoid = moe(6, 3, router={"score": "sigmoid"})
    torch.testing.assert_close(sigmoid.router(x).weights, logits.topk(3).values.sigmoid())


def test_the_router_computes_in_float32() -> None:
    layer = moe().to(torch.bfloat16)
    x = torch.randn(8, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer.router(x).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, x.float() @ layer.router.weight.float().T)


@given(seed=st.integers(0, 50), capacity=st.sampled_from([0.25, 0.5, 1.0, 1.5]))
def test_capacity_keeps_the_largest_weights(seed: int, capacity: float) -> None:
    layer = moe(4, 2, capacity=capacity)
    x = torch.randn(1, 16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    routing = layer.router(x[0])
    experts, weights = routing.experts.flatten(), routing.weights.flatten()
    order, counts = layer._sorted_by_expert(experts, weights)
    room = math.ceil(capacity * 32 / 4)
    for expert in range(4):
        wanted = weights[experts == expert].sort(descending=True).values[:room]
        kept = weights[order[experts[order] == expert]]
        assert counts[expert] == len(kept) == len(wanted)
        torch.testing.assert_close(kept, wanted)
    whole, _ = moe(4, 2)._sorted_by_expert(experts, weights)
    assert torch.equal(layer.eval()._sorted_by_expert(experts, weights)[0], whole), "nothing is dropped in evaluation"


def losses_by_hand(routing: Routing, batch: int, groups: int, top_groups: int) -> dict[str, float]:
    """The formulas of arXiv:2405.04434 §2.2.3, sequence by sequence."""
    tokens, n = routing.logits.shape
    k, seq, size = routing.experts.shape[1], tokens // batch, n // groups
    total = {"balance": 0.0, "device_balance": 0.0, "communication_balance": 0.0}
    for b in range(batch):
        part = slice(b * seq, (b + 1) * seq)
        p = routing.logits[part].softmax(-1).mean(0)
        f = torch.bincount(routing.experts[part].flatten(), minlength=n) * n / (k * seq)
        total["balance"] += float((f * p).sum().detach()) / batch
        for d in range(groups):
            inside = slice(d * size, (d + 1) * size)
            sent = sum(any(d * size <= e < (d + 1) * size for e in row) for row in routing.experts[part].tolist())
            total["device_balance"] += float((f[inside].mean() * p[inside].sum()).detach()) / batch
            total["communication_balance"] += (
                groups / (top_groups * seq) * sent * float(p[inside].sum().detach()) / batch
            )
    return total


@given(seed=st.integers(0, 50), batch=st.sampled_from([1, 2, 4]))
def test_auxiliary_losses(seed: int, batch: int) -> None:
    layer = moe(12, 3, router={"n_groups": 4, "top_groups": 2})
    x = torch.randn(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    routing = layer.router(x)
    ours = balance_losses(routing, batch, n_groups=4, top_groups=2, scope="sequence")
    for name, expected in losses_by_hand(routing, batch, 4, 2).items():
        assert ours[name].item() == pytest.approx(expected), name
    whole = balance_losses(routing, batch, n_groups=4, top_groups=2, scope="batch")
    assert whole["balance"].item() == pytest.approx(losses_by_hand(routing, 1, 4, 2)["balance"])
    torch.testing.assert_close(ours["z"], routing.logits.logsumexp(-1).square().mean())


def test_fair_routing_costs_exactly_one() -> None:
    experts = torch.arange(12).view(6, 2) % 4  # every expert three times
    routing = Routing(experts, torch.ones(6, 2), torch.zeros(6, 4))
    losses = balance_losses(routing, 1, n_groups=2, top_groups=2)
    assert losses["balance"].item() == pytest.approx(1.0)
    assert losses["device_balance"].item() == pytest.approx(1.0)
    torch.testing.assert_close(load(routing), torch.full((4,), 0.25))


def test_the_balance_loss_has_a_gradient_through_probabilities_only() -> None:
    layer = moe(8, 2)
    x = torch.randn(40, 10, dtype=torch.float64)
    routing = layer.router(x)
    balance_losses(routing, 1)["balance"].backward()
    fraction = load(routing) * 8
    probability = layer.router(x).logits.softmax(-1).mean(0)
    expected = torch.autograd.grad((fraction * probability).sum(), layer.router.weight)[0]
    torch.testing.assert_close(layer.router.weight.grad, expected)


def test_warm_up_is_random_then_gone_and_belongs_to_the_state() -> None:
    layer = moe(8, 2, router={"warmup": 50})
    x = torch.randn(1, 400, 10, dtype=torch.float64) * 0.3 + torch.randn(10, dtype=torch.float64) * 2
    clean = load(layer.eval().router(x[0]))
    first = load(layer.train().router(x[0]))
    assert clean.max() * 8 > 2, "the inputs are alike, so that clean routing is unbalanced"
    assert first.max() * 8 < 1.6
    for _ in range(50):
        layer.router(x[0])
    torch.testing.assert_close(load(layer.router(x[0])), clean)
    again = moe(8, 2, router={"warmup": 50})
    again.load_state_dict(layer.state_dict())
    assert again.router.passes == layer.router.passes
    before = layer.router.passes.clone()
    layer.eval().router(x[0])
    assert layer.router.passes == before


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), width=st.sampled_from([3, 8]))
def test_pytorchs_grouped_product_and_ours_agree(counts: list[int], width: int) -> None:
    """In float32, where widths that are multiples of 4 take PyTorch's, gradients and empty groups included."""
    rows = torch.randn(sum(counts), width, requires_grad=True)
    weight = torch.randn(len(counts), 12, width, requires_grad=True)
    parts = [part @ w.T for part, w in zip(rows.split(counts), weight, strict=True)]
    expected, ours = torch.cat(parts), grouped_linear(rows, weight, torch.tensor(counts))
    torch.testing.assert_close(ours, expected)
    both = [torch.autograd.grad(out.sin().sum(), (rows, weight)) for out in (ours, expected)]
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)
