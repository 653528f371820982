"""Summed log-probabilities of given continuations."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from bloomery.core.errors import ConfigError
from bloomery.generate import choice_logprobs


@torch.no_grad()
def by_hand(model, ids, begin):
    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logprobs[i - 1, ids[i]]) for i in range(begin, len(ids)))


@pytest.mark.parametrize("prompt", ["The model reads", "A", ""])
def test_equals_the_sum_over_the_choice_tokens(model, tokenizer, prompt):
    choices = [" tokens", " a", " words and bytes.", " tokens"]
    scores = choice_logprobs(model, tokenizer, prompt, choices)
    bos = tokenizer.token_to_id("<|bos|>")
    context = [bos, *tokenizer.encode(prompt).ids]
    for choice, score in zip(choices, scores, strict=True):
        ids = [bos, *tokenizer.encode(prompt + choice).ids]
        assert ids[: len(context)] == context
        assert score == pytest.approx(by_hand(model, ids, len(context)), abs=1e-6)
    assert scores[0] == pytest.approx(scores[3], abs=1e-12)
    assert choice_logprobs(model, tokenizer, prompt, choices[2:3]) == pytest.approx(scores[2:3], abs=1e-9)
    assert choice_logprobs(model, tokenizer, prompt, []) == []


def test_probabilities_of_all_next_tokens_sum_to_one(model, tokenizer):
    vocab = [tokenizer.decode([i]) for i in range(3, 320)]
    singles = [t for t in vocab if len(tokenizer.encode("é" + t).ids) == 3 and "\ufffd" not in t]
    total = torch.tensor(choice_logprobs(model, tokenizer, "é", singles)).exp().sum()
    assert 0 < total < 1


def test_a_token_across_the_boundary_belongs_to_the_choice(model, tokenizer):
    merged = tokenizer.encode("token").ids
    assert len(merged) < len(tokenizer.encode("tok").ids) + len(tokenizer.encode("en").ids)
    bos = tokenizer.token_to_id("<|bos|>")
    ids, context = [bos, *merged], [bos, *tokenizer.encode("tok").ids]
    begin = next(i for i, (a, b) in enumerate(zip([*ids, -1], [*context, -2], strict=False)) if a != b)
    assert choice_logprobs(model, tokenizer, "tok", ["en"])[0] == pytest.approx(by_hand(model, ids, begin), abs=1e-6)


def test_choices_that_add_nothing_and_prompts_without_a_beginning_are_refused(model, tokenizer):
    with pytest.raises(ConfigError, match="adds no token"):
        choice_logprobs(model, tokenizer, "The", [" a", ""])
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match="begins a text"):
        choice_logprobs(model, words, "", ["a", "b"])
