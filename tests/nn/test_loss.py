"""`linear_cross_entropy` equals the cross-entropy of materialised logits, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloomery.nn import IGNORE, linear_cross_entropy


def problem(seed: int, n: int, dim: int, vocab: int, dtype: torch.dtype, ignored: float = 0.3) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, dim, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=g, dtype=dtype).requires_grad_()
    targets = torch.randint(vocab, (n,), generator=g)
    targets[torch.rand(n, generator=g) < ignored] = IGNORE
    return hidden, weight, targets


def with_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss * 1.7, inputs)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 20),
    dim=st.integers(1, 9),
    vocab=st.integers(1, 30),
    chunk=st.integers(1, 25),
    reduction=st.sampled_from(["sum", "mean"]),
)
def test_equals_the_plain_loss(seed: int, n: int, dim: int, vocab: int, chunk: int, reduction: str) -> None:
    hidden, weight, targets = problem(seed, n, dim, vocab, torch.float64)
    targets[0] = 0  # a mean over nothing is tested below
    plain = F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORE, reduction=reduction)
    ours = linear_cross_entropy(hidden, weight, targets, reduction=reduction, chunk=chunk)
    for a, b in zip(with_gradients(plain, hidden, weight), with_gradients(ours, hidden, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 12), reduction=st.sampled_from(["sum", "mean"]))
def test_the_normalisers_penalty(seed: int, chunk: int, reduction: str) -> None:
    hidden, weight, targets = problem(seed, 9, 4, 6, torch.float64)
    targets[0] = 0
    logits, counted = F.linear(hidden, weight), targets != IGNORE
    penalty = 0.3 * logits.logsumexp(-1)[counted].square()
    penalty = penalty.sum() if reduction == "sum" else penalty.mean()
    plain = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction=reduction) + penalty
    ours = linear_cross_entropy(hidden, weight, targets, reduction=reduction, z_loss=0.3, chunk=chunk)
    for a, b in zip(with_gradients(plain, hidden, weight), with_gradients(ours, hidden, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_float32_at_training_sizes() -> None:
    """The path that oneDNN takes, against float64."""
    hidden, weight, targets = problem(1, 600, 64, 1000, torch.float32)
    exact = with_gradients(
        F.cross_entropy(F.linear(hidden.double(), weight.double()), targets, ignore_index=IGNORE), hidden, weight
    )
    ours = with_gradients(linear_cross_entropy(hidden, weight, targets, chunk=256), hidden, weight)
    for a, b in zip(exact, ours, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2e-5, atol=2e-6)


def test_batch_and_sequence_dimensions() -> None:
    hidden, weight, targets = problem(2, 12, 5, 7, torch.float64)
    flat = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(linear_cross_entropy(hidden.view(3, 4, 5), weight, targets.view(3, 4)), flat)
    with pytest.raises(ValueError, match="do not belong together"):
        linear_cross_entropy(hidden.view(3, 4, 5), weight, targets)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    hidden, weight, targets = problem(3, 6, 4, 8, torch.float64)
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), hidden)
    expected, _ = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), [hidden, weight])
    assert torch.equal(grad, expected)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_nothing_counted() -> None:
    hidden, weight, _ = problem(4, 5, 3, 6, torch.float32)
    nothing = torch.full((5,), IGNORE)
    total, grad_hidden, grad_weight = with_gradients(
        linear_cross_entropy(hidden, weight, nothing, reduction="sum"), hidden, weight
    )
    assert total == 0
    assert not grad_hidden.any()
    assert not grad_weight.any()
    assert linear_cross_entropy(hidden, weight, nothing).isnan()


def test_large_logits_stay_finite() -> None:
    hidden, weight, targets = problem(5, 8, 4, 10, torch.float32, ignored=0)
    ours = with_gradients(linear_cross_entropy(hidden * 1e4, weight, targets, reduction="sum"), hidden, weight)
    plain = with_gradients(F.cross_entropy(F.linear(hidden * 1e4, weight), targets, reduction="sum"), hidden, weight)
    for a, b in zip(plain, ours, strict=True):
        assert b.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_sums_in_float32() -> None:
    """A sum of thousands of terms in bfloat16 would stop growing; ours is as exact as its inputs."""
    hidden, weight, targets = problem(6, 3000, 8, 50, torch.bfloat16, ignored=0)
    ours = linear_cross_entropy(hidden, weight, targets, reduction="sum", chunk=64)
    plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    ours.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_autocast_matches_an_autocast_linear_layer() -> None:
    hidden, weight, targets = problem(7, 40, 16, 30, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=IGNORE)
    ours_all, plain_all = with_gradients(ours, hidden, weight), with_gradients(plain, hidden, weight)
    assert ours_all[1].dtype == torch.float32
    for a, b in zip(plain_all, ours_all, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


def test_a_second_backward_gives_the_same_and_double_backward_is_refused() -> None:
    hidden, weight, targets = problem(8, 6, 4, 8, torch.float64)
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, [hidden, weight], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, weight])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_all_logits_never_exist() -> None:
    """The largest tensor made is a chunk of logits or a weight gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    hidden, weight, targets = problem(9, 512, 4, 100, torch.float32)
    with Largest():
        linear_cross_entropy(hidden, weight, targets, chunk=16).backward()
    assert largest <= max(hidden.numel(), 16 * 100)


def test_a_frozen_side_gets_no_gradient_and_the_other_the_same_one() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(7, 4), torch.randn(5, 4), torch.randint(0, 5, (7,))

    def gradients(train_hidden: bool, train_weight: bool) -> list[torch.Tensor | None]:
        h, w = hidden.clone().requires_grad_(train_hidden), weight.clone().requires_grad_(train_weight)
        linear_cross_entropy(h, w, targets, chunk=3).backward()
        return [h.grad, w.grad]

    both = gradients(True, True)
    assert torch.equal(gradients(True, False)[0], both[0])
    assert torch.equal(gradients(False, True)[1], both[1])
    assert gradients(True, False)[1] is None
    assert gradients(False, True)[0] is None
