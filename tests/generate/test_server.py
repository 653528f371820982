"""A real server on a loopback port, driven by OpenAI's own client: answers, errors, cancellation, back-pressure."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.corpus import chat
from bloomery.corpus import tokenizer as words
from bloomery.generate import Engine, generate
from bloomery.generate.openai_api import (
    CHAT,
    COMPLETION,
    NO_EFFECT,
    ONLY,
    ApiError,
    Limits,
    decode,
    parse_chat,
    parse_completion,
)
from bloomery.models.decoder import Decoder, DecoderConfig

openai = pytest.importorskip("openai", reason='needs pip install "bloomery[dev]"')
pytest.importorskip("fastapi", reason='needs pip install "bloomery[serve]"')
pytest.importorskip("uvicorn", reason='needs pip install "bloomery[serve]"')
from bloomery.generate.server import Server, create_app  # noqa: E402

TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(100)]
HI = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does join return?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return words.train(TEXTS, 300)


@pytest.fixture(scope="module")
def model():
    config = DecoderConfig(
        vocab_size=300, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_positions=512,
        init_std=0.5,
    )  # fmt: skip
    return Decoder(config, torch.Generator().manual_seed(7)).double()


class Running:
    """A server in a thread of this process, with its engine and a client."""

    def __init__(self, server, engine, key):
        self.server, self.engine = server, engine
        self.thread = threading.Thread(target=server.run)
        self.client = openai.OpenAI(base_url=server.url + "/v1", api_key=key or "none", max_retries=0, timeout=60)

    def chat(self, messages=HI, **options):
        return self.client.chat.completions.create(model="tiny", messages=messages, **options)

    def complete(self, prompt="The function", **options):
        return self.client.completions.create(model="tiny", prompt=prompt, **options)

    def get(self, path):
        with urllib.request.urlopen(self.server.url + path, timeout=10) as answer:
            return json.load(answer)

    def post(self, path, body, kind="application/json"):
        """(status, headers, JSON) of a request that the official client would not send."""
        request = urllib.request.Request(self.server.url + path, body, {"content-type": kind})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, json.load(error)


@pytest.fixture(scope="module")
def start(model, tokenizer):
    """Start servers; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def begin(of=model, *, key="", limits=None, step=None, endless=False, **options):
            engine = Engine(of, tokenizer, **options)
            if step is not None:
                engine.step = step(engine.step)
            if endless:
                engine.submit = functools.partial(engine.submit, eos=[])
            running = Running(Server(create_app(engine, "tiny", api_key=key, limits=limits), port=0), engine, key)
            running.thread.start()
            try:
                until(lambda: running.server._server.started)
                yield running
            finally:
                running.server.stop()
                running.thread.join(30)
                running.client.close()
                assert not running.thread.is_alive()

        begin.stack = stack
        yield begin


@pytest.fixture(scope="module")
def server(start):
    return start.stack.enter_context(start())


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def slow(step):
    """A model that takes a hundredth of a second for a token."""

    def wait():
        time.sleep(0.01)
        return step()

    return wait


def raw(body):
    """A completion request as it goes over the wire."""
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def said(completion):
    """Log-probabilities of what was said: without the end token."""
    return completion.logprobs[:-1] if completion.reason == "eos" else completion.logprobs


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_chat_says_what_generate_says(server, model, tokenizer):
    ids, _ = chat.encode(tokenizer, HI, add_generation_prompt=True)
    (expected,) = generate(model, tokenizer, [ids], max_new_tokens=20)
    answer = server.chat(temperature=0, max_completion_tokens=20, logprobs=True)
    (choice,) = answer.choices
    assert (answer.object, answer.model, choice.message.role) == ("chat.completion", "tiny", "assistant")
    assert choice.message.content == expected.text
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.reason]
    assert [t.logprob for t in choice.logprobs.content] == pytest.approx(said(expected), abs=1e-6)
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == len(ids) + len(expected.tokens)
    split = [{"type": "text", "text": text} for text in ("What does ", "join return?")]
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": split}]
    assert server.chat(parts, temperature=0, max_tokens=20).choices[0].message.content == expected.text


