"""`bloomery serve` as a process: it says where it is, answers, and ends well at a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("fastapi", reason='needs pip install "bloomery[serve]"')
pytest.importorskip("uvicorn", reason='needs pip install "bloomery[serve]"')
TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(100)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder, not trained."""
    from bloomery.corpus import tokenizer
    from bloomery.models import Decoder, preset, save_pretrained

    folder = tmp_path_factory.mktemp("served") / "little"
    config = preset("llama-tiny", vocab_size=300, n_layers=1, dim=32, ffn_dim=64)
    save_pretrained(Decoder(config), folder, tokenizer.train(TEXTS, 300))
    return folder


def post(url, body, key):
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(model, number, ok):
    command = [sys.executable, "-m", "bloomery", "serve", str(model), "--port", "0", "--max-batch", "2"]
    environment = os.environ | {"BLOOMERY_API_KEY": "secret"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            found = re.fullmatch(
                r"bloomery: serving 'little' on (http://127\.0\.0\.1:\d+)/v1 \(Ctrl-C ends it\)\n", line
            )
            assert found, line
            asked = {"model": "little", "prompt": "The", "temperature": 0, "max_tokens": 6}
            answer = post(found[1] + "/v1/completions", asked, "secret")
            expected = ok("generate", model, "The", "--max-new-tokens", 6)[0]
            assert answer["choices"][0]["text"] == expected["text"]
            said = {"model": "little", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
            assert post(found[1] + "/v1/chat/completions", said, "secret")["usage"]["completion_tokens"] <= 2
            with pytest.raises(urllib.error.HTTPError, match="401"):
                post(found[1] + "/v1/completions", asked, "wrong")
            process.send_signal(number)
            assert process.wait(30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_bad_input_gives_one_line(model, refused):
    assert "nowhere: not a Hugging Face model folder" in refused("serve", "nowhere")
    assert "max_batch is 0" in refused("serve", model, "--max-batch", 0)
    assert "max_len is 9999999" in refused("serve", model, "--max-len", 9999999)
    assert "tokens is 0" in refused("serve", model, "--max-tokens", 0)
    assert "grace is -1" in refused("serve", model, "--grace", -1)
    assert "unknown option '--prot'" in refused("serve", model, "--prot", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1 port {port}" in refused("serve", model, "--port", port)
    assert "port is 99999" in refused("serve", model, "--port", 99999)
