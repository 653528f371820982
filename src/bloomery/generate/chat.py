"""A conversation with a model, one reply at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from bloomery.corpus import chat
from bloomery.generate.decode import stream
from bloomery.models.decoder import Decoder


def chat_prompt(
    tokenizer: Tokenizer, messages: Sequence[chat.Message], room: int, template: str | None = None, **variables: Any
) -> list[int]:
    """Token ids of the conversation up to where the assistant begins to answer; `variables` reach the template.

    When they exceed `room` tokens, the oldest exchanges are left out; a system message and the last message stay.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = list(messages[len(system) :])
    while True:
        ids, _ = chat.encode(tokenizer, [*system, *turns], template, add_generation_prompt=True, **variables)
        if len(ids) <= room or len(turns) == 1:
            return ids
        later = (i for i, m in enumerate(turns) if i and m["role"] == "user")
        turns = turns[next(later, len(turns) - 1) :]


class Conversation:
    """Remembers what was said; `say` streams the reply.

    ```python
    chat = Conversation(model, tokenizer, system="Answer briefly.", temperature=0.7)
    for piece in chat.say("What is a bloomery?"):
        print(piece, end="", flush=True)
    ```
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        max_new_tokens: int = 256,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.template, self.variables = template, dict(variables or {})
        self.max_new_tokens, self.seed, self.options = max_new_tokens, seed, options
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def say(self, text: str) -> Iterator[str]:
        """Say something and get the reply in pieces. What was yielded is remembered, also when reading stops early.

        `options` of the constructor are those of `stream`; the n-th reply is drawn with seed + n.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        positions = self.model.config.max_positions
        room = positions - min(self.max_new_tokens, positions // 2)  # a generous limit must not cost all memory
        prompt = chat_prompt(self.tokenizer, messages, room, self.template, **self.variables)
        replies = sum(message["role"] == "assistant" for message in messages)
        pieces = stream(
            self.model,
            self.tokenizer,
            prompt,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed + replies,
            **self.options,
        )
        self.messages = messages
        return self._remembered(pieces)

    def _remembered(self, pieces: Iterator[str]) -> Iterator[str]:
        reply = {"role": "assistant", "content": ""}
        self.messages.append(reply)
        for piece in pieces:
            reply["content"] += piece
            yield piece
