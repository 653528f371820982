"""How likely a model finds given continuations: the basis of multiple-choice evaluation.

Many questions are scored at once. They are sorted by length, so that little is padded, and what the choices of a
question have in common (the question, its solved examples) is run once: its keys and values serve all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.core.progress import Progress
from bloomery.generate.prompts import begin_token_id, encode_text
from bloomery.models.decoder import Decoder
from bloomery.nn import KVCache

BATCH_TOKENS = 8192  # positions in one pass of the model
WORTH_SHARING = 8  # a shorter common beginning is run with each continuation
LOGITS = 1 << 24  # logits in memory at a time


class Candidate(NamedTuple):
    """A text as token ids, of which those from `begin` on are scored; at least one comes before them."""

    ids: list[int]
    begin: int


class Likelihood(NamedTuple):
    """What a model makes of a candidate."""

    logprob: float  # nats, summed over the scored tokens
    tokens: int  # scored
    greedy: bool  # each scored token is the model's first choice after those before it


def choice_logprobs(model: Decoder, tokenizer: Tokenizer, prompt: str, choices: Sequence[str]) -> list[float]:
    """Log-probability of each choice after the prompt, in nats, summed over its tokens.

    See `encode_candidates` for what counts as the choice's, and for when this raises a ConfigError; it also does when
    prompt and choice exceed the model's positions (cut the prompt, say to its last sentences).
    """
    return [likelihood.logprob for likelihood in score(model, [encode_candidates(tokenizer, prompt, choices)])[0]]


def encode_candidates(tokenizer: Tokenizer, prompt: str, continuations: Sequence[str]) -> list[Candidate]:
    """The continuations of a prompt, ready to be scored.

    Prompt and continuation are tokenised together, as they would have been in training. The tokens of both that agree
    with the prompt's own are context; all after them are scored. So where a token spans the boundary ("The" + "n" =
    "Then") the whole token counts as the continuation's. Put the space that separates the two at the beginning of the
    continuation, not at the end of the prompt: that is where byte-level tokenizers have it.

    Raises ConfigError when a continuation adds no token, and when there is nothing at all before the first scored one.
    """
    context = encode_text(tokenizer, prompt)
    joint = [encode_text(tokenizer, prompt + continuation) for continuation in continuations]
    begins = [_shared_length(context, ids) for ids in joint]
    if not all(begins):  # nothing comes before the continuations: score them from the token that begins a text
        first = begin_token_id(tokenizer)
        if first is None:
            raise ConfigError(
                f"prompt {prompt!r} leaves no token before the choices, and the tokenizer has none that begins a text",
                fix="give a longer prompt",
            )
        joint, begins = [[first, *ids] for ids in joint], [begin + 1 for begin in begins]
    for continuation, ids, begin in zip(continuations, joint, begins, strict=True):
        if begin == len(ids):
            raise ConfigError(
                f"choice {continuation!r} adds no token to the prompt", fix="give choices that are not empty"
            )
    return [Candidate(ids, begin) for ids, begin in zip(joint, begins, strict=True)]


@torch.inference_mode()
def score(
    model: Decoder,
    questions: Sequence[Sequence[Candidate]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[list[Likelihood]]:
    """The likelihood of every candidate of every question. `batch_tokens` changes speed and memory only.

    Raises ConfigError for a candidate that exceeds the model's positions or vocabulary, BloomeryError for NaN.
    """
    for question in questions:
        for candidate in question:
            _check(model, candidate)
    scores: list[list[Likelihood]] = [[Likelihood(0.0, 0, True)] * len(question) for question in questions]
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(questions, batch_tokens):
            rows = [(index, place) for index, places, _ in batch for place in places]
            for (index, place), likelihood in zip(rows, _score_batch(model, questions, batch), strict=True):
                scores[index][place] = likelihood
            if progress is not None:
                progress.advance(len(rows))
    finally:
        model.train(was_training)
    return scores


Part = tuple[int, list[int], int]  # a question, places of candidates in it, length of their beginning to be shared


def _batches(questions: Sequence[Sequence[Candidate]], batch_tokens: int) -> Iterator[list[Part]]:
    """Parts that run together: of similar length, longest first, at most `batch_tokens` positions with padding."""
    parts: list[tuple[int, Part]] = []  # with the longest candidate's length
    for index, question in enumerate(questions):
        longest = max((len(candidate.ids) for candidate in question), default=0)
        at_once = max(1, batch_tokens // max(longest, 1))
        for begin in range(0, len(question), at_once):
            places = list(range(len(question)))[begin : begin + at_once]
            parts.append((longest, (index, places, _worth_sharing([question[place] for place in places]))))
    parts.sort(key=lambda part: (part[1][2] > 0, -part[0]))  # stable: equal lengths stay in order
    batch: list[Part] = []
    shared = rest = rows = 0
    for longest, part in parts:
        wider = max(shared, part[2]) + max(rest, longest - part[2])
        if batch and ((rows + len(part[1])) * wider > batch_tokens or (part[2] > 0) != (shared > 0)):
            yield batch
            batch, shared, rest, rows = [], 0, 0, 0
        batch.append(part)
        shared, rest, rows = max(shared, part[2]), max(rest, longest - part[2]), rows + len(part[1])
    if batch:
        yield batch


def _worth_sharing(candidates: Sequence[Candidate]) -> int:
    """How many leading tokens to run once for all candidates; the token before the first scored one is not among them.

    What precedes it must run with each row, since the hidden state at its place is needed.
    """
    if len(candidates) < 2:
        return 0
    shared = min(candidate.begin for candidate in candidates) - 1
    for candidate in candidates[1:]:
        shared = min(shared, _shared_length(candidates[0].ids, candidate.ids))
    return shared if shared >= WORTH_SHARING else 0


def _score_batch(model: Decoder, questions: Sequence[Sequence[Candidate]], batch: list[Part]) -> list[Likelihood]:
    """Likelihoods of the batch's candidates, in order. All parts share a beginning, or none does."""
    device = model.head_weight.device
    rows = [(questions[index][place], shared) for index, places, shared in batch for place in places]
    longest = max(len(candidate.ids) - 1 - shared for candidate, shared in rows)
    rest = torch.zeros(len(rows), longest, dtype=torch.int64, device=device)  # padded at the right, where none looks
    for row, (candidate, shared) in enumerate(rows):
        rest[row, : len(candidate.ids) - 1 - shared] = torch.tensor(candidate.ids[shared:-1], device=device)
    cache = _shared_cache(model, questions, batch, longest) if batch[0][2] else None
    hidden = model(rest, cache=cache).hidden  # (rows, longest, dim)

    places = [range(candidate.begin - 1 - shared, len(candidate.ids) - 1 - shared) for candidate, shared in rows]
    row_of = torch.tensor([row for row, scored in enumerate(places) for _ in scored], device=device)
    column = torch.tensor([place for scored in places for place in scored], device=device)
    targets = torch.tensor([token for c, _ in rows for token in c.ids[c.begin :]], device=device)
    logprobs, greedy = _next_token(model, hidden[row_of, column], targets)
    sizes = [len(scored) for scored in places]
    if bool(logprobs.isnan().any()):
        raise BloomeryError(
            "the model's logits are not numbers (NaN)",
            fix="its weights hold NaN or infinity, or overflow in this dtype: check the checkpoint, or try float32",
        )
    return [
        Likelihood(float(part.sum()), len(part), bool(hits.all()))
        for part, hits in zip(logprobs.split(sizes), greedy.split(sizes), strict=True)
    ]


