"""OpenAI's chat and text completion protocol: requests into what the engine is asked, its answers into JSON.

Pure functions of decoded JSON, without a server. A field is either honoured, refused with its name, or one that cannot
change an answer (`user`, `metadata`, …); none is silently dropped.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from tokenizers import Tokenizer

from bloomery.core.errors import BloomeryError, ConfigError, DataError, nearest
from bloomery.corpus.tokenizer import spellable
from bloomery.generate.rows import Row
from bloomery.generate.sampling import SamplingParams

Prompt = str | list[int]

SHARED = {"model", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "logprobs",
          "top_k", "min_p", "repetition_penalty"}  # fmt: skip
CHAT = SHARED | {"messages", "max_completion_tokens"}
COMPLETION = SHARED | {"prompt"}
NO_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
ONLY: dict[str, tuple[Any, ...]] = {  # fields of the protocol that are known with these values alone
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
}
STOPS = 4  # strings, as in the protocol
COMPLETION_TOKENS = 16  # new tokens of a text completion that does not say, as in the protocol


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single request may ask."""

    body_bytes: int = 1 << 20
    messages: int = 1_000
    choices: int = 16  # prompts × n
    tokens: int = 1_024  # new tokens of a choice; also what a chat gets that does not say

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name} is {value}", fix="it must be at least 1")


class ApiError(BloomeryError):
    """An answer that is an error: its HTTP status, and the field at fault where there is one."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that the official clients turn into their exceptions."""
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.what, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that has been checked: every prompt is to be continued `n` times."""

    chat: bool
    prompts: list[Prompt]
    n: int
    params: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool


def decode(body: bytes) -> dict[str, Any]:
    """A request's body as a JSON object."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return value


def parse_chat(
    body: Mapping[str, Any], model: str, limits: Limits, encode: Callable[[list[dict[str, str]]], list[int]]
) -> Ask:
    """A chat request; `encode` turns messages into the ids of the conversation up to where the assistant begins.

    Raises ApiError with status 400 naming the field at fault, or 404 for another model.
    """
    fields = _Fields(body, model, CHAT)
    messages = fields.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.refuse("messages", "is missing or empty", "give a list of messages")
    if len(messages) > limits.messages:
        raise fields.refuse("messages", f"has {len(messages)} entries", f"at most {limits.messages} are taken")
    read = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    try:
        prompt = encode(read)
    except DataError as error:
        raise ApiError(400, str(error), param="messages") from error
    logprobs = fields.flag("logprobs")
    named = [name for name in ("max_completion_tokens", "max_tokens") if name in fields.body]
    tokens = fields.whole(named[0], 1, limits.tokens) if named else limits.tokens
    return fields.ask([prompt], limits, chat=True, logprobs=logprobs, max_tokens=tokens)


def parse_completion(body: Mapping[str, Any], model: str, limits: Limits) -> Ask:
    """A text completion request: one prompt or several, as text or token ids. Raises as `parse_chat` does."""
    fields = _Fields(body, model, COMPLETION)
    given = fields.body.get("prompt")
    prompts = given if isinstance(given, list) and not _is_ids(given) else [given]
    if not prompts:
        raise fields.refuse("prompt", "is an empty list", "give at least one prompt")
    if len(prompts) > limits.choices:
        raise fields.refuse("prompt", f"has {len(prompts)} entries", f"at most {limits.choices} are taken")
    read: list[Prompt] = []
    for prompt in prompts:
        if not isinstance(prompt, str) and not _is_ids(prompt):
            raise fields.refuse("prompt", f"holds {prompt!r:.60}", "give text or lists of token ids")
        read.append(spellable(prompt) if isinstance(prompt, str) else prompt)
    asked = fields.whole("logprobs", 0, 0) if "logprobs" in fields.body else None
    tokens = fields.whole("max_tokens", 1, limits.tokens, min(COMPLETION_TOKENS, limits.tokens))
    return fields.ask(read, limits, chat=False, logprobs=asked is not None, max_tokens=tokens)


