"""Scores of tasks against sums by hand, whatever the batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate import evaluate
from bloomery.generate.choices import Candidate, score
from bloomery.generate.evaluate import rolling_windows
from bloomery.generate.tasks import Question, Task
from bloomery.models import MLAConfig, MoEConfig
from bloomery.models.decoder import Decoder

WORDS = ("model", "reads tokens", "writes", "a piece of text", "word", "byte", "stop here", "façade", "日本語")


@torch.no_grad()
def by_hand(model, ids, begin):
    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    picked = [float(logprobs[i - 1, ids[i]]) for i in range(begin, len(ids))]
    return sum(picked), all(int(logprobs[i - 1].argmax()) == ids[i] for i in range(begin, len(ids)))


def encoded(tokenizer, prompt, continuation):
    bos = tokenizer.token_to_id("<|bos|>")
    context, ids = ([bos, *tokenizer.encode(text).ids] for text in (prompt, prompt + continuation))
    return ids, next(i for i, (a, b) in enumerate(zip([*ids, -1], [*context, -2], strict=False)) if a != b)


@st.composite
def question(draw):
    """Candidates with a common beginning of any length, none included."""
    tokens = st.integers(3, 319)
    common = draw(st.lists(tokens, min_size=0, max_size=40))
    rests = draw(st.lists(st.lists(tokens, min_size=2, max_size=20), min_size=1, max_size=5))
    ids = [common + rest for rest in rests]
    return [Candidate(some, draw(st.integers(1, len(some) - 1))) for some in ids]


@given(st.lists(question(), min_size=1, max_size=6), st.integers(1, 400))
def test_scores_do_not_depend_on_what_runs_together(model, questions, batch_tokens):
    scores = score(model, questions, batch_tokens=batch_tokens)
    for candidates, found in zip(questions, scores, strict=True):
        for candidate, likelihood in zip(candidates, found, strict=True):
            expected, greedy = by_hand(model, candidate.ids, candidate.begin)
            assert likelihood.logprob == pytest.approx(expected, abs=1e-9)
            assert likelihood.tokens == len(candidate.ids) - candidate.begin
            assert likelihood.greedy == greedy


@pytest.mark.parametrize(
    "changes",
    [
        {"mla": MLAConfig(q_rank=None, kv_rank=12, nope_dim=8, rope_dim=4, v_dim=6), "head_dim": 12, "n_kv_heads": 4},
        {"moe": MoEConfig(n_experts=4, top_k=2, expert_dim=16), "head_norm": "hidden"},
        {"softcap": 5.0, "post_norm": True, "norm": "ln1p", "logit_scale": 0.5},
    ],
    ids=["latent attention", "experts", "caps"],
)
def test_scores_of_other_families(model, changes):
    config = replace(model.config, **changes)
    other = Decoder(config, torch.Generator().manual_seed(1)).double().eval()
    tokens = torch.randint(3, 320, (5, 60), generator=torch.Generator().manual_seed(2)).tolist()
    questions = [
        [Candidate([*ids[: 20 + 5 * i], i, j, 40], 21 + 5 * i) for j in range(3, 6)] for i, ids in enumerate(tokens)
    ]
    for candidates, found in zip(questions, score(other, questions), strict=True):
        for candidate, likelihood in zip(candidates, found, strict=True):
            assert likelihood.logprob == pytest.approx(by_hand(other, *candidate)[0], abs=1e-9)


@torch.no_grad()
def test_greedy_is_seen(model):
    ids = [5, 9, 40]
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 320]
    (found,) = score(model, [[Candidate(ids, 3), Candidate(other, 3), Candidate(ids, 2)]])
    assert [likelihood.greedy for likelihood in found[:2]] == [True, False]


def test_what_choices_share_is_run_once(model):
    seen = []
    hook = model.embed.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].numel()))
    common = list(range(3, 73))
    questions = [[Candidate([*common, i, 10 + j, 20], len(common) + 1) for j in range(4)] for i in range(3)]
    try:
        shared = score(model, questions)
        positions = sum(seen)
        seen.clear()
        for candidates in questions:
            for candidate in candidates:
                score(model, [[candidate]])
    finally:
        hook.remove()
    assert sum(seen) == 12 * 72
    assert positions == 3 * 70 + 12 * 2  # the last token before the choice is with each choice
    assert len(shared) == 3


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_windows_score_every_token_once_with_enough_before_it(n, size, data):
    stride = data.draw(st.integers(1, size))
    ids = list(range(100, 100 + n))
    windows = rolling_windows(ids, 7, size, stride)
    assert [token for window in windows for token in window.ids[window.begin :]] == ids
    text, at = [7, *ids], 1
    for i, window in enumerate(windows):
        end = at + len(window.ids) - window.begin
        assert window.ids == text[end - len(window.ids) : end]
        assert len(window.ids) - 1 <= size
        if i:
            assert window.begin >= size - stride + 1  # tokens in view before the first scored one
        at = end


def test_windows_of_full_stride_are_those_of_lm_eval():
    windows = rolling_windows(range(10), -1, 4, 4)  # the example in lm_eval.api.model.LM.loglikelihood_rolling
    assert [(w.ids[:-1], w.ids[w.begin :]) for w in windows] == [
        ([-1, 0, 1, 2], [0, 1, 2, 3]),
        ([3, 4, 5, 6], [4, 5, 6, 7]),
        ([5, 6, 7, 8], [8, 9]),
    ]
    with pytest.raises(ConfigError, match="stride is 5"):
        rolling_windows(range(10), -1, 4, 5)


@pytest.fixture(scope="module")
def choice_task():
    random = np.random.default_rng(0)
    questions = tuple(
        Question((f"The {WORDS[i % 9]}",), tuple(random.permutation(WORDS)[: 2 + i % 3].tolist()), i % 2)
        for i in range(24)
    )
    return Task(name="words", kind="choice", questions=questions, shots=2)


def test_multiple_choice_by_hand(model, tokenizer, choice_task):
    result = evaluate(model, tokenizer, choice_task, seed=5, batch_tokens=300)
    hits = {"accuracy": [], "accuracy_per_token": [], "accuracy_per_byte": []}
    for index, q in enumerate(choice_task.questions):
        (prompt,), continuations = choice_task.prompt(index, 5)
        pairs = [encoded(tokenizer, prompt, c) for c in continuations]
        sums = [by_hand(model, ids, begin)[0] for ids, begin in pairs]
        assert result.answers[index]["logprobs"] == pytest.approx(sums, abs=1e-9)
        lengths = {
            "accuracy": [1] * len(sums),
            "accuracy_per_token": [len(ids) - begin for ids, begin in pairs],
            "accuracy_per_byte": [len(c.encode()) for c in q.continuations],
        }
        for name, sizes in lengths.items():
            scores = [s / size for s, size in zip(sums, sizes, strict=True)]
            hits[name].append(scores.index(max(scores)) == q.answer)
    for name, values in hits.items():
        assert result.metrics[name].value == np.mean(values)
        assert result.metrics[name].error == pytest.approx(np.std(values, ddof=1) / math.sqrt(24))
    assert len({result.metrics[name].value for name in hits}) > 1  # the three are not one
    assert result.value == result.metrics["accuracy"].value
    chance = (1 / 2 + 1 / 3 + 1 / 4) / 3
    assert result.chance == pytest.approx(chance)
    assert result.centred == pytest.approx((result.value - chance) / (1 - chance))
    assert (result.shots, result.questions, result.truncated) == (2, 24, 0)


def test_the_same_seed_asks_the_same(model, tokenizer, choice_task):
    a, b, c = (evaluate(model, tokenizer, choice_task, limit=9, seed=seed).answers for seed in (1, 1, 2))
    assert a == b
    assert a != c
    assert len(a) == 9
    with pytest.raises(ConfigError, match="limit is 0"):
        evaluate(model, tokenizer, choice_task, limit=0)


def test_equally_likely_choices_share_the_point(tokenizer, model):
    blank = Decoder(model.config).double()
    torch.nn.init.zeros_(blank.head.weight)  # every token is as likely as any other
    questions = (Question(("The",), ("!", "?", "#"), 0), Question(("The",), ("!", "?"), 1))
    result = evaluate(blank, tokenizer, Task(name="t", kind="choice", questions=questions, delimiter=""))
    assert result.value == pytest.approx(result.chance)
    assert result.value == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_schema_by_hand(model, tokenizer):
    questions = tuple(
        Question((f"The {WORDS[i]} of the {WORDS[i - 1]}", f"The {WORDS[i - 2]}"), ("is a word.",), i % 2)
        for i in range(9)
    )
    task = Task(name="t", kind="schema", questions=questions)
    result = evaluate(model, tokenizer, task)
    right = []
    for q in questions:
        first, second = (by_hand(model, *encoded(tokenizer, context, " is a word."))[0] for context in q.contexts)
        right.append((second > first) == q.answer)
    assert result.value == np.mean(right)
    assert 0 < result.value < 1


def test_greedy_continuations(model, tokenizer, say):
    script = [*tokenizer.encode(" a word").ids, *tokenizer.encode(".").ids]
    task = Task(
        name="t",
        kind="exact",
        questions=(Question(("The",), ("A word!",)), Question(("The byte",), ("the other", "word"))),
        stop=(".",),
    )
    result = evaluate(say([*script, *script]), tokenizer, task)
    assert [answer["written"] for answer in result.answers] == [" a word"] * 2
    metrics = {name: estimate.value for name, estimate in result.metrics.items()}
    assert metrics == {"exact_match": 1.0, "strict_match": 0.0, "f1": 1.0}  # articles, case and "!" do not count

    with torch.no_grad():
        ids = [tokenizer.token_to_id("<|bos|>"), *tokenizer.encode("The").ids]
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    said = tokenizer.decode([first])
    assert tokenizer.encode("The" + said).ids == [*ids[1:], first]
    questions = (Question(("The",), (said,)), Question(("The",), (" word",)))
    result = evaluate(model, tokenizer, Task(name="t", kind="greedy", questions=questions, delimiter=""))
    assert [answer["accuracy"] for answer in result.answers] == [1.0, 0.0]


def test_documents_by_hand(model, tokenizer):
    texts = ["The model reads.", "Ein Übergang von Öl. " * 20, "<|eos|> is spelled out"]
    task = Task(name="t", kind="documents", questions=tuple(Question((), (text,)) for text in texts))
    result = evaluate(model, tokenizer, task, batch_tokens=200)
    bos, nats, tokens = tokenizer.token_to_id("<|bos|>"), [], []
    tokenizer.encode_special_tokens = True
    for text in texts:
        ids = tokenizer.encode(text).ids
        windows = rolling_windows(ids, bos, 96, 48)
        nats.append(-sum(by_hand(model, w.ids, w.begin)[0] for w in windows))
        tokens.append(len(ids))
    tokenizer.encode_special_tokens = False
    assert max(tokens) > 2 * 96
    total = sum(nats)
    assert result.value == pytest.approx(total / math.log(2) / sum(len(text.encode()) for text in texts))
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(total / sum(tokens)))
    assert result.centred is None
    assert result.answers[0]["nats"] == pytest.approx(by_hand(model, [bos, *tokenizer.encode(texts[0]).ids], 1)[0] * -1)


def test_what_is_too_long_loses_its_beginning_or_is_refused(model, tokenizer, choice_task):
    long = replace(choice_task, shots=20)
    result = evaluate(model, tokenizer, long, limit=3)
    assert result.truncated == 3
    exact = Task(name="t", kind="exact", questions=(Question(("word " * 200,), ("x",)),), max_new_tokens=4)
    assert evaluate(model, tokenizer, exact).truncated == 1
    with pytest.raises(ConfigError, match="max_new_tokens is 96"):
        evaluate(model, tokenizer, replace(exact, max_new_tokens=96))
    endless = Task(name="t", kind="choice", questions=(Question(("a",), ("x", "word " * 200)),))
    with pytest.raises(ConfigError, match="an answer is as long as the model's 96 positions"):
        evaluate(model, tokenizer, endless)
    with pytest.raises(ConfigError, match="the model sees 96 positions"):
        score(model, [[Candidate([5] * 98, 1)]])
    with pytest.raises(ConfigError, match="token 320, but the model knows 0 to 319"):
        score(model, [[Candidate([5, 320], 1)]])


def test_a_broken_model_is_named_not_scored(model, tokenizer, choice_task):
    broken = Decoder(model.config)
    torch.nn.init.constant_(broken.norm.weight, math.nan)
    with pytest.raises(BloomeryError, match="NaN"):
        evaluate(broken, tokenizer, choice_task)