def test_completions_of_several_prompts(server, model, tokenizer):
    prompts = ["The function", "It raises"]
    expected = generate(model, tokenizer, prompts, max_new_tokens=16)
    answer = server.complete(prompts, temperature=0, n=2, logprobs=0)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text for c in answer.choices] == [expected[i // 2].text for i in range(4)]
    for i, choice in enumerate(answer.choices):
        assert choice.logprobs.token_logprobs == pytest.approx(said(expected[i // 2]), abs=1e-6)
        tokens = expected[i // 2].tokens[: len(said(expected[i // 2]))]
        assert choice.logprobs.tokens == [tokenizer.decode([token], skip_special_tokens=False) for token in tokens]
        assert choice.logprobs.text_offset[:2] == [0, len(choice.logprobs.tokens[0])]
    ids = [tokenizer.encode("<|bos|>" + prompt).ids for prompt in prompts]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert answer.usage.completion_tokens == 2 * sum(len(e.tokens) for e in expected)
    for given_ids in (ids, ids[0]):
        texts = [c.text for c in server.complete(given_ids, temperature=0).choices]
        assert texts == [e.text for e in expected][: len(texts)]


def test_a_seed_repeats_and_choices_differ(server, model, tokenizer):
    def texts(**options):
        return [c.text for c in server.complete(n=3, max_tokens=12, **options).choices]

    first = texts(seed=5, top_p=0.9)
    assert first == texts(seed=5, top_p=0.9)
    assert len(set(first)) == 3
    assert texts(seed=6, top_p=0.9) != first
    assert texts() != texts()
    expected = generate(model, tokenizer, ["The function"] * 3, max_new_tokens=12, temperature=1.0, top_p=0.9, seed=5)
    assert first == [e.text for e in expected]
    greedy = {c.text for c in server.complete(n=3, extra_body={"top_k": 1}, max_tokens=12).choices}
    assert greedy == {generate(model, tokenizer, ["The function"], max_new_tokens=12)[0].text}


def test_streams_add_up_to_the_whole(server):
    options = {"temperature": 0.9, "seed": 3, "max_tokens": 24, "logprobs": True, "n": 2}
    whole = server.chat(**options)
    chunks = list(server.chat(**options, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant"] * 2
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        told = [token for c in mine if c.logprobs for token in c.logprobs.content]
        assert told == choice.logprobs.content
        assert len(mine) > 4  # it did come in pieces

    whole = server.complete(temperature=0, max_tokens=24).choices[0]
    chunks = list(server.complete(temperature=0, max_tokens=24, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_a_stop_string_ends_an_answer_and_is_not_in_it(server):
    free = server.complete(temperature=0, max_tokens=40).choices[0].text
    stop = free[10:13]
    choice = server.complete(temperature=0, max_tokens=40, stop=[stop, "never said"]).choices[0]
    assert choice.text == free[: free.index(stop)]
    assert choice.finish_reason == "stop"
    pieces = [c.choices[0].text for c in server.complete(temperature=0, max_tokens=40, stop=stop, stream=True)]
    assert "".join(pieces) == choice.text
    assert server.complete(temperature=0, max_tokens=40, stop="never said").choices[0].finish_reason == "length"


def test_many_clients_at_once_get_what_each_would_alone(start):
    with start(max_batch=4) as server, ThreadPoolExecutor(12) as pool:
        asked = [{"prompt": TEXTS[i][: 10 + 3 * i], "seed": i, "max_tokens": 5 + i} for i in range(12)]
        alone = [server.complete(**a).choices[0].text for a in asked]
        assert [f.result().choices[0].text for f in [pool.submit(server.complete, **a) for a in asked]] == alone
        until(lambda: (server.engine.running, server.engine.waiting) == (0, 0))


def test_models_and_health(server):
    assert [m.id for m in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").owned_by == "bloomery"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        server.client.models.retrieve("other")
    assert server.get("/health") == {"status": "ok", "running": 0, "waiting": 0}


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature is -1.0"),
        ({"temperature": "hot"}, "temperature", "temperature is 'hot'"),
        ({"top_p": 0}, "top_p", "top_p is 0.0"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0 (an integer from 1 to 1024)"),
        ({"max_tokens": 5000}, "max_tokens", "max_tokens is 5000"),
        ({"max_completion_tokens": True}, "max_completion_tokens", "is True"),
        ({"n": 17}, "n", "n is 17 (an integer from 1 to 16)"),
        ({"seed": 1.5}, "seed", "seed is 1.5"),
        ({"stop": ["a"] * 5}, "stop", "up to 4 strings"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stream_options": {"usage": True}}, "stream_options", "include_usage"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty is not supported (leave it out, or give 0)"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs", "is not supported"),
        ({"extra_body": {"temprature": 1}}, "temprature", "did you mean 'temperature'"),
        ({"messages": []}, "messages", "missing or empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "role is 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "not text"),
        ({"messages": [*HI, HI[0]]}, "messages", "a system message may only come first"),
        ({"messages": [{"role": "user", "content": "x"}] * 1001}, "messages", "at most 1000 are taken"),
        ({"messages": [{"role": "user", "content": "path " * 600}]}, "messages", "512 positions"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(server, options, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        server.chat(**options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert message in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]
    if "positions" in message:
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"logprobs": 5}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"extra_body": {"messages": HI}}, "messages"),
    ],
)
def test_a_completion_that_cannot_be_is_refused(server, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        server.complete(**options)
    assert caught.value.param == param


def test_fields_without_an_effect_and_nulls_are_taken(server):
    taken = {"user": "me", "store": False, "tools": [], "presence_penalty": 0, "response_format": {"type": "text"}}
    answer = server.chat(max_tokens=2, **taken, extra_body={"logit_bias": None, "seed": None})
    assert answer.usage.completion_tokens <= 2


def test_other_models_paths_and_bodies(start, server):
    with pytest.raises(openai.NotFoundError, match="there is no 'gpt'") as caught:
        server.client.chat.completions.create(model="gpt", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for path, body, kind, status in (
        ("/v1/chat/completions", b"{", "application/json", 400),
        ("/v1/chat/completions", b'{"a": NaN}', "application/json", 400),
        ("/v1/chat/completions", b"[" * 100_000, "application/json", 400),
        ("/v1/chat/completions", b"\xff", "application/json", 400),
        ("/v1/chat/completions", b"[]", "application/json", 400),
        ("/v1/chat/completions", b"{}", "text/plain", 415),
        ("/v1/completions", b"x" * (1 << 21), "application/json", 413),
        ("/v1/embeddings", b"{}", "application/json", 404),
        ("/v1/models", b"{}", "application/json", 405),
    ):
        got, _, answer = server.post(path, body, kind)
        assert got == status, (path, answer)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
    odd = json.dumps({"model": "tiny", "prompt": "\ud800", "\udfff": 1}).encode()
    assert server.post("/v1/completions", odd)[0] == 400
    assert server.post("/v1/completions", b'{"model": "tiny", "prompt": "\\ud800", "max_tokens": 1}')[0] == 200


def test_an_api_key_is_asked_for(start):
    with start(key="secret") as server:
        assert server.complete(max_tokens=1).choices
        assert server.get("/health")["status"] == "ok"
        for key in ("wrong", "secre", "geheimé"):
            status, _, answer = server.post("/v1/completions", b"{}")
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            if key.isascii():
                with pytest.raises(openai.AuthenticationError):
                    server.client.with_options(api_key=key).models.list()


def test_a_port_in_use_is_named(server):
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {server.server.port}"):
        Server(None, port=server.server.port)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(sorted((CHAT | COMPLETION | NO_EFFECT | ONLY.keys()) - {"model", "prompt", "messages"}))


@given(st.dictionaries(names, values, max_size=4), values, st.binary(max_size=20))
def test_no_request_breaks_the_reader(fields, content, garbage):
    body = {"model": "tiny", **fields}
    messages = [{"role": "user", "content": content}]
    for read in (
        lambda: parse_completion({**body, "prompt": content}, "tiny", Limits()),
        lambda: parse_chat({**body, "messages": content}, "tiny", Limits(), lambda _: [1]),
        lambda: parse_chat({**body, "messages": messages}, "tiny", Limits(), lambda _: [1]),
        lambda: decode(garbage),
    ):
        try:
            ask = read()
        except ApiError as error:
            json.dumps(error.body, ensure_ascii=False).encode()
        else:
            assert isinstance(ask, dict) or 1 <= ask.max_tokens <= 1024


# -- clients that leave, queues that fill, models that fail -----------------------------------------------------------


def test_a_client_that_leaves_frees_its_place(start):
    with start(step=slow, max_batch=2, endless=True) as server:
        engine = server.engine
        stream = server.chat(stream=True, max_tokens=450, temperature=1.5)
        for _ in range(3):
            next(iter(stream))
        assert engine.running == 1
        stream.close()
        until(lambda: engine.running == 0, 3)  # it would have gone on for more than four seconds

        for streamed in (False, True):  # one that waits for its whole answer, one that has not begun
            body = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 450, "stream": streamed}).encode()
            clients = [socket.create_connection(("127.0.0.1", server.server.port)) for _ in range(4)]
            for client in clients:
                client.sendall(raw(body))
            until(lambda: (engine.running, engine.waiting) == (2, 2))
            for client in clients[::-1]:
                client.close()
            until(lambda: (engine.running, engine.waiting) == (0, 0), 3)
        assert server.complete(max_tokens=3).usage.completion_tokens <= 3


def test_a_body_that_does_not_come_frees_its_place(start, monkeypatch, caplog):
    monkeypatch.setattr("bloomery.generate.server.BODY_SECONDS", 0.3)
    with start(max_batch=1, max_queue=1) as server:
        half = raw(json.dumps({"model": "tiny", "prompt": "The"}).encode())[:-5]
        clients = [socket.create_connection(("127.0.0.1", server.server.port), timeout=5) for _ in range(2)]
        for client in clients:
            client.sendall(half)
        clients[0].close()
        assert b" 408 " in clients[1].recv(1000)
        clients[1].close()
        assert server.complete(max_tokens=1).choices
    assert not caplog.records


@pytest.fixture
def held(start):
    """A server whose model does not answer before `open` is set; one request runs into it, four wait."""
    opened = threading.Event()

    def hold(step):
        def wait():
            opened.wait(60)
            return step()

        return wait

    with start(step=hold, max_batch=1, max_queue=4) as server, ThreadPoolExecutor(4) as pool:
        try:
            waiting = [pool.submit(server.complete, max_tokens=4, temperature=0) for _ in range(4)]
            until(lambda: server.engine.waiting == 4)
            yield server, waiting, opened
        finally:
            opened.set()


def test_a_full_queue_is_said_and_forgotten(held):
    server, waiting, opened = held
    large = "The function " * 70_000
    for refused in (server.complete, lambda: server.chat(stream=True), lambda: server.complete(large)):
        with pytest.raises(openai.RateLimitError) as caught:
            refused()
        assert caught.value.code == "queue_full"
        assert caught.value.response.headers["retry-after"] == "1"
    assert server.get("/health")["waiting"] == 4
    opened.set()
    assert len({done.result(30).choices[0].text for done in waiting}) == 1
    assert server.complete(max_tokens=1).choices
    # several choices that do not all find a place leave none behind
    until(lambda: (server.engine.running, server.engine.waiting) == (0, 0))


@pytest.mark.parametrize("each", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_ten_thousand_requests_are_refused_in_flat_memory(held, each):
    server, _, _ = held
    body = json.dumps({"model": "tiny", "prompt": "The function " * 500}).encode()
    request = raw(body)

    async def client(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.server.port)
        statuses = []
        for _ in range(count):
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            statuses.append(int(answer.split()[1]))
        writer.close()
        return statuses

    async def all_of(clients, each):
        return [s for some in await asyncio.gather(*(client(each) for _ in range(clients))) for s in some]

    def memory():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    asyncio.run(all_of(50, 10))  # what Python and the server set up once
    before = memory()
    assert asyncio.run(all_of(50, each)) == [429] * 50 * each
    assert server.engine.waiting == 4
    assert memory() - before < 8 << 20  # the bodies of 10,000 are 65 MB


def test_a_model_that_fails_says_so_and_the_server_lives(start, model):
    broken = Decoder(model.config)
    torch.nn.init.constant_(broken.blocks[1].norm1.weight, math.nan)
    with start(broken) as server:
        with pytest.raises(openai.InternalServerError, match="logits are not finite"):
            server.complete()
        with pytest.raises(openai.APIError, match="logits are not finite"):
            list(server.chat(stream=True))
        assert server.get("/health")["status"] == "ok"

    def explode(step):
        def fail():
            if step():
                raise RuntimeError("out of luck")
            return False

        return fail

    with start(step=explode) as server:  # the engine is asked again after each failure
        assert server.complete(max_tokens=2).choices


def test_a_shutdown_lets_running_answers_end(start, model, tokenizer):
    with start(step=slow, endless=True) as server:
        (expected,) = generate(model, tokenizer, ["The function"], max_new_tokens=100, eos=[])
        stream = iter(server.complete(stream=True, max_tokens=100, temperature=0))
        first = next(stream).choices[0].text
        server.server.stop()
        rest = [chunk.choices[0] for chunk in stream]
        assert rest[-1].finish_reason == "length"
        assert first + "".join(choice.text for choice in rest) == expected.text
        server.thread.join(10)
        assert not server.thread.is_alive()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.server.port), timeout=2)
