"""How likely a model finds given continuations: the basis of multiple-choice evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError
from bloomery.generate.prompts import begin_token_id, encode_prompts
from bloomery.models.decoder import Decoder
from bloomery.nn import KVCache


@torch.inference_mode()
def choice_logprobs(model: Decoder, tokenizer: Tokenizer, prompt: str, choices: Sequence[str]) -> list[float]:
    """Log-probability of each choice after the prompt, in nats, summed over its tokens.

    Prompt and choice are tokenised together, as they would have been in training. The tokens of `prompt + choice` that
    agree with the prompt's own are context; all after them are scored. So where a token spans the boundary ("The" +
    "n" = "Then") the whole token counts as the choice's. Put the space that separates the two at the beginning of the
    choice, not at the end of the prompt: that is where byte-level tokenizers have it.

    What all choices share is run once; the rest is one batch.

    Raises ConfigError when the prompt with a choice leaves no free position in the model (cut the prompt, say to its
    last sentences), when a choice adds no token, and when there is nothing at all before the first scored token.
    """
    context, *joint = encode_prompts(model.config, tokenizer, [prompt, *(prompt + choice for choice in choices)])
    if not joint:
        return []
    begins = [_shared_length(context, ids) for ids in joint]  # first scored token of each choice
    if not all(begins):  # nothing comes before the choices: they are scored from the token that begins a text
        first = begin_token_id(tokenizer)
        if first is None:
            raise ConfigError(
                f"prompt {prompt!r} leaves no token before the choices, and the tokenizer has none that begins a text",
                fix="give a longer prompt",
            )
        joint, begins = [[first, *ids] for ids in joint], [begin + 1 for begin in begins]
    for choice, ids, begin in zip(choices, joint, begins, strict=True):
        if begin == len(ids):
            raise ConfigError(f"choice {choice!r} adds no token to the prompt", fix="give choices that are not empty")

    was_training = model.training
    model.eval()
    try:
        hidden = _hidden_after(model, joint, shared=min(begins) - 1)
    finally:
        model.train(was_training)
    return [
        _summed_logprob(model, row, ids[min(begins) :], begin - min(begins))
        for row, ids, begin in zip(hidden, joint, begins, strict=True)
    ]


def _hidden_after(model: Decoder, sequences: list[list[int]], shared: int) -> torch.Tensor:
    """Hidden states (rows, longest - shared - 1, dim) of the tokens from position `shared` to the last but one.

    The first `shared` tokens are the same in all rows. Shorter rows are padded at the right, where causal attention
    keeps the padding from being seen.
    """
    device, dtype = model.head_weight.device, model.head_weight.dtype
    longest = max(map(len, sequences)) - 1
    rest = torch.tensor([ids[shared:-1] + [0] * (longest - len(ids) + 1) for ids in sequences], device=device)
    cache = None
    if shared > 0:
        cache = KVCache(model.config, 1, longest, dtype, device)
        model(torch.tensor([sequences[0][:shared]], device=device), cache=cache)
        cache.keep(torch.zeros(len(sequences), dtype=torch.int64, device=device))
    hidden: torch.Tensor = model(rest, cache=cache).hidden
    return hidden


def _summed_logprob(model: Decoder, hidden: torch.Tensor, tokens: list[int], begin: int) -> float:
    """Log-probability of tokens[begin:], where hidden[i] (dim,) precedes tokens[i]."""
    logits = model.logits(hidden[begin : len(tokens)])  # (scored, vocab)
    targets = torch.tensor(tokens[begin:], device=logits.device)[:, None]
    return float(logits.double().log_softmax(-1).gather(-1, targets).sum())


def _shared_length(a: list[int], b: list[int]) -> int:
    """Number of leading tokens that are the same in both."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
