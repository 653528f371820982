"""Speculative decoding (Leviathan et al., arXiv:2211.17192): a small model drafts, the large one checks. Lossless.

```text
draft     k tokens, one after the other          x_1 … x_k drawn from q_1 … q_k
check     one pass of the model over all of them  p_1 … p_k+1
keep      x_i with probability min(1, p_i(x_i) / q_i(x_i)), up to the first that is refused
then      one more token: from norm(max(0, p_i - q_i)) at the refused place, from p_k+1 when all were kept
```

p and q are what is sampled from, after penalty, temperature and truncation; greedy decoding is the case where both put
everything on one token. Each token then has the probability p gives it, whatever the draft is like: a bad draft costs
time only. One row at a time: rows keep different numbers of tokens, and with many rows the passes are no longer bound
by reading the weights, which is where the gain comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bloomery.core.errors import ConfigError
from bloomery.generate.rows import Row, not_finite, pack, seen_tokens
from bloomery.generate.sampling import SamplingParams, Uniforms, adjust, draw
from bloomery.models.decoder import Decoder
from bloomery.nn import KVCache, PackedWeights


def distribution(logits: Tensor, params: SamplingParams, seen: Tensor | None = None) -> Tensor:
    """What `sample` draws from, (rows, vocab) float64: one token's probability is 1 when greedy."""
    logits = adjust(logits, params, seen)
    if params.temperature == 0.0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return logits.double().softmax(-1)


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Probability of keeping each token, had the draft proposed it: min(1, p / q), (..., vocab)."""
    return torch.where(q > 0, p / q, 1.0).clamp(max=1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Distribution of the token that replaces a refused one: norm(max(0, p - q)), (..., vocab)."""
    rest = (p - q).clamp(min=0.0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)  # p = q refuses nothing but by rounding


def check(p: Tensor, q: Tensor, drafted: Tensor, uniforms: Tensor) -> list[int]:
    """The tokens of one round: those of `drafted` (k,) that are kept, and one more.

    p (k + 1, vocab) and q (k, vocab) are the two models' distributions, `uniforms` (k + 1,) numbers in [0, 1).
    """
    chances = acceptance(p[:-1], q).gather(-1, drafted[:, None]).squeeze(-1)  # (k,)
    kept = int((uniforms[:-1] < chances).long().cumprod(0).sum())
    last = p[kept] if kept == len(drafted) else residual(p[kept], q[kept])
    return [*drafted[:kept].tolist(), int(draw(last.log()[None], uniforms[-1:]))]


class Drafter:
    """A model and the smaller one that drafts for it; `drafted` and `kept` count the tokens of the latest row."""

    def __init__(self, model: Decoder, draft: Decoder, draft_tokens: int = 4) -> None:
        if draft_tokens < 1:
            raise ConfigError(f"draft_tokens is {draft_tokens}", fix="it must be at least 1")
        if draft.config.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"the draft model knows {draft.config.vocab_size} tokens, the model {model.config.vocab_size}",
                fix="speculative decoding needs two models with one and the same vocabulary",
            )
        self.model, self.draft, self.draft_tokens = model, draft, draft_tokens
        self.drafted = self.kept = 0
        self._packed_draft = pack(draft)

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were kept."""
        return self.kept / max(1, self.drafted)

    @torch.inference_mode()
    def decode(self, packed: PackedWeights, row: Row, params: SamplingParams) -> Iterator[None]:
        """Decode one row until it has a reason to end, a round per iteration. `packed` is the model's weights."""
        self.drafted = self.kept = 0
        model, draft = self.model, self.draft
        device, vocab = model.head_weight.device, model.config.vocab_size
        room = len(row.prompt) + row.limit
        cache = KVCache(model.config, 1, room, model.head_weight.dtype, device)
        draft_cache = KVCache(draft.config, 1, room, draft.head_weight.dtype, device)
        uniforms = Uniforms(params.seed, [row.index])
        seen = seen_tokens([row], vocab, device) if params.repetition_penalty != 1.0 else None
        modes = model.training, draft.training
        model.eval()
        draft.eval()
        try:
            while row.reason is None:
                known = row.prompt + row.tokens
                k = min(self.draft_tokens, row.limit - len(row.tokens) - 1)
                drafted, q, seens = self._propose(draft_cache, known, k, params, uniforms, seen, row)
                with packed:
                    logits = _next_logits(model, cache, [*known, *drafted], k + 1)  # (k + 1, vocab)
                p = distribution(logits, params, None if seen is None else torch.cat(seens))
                numbers = _numbers(uniforms, k + 1, device)
                tokens = check(p, q, torch.tensor(drafted, dtype=torch.int64, device=device), numbers)

                chosen = torch.tensor(tokens, device=device)
                logprobs = logits[: len(tokens)].gather(-1, chosen[:, None])[:, 0] - logits[: len(tokens)].logsumexp(-1)
                self.drafted, self.kept = self.drafted + k, self.kept + len(tokens) - 1
                for token, logprob in zip(tokens, logprobs.tolist(), strict=True):
                    if row.reason is None:
                        if not math.isfinite(logprob):
                            raise not_finite(model, row)
                        row.push(token, logprob)
                agreed = len(known) + len(tokens) - 1  # the newest token is in neither cache yet
                cache.truncate(agreed)
                draft_cache.truncate(min(agreed, draft_cache.length))
                if seen is not None:
                    seen[0, chosen] = True
                yield
        finally:
            model.train(modes[0])
            draft.train(modes[1])

    def _propose(
        self,
        cache: KVCache,
        known: list[int],
        k: int,
        params: SamplingParams,
        uniforms: Uniforms,
        seen: Tensor | None,
        row: Row,
    ) -> tuple[list[int], Tensor, list[Tensor]]:
        """Draft k tokens: the tokens, what each was drawn from (k, vocab), what had been seen before each and after."""
        device = self.draft.head_weight.device
        drafted: list[int] = []
        q = torch.zeros(k, self.draft.config.vocab_size, dtype=torch.float64, device=device)
        seens = [] if seen is None else [seen]
        for i in range(k):
            with self._packed_draft:
                logits = _next_logits(self.draft, cache, [*known, *drafted], 1)
            if not bool(logits.isfinite().all()):
                raise not_finite(self.draft, replace(row, tokens=row.tokens + drafted), "the draft model")
            q[i] = distribution(logits, params, seens[-1] if seens else None)[0]
            drafted.append(int(draw(q[i].log()[None], _numbers(uniforms, 1, device))))
            if seens:
                seens.append(seens[-1].clone())
                seens[-1][0, drafted[-1]] = True
        return drafted, q, seens


def _next_logits(model: Decoder, cache: KVCache, tokens: list[int], last: int) -> Tensor:
    """Logits (last, vocab) after each of the last tokens; those that the cache does not hold yet are run."""
    inputs = torch.tensor([tokens[cache.length :]], device=model.head_weight.device)
    logits = model.logits(model(inputs, cache=cache).hidden[0, -last:])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _numbers(uniforms: Uniforms, count: int, device: torch.device) -> Tensor:
    return torch.tensor([uniforms.next()[0] for _ in range(count)], dtype=torch.float64, device=device)
