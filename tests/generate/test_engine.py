"""Continuous batching against `generate`: the same tokens whoever else is in the batch; ends, limits, failures."""

from __future__ import annotations

import copy
import threading
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate import engine as engine_module
from bloomery.generate import generate, stream
from bloomery.generate.engine import Engine, QueueFull
from bloomery.generate.sampling import SamplingParams

REQUEST = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(3, 319), min_size=1, max_size=40),
        "new": st.integers(1, 40),
        "pause": st.integers(0, 6),  # steps before it is submitted
        "options": st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 0.9]),
                "top_k": st.sampled_from([0, 20]),
                "repetition_penalty": st.sampled_from([1.0, 1.3]),
                "seed": st.integers(0, 2),
            }
        ),
    }
)
ENDS = list(range(3, 30))  # many end tokens, so that rows leave at all times


def alone(model, tokenizer, request, **options):
    (done,) = generate(model, tokenizer, [request["prompt"]], max_new_tokens=request["new"], **options)
    return done


@settings(deadline=None, max_examples=30)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=8), max_batch=st.integers(1, 4), chunk=st.sampled_from([7, 1024])
)
def test_tokens_do_not_depend_on_the_batch(model, tokenizer, requests, max_batch, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "CHUNK", chunk)
        engine = Engine(model, tokenizer, max_batch=max_batch)
        handles = []
        for request in requests:
            for _ in range(request["pause"]):
                engine.step()
            params = SamplingParams(**request["options"])
            handles.append(engine.submit(request["prompt"], params, max_new_tokens=request["new"], eos=ENDS))
        engine.drain()
    assert (engine.running, engine.waiting) == (0, 0)
    for request, handle in zip(requests, handles, strict=True):
        done = alone(model, tokenizer, request, eos=ENDS, **request["options"])
        assert (handle.tokens, handle.text, handle.reason) == (done.tokens, done.text, done.reason)
        assert handle.logprobs == pytest.approx(done.logprobs, abs=1e-9)
        assert handle.error is None


def test_every_architecture_of_the_decoder(any_model, tokenizer):
    prompts = [[5] * 3 + [9, 44], [7], list(range(40, 79)), [*range(40, 75), 3]]
    engine = Engine(any_model, tokenizer, max_batch=3)
    handles = [engine.submit(prompt, max_new_tokens=6 * i + 3, eos=[]) for i, prompt in enumerate(prompts)]
    engine.drain()
    for i, (prompt, handle) in enumerate(zip(prompts, handles, strict=True)):
        (done,) = generate(any_model, tokenizer, [prompt], max_new_tokens=6 * i + 3, eos=[])
        assert handle.tokens == done.tokens
        assert handle.logprobs == pytest.approx(done.logprobs, abs=1e-9)


def test_the_index_names_the_random_numbers(model, tokenizer):
    prompts = [[9, 8, 7]] * 4
    expected = generate(model, tokenizer, prompts, max_new_tokens=9, temperature=1.0, seed=5, eos=[])
    engine, params = Engine(model, tokenizer, max_batch=2), SamplingParams(temperature=1.0, seed=5)
    handles = [engine.submit(p, params, max_new_tokens=9, eos=[], index=i) for i, p in enumerate(prompts)]
    engine.drain()
    assert [h.tokens for h in handles] == [c.tokens for c in expected]
    assert len({tuple(h.tokens) for h in handles}) > 1


def test_one_token_a_step_and_waiting_ones_join_when_a_row_is_free(model, tokenizer):
    engine = Engine(model, tokenizer, max_batch=2)
    short, long, third = (engine.submit([5, i], max_new_tokens=n, eos=[]) for i, n in ((6, 2), (7, 6), (8, 3)))
    seen = []
    while engine.step():
        seen.append([len(r.tokens) for r in (short, long, third)])
    assert seen == [[1, 1, 0], [2, 2, 1], [2, 3, 2], [2, 4, 3], [2, 5, 3], [2, 6, 3]]
    assert engine.step() is False