def _shared_cache(model: Decoder, questions: Sequence[Sequence[Candidate]], batch: list[Part], longest: int) -> KVCache:
    """Keys and values of each part's common beginning, repeated for its candidates, with room for `longest` more.

    Beginnings are padded at the left, so that all end at the same place.
    """
    device, dtype = model.head_weight.device, model.head_weight.dtype
    width = max(shared for _, _, shared in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.int64, device=device)
    for row, (index, places, shared) in enumerate(batch):
        tokens[row, width - shared :] = torch.tensor(questions[index][places[0]].ids[:shared], device=device)
    cache = KVCache(model.config, len(batch), width + longest, dtype, device)
    model(tokens, cache=cache, padding=torch.tensor([width - shared for _, _, shared in batch], device=device))
    counts = torch.tensor([len(places) for _, places, _ in batch], device=device)
    cache.keep(torch.arange(len(batch), device=device).repeat_interleave(counts))
    return cache


def _next_token(model: Decoder, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability (float64) of each target after its hidden state (n, dim), and whether it is the likeliest."""
    logprobs, greedy = [], []
    at_once = max(1, LOGITS // model.config.vocab_size)
    for some, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):
        logits = model.logits(some)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (some, vocab)
        logprobs.append((logits.gather(-1, wanted[:, None]).squeeze(-1) - logits.logsumexp(-1)).double())
        greedy.append(logits.argmax(-1) == wanted)
    return torch.cat(logprobs), torch.cat(greedy)


def _check(model: Decoder, candidate: Candidate) -> None:
    config = model.config
    if len(candidate.ids) > config.max_positions + 1:
        raise ConfigError(
            f"prompt and choice have {len(candidate.ids)} tokens, but the model sees {config.max_positions} positions",
            fix="shorten the prompt",
        )
    if not 0 <= min(candidate.ids) <= max(candidate.ids) < config.vocab_size:
        raise ConfigError(
            f"the text holds token {max(candidate.ids)}, but the model knows 0 to {config.vocab_size - 1}",
            fix="use the tokenizer that the model was trained with",
        )


def _shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that are the same in both."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
