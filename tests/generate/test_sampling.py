"""Processors against `transformers`, draws against the exact distribution, validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bloomery.core.errors import ConfigError
from bloomery.generate import sampling
from bloomery.generate.sampling import SamplingParams, Uniforms, sample


def random_logits(seed: int, rows: int = 5, vocab: int = 700, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 800),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    penalty=st.floats(0.5, 2),
)
def test_processors_equal_transformers_in_its_order(seed, temperature, top_k, top_p, min_p, penalty):
    transformers = pytest.importorskip("transformers")
    logits = random_logits(seed)
    context = torch.randint(0, logits.shape[1], (len(logits), 30), generator=torch.Generator().manual_seed(seed))
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    processors = model._get_logits_processor(config, input_ids_seq_length=30, encoder_input_ids=context)
    theirs = processors(context, logits.clone())

    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, context, True)
    ours = sampling.penalise_repetition(logits, seen, penalty) / temperature
    if top_k:
        ours = sampling.keep_top_k(ours, top_k)
    ours = sampling.keep_min_p(sampling.keep_top_p(ours, top_p), min_p)

    uniforms = torch.linspace(0.02, 0.98, len(logits), dtype=torch.float64)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    assert torch.equal(sample(logits, params, uniforms, seen), sampling.draw(ours, uniforms))
    # at the edge of a nucleus float32 sums in another order may differ: at most the borderline token of a row
    assert ((ours > -torch.inf) != (theirs > -torch.inf)).sum(-1).max() <= 1
    both = (ours > -torch.inf) & (theirs > -torch.inf)
    assert torch.equal(ours[both], theirs[both])


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_nucleus_is_the_same_whether_or_not_the_vocabulary_is_sorted(top_p, monkeypatch):
    logits = random_logits(1, vocab=3000).double()
    for candidates in (1, 8, 512, 3000):
        monkeypatch.setattr(sampling, "TOP_P_CANDIDATES", candidates)
        kept = sampling.keep_top_p(logits, top_p) > -torch.inf
        for row, mask in zip(logits.softmax(-1), kept, strict=True):
            total, smallest = row[mask].sum(), row[mask].min()
            assert total >= top_p - 1e-12
            assert total - smallest < top_p  # no smaller set of the likeliest tokens would do
            assert row[~mask].max() <= smallest


def test_top_k_keeps_k_and_one_is_greedy():
    logits = random_logits(2)
    assert (sampling.keep_top_k(logits, 7) > -torch.inf).sum(-1).tolist() == [7] * 5
    assert torch.equal(sampling.keep_top_k(logits, 10_000), logits)
    uniforms = torch.full((5,), 0.999, dtype=torch.float64)
    assert torch.equal(sample(logits, SamplingParams(temperature=5, top_k=1), uniforms), logits.argmax(-1))


def test_repetition_penalty_lowers_positive_and_negative_logits():
    logits = torch.tensor([[2.0, -2.0, 3.0]])
    seen = torch.tensor([[True, True, False]])
    assert sampling.penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]
    assert sample(logits, SamplingParams(repetition_penalty=2.0), seen=~seen).tolist() == [0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=6),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.2),
    ],
)
def test_drawn_frequencies_fit_the_exact_distribution(params):
    logits = random_logits(3, rows=1, vocab=12, scale=1.0)
    n = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    counts = torch.bincount(sample(logits.expand(n, -1), params, uniforms), minlength=12).numpy()

    expected = (logits / params.temperature).double().softmax(-1)[0]
    order = expected.argsort(descending=True)
    if params.top_k:
        expected[order[params.top_k :]] = 0
    if params.top_p < 1:
        expected[order[1:][expected[order].cumsum(0)[:-1] >= params.top_p]] = 0
    expected[expected < params.min_p * expected.max()] = 0
    expected = (expected / expected.sum()).numpy()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], n * expected[possible]).pvalue > 0.01


def test_extreme_uniforms_never_draw_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    for u, token in ((0.0, 1), (1 - 2**-53, 3)):
        assert sampling.draw(logits, torch.tensor([u], dtype=torch.float64)).tolist() == [token]


def test_uniforms_depend_on_seed_and_row_only():
    alone = Uniforms(5, [3])
    together = Uniforms(5, [0, 3, 4])
    first = [alone.next()[0], together.next()[1]]
    together.keep([1, 2])
    second = [alone.next()[0], together.next()[0]]
    assert first[0] == first[1] != second[0] == second[1]
    assert Uniforms(6, [3]).next() != Uniforms(5, [3]).next()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_values_out_of_range_name_the_field_and_the_range(field, value):
    with pytest.raises(ConfigError, match=f"{field} is .*{field} must be"):
        SamplingParams(**{field: value})


def test_a_tiny_temperature_is_greedy_and_not_nan() -> None:
    logits = torch.tensor([[30.0, 90.0, 89.9, -5.0], [1.0, 2.0, -torch.inf, 0.0]])
    for temperature in (1e-4, 1e-30, 1e-45, 5e-324):
        params = SamplingParams(temperature=temperature, top_p=0.9, top_k=3, min_p=0.1)
        drawn = sample(logits, params, torch.tensor([0.3, 0.999], dtype=torch.float64))
        assert drawn.tolist() == [1, 1]


def test_temperature_does_not_change_what_it_means() -> None:
    logits = torch.tensor([[1000.0, 1001.0, 999.0]])
    wanted = (logits / 2).softmax(-1).cumsum(-1)[0]
    for u, token in ((wanted[0] - 1e-4, 0), (wanted[0] + 1e-4, 1), (wanted[1] + 1e-4, 2)):
        uniforms = u[None].double()
        assert sample(logits, SamplingParams(temperature=2.0), uniforms).item() == token