class _Fields:
    """The fields of a request that are not null, read one by one; a mistake is an ApiError that names its field."""

    def __init__(self, body: Mapping[str, Any], model: str, known: set[str]) -> None:
        self.body = {name: value for name, value in body.items() if value is not None}
        for name, value in self.body.items():
            if name in known or name in NO_EFFECT:
                continue
            if name not in ONLY:
                raise self.refuse(name, "is unknown here", nearest(name, known))
            if not any(value == accepted for accepted in ONLY[name]):
                accepted = " or ".join(json.dumps(v) for v in ONLY[name])
                raise self.refuse(name, "is not supported", f"leave it out{accepted and f', or give {accepted}'}")
        asked = self.body.get("model")
        if not isinstance(asked, str):
            raise self.refuse("model", "is missing", f"this server has {model!r}")
        if asked != model:
            message = f"model: there is no {asked!r:.80} here (this server has {model!r})"
            raise ApiError(404, message, param="model", code="model_not_found")

    def refuse(self, name: str, what: str, fix: str) -> ApiError:
        """The error for a field."""
        name = spellable(name[:80])
        return ApiError(400, f"{name} {what} ({fix})", param=name)

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """An integer in a range."""
        value = self.body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            accepted = f"an integer from {least} to {most}" if least < most else f"only {least} is supported"
            raise self.refuse(name, f"is {value!r:.40}", accepted)
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number; its range is for the sampler to check."""
        value = self.body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
            raise self.refuse(name, f"is {value!r:.40}", "give a number")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.body.get(name, False)
        if not isinstance(value, bool):
            raise self.refuse(name, f"is {value!r:.40}", "give true or false")
        return value

    def ask(self, prompts: list[Prompt], limits: Limits, *, chat: bool, logprobs: bool, max_tokens: int) -> Ask:
        """What both kinds of request have in common."""
        n = self.whole("n", 1, max(1, limits.choices // len(prompts)), 1)
        stop = self.body.get("stop", [])
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop) or len(stop) > STOPS:
            raise self.refuse("stop", f"is {stop!r:.60}", f"give up to {STOPS} strings, none of them empty")
        options = self.body.get("stream_options", {})
        if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
            raise self.refuse("stream_options", f"is {options!r:.60}", 'only {"include_usage": true} is known')
        seed = self.whole("seed", -(1 << 63), (1 << 63) - 1, secrets.randbits(62))
        try:
            params = SamplingParams(
                temperature=self.number("temperature", 1.0),
                top_p=self.number("top_p", 1.0),
                top_k=self.whole("top_k", 0, 1 << 31, 0),
                min_p=self.number("min_p", 0.0),
                repetition_penalty=self.number("repetition_penalty", 1.0),
                seed=seed,
            )
        except ConfigError as error:
            raise ApiError(400, str(error), param=error.what.partition(" ")[0]) from error
        return Ask(
            chat=chat,
            prompts=prompts,
            n=n,
            params=params,
            max_tokens=max_tokens,
            stop=tuple(spellable(s) for s in stop),
            stream=self.flag("stream"),
            include_usage=options.get("include_usage") is True,
            logprobs=logprobs,
        )


def _message(message: Any, where: str) -> dict[str, str]:
    """A message with plain text as its content; parts that are text are joined."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} is not an object with role and content", param=where)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ("system", "developer", "user", "assistant"):
        raise ApiError(
            400, f"{where}.role is {role!r:.40} (known: system, developer, user, assistant)", param=f"{where}.role"
        )
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise ApiError(400, f"{where}.content holds a part that is not text", param=f"{where}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content is {content!r:.40} (give text)", param=f"{where}.content")
    if message.get("tool_calls") or message.get("function_call"):
        raise ApiError(400, f"{where}.tool_calls is not supported", param=f"{where}.tool_calls")
    return {"role": "system" if role == "developer" else role, "content": content}


def _is_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, int) and v is not True for v in value)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


