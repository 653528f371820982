"""One completion on its way: what the loops that decode (batched, continuous, speculative) have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate.prompts import encode_prompts, end_token_ids
from bloomery.generate.text import TextBuilder
from bloomery.models.decoder import Decoder
from bloomery.nn import PackedWeights

Reason = Literal["eos", "stop", "length", "cancelled", "error"]


@dataclass(eq=False)  # two requests of the same prompt are two
class Row:
    """One prompt and what has followed it so far; `reason` is set when it has ended."""

    index: int
    prompt: list[int]
    limit: int  # most tokens it may produce
    end_tokens: frozenset[int]
    builder: TextBuilder
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: Reason | None = None

    @property
    def text(self) -> str:
        """What the tokens say, without an end token or a stop string."""
        return self.builder.text

    def push(self, token: int, logprob: float) -> None:
        """Append a token the model has produced, with its log-probability, and see whether it is the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.end_tokens:
            self.reason = "eos"
        elif self.builder.push(token):
            self.reason = "stop"
        elif len(self.tokens) == self.limit:
            self.reason = "length"
        if self.reason and self.builder.close():
            self.reason = "stop"


def make_rows(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    eos: Sequence[int] | None,
) -> list[Row]:
    """Rows for prompts, numbered in order. Raises ConfigError for options out of range and prompts without room."""
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}", fix="it must be at least 1")
    if isinstance(stop, str) or not all(stop):
        raise ConfigError(f"stop is {stop!r}", fix="give a list of strings, none of them empty")
    if isinstance(prompts, str):
        raise ConfigError("prompts is one string", fix="give a list of prompts: [prompt]")
    end_tokens = frozenset(end_token_ids(tokenizer) if eos is None else eos)
    room = model.config.max_positions
    return [
        Row(i, prompt, min(max_new_tokens, room - len(prompt)), end_tokens, TextBuilder(tokenizer, stop))
        for i, prompt in enumerate(encode_prompts(model.config, tokenizer, prompts))
    ]


def pack(model: Decoder) -> PackedWeights:
    """The model's weight matrices as decoding wants them."""
    matrices = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
    head = model.head_weight  # the embedding when tied; a normalised head is computed anew each time
    return PackedWeights(matrices | ({head} if isinstance(head, nn.Parameter) else set()))


def seen_tokens(rows: Sequence[Row], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens occur in each row so far, prompt included: (rows, vocab) bool."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        seen[i, row.prompt + row.tokens] = True
    return seen


def not_finite(model: Decoder, row: Row, who: str = "the model") -> BloomeryError:
    """The error for a row whose next logits are NaN or infinite; it names the layer where that begins."""
    layer = first_not_finite(model, row.prompt + row.tokens)
    place = "" if layer is None else f": the first layer whose output is not finite is {layer}"
    return BloomeryError(
        f"{who}'s logits are not finite at new token {len(row.tokens)} of prompt {row.index}{place}",
        fix="its weights hold NaN or infinity, or overflow in this dtype: check the checkpoint, or try float32",
    )


@torch.inference_mode()
def first_not_finite(model: Decoder, tokens: Sequence[int]) -> str | None:
    """Path of the first module ("blocks.3.ffn.down"; "head") whose output for these tokens is not finite, or None.

    The tokens run through the model once more, alone and without a cache, with a hook on every module. Modules report
    when they return, so of nested ones the innermost comes first.
    """
    found: list[str] = []

    def check(name: str, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        if not found and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in parts):
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: check(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        hidden = model(torch.tensor([list(tokens)], device=model.head_weight.device)).hidden[:, -1]
        check("head", model.logits(hidden))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
