"""Continuous batching: requests join and leave a running batch between two tokens.

A batch that runs until its longest row has ended leaves most rows idle most of the time when lengths differ. Here a row
that ends makes room for a waiting request at the next step (iteration-level scheduling, Orca, OSDI 2022 §4.1):

```text
step:  rows that run ── one token each ── those that ended leave
       waiting requests ── prompts, a chunk at a time, in a cache of their own ── join, with their first token
```

The tokens of a request are those that `generate` gives for the same prompt, options and (seed, index), whatever else is
in the batch (up to rounding of the model).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.generate.prefix import BLOCK, PrefixStore, block_keys
from bloomery.generate.rows import Reason, Row, make_rows, not_finite, pack, seen_tokens
from bloomery.generate.sampling import SamplingParams, Uniforms, sample
from bloomery.generate.timeline import Timeline
from bloomery.models.decoder import Decoder
from bloomery.nn import KVCache

CHUNK = 1024  # prompt positions run per step; more would keep the running rows waiting


class QueueFull(BloomeryError):
    """As many requests are waiting as the engine accepts."""


@dataclass(kw_only=True, eq=False)
class Request(Row):
    """A prompt handed to an engine, and what has come of it so far.

    `tokens`, `logprobs` and `text` grow; `reason` ("eos", "stop", "length", "cancelled" or "error") is None until it
    has ended, `error` says what went wrong when it is "error". While it runs, the end of `text` may still turn out to
    belong to a stop string; the pieces given to `on_text` are certain.
    """

    params: SamplingParams  # with seed 0: requests that differ in their seed only are sampled together
    on_text: Callable[[str], None] | None = None
    on_end: Callable[[Request], None] | None = None
    error: Exception | None = None
    uniforms: Uniforms = field(repr=False)
    seen: Tensor | None = field(default=None, repr=False)  # (1, vocab) bool, with a repetition penalty
    keys: list[bytes] = field(default_factory=list, repr=False)  # of the prompt's blocks
    cancelled: bool = False


class Engine:
    """Runs requests through one model, at most `max_batch` at a time; up to `max_queue` more may wait.

    `max_len` is the number of positions of a request, prompt and new tokens together (default: the model's). Up to
    `prefix_bytes` of memory keep the beginnings of prompts, which later prompts may share; 0 switches that off.

    `submit` and `cancel` may be called from any thread. One thread must drive `step` (or `drain`); callbacks run in it,
    but for the end of a request that is cancelled before it began. The engine puts the model into evaluation mode and
    copies its weights into a faster layout where there is one: it must not be trained while the engine is in use.

    ```python
    engine = Engine(model, tokenizer)
    requests = [engine.submit(prompt, SamplingParams(temperature=0.7), max_new_tokens=100) for prompt in prompts]
    engine.drain()
    print([request.text for request in requests])
    ```
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 16,
        max_len: int | None = None,
        max_queue: int = 256,
        prefix_bytes: int = 1 << 28,
    ) -> None:
        positions = model.config.max_positions
        self.max_len = positions if max_len is None else max_len
        for name, value, least in (
            ("max_batch", max_batch, 1),
            ("max_len", self.max_len, 2),
            ("max_queue", max_queue, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}", fix=f"it must be at least {least}")
        if self.max_len > positions:
            raise ConfigError(f"max_len is {max_len}", fix=f"the model sees {positions} positions")
        if prefix_bytes < 0:
            raise ConfigError(f"prefix_bytes is {prefix_bytes}", fix="give 0 to keep no prefixes, or a number of bytes")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_batch, self.max_queue = max_batch, max_queue
        self.prefixes = PrefixStore(prefix_bytes)
        self._device, self._dtype = model.head_weight.device, model.head_weight.dtype
        self._packed = pack(model)
        self._lock = threading.Lock()  # guards _waiting
        self._waiting: deque[Request] = deque()
        self._joining: list[Request] = []  # those whose prompts are being run
        self._prompts: _Prompts | None = None
        self._running: list[Request] = []  # in the order of the timeline's rows
        self._timeline = self._new_timeline()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have begun and not ended."""
        return len(self._running) + len(self._joining)

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        *,
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        eos: Sequence[int] | None = None,
        index: int = 0,
        on_text: Callable[[str], None] | None = None,
        on_end: Callable[[Request], None] | None = None,
    ) -> Request:
        """Queue a prompt; the options are those of `generate`. Its random numbers depend on (params.seed, index) only.

        `on_text` gets the text in pieces, as `stream` yields them, and `on_end` the request once it has ended; a
        callback that raises ends its request with reason "error".

        Raises QueueFull when `max_queue` requests are waiting, ConfigError for options out of range and for a prompt
        that leaves no room in `max_len`.
        """
        self._require_place()
        params = SamplingParams() if params is None else params
        (row,) = make_rows(self.model, self.tokenizer, [prompt], max_new_tokens, stop, eos)
        if len(row.prompt) >= self.max_len:
            raise ConfigError(
                f"the prompt has {len(row.prompt)} tokens, but the engine's cache holds {self.max_len} positions",
                fix=f"shorten it to at most {self.max_len - 1} tokens, or give the engine a larger max_len",
            )
        request = Request(
            index=index,
            prompt=row.prompt,
            limit=min(row.limit, self.max_len - len(row.prompt)),
            end_tokens=row.end_tokens,
            builder=row.builder,
            params=replace(params, seed=0),
            on_text=on_text,
            on_end=on_end,
            uniforms=Uniforms(params.seed, [index]),
            keys=block_keys(row.prompt) if self.prefixes.max_bytes else [],
        )
        with self._lock:
            self._require_place()
            self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request early, at once when it has not begun, otherwise before the next step. Ended ones stay as is."""
        with self._lock:
            request.cancelled = True
            if request not in self._waiting:
                return
            self._waiting.remove(request)
        _end(request, "cancelled")

    def drain(self) -> None:
        """Run until nothing is waiting or running."""
        while self.step():
            pass

    @torch.inference_mode()
    def step(self) -> bool:
        """Give every running request one token and bring waiting ones in; False when there was nothing to do.

        A failure of the model itself (out of memory, say) ends all requests that have begun with reason "error" and is
        raised; those that wait can still be run.
        """
        try:
            for row in reversed(range(len(self._running))):
                if self._running[row].cancelled:
                    _end(self._running[row], "cancelled")
                    self._leave(row)
            decoded = bool(self._running)
            if decoded:
                self._decode()
            if not self._joining:
                self._admit()
            joining = bool(self._joining)
            if joining:
                self._prefill()
        except Exception as error:
            begun = self._running + self._joining
            self._running, self._joining, self._prompts, self._timeline = [], [], None, self._new_timeline()
            for request in begun:
                if request.reason is None:
                    _end(request, "error", error)
            raise
        return decoded or joining

    def _decode(self) -> None:
        """One token for every running row; those that end leave."""
        inputs = torch.tensor([[request.tokens[-1]] for request in self._running], device=self._device)
        with self._packed:
            hidden = self.model(inputs, cache=self._timeline.window()).hidden[:, -1]  # (rows, dim)
            logits = self.model.logits(hidden)  # (rows, vocab)
        self._timeline.advance()
        self._push(self._running, logits)
        for row in reversed(range(len(self._running))):
            if self._running[row].reason is not None:
                self._leave(row)

    def _leave(self, row: int) -> None:
        """Take a request that has ended out of the batch; what the cache knows of its text may serve the next turn."""
        request = self._running[row]
        if request.reason != "error" and self.prefixes.max_bytes:
            held = self._timeline.contents(row)
            known = request.prompt + request.tokens
            self.prefixes.save(held, block_keys(known[: held[0][0].shape[1]]))
        self._timeline.remove(row, wipe=request.reason == "error")
        self._running[row] = self._running[-1]
        self._running.pop()

    def _admit(self) -> None:
        """Let waiting requests join, in their order: as many together as fit the batch and one chunk.

        Two with a common beginning that is not stored yet do not go together: the second can copy from the first.
        """
        requests = self._joining
        known: list[int] = []  # positions that the store holds of each prompt
        begun: set[bytes] = set()
        with self._lock:
            while self._waiting and len(self._running) + len(requests) < self.max_batch:
                request = self._waiting[0]
                held = self.prefixes.known(request.prompt, request.keys)
                rests = [len(r.prompt) - k for r, k in zip([*requests, request], [*known, held], strict=True)]
                padded = len(rests) * max(rests)
                shared = begun.intersection(request.keys[held // BLOCK :][:1])
                if requests and (padded > CHUNK or padded > 2 * sum(rests) or shared):
                    break
                requests.append(self._waiting.popleft())
                known.append(held)
                begun.update(request.keys)
        for request, held in zip(requests, known, strict=True):
            self.prefixes.count(len(request.prompt), held)
            if request.params.repetition_penalty != 1.0:
                request.seen = seen_tokens([request], self.model.config.vocab_size, self._device)
        if requests:
            self._prompts = self._lay_out(requests, known)

    def _lay_out(self, requests: list[Request], known: list[int]) -> _Prompts:
        """The prompts of `requests`, and the cache in which they are run, with what the store knows of them."""
        lengths = [len(request.prompt) for request in requests]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        tokens = [r.prompt[:1] * pad + r.prompt for r, pad in zip(requests, padding, strict=True)]
        begin = longest - max(length - held for length, held in zip(lengths, known, strict=True))
        cache = KVCache(self.model.config, len(requests), longest, self._dtype, self._device)
        for row, (request, pad) in enumerate(zip(requests, padding, strict=True)):
            self.prefixes.load(cache, row, pad, request.keys, max(0, begin - pad))
        for slot in cache.slots:
            slot.length = begin
        if any(padding):
            cache.start = torch.tensor(padding, device=self._device)
        return _Prompts(torch.tensor(tokens, device=self._device), cache)

    def _prefill(self) -> None:
        """Run the next chunk of the prompts; after the last one their requests join the batch."""
        assert self._prompts is not None
        requests, tokens, cache = self._joining, self._prompts.tokens, self._prompts.cache
        if all(request.cancelled for request in requests):
            self._joining, self._prompts = [], None
            for request in requests:
                _end(request, "cancelled")
            return
        chunk = tokens[:, cache.length : cache.length + max(1, CHUNK // len(requests))]
        with self._packed:
            hidden = self.model(chunk, cache=cache).hidden[:, -1]  # (rows, dim)
        if cache.length < tokens.shape[1]:
            return
        with self._packed:
            logits = self.model.logits(hidden)  # (rows, vocab)
        self._push(requests, logits)
        for row, request in enumerate(requests):
            if request.reason != "error":
                pad = cache.length - len(request.prompt)
                contents = [tuple(tensor[row, :, pad:] for tensor in slot.tensors) for slot in cache.slots]
                self.prefixes.save(contents, request.keys)
        staying = [row for row, request in enumerate(requests) if request.reason is None]
        if staying:
            self._timeline.add(cache, staying, [len(requests[row].prompt) for row in staying])
            self._running += [requests[row] for row in staying]
        self._joining, self._prompts = [], None

    def _push(self, requests: Sequence[Request], logits: Tensor) -> None:
        """Pick the next token of every request from its logits (requests, vocab) and tell whoever listens."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        tokens = self._pick(requests, logits)
        logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
        for request, token, logprob in zip(requests, tokens.tolist(), logprobs.tolist(), strict=True):
            if request.cancelled:
                _end(request, "cancelled")
            elif not math.isfinite(logprob):
                _end(request, "error", not_finite(self.model, request))
            else:
                request.push(token, logprob)
                if request.seen is not None:
                    request.seen[0, token] = True
                _deliver(request)

    def _pick(self, requests: Sequence[Request], logits: Tensor) -> Tensor:
        """The next tokens (requests,), those with the same sampling options at once."""
        groups: dict[SamplingParams, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.params, []).append(i)
        tokens = torch.empty(len(requests), dtype=torch.int64, device=self._device)
        for params, members in groups.items():
            uniforms = seen = None
            if params.temperature > 0:
                numbers = [requests[i].uniforms.next()[0] for i in members]
                uniforms = torch.tensor(numbers, dtype=torch.float64, device=self._device)
            if params.repetition_penalty != 1.0:
                seen = torch.cat([seen for i in members if (seen := requests[i].seen) is not None])
            tokens[members] = sample(logits if len(groups) == 1 else logits[members], params, uniforms, seen)
        return tokens

    def _new_timeline(self) -> Timeline:
        return Timeline(self.model.config, self.max_batch, self.max_len, self._dtype, self._device)

    def _require_place(self) -> None:
        if len(self._waiting) >= self.max_queue:
            raise QueueFull(
                f"{self.max_queue} requests are waiting already",
                fix="try again later, or give the engine a larger max_queue",
            )


@dataclass
class _Prompts:
    """Prompts that are being run, padded at the left to the longest."""

    tokens: Tensor  # (requests, longest prompt) int64
    cache: KVCache


def _deliver(request: Request) -> None:
    """Hand on the text that has become certain, and the request itself when it has ended."""
    piece = request.builder.take()
    if request.on_text is not None and piece:
        try:
            request.on_text(piece)
        except Exception as error:
            _end(request, "error", error)
            return
    if request.reason is not None:
        _end(request, request.reason, None)


def _end(request: Request, reason: Reason, error: Exception | None = None) -> None:
    request.reason, request.error, request.seen = reason, error, None
    if request.on_end is not None:
        try:
            request.on_end(request)
        except Exception as failure:
            request.reason, request.error = "error", failure
