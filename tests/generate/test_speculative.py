"""Speculative decoding loses nothing: equal tokens when greedy, the same distribution when sampling."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate import generate, stream
from bloomery.generate.sampling import SamplingParams
from bloomery.generate.speculative import acceptance, check, distribution, residual
from bloomery.models.decoder import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def draft(model):
    """The model with a second layer that counts for less: agrees often, not always."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[1].attn.out.weight.mul_(0.3)
        other.blocks[1].ffn.down.weight.mul_(0.3)
    return other


@settings(deadline=None, max_examples=15)
@given(
    prompts=st.lists(st.lists(st.integers(3, 319), min_size=1, max_size=40), min_size=1, max_size=3),
    new=st.integers(1, 40),
    draft_tokens=st.integers(1, 6),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_greedy_tokens_are_those_without_a_draft(model, draft, tokenizer, prompts, new, draft_tokens, penalty):
    options = {"max_new_tokens": new, "eos": list(range(3, 12)), "repetition_penalty": penalty}
    plain = generate(model, tokenizer, prompts, **options)
    drafted = generate(model, tokenizer, prompts, draft=draft, draft_tokens=draft_tokens, **options)
    for a, b in zip(plain, drafted, strict=True):
        assert (a.tokens, a.text, a.reason) == (b.tokens, b.text, b.reason)
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-9)


def test_every_architecture_of_the_decoder(any_model, draft, tokenizer):
    options = {"max_new_tokens": 20, "eos": []}
    for drafter in (any_model, draft):
        plain, drafted = (generate(any_model, tokenizer, [[5, 6]], draft=d, **options)[0] for d in (None, drafter))
        assert plain.tokens == drafted.tokens


def test_how_often_the_draft_is_right(model, draft, tokenizer):
    options = {"max_new_tokens": 41, "eos": []}
    (same,) = generate(model, tokenizer, [[5, 6]], draft=model, **options)
    (close,) = generate(model, tokenizer, [[5, 6]], draft=draft, **options)
    assert same.acceptance == 1.0
    assert 0.1 < close.acceptance < 1.0
    assert generate(model, tokenizer, [[5, 6]], **options)[0].acceptance is None


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), vocab=st.integers(2, 9), sparse=st.booleans())
def test_the_kept_or_replaced_token_has_the_models_distribution(seed, vocab, sparse):
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, vocab, generator=generator, dtype=torch.float64).pow(3)
    if sparse:  # truncation leaves zeros in both
        p[torch.randperm(vocab, generator=generator)[: vocab // 2]] = 0
        q[torch.randperm(vocab, generator=generator)[: vocab // 2]] = 0
    p, q = p / p.sum(), q / q.sum()
    kept = q * acceptance(p, q)
    assert torch.allclose(kept + (1 - kept.sum()) * residual(p, q), p, rtol=0, atol=1e-12)


def test_rounds_follow_the_model_over_all_drafts_and_random_numbers():
    """One drafted token of three: every draft, weighted by q, and a grid over both uniform numbers."""
    p = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], dtype=torch.float64)
    q = torch.tensor([[0.3, 0.3, 0.4]], dtype=torch.float64)
    grid = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    first, second = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for token, *numbers in itertools.product(range(3), grid, grid):
        tokens = check(p, q, torch.tensor([token]), torch.stack(numbers))
        first[tokens[0]] += q[0, token] / 40**2
        if len(tokens) == 2:
            second[tokens[1]] += q[0, token] / 40**2
    assert torch.allclose(first, p[0], atol=0.025)
    assert torch.allclose(second / second.sum(), p[1], atol=0.025)
    agree = float(torch.minimum(p[0], q[0]).sum())  # corollary 3.6
    assert float(second.sum()) == pytest.approx(agree, abs=0.025)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 3},
        {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.5},
    ],
)
def test_sampled_tokens_follow_the_models_distribution(tokenizer, options):
    """All pairs of the first two new tokens of a model with five tokens: frequencies against exact probabilities."""
    shape = {"vocab_size": 5, "dim": 8, "n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "ffn_dim": 12, "init_std": 0.8}
    config = DecoderConfig(n_layers=1, max_positions=16, **shape)
    model, draft = (Decoder(config, torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    prompt, params, samples = [1, 3], SamplingParams(**options), 500

    def after(ids):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1]
        seen = torch.zeros(1, 5, dtype=torch.bool)
        seen[0, ids] = True
        return distribution(logits, params, seen)[0]

    exact = torch.stack([after(prompt)[a] * after([*prompt, a]) for a in range(5)]).flatten()  # (25,)
    done = generate(
        model, tokenizer, [prompt] * samples, max_new_tokens=3, eos=[], draft=draft, draft_tokens=2, **options
    )
    assert 0.05 < sum(c.acceptance for c in done) / samples < 0.98
    observed = torch.zeros(25)
    for completion in done:
        observed[5 * completion.tokens[0] + completion.tokens[1]] += 1
    assert observed[exact == 0].sum() == 0
    possible = exact * samples >= 5
    counts = [*observed[possible].tolist(), float(observed[~possible].sum())]
    expected = [*(exact[possible] * samples).tolist(), float(exact[~possible].sum()) * samples]
    if expected[-1] < 1:
        counts, expected = counts[:-1], expected[:-1]
    scale = sum(counts) / sum(expected)
    assert stats.chisquare(counts, [e * scale for e in expected]).pvalue > 1e-3


def test_the_seed_decides_and_pieces_concatenate(model, draft, tokenizer):
    options = {"max_new_tokens": 30, "temperature": 0.9, "seed": 4, "draft": draft, "stop": ["e"]}
    (once,), (again,) = (generate(model, tokenizer, ["The model"], **options) for _ in range(2))
    assert once == again
    pieces = list(stream(model, tokenizer, "The model", **options))
    assert "".join(pieces) == once.text
    assert all(pieces)


def test_the_models_keep_their_modes(model, draft, tokenizer):
    trained, drafting = copy.deepcopy(model).train(), copy.deepcopy(draft).train()
    generate(trained, tokenizer, [[5]], max_new_tokens=4, draft=drafting)
    assert trained.training
    assert drafting.training
    trained(torch.tensor([[3, 4]])).logits.sum().backward()


def test_bad_drafts_are_refused(model, draft, tokenizer):
    small = Decoder(DecoderConfig(vocab_size=300, dim=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, ffn_dim=8))
    with pytest.raises(ConfigError, match=r"draft model knows 300 tokens, the model 320 .*same vocabulary"):
        stream(model, tokenizer, "x", draft=small)
    with pytest.raises(ConfigError, match="draft_tokens is 0"):
        generate(model, tokenizer, ["x"], draft=draft, draft_tokens=0)


@pytest.mark.parametrize("which", ["model", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite_are_named(model, draft, tokenizer, which, temperature):
    broken = copy.deepcopy({"model": model, "draft": draft}[which])
    with torch.no_grad():
        broken.blocks[1].ffn.down.weight[3, 4] = float("nan")
    models = {"model": model, "draft": draft} | {which: broken}
    message = ("the draft model" if which == "draft" else "^the model") + r"'s logits.*blocks\.1\.ffn\.down"
    with pytest.raises(BloomeryError, match=message):
        generate(models["model"], tokenizer, [[9]], draft=models["draft"], temperature=temperature)