def test_long_prompts_do_not_keep_running_rows_waiting(model, tokenizer, monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNK", 10)
    engine = Engine(model, tokenizer)
    running = engine.submit([5], max_new_tokens=30, eos=[])
    engine.step()
    late = engine.submit(list(range(10, 55)), max_new_tokens=3, eos=[])
    for tokens in range(2, 7):  # five chunks of ten positions
        assert late.tokens == []
        engine.step()
        assert len(running.tokens) == tokens
    assert len(late.tokens) == 1


def test_memory_stays_bounded_while_requests_come_and_go(model, tokenizer):
    engine = Engine(model, tokenizer, max_batch=3, max_len=32, prefix_bytes=0)
    per_position = 3 * 2 * 2 * 2 * 8 * 8  # rows, layers, keys and values, heads, width, bytes
    most = per_position * (32 + 32 // 4 + 1)
    generator = torch.Generator().manual_seed(0)
    handles = []
    for _ in range(40):
        length, new = torch.randint(1, 28, (2,), generator=generator).tolist()
        prompt = torch.randint(3, 320, (length,), generator=generator).tolist()
        handles.append((prompt, engine.submit(prompt, max_new_tokens=new, eos=[])))
    while engine.step():
        assert engine._timeline.nbytes <= most
    for prompt, handle in handles:
        (done,) = generate(model, tokenizer, [prompt], max_new_tokens=handle.limit, eos=[])
        assert handle.tokens == done.tokens


def test_a_full_queue_refuses_and_ten_thousand_submissions_leave_memory_flat(model, tokenizer):
    engine = Engine(model, tokenizer, max_queue=256)
    tracemalloc.start()
    try:
        accepted = [engine.submit([5, 6], eos=[]) for _ in range(256)]
        before = tracemalloc.get_traced_memory()[0]
        refused = 0
        for _ in range(10_000):
            try:
                engine.submit([5, 6], eos=[])
            except QueueFull as error:
                refused += 1
                message = str(error)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert refused == 10_000
    assert message == "256 requests are waiting already (try again later, or give the engine a larger max_queue)"
    assert grown < 10_000  # less than one byte each
    engine.cancel(accepted[17])
    assert engine.submit([5], eos=[]).reason is None


def test_an_engine_forgets_what_has_ended(say, tokenizer):
    script = [*tokenizer.encode("Stop").ids, tokenizer.token_to_id("<|eos|>")]
    engine = Engine(say(script), tokenizer, prefix_bytes=0)
    counted = []
    tracemalloc.start()
    try:
        for _ in range(3):
            for _ in range(50):
                engine.submit([5, 6])
                engine.drain()
            counted.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert counted[2] - counted[1] < 20_000


@settings(deadline=None, max_examples=15)
@given(prompt=st.text(max_size=12), stop=st.lists(st.sampled_from(["e", "to", " a", "ken "]), max_size=2))
def test_pieces_are_those_of_stream(model, tokenizer, prompt, stop):
    options = {"max_new_tokens": 20, "stop": stop}
    pieces, ended = [], []
    engine = Engine(model, tokenizer)
    params = SamplingParams(temperature=0.8, seed=3)
    handle = engine.submit(prompt, params, on_text=pieces.append, on_end=ended.append, **options)
    engine.submit("Something else", max_new_tokens=30)
    engine.drain()
    assert pieces == list(stream(model, tokenizer, prompt, temperature=0.8, seed=3, **options))
    assert "".join(pieces) == handle.text
    assert ended == [handle]


def test_ends_of_a_request(say, tokenizer):
    script = [*tokenizer.encode("A token. STOP here").ids, tokenizer.token_to_id("<|eos|>")]
    engine = Engine(say(script), tokenizer)
    requests = [
        engine.submit("x", max_new_tokens=50, **options)
        for options in ({}, {"stop": [" STOP", "zzz"]}, {"stop": ["\0never"], "eos": []})
    ]
    requests[2].limit = 5
    engine.drain()
    assert [(r.text, r.reason) for r in requests[:2]] == [("A token. STOP here", "eos"), ("A token.", "stop")]
    assert (requests[2].reason, requests[2].tokens) == ("length", script[:5])


def test_requests_are_cancelled_wherever_they_are(model, tokenizer, monkeypatch):
    monkeypatch.setattr(engine_module, "CHUNK", 4)
    engine = Engine(model, tokenizer, max_batch=2)
    running = engine.submit([5, 6, 7], max_new_tokens=40, eos=[])
    engine.step()
    joining = engine.submit(list(range(5, 25)), max_new_tokens=5, eos=[])
    engine.step()
    ended = []
    waiting = engine.submit([9], max_new_tokens=5, eos=[], on_end=ended.append)
    stays = engine.submit([8, 9], max_new_tokens=12, eos=[])
    engine.cancel(waiting)
    assert waiting.reason == "cancelled"
    assert ended == [waiting]
    engine.cancel(running)
    engine.cancel(joining)
    engine.step()
    assert (running.reason, joining.reason) == ("cancelled", "cancelled")
    engine.drain()
    assert stays.tokens == alone(model, tokenizer, {"prompt": [8, 9], "new": 12}, eos=[]).tokens
    engine.cancel(stays)
    assert stays.reason == "length"


def test_a_listener_may_cancel_and_one_that_fails_ends_only_its_request(model, tokenizer):
    engine = Engine(model, tokenizer)
    requests = []
    requests.append(engine.submit([5], max_new_tokens=50, eos=[], on_text=lambda _: engine.cancel(requests[0])))

    def fail(_piece):
        raise ConnectionError("client gone")

    requests.append(engine.submit([6], max_new_tokens=50, eos=[], on_text=fail))
    requests.append(engine.submit([7], max_new_tokens=8, eos=[]))
    engine.drain()
    assert [r.reason for r in requests] == ["cancelled", "error", "length"]
    assert str(requests[1].error) == "client gone"
    assert len(requests[0].tokens) < 50


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_one_request_only(model, tokenizer, value):
    (done,) = generate(model, tokenizer, [[9]], max_new_tokens=4, eos=[])
    others = [[11, 12], [40, 41, 42, 43, 44, 45]]
    expected = [alone(model, tokenizer, {"prompt": p, "new": 12}, eos=[]) for p in others]
    bad = done.tokens[1]
    assert all(bad not in (*p, *c.tokens[:-1]) for p, c in zip(others, expected, strict=True))
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.embed.weight[bad] = value
    engine = Engine(broken, tokenizer, max_batch=2)
    in_prompt = engine.submit([7, bad, 8], max_new_tokens=5, eos=[])
    later = engine.submit([9], max_new_tokens=5, eos=[])
    fine = [engine.submit(p, max_new_tokens=12, eos=[]) for p in others * 2]  # they reuse the rows of the broken ones
    engine.drain()
    for request, place in ((in_prompt, 0), (later, 2)):
        assert request.reason == "error"
        assert isinstance(request.error, BloomeryError)
        assert f"not finite at new token {place}" in str(request.error)
        assert "not finite is embed" in str(request.error)
    assert [r.tokens for r in fine] == [c.tokens for c in expected] * 2


def test_a_failing_model_ends_what_has_begun_and_no_more(model, tokenizer, monkeypatch):
    engine = Engine(copy.deepcopy(model), tokenizer, max_batch=1)
    begun, waiting = engine.submit([5], eos=[]), engine.submit([6], max_new_tokens=4, eos=[])
    engine.step()
    forward = engine.model.forward
    engine.model.forward = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    assert (begun.reason, str(begun.error), waiting.reason) == ("error", "out of memory", None)
    engine.model.forward = forward
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "KVCache", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError, match="no room"):
            engine.step()
    assert (waiting.reason, str(waiting.error)) == ("error", "no room")
    assert (engine.waiting, engine.running) == (0, 0)
    later = engine.submit([6], max_new_tokens=4, eos=[])
    engine.drain()
    assert later.tokens == alone(model, tokenizer, {"prompt": [6], "new": 4}, eos=[]).tokens


def test_submitting_and_cancelling_from_other_threads(model, tokenizer):
    engine = Engine(model, tokenizer, max_batch=4, max_queue=1000)
    handles, cancelled = [], []

    def client(number):
        for i in range(15):
            handle = engine.submit([number + 5, i + 5], max_new_tokens=6, eos=[])
            if i % 5 == 4:
                engine.cancel(handle)
                cancelled.append(handle)
            else:
                handles.append(handle)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        engine.step()
    engine.drain()
    assert len(handles) == 48
    for handle in handles:
        assert handle.tokens == alone(model, tokenizer, {"prompt": handle.prompt, "new": 6}, eos=[]).tokens
    assert all(handle.reason in ("cancelled", "length") for handle in cancelled)


def test_prompts_that_do_not_fit_are_refused(model, tokenizer):
    engine = Engine(model, tokenizer, max_len=20)
    with pytest.raises(ConfigError, match=r"prompt has 20 tokens.*cache holds 20 positions.*at most 19 tokens"):
        engine.submit([5] * 20)
    last = engine.submit([5] * 19, max_new_tokens=7, eos=[])
    engine.drain()
    assert (len(last.tokens), last.reason) == (1, "length")
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        engine.submit([5], max_new_tokens=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_len": 1}, "max_len is 1"),
        ({"max_len": 97}, "max_len is 97 .*96 positions"),
        ({"max_queue": 0}, "max_queue is 0"),
        ({"prefix_bytes": -1}, "prefix_bytes is -1"),
    ],
)
def test_bad_options_are_refused(model, tokenizer, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(model, tokenizer, **options)
