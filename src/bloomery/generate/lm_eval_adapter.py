"""A bloomery model for EleutherAI's evaluation harness: `lm_eval.simple_evaluate(model=LmEvalModel(model, tokenizer))`.

Texts are tokenised, joined and cut as the harness's own Hugging Face backend does it, so that scores agree with those
published with it. What differs is speed: what the choices of a question share is run once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, require
from bloomery.corpus import chat
from bloomery.corpus.tokenizer import digest
from bloomery.generate.choices import BATCH_TOKENS, Candidate, score
from bloomery.generate.decode import generate
from bloomery.generate.evaluate import rolling_windows
from bloomery.generate.prompts import begin_token_id, encode_text, end_token_ids
from bloomery.models.decoder import Decoder

_base: Any = require("lm_eval.api.model", "eval").TemplateLM
_normalised: Any = require("lm_eval.models.utils", "eval").normalize_gen_kwargs

KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}


class LmEvalModel(_base):
    """What the harness asks of a model: log-likelihoods of continuations and of whole texts, and written answers.

    `add_bos` puts `<|bos|>` before every text where the tokenizer has it, as our training does; the Hugging Face
    backend only does so for tokenizers that do it by themselves. `max_length` (default: the model's positions) and
    `max_gen_toks` are the harness's words for the context and for the longest answer; what exceeds the context loses
    its beginning. A chat `template` is used when the harness is told to apply one.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        add_bos: bool = True,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_tokens: int = BATCH_TOKENS,
        template: str | None = None,
    ) -> None:
        super().__init__()
        positions = model.config.max_positions
        if max_length is not None and not 1 <= max_length <= positions:
            raise ConfigError(f"max_length is {max_length}", fix=f"from 1 to the model's {positions} positions")
        self.model, self.words, self.add_bos, self.template = model, tokenizer, add_bos, template
        self.max_length, self.max_gen_toks, self.batch_tokens = max_length or positions, max_gen_toks, batch_tokens
        ends = end_token_ids(tokenizer)
        begin = begin_token_id(tokenizer)
        if begin is None and not ends:
            raise ConfigError("the tokenizer has no token that begins or ends a text, which the harness needs")
        self._end: int = ends[0] if ends else begin  # type: ignore[assignment]
        self._begin: int = self._end if begin is None else begin

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        return self._begin

    @property
    def tokenizer_name(self) -> str:
        """Tells apart what the harness caches for different tokenizers."""
        return digest(self.words)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; `add_special_tokens` False: without a begin token."""
        if add_special_tokens is False or not self.add_bos:
            ids: list[int] = self.words.encode(string, add_special_tokens=False).ids
            return ids
        return encode_text(self.words, string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text."""
        return chat.render(chat_history, self.template, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template in use, by which the harness names its caches."""
        return self.template or "bloomery"

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is what greedy decoding gives) of each (key, context ids, continuation ids)."""
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)  # requests by context: the choices of a question
        for place, (_key, context, _continuation) in enumerate(requests):
            together[tuple(context)].append(place)
        groups = list(together.values())
        questions = [[self._candidate(*requests[place][1:]) for place in places] for places in groups]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for places, found in zip(groups, score(self.model, questions, batch_tokens=self.batch_tokens), strict=True):
            for place, likelihood in zip(places, found, strict=True):
                answers[place] = (likelihood.logprob, likelihood.greedy)
                if requests[place][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], answers[place])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, in windows of the context's length that follow one another."""
        texts = [request.args[0] for request in requests]
        windows = [
            rolling_windows(self.tok_encode(text), self._begin, self.max_length, self.max_length) for text in texts
        ]
        found = iter(
            score(self.model, [[window] for some in windows for window in some], batch_tokens=self.batch_tokens)
        )
        sums = [sum(next(found)[0].logprob for _ in some) for some in windows]
        for text, total in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string."""
        alike: dict[str, list[int]] = defaultdict(list)  # requests by their generation options
        for place, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(place)
        written = [""] * len(requests)
        for places in alike.values():
            options = _normalised(requests[places[0]].args[1], self.max_gen_toks)
            if unknown := sorted(options.keys() - KNOWN):
                raise ConfigError(f"the task asks for generation with {unknown}", fix=f"known: {sorted(KNOWN)}")
            new, until = options.pop("max_gen_toks"), options.pop("until", None) or []
            sampled = options.pop("do_sample", False)
            if new >= self.max_length:
                raise ConfigError(
                    f"answers of {new} tokens leave no room for a question in a context of {self.max_length}",
                    fix="give a smaller max_gen_toks",
                )
            contexts = [self.tok_encode(requests[place].args[0])[new - self.max_length :] for place in places]
            done = generate(
                self.model,
                self.words,
                contexts,
                max_new_tokens=new,
                stop=[stop for stop in ([until] if isinstance(until, str) else until) if stop],
                batch_size=max(1, self.batch_tokens // (max(map(len, contexts)) + new)),
                **(options if sampled else {}),
            )
            for place, completion in zip(places, done, strict=True):
                written[place] = completion.text
                self.cache_hook.add_partial("generate_until", requests[place].args, completion.text)
        return written

    def _candidate(self, context: list[int], continuation: list[int]) -> Candidate:
        """The last tokens that fit: at most `max_length` are input, since the last is only predicted."""
        ids = (context + continuation)[-(self.max_length + 1) :]
        begin = len(ids) - len(continuation)
        if begin < 1:
            raise ConfigError(
                f"a continuation of {len(continuation)} tokens exceeds the context of {self.max_length}",
                fix="leave the question out, or use a model with a longer context",
            )
        return Candidate(ids, begin)
