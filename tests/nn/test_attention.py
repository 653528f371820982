"""`attend` against attention written out, under every mask and grouping."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloomery.nn import Causal, Documents, attend


def written_out(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None = None, cap: float | None = None
) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if cap is not None:  # before the mask: a capped minus infinity would be visible
        scores = cap * (scores / cap).tanh()
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v


def draw(seed: int, batch: int, kv_heads: int, groups: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, kv_heads * groups, queries, 4, generator=g, dtype=torch.float64)
    k, v = torch.randn(2, batch, kv_heads, keys, 4, generator=g, dtype=torch.float64)
    return q, k, v


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), size=sizes, keys=st.integers(1, 12), data=st.data())
def test_causal_with_and_without_padding(seed: int, size: tuple[int, int, int], keys: int, data: st.DataObject) -> None:
    queries = data.draw(st.integers(1, keys))
    q, k, v = draw(seed, *size, queries, keys)
    place = torch.arange(keys)
    causal = place <= place[keys - queries :, None]
    torch.testing.assert_close(attend(q, k, v, Causal()), written_out(q, k, v, causal))

    padding = torch.tensor(data.draw(st.lists(st.integers(0, keys - 1), min_size=size[0], max_size=size[0])))
    ours = attend(q, k, v, Causal(padding))
    for row, pad in enumerate(padding.tolist()):  # each row as if its padding were not there
        real = max(queries - (keys - pad), 0)  # first query that is not padding
        alone = written_out(
            q[row : row + 1, :, real:], k[row : row + 1, :, pad:], v[row : row + 1, :, pad:], causal[real:, pad:]
        )
        torch.testing.assert_close(ours[row : row + 1, :, real:], alone)
    assert ours.isfinite().all()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999), size=sizes, keys=st.integers(1, 20), width=st.integers(1, 9), data=st.data(),
    scale=st.sampled_from([None, 0.3]), cap=st.sampled_from([None, 0.5, 30.0]),
)  # fmt: skip
def test_scales_caps_and_values_of_another_width(
    seed: int, size: tuple[int, int, int], keys: int, width: int, data: st.DataObject, scale: float | None,
    cap: float | None,
) -> None:  # fmt: skip
    queries = data.draw(st.integers(1, keys))
    q, k, _ = draw(seed, *size, queries, keys)
    v = torch.randn(*k.shape[:3], width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    place = torch.arange(keys)
    causal = place <= place[keys - queries :, None]
    ours = attend(4 * q, k, v, Causal(), scale, cap)
    torch.testing.assert_close(ours, written_out(4 * q, k, v, causal, scale, cap))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), size=sizes, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_documents_attend_as_if_alone(seed: int, size: tuple[int, int, int], lengths: list[int]) -> None:
    total = sum(lengths)
    q, k, v = draw(seed, *size, total, total)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(size[0], -1)
    ours, begin = attend(q, k, v, Documents(ids)), 0
    for length in lengths:
        part = slice(begin, begin + length)
        torch.testing.assert_close(ours[:, :, part], attend(q[:, :, part], k[:, :, part], v[:, :, part], Causal()))
        begin += length


def test_documents_continue_in_a_cache() -> None:
    q, k, v = draw(0, 2, 2, 2, 9, 9)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2], [5, 5, 5, 5, 5, 5, 5, 5, 7]])
    whole = attend(q, k, v, Documents(ids))
    torch.testing.assert_close(attend(q[:, :, 6:], k, v, Documents(ids)), whole[:, :, 6:])
    torch.testing.assert_close(attend(q[:, :, 8:], k, v, Documents(ids)), whole[:, :, 8:])
