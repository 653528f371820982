"""Conversations as text and as tokens.

Templates are Jinja2, as in the `tokenizer_config.json` of published models, run in a sandbox. `encode` gives the ids of
the rendered conversation with one difference that matters: what a person or a page wrote is encoded as plain text, so
`<|end|>` typed by a user is six characters and cannot close the turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.corpus.tokenizer import BOS, DEFAULT_CHAT_TEMPLATE, EOS, PAD, plain, spellable

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]

# DeepSeek-Coder-V2's conversation. Its prompt ends in "Assistant:" and nothing after it: the space belongs to the
# first word of the answer, and a model given it answers in Chinese or repeats itself (README of the release).
DEEPSEEK_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- 'User: ' + message['content'] + '\n\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'Assistant: ' + message['content'] + eos_token -}}"
    "{%- else -%}{{- message['content'] + '\n\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)


def render(
    messages: Sequence[Message], template: str | None = None, add_generation_prompt: bool = False, **variables: Any
) -> str:
    """The conversation as text; `variables` reach the template (`bos_token`, `tools`, …)."""
    check(messages)
    values = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "tools": None, "documents": None, **variables}
    try:
        return _compile(template or DEFAULT_CHAT_TEMPLATE).render(
            messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt, **values
        )
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error


def encode(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    template: str | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation: mask is 1 on what the assistant wrote and on the token that ends its turn.

    The ids are those of the rendered text, except that special tokens spelled out in a message stay plain text.
    """
    pieces = _pieces(messages, template, add_generation_prompt, variables)
    special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    splitter = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")

    ids: list[int] = []
    mask: list[int] = []
    run: list[tuple[str, bool]] = []  # text since the last special token, and whether the assistant wrote it
    for text, role in pieces:
        if role is not None or not special:
            run.append((text, role == "assistant"))
            continue
        for part in splitter.split(text):  # only the template may produce special tokens
            if part not in special:
                run.append((part, False))
                continue
            ends_turn = _encode_run(tokenizer, run, ids, mask)
            ids.append(special[part])
            mask.append(int(ends_turn))
            run = []
    _encode_run(tokenizer, run, ids, mask)
    return ids, mask


def check(messages: Sequence[Message]) -> None:
    """Raise a `DataError` unless `messages` is a conversation: known roles, text contents, system only first."""
    if isinstance(messages, (str, Mapping)) or not messages:
        raise DataError(f"a conversation is a non-empty list of messages, got {messages!r:.80}")
    for i, message in enumerate(messages):
        where = f"message {i}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(f"expected role and content, got {message!r:.80}", where=where)
        if message["role"] not in ROLES:
            raise DataError(f"unknown role {message['role']!r}", where=where, fix=nearest(str(message["role"]), ROLES))
        if not isinstance(message["content"], str):
            raise DataError(f"the content is {type(message['content']).__name__}, not text", where=where)
        if message["role"] == "system" and i > 0:
            raise DataError("a system message may only come first", where=where)


def _pieces(
    messages: Sequence[Message], template: str | None, add_generation_prompt: bool, variables: Mapping[str, Any]
) -> list[tuple[str, str | None]]:
    """The rendered text cut into (text, role): role is None for what the template wrote."""
    rendered = render(messages, template, add_generation_prompt, **variables)
    for contents in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):
        marks = [f"\ue000{i}\ue001" for i in range(len(messages))]  # private-use characters stand for the contents
        marked = [{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)]
        pieces: list[tuple[str, str | None]] = []
        for part in re.split("(\ue000[0-9]+\ue001)", render(marked, template, add_generation_prompt, **variables)):
            if part in marks:
                i = marks.index(part)
                pieces.append((contents[i], messages[i]["role"]))
            else:
                pieces.append((part, None))
        if "".join(text for text, _ in pieces) == rendered:
            return pieces
    raise DataError(
        "the chat template rewrites the messages, so it cannot be told which tokens the assistant wrote",
        fix="use a template that inserts the contents as they are (or stripped)",
    )


def _encode_run(tokenizer: Tokenizer, run: list[tuple[str, bool]], ids: list[int], mask: list[int]) -> bool:
    """Append the ids of plain text; True when the assistant wrote any of it (or an empty answer)."""
    text = spellable("".join(part for part, _ in run))
    encoding = plain(tokenizer).encode(text, add_special_tokens=False)
    written = np.zeros(len(text) + 1, np.int64)  # 1 at characters of the assistant
    at = 0
    for part, by_assistant in run:
        written[at : at + len(part)] = by_assistant
        at += len(part)
    ids.extend(encoding.ids)
    mask.extend(int(written[start:end].any()) for start, end in encoding.offsets)
    return any(by_assistant for _, by_assistant in run)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    """Compile with the same environment as transformers, so that published templates render the same."""

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"the chat template does not compile, line {error.lineno}: {error.message}") from error
