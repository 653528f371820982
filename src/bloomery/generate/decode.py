"""Text from a decoder: cached, batched generation and its streaming form.

Prompts are padded at the left and advance together, one token per step. A row's tokens do not depend on the rest of
the batch (up to floating-point rounding of the model), so `batch_size` changes speed and memory only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate.prompts import encode_prompts, end_token_ids
from bloomery.generate.sampling import SamplingParams, Uniforms, sample
from bloomery.generate.text import TextBuilder
from bloomery.models.decoder import Decoder
from bloomery.nn import KVCache, PackedWeights

Reason = Literal["eos", "stop", "length"]
PACK_FROM = 32  # new tokens from which copying the weights into a faster layout is earned back


@dataclass(frozen=True)
class Completion:
    """What followed one prompt.

    `tokens` are all tokens the model produced, the end token and those of a stop string included; `text` is what they
    say before either. `logprobs` are the model's own log-probabilities of these tokens (nats, before temperature,
    penalty and truncation). `reason` is why it ended: an end token, a stop string, or no room for more tokens.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    reason: Reason


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    eos: Sequence[int] | None = None,
    batch_size: int = 32,
) -> list[Completion]:
    """Continue every prompt; greedy unless a temperature is given. Completions come in the order of the prompts.

    Prompts are strings, or lists of token ids where the caller has encoded them. The random numbers of prompt i depend
    on (seed, i) only. Generation of a row ends at a token of `eos` (default: the tokenizer's known end tokens), at a
    string of `stop`, after `max_new_tokens`, or when the model's positions are used up.

    Raises ConfigError for options out of range and prompts that leave no room, BloomeryError for logits not finite.
    """
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}", fix="it must be at least 1")
    rows = _make_rows(model, tokenizer, prompts, max_new_tokens, stop, eos)
    packed = _pack(model, rows)
    by_length = sorted(rows, key=lambda row: -len(row.prompt))  # similar lengths waste little on padding
    for begin in range(0, len(rows), batch_size):
        for _ in _decode(model, packed, by_length[begin : begin + batch_size], params):
            pass
    return [row.completion() for row in rows]


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str | list[int],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    eos: Sequence[int] | None = None,
) -> Iterator[str]:
    """Continue one prompt and yield its text in pieces, as early as they are certain.

    The pieces concatenate to the text that `generate` gives for `[prompt]` with the same options. They are never
    empty, hold whole characters, and nothing that may turn out to be the beginning of a stop string.
    """
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    (row,) = _make_rows(model, tokenizer, [prompt], max_new_tokens, stop, eos)
    steps = _decode(model, _pack(model, [row]), [row], params)
    return (piece for _ in steps if (piece := row.text.take()))


@dataclass
class _Row:
    """One prompt on its way."""

    index: int
    prompt: list[int]
    limit: int  # most tokens it may produce
    end_tokens: frozenset[int]
    text: TextBuilder
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: Reason | None = None

    def push(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.end_tokens:
            self.reason = "eos"
        elif self.text.push(token):
            self.reason = "stop"
        elif len(self.tokens) == self.limit:
            self.reason = "length"
        if self.reason and self.text.close():
            self.reason = "stop"

    def completion(self) -> Completion:
        assert self.reason is not None
        return Completion(self.text.text, self.tokens, self.logprobs, self.reason)


def _make_rows(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    eos: Sequence[int] | None,
) -> list[_Row]:
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}", fix="it must be at least 1")
    if isinstance(stop, str) or not all(stop):
        raise ConfigError(f"stop is {stop!r}", fix="give a list of strings, none of them empty")
    if isinstance(prompts, str):
        raise ConfigError("prompts is one string", fix="give a list of prompts: [prompt]")
    end_tokens = frozenset(end_token_ids(tokenizer) if eos is None else eos)
    room = model.config.max_positions
    return [
        _Row(i, prompt, min(max_new_tokens, room - len(prompt)), end_tokens, TextBuilder(tokenizer, stop))
        for i, prompt in enumerate(encode_prompts(model.config, tokenizer, prompts))
    ]


def _pack(model: Decoder, rows: list[_Row]) -> PackedWeights:
    """The model's weight matrices as decoding wants them, none of them when too few tokens are asked for."""
    if max((row.limit for row in rows), default=0) < PACK_FROM:
        return PackedWeights(())
    matrices = {layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
    return PackedWeights(matrices | {model.head_weight})


@torch.inference_mode()
def _decode(model: Decoder, packed: PackedWeights, rows: list[_Row], params: SamplingParams) -> Iterator[None]:
    """Give every unfinished row one more token per iteration, until all have a reason to end."""
    device, dtype = model.head_weight.device, model.head_weight.dtype
    longest = max(len(row.prompt) for row in rows)
    padding = torch.tensor([longest - len(row.prompt) for row in rows], device=device)  # (batch,)
    inputs = torch.tensor([[0] * (longest - len(row.prompt)) + row.prompt for row in rows], device=device)
    cache = KVCache(model.config, len(rows), longest + max(row.limit for row in rows) - 1, dtype, device)
    uniforms = Uniforms(params.seed, [row.index for row in rows]) if params.temperature > 0 else None
    seen = _seen_tokens(rows, model.config.vocab_size, device) if params.repetition_penalty != 1.0 else None
    was_training = model.training
    model.eval()
    try:
        while True:
            with packed:
                hidden = model(inputs, cache=cache, padding=padding).hidden[:, -1]  # (batch, dim)
                logits = model.logits(hidden)  # (batch, vocab)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            numbers = None if uniforms is None else torch.from_numpy(uniforms.next()).to(device)
            tokens = sample(logits, params, numbers, seen)  # (batch,)
            logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                if row.reason is None:
                    if not math.isfinite(logprob):
                        raise _not_finite(row)
                    row.push(token, logprob)
            yield

            running = [i for i, row in enumerate(rows) if row.reason is None]
            if not running:
                return
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            if 2 * len(running) <= len(rows):  # half have ended: moving the others costs less than carrying them
                kept = torch.tensor(running, device=device)
                cache.keep(kept)
                rows, tokens = [rows[i] for i in running], tokens[kept]
                seen = None if seen is None else seen[kept]
                if uniforms is not None:
                    uniforms.keep(running)
            inputs = tokens[:, None]
    finally:
        model.train(was_training)


def _seen_tokens(rows: list[_Row], vocab_size: int, device: torch.device) -> Tensor:
    """Which tokens occur in each row's prompt: (batch, vocab) bool."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        seen[i, row.prompt] = True
    return seen


def _not_finite(row: _Row) -> BloomeryError:
    return BloomeryError(
        f"the model's logits are not finite at new token {len(row.tokens)} of prompt {row.index}",
        fix="its weights hold NaN or infinity, or overflow in this dtype: check the checkpoint, or try float32",
    )
