"""Text from a decoder: cached, batched generation and its streaming form.

Prompts are padded at the left and advance together, one token per step. A row's tokens do not depend on the rest of
the batch (up to floating-point rounding of the model), so `batch_size` changes speed and memory only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError
from bloomery.generate.rows import Reason, Row, make_rows, not_finite, pack, seen_tokens
from bloomery.generate.sampling import SamplingParams, Uniforms, sample
from bloomery.generate.speculative import Drafter
from bloomery.models.decoder import Decoder
from bloomery.nn import KVCache, PackedWeights

PACK_FROM = 32  # new tokens from which copying the weights into a faster layout is earned back


@dataclass(frozen=True)
class Completion:
    """What followed one prompt.

    `tokens` are all tokens the model produced, the end token and those of a stop string included; `text` is what they
    say before either. `logprobs` are the model's own log-probabilities of these tokens (nats, before temperature,
    penalty and truncation). `reason` is why it ended: an end token, a stop string, or no room for more tokens.
    `acceptance` is the share of a draft model's tokens that the model took over, None without a draft.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    reason: Reason
    acceptance: float | None = None


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
    draft: Decoder | None = None,
    draft_tokens: int = 4,
) -> list[Completion]:
    """Continue every prompt; greedy unless a temperature is given. Completions come in the order of the prompts.

    Prompts are strings, or lists of token ids where the caller has encoded them. The random numbers of prompt i depend
    on (seed, i) only. Generation of a row ends at a token of `eos` (default: the tokenizer's known end tokens), at a
    string of `stop`, after `max_new_tokens`, or when the model's positions are used up.

    With a smaller model of the same vocabulary as `draft`, decoding is speculative: the draft proposes `draft_tokens`
    tokens at a time and the model checks them in one pass (`bloomery.generate.speculative`). Greedy tokens stay what
    they are, sampled ones follow the same distribution (with other random numbers). Prompts then run one by one.

    Raises ConfigError for options out of range, prompts that leave no room and a draft of another vocabulary,
    BloomeryError for logits not finite (naming the first layer where that begins).
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
    drafter = None if draft is None else Drafter(model, draft, draft_tokens)
    rows = make_rows(model, tokenizer, prompts, max_new_tokens, stop, eos)
    packed = _pack(model, rows)
    if drafter is not None:
        done = []
        for row in rows:
            for _ in drafter.decode(packed, row, params):
                pass
            done.append(_completion(row, drafter.acceptance))
        return done
    by_length = sorted(rows, key=lambda row: -len(row.prompt))  # similar lengths waste little on padding
    for begin in range(0, len(rows), batch_size):
        for _ in decode_rows(model, packed, by_length[begin : begin + batch_size], params):
            pass
    return [_completion(row) for row in rows]


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
    draft: Decoder | None = None,
    draft_tokens: int = 4,
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
    drafter = None if draft is None else Drafter(model, draft, draft_tokens)
    (row,) = make_rows(model, tokenizer, [prompt], max_new_tokens, stop, eos)
    packed = _pack(model, [row])
    steps = decode_rows(model, packed, [row], params) if drafter is None else drafter.decode(packed, row, params)
    return (piece for _ in steps if (piece := row.builder.take()))


def _completion(row: Row, acceptance: float | None = None) -> Completion:
    assert row.reason is not None
    return Completion(row.text, row.tokens, row.logprobs, row.reason, acceptance)


def _pack(model: Decoder, rows: list[Row]) -> PackedWeights:
    """The packed weights, or none of them when too few tokens are asked for."""
    worth = max((row.limit for row in rows), default=0) >= PACK_FROM
    return pack(model) if worth else PackedWeights(())


@torch.inference_mode()
def decode_rows(model: Decoder, packed: PackedWeights, rows: list[Row], params: SamplingParams) -> Iterator[None]:
    """Give every unfinished row one more token per iteration, until all have a reason to end."""
    device, dtype = model.head_weight.device, model.head_weight.dtype
    longest = max(len(row.prompt) for row in rows)
    padding = torch.tensor([longest - len(row.prompt) for row in rows], device=device)  # (batch,)
    # Padding repeats the row's own first token: a broken embedding of a token that no prompt holds must not be met.
    inputs = torch.tensor([row.prompt[:1] * (longest - len(row.prompt)) + row.prompt for row in rows], device=device)
    cache = KVCache(model.config, len(rows), longest + max(row.limit for row in rows) - 1, dtype, device)
    uniforms = Uniforms(params.seed, [row.index for row in rows]) if params.temperature > 0 else None
    seen = seen_tokens(rows, model.config.vocab_size, device) if params.repetition_penalty != 1.0 else None
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
                        raise not_finite(model, row)
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
