"""Cached, batched generation against plain recomputation; ends, options, bad input, streaming."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate import decode as decode_module
from bloomery.generate import generate, stream
from bloomery.generate.sampling import SamplingParams, Uniforms, sample

PROMPTS = st.lists(st.lists(st.integers(3, 319), min_size=1, max_size=12), min_size=1, max_size=6)
OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.8, 1.5]),
        "top_k": st.sampled_from([0, 20]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "seed": st.integers(0, 3),
    }
)


@torch.no_grad()
def uncached(model, prompt, steps, row=0, **options):
    """Token by token, the whole sequence through the model each time."""
    params, ids, logprobs = SamplingParams(**options), list(prompt), []
    uniforms = Uniforms(params.seed, [row])
    for _ in range(steps):
        logits = model(torch.tensor([ids])).logits[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, ids] = True
        token = int(sample(logits, params, torch.from_numpy(uniforms.next()), seen))
        logprobs.append(float(logits.log_softmax(-1)[0, token]))
        ids.append(token)
    return ids[len(prompt) :], logprobs


@settings(deadline=None, max_examples=25)
@given(prompts=PROMPTS, options=OPTIONS)
def test_equals_uncached_generation(model, tokenizer, prompts, options):
    for i, done in enumerate(generate(model, tokenizer, prompts, max_new_tokens=7, eos=[], **options)):
        tokens, logprobs = uncached(model, prompts[i], 7, row=i, **options)
        assert done.tokens == tokens
        assert done.logprobs == pytest.approx(logprobs, abs=1e-6)
        assert done.reason == "length"


@settings(deadline=None, max_examples=25)
@given(prompts=PROMPTS, options=OPTIONS, batch_size=st.integers(1, 4))
def test_batch_size_changes_nothing(model, tokenizer, prompts, options, batch_size):
    ends = list(range(3, 60))  # many end tokens, so that rows leave the batch at different times
    at_once = generate(model, tokenizer, prompts, max_new_tokens=12, eos=ends, **options)
    chunked = generate(model, tokenizer, prompts, max_new_tokens=12, eos=ends, batch_size=batch_size, **options)
    assert [(c.tokens, c.text, c.reason) for c in at_once] == [(c.tokens, c.text, c.reason) for c in chunked]
    first = generate(model, tokenizer, prompts[:1], max_new_tokens=12, eos=ends, **options)
    assert first[0].tokens == at_once[0].tokens


def test_rows_leave_the_batch_once_half_have_ended(model, tokenizer, monkeypatch):
    prompts = [[i] for i in range(3, 11)]
    full = generate(model, tokenizer, prompts, max_new_tokens=10, eos=[])
    ends = [c.tokens[2] for c in full[:5]]
    sizes = []
    keep = decode_module.KVCache.keep

    def record(self, rows):
        keep(self, rows)
        sizes.append(self.batch)

    monkeypatch.setattr(decode_module.KVCache, "keep", record)
    cut = generate(model, tokenizer, prompts, max_new_tokens=10, eos=ends)
    assert sizes
    assert sizes == sorted(sizes, reverse=True)
    for short, long in zip(cut, full, strict=True):
        assert short.tokens == long.tokens[: len(short.tokens)]
        assert short.reason == ("eos" if short.tokens[-1] in ends else "length")


@settings(deadline=None, max_examples=25)
@given(
    prompt=st.text(max_size=12), options=OPTIONS, stop=st.lists(st.sampled_from(["e", "to", " a", "ken "]), max_size=2)
)
def test_streamed_pieces_concatenate_to_the_text(model, tokenizer, prompt, options, stop):
    (done,) = generate(model, tokenizer, [prompt], max_new_tokens=20, stop=stop, **options)
    pieces = list(stream(model, tokenizer, prompt, max_new_tokens=20, stop=stop, **options))
    assert "".join(pieces) == done.text
    assert all(pieces)
    assert not any(s in done.text for s in stop)


def test_stream_yields_as_tokens_come(say, tokenizer):
    model = say([*tokenizer.encode("The model reads").ids, 1])
    pieces = stream(model, tokenizer, "x")
    assert next(pieces) == tokenizer.decode(model.script[:1])
    assert "".join(pieces) == "The model reads"[len(tokenizer.decode(model.script[:1])) :]


def test_ends_of_a_row(say, tokenizer):
    script = [*tokenizer.encode("A token. STOP here").ids, tokenizer.token_to_id("<|eos|>")]
    model = say(script)
    whole = generate(model, tokenizer, ["x", [5, 6, 7]], max_new_tokens=50)
    assert [(c.text, c.reason, c.tokens) for c in whole] == [("A token. STOP here", "eos", script)] * 2
    assert whole[0].logprobs == pytest.approx([0.0] * len(script), abs=1e-6)
    (stopped,) = generate(model, tokenizer, ["x"], max_new_tokens=50, stop=[" STOP", "zzz"])
    assert (stopped.text, stopped.reason) == ("A token.", "stop")
    assert stopped.tokens == script[: len(stopped.tokens)]
    (short,) = generate(model, tokenizer, ["x"], max_new_tokens=3, stop=["STOP"])
    assert (short.tokens, short.reason) == (script[:3], "length")


def test_stop_string_never_reached_ends_by_length(model, tokenizer):
    (done,) = generate(model, tokenizer, ["The"], max_new_tokens=9, stop=["\0never"], eos=[])
    assert (done.reason, len(done.tokens)) == ("length", 9)


def test_empty_prompt_starts_from_bos_and_no_prompts_give_nothing(model, tokenizer):
    bos = tokenizer.token_to_id("<|bos|>")
    from_empty, from_text, from_ids = generate(model, tokenizer, ["", "<|bos|>", [bos]])
    assert from_empty == from_text == from_ids
    assert generate(model, tokenizer, []) == []


def test_text_prompts_begin_with_bos_as_documents_do(model, tokenizer):
    ids = tokenizer.encode("The model").ids
    with_bos = [tokenizer.token_to_id("<|bos|>"), *ids]
    assert generate(model, tokenizer, ["The model"]) == generate(model, tokenizer, [with_bos])


def test_generation_stops_where_the_positions_end(model, tokenizer):
    limit = model.config.max_positions
    done = generate(model, tokenizer, [[5] * (limit - 3), [5]], max_new_tokens=10, eos=[])
    assert [(len(c.tokens), c.reason) for c in done] == [(3, "length"), (10, "length")]
    with pytest.raises(ConfigError, match=rf"prompt 1 has {limit} tokens.*{limit} positions.*at most {limit - 1}"):
        generate(model, tokenizer, ["fine", [5] * limit])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"stop": "END"}, "list of strings"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"temperature": -1.0}, "temperature must be"),
    ],
)
def test_bad_options_are_refused(model, tokenizer, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(model, tokenizer, ["a"], **options)


def test_bad_prompts_are_refused(model, tokenizer):
    with pytest.raises(ConfigError, match=r"one string.*\[prompt\]"):
        generate(model, tokenizer, "The")
    with pytest.raises(ConfigError, match=r"prompt 1 holds token 320, but the model knows 0 to 319"):
        generate(model, tokenizer, [[4], [5, 320]])
    with pytest.raises(ConfigError, match="temperature must be"):
        stream(model, tokenizer, "a", temperature=-1.0)  # at once, not at the first piece


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_name_prompt_and_step(model, tokenizer, value, temperature):
    broken = copy.deepcopy(model)
    (done,) = generate(model, tokenizer, [[9]], max_new_tokens=4, eos=[], temperature=temperature)
    assert done.tokens[1] not in {9, done.tokens[0]}
    with torch.no_grad():
        broken.embed.weight[done.tokens[1]] = value  # met as the input of step 2
    with pytest.raises(BloomeryError, match=r"not finite at new token 2 of prompt 0.*is embed .*checkpoint"):
        generate(broken, tokenizer, [[9]], max_new_tokens=4, eos=[], temperature=temperature)


@pytest.mark.parametrize(
    "path", ["blocks.0.norm1", "blocks.1.attn.qkv", "blocks.1.ffn.gate_up", "blocks.1.ffn.down", "norm", "head"]
)
def test_the_layer_where_it_begins_is_named(model, tokenizer, path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_submodule(path).weight.view(-1)[-1] = float("nan")
    with pytest.raises(BloomeryError, match=rf"first layer whose output is not finite is {re.escape(path)} "):
        generate(broken, tokenizer, [[9]])
    assert not any(module._forward_hooks for module in broken.modules())


def test_padding_does_not_meet_the_embedding_of_a_token_that_no_prompt_holds(model, tokenizer):
    broken, prompts = copy.deepcopy(model), [[9], [11, 12, 13]]
    expected = generate(model, tokenizer, prompts, max_new_tokens=5, eos=[])
    assert not any(0 in c.tokens for c in expected)
    with torch.no_grad():
        broken.embed.weight[0] = float("nan")
    done = generate(broken, tokenizer, prompts, max_new_tokens=5, eos=[])
    assert [c.tokens for c in done] == [c.tokens for c in expected]


def test_the_model_keeps_its_mode_and_can_be_trained_afterwards(tokenizer, model):
    for training in (True, False):
        trained = copy.deepcopy(model).float().train(training)
        generate(trained, tokenizer, ["The"], max_new_tokens=40, eos=[])
        next(stream(trained, tokenizer, "The", max_new_tokens=40, eos=[]))
        assert trained.training is training
        trained(torch.tensor([[3, 4, 5]])).logits.sum().backward()
        assert trained.embed.weight.grad is not None


def test_weights_changed_between_calls_are_seen(tokenizer, model):
    changing = copy.deepcopy(model).float()
    before = generate(changing, tokenizer, ["The"], max_new_tokens=40, eos=[])
    for parameter in changing.parameters():
        parameter.data.mul_(-1.5)
    after = generate(changing, tokenizer, ["The"], max_new_tokens=40, eos=[])
    assert after[0].tokens != before[0].tokens
    prompt = [tokenizer.token_to_id("<|bos|>"), *tokenizer.encode("The").ids]
    assert after[0].tokens[:5] == uncached(changing, prompt, 5)[0]
