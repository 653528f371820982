"""Models as judges of documents: a local one, and one behind an endpoint."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError
from bloomery.generate.choices import choice_logprobs
from bloomery.generate.labeler import PROMPT, EndpointLabeler, ModelLabeler
from bloomery.models import Decoder


def test_a_model_leans_to_the_likelier_answer(model: Decoder, tokenizer: Tokenizer) -> None:
    prompt, answers = "{document} ok?", (" a", " b")
    labeler = ModelLabeler(model, tokenizer, "tiny", prompt, answers, characters=5)
    found = labeler(["first text", "other"])
    for label, text in zip(found, ("first", "other"), strict=True):
        yes, no = choice_logprobs(model, tokenizer, f"{text} ok?", answers)
        assert label == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)))
    assert labeler.identity["model"] == "tiny"


class Answers(BaseHTTPRequestHandler):
    """Likes documents with "good" in them."""

    answer: Any = None
    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Answers.asked.append(body)
        good = "good" in body["prompt"].split("---")[1]
        top = {" Yes": math.log(0.6), "yes": math.log(0.1), " no": math.log(0.2)} if good else {" no": -0.1}
        answer = {"choices": [{"logprobs": {"top_logprobs": [top]}}]} if Answers.answer is None else Answers.answer
        data = json.dumps(answer).encode()
        self.send_response(500 if answer == "broken" else 200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Answers.answer, Answers.asked = None, []
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_gives_soft_labels(endpoint: str) -> None:
    labels = EndpointLabeler(endpoint, "judge", characters=20)(["a good page " * 10, "a bad page {x}"])
    assert labels[0] == pytest.approx(0.7 / 0.9)
    assert labels[1] < 1e-5
    assert len(Answers.asked[0]["prompt"]) < len(PROMPT) + 20


@pytest.mark.parametrize(
    ("answer", "match"),
    [("broken", "500"), ({"choices": []}, "top_logprobs"),
     ({"choices": [{"logprobs": {"top_logprobs": [{"maybe": -1.0}]}}]}, "neither")],
)  # fmt: skip
def test_an_unusable_answer_is_one_clear_line(endpoint: str, answer: Any, match: str) -> None:
    Answers.answer = answer
    with pytest.raises(DataError, match=match):
        EndpointLabeler(endpoint, "judge")(["page"])


def test_no_server_is_said() -> None:
    with pytest.raises(DataError, match="is the server running"):
        EndpointLabeler("http://127.0.0.1:9/v1", "judge", timeout=2)(["page"])


@pytest.mark.parametrize(("options", "match"), [({"url": "ftp://x"}, "http"), ({"prompt": "no place"}, "document")])
def test_bad_options_are_refused(options: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        EndpointLabeler(**{"url": "http://x", "model": "judge", **options})