# -- answers ----------------------------------------------------------------------------------------------------------

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}


class Answer:
    """The JSON of one answer: whole, or chunk by chunk. Choice c continues prompt c // n."""

    def __init__(self, ask: Ask, model: str, tokenizer: Tokenizer) -> None:
        self.ask, self.tokenizer = ask, tokenizer
        kind, prefix = ("chat.completion", "chatcmpl-") if ask.chat else ("text_completion", "cmpl-")
        self._head = {
            "id": prefix + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._told: dict[int, int] = {}  # tokens of a choice whose log-probabilities have been sent
        self._written: dict[int, int] = {}  # characters of their texts, by which offsets count

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The answer in one piece; all rows have ended."""
        choices = []
        for c, row in enumerate(rows):
            said: dict[str, Any] = {"text": row.text}
            if self.ask.chat:
                said = {"message": {"role": "assistant", "content": row.text, "refusal": None}}
            choices.append({"index": c, **said, "logprobs": self._logprobs(c, row), "finish_reason": _finish(row)})
        return {**self._head, "choices": choices, "usage": self.usage(rows)}

    def first(self, c: int) -> dict[str, Any]:
        """The chunk that opens a choice of a chat."""
        return self._chunk({"index": c, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, c: int, row: Row, text: str) -> dict[str, Any]:
        """A chunk of text."""
        said: dict[str, Any] = {"delta": {"content": text}} if self.ask.chat else {"text": text}
        return self._chunk({"index": c, **said, "logprobs": self._logprobs(c, row), "finish_reason": None})

    def last(self, c: int, row: Row) -> dict[str, Any]:
        """The chunk that closes a choice."""
        said: dict[str, Any] = {"delta": {}} if self.ask.chat else {"text": ""}
        return self._chunk({"index": c, **said, "logprobs": self._logprobs(c, row), "finish_reason": _finish(row)})

    def tally(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The chunk after all choices that counts tokens."""
        return {**self._chunk(), "usage": self.usage(rows)}

    def usage(self, rows: Sequence[Row]) -> dict[str, int]:
        """Tokens of the prompts, each once, and of all that was written, end tokens included."""
        prompts = sum(len(row.prompt) for row in rows[:: self.ask.n])
        written = sum(len(row.tokens) for row in rows)
        return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.ask.include_usage else {}
        kind = {"object": "chat.completion.chunk"} if self.ask.chat else {}
        return {**self._head, **kind, "choices": list(choices), **usage}

    def _logprobs(self, c: int, row: Row) -> dict[str, Any] | None:
        """Log-probabilities of the tokens not told before, the token that ended the choice left out."""
        if not self.ask.logprobs:
            return None
        count = len(row.logprobs)
        end = count - 1 if row.tokens[count - 1 : count] and row.tokens[count - 1] in row.end_tokens else count
        begin = self._told.get(c, 0)
        self._told[c] = end
        texts = [self.tokenizer.decode([token], skip_special_tokens=False) for token in row.tokens[begin:end]]
        values = [max(value, -9999.0) for value in row.logprobs[begin:end]]
        if self.ask.chat:
            content = [
                {"token": text, "logprob": value, "bytes": _bytes(text), "top_logprobs": []}
                for text, value in zip(texts, values, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for text in texts:
            offsets.append(self._written.get(c, 0))
            self._written[c] = offsets[-1] + len(text)
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}


def model_list(model: str, created: int) -> dict[str, Any]:
    """The one model there is."""
    return {"object": "list", "data": [model_card(model, created)]}


def model_card(model: str, created: int) -> dict[str, Any]:
    """What is known of a model."""
    return {"id": model, "object": "model", "created": created, "owned_by": "bloomery"}


def _finish(row: Row) -> str:
    assert row.reason is not None
    return FINISH[row.reason]


def _bytes(text: str) -> list[int] | None:
    """The bytes of a token's text; None where it is only a part of a character."""
    return None if "\ufffd" in text else list(text.encode())
