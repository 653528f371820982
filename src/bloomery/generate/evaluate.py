"""Tasks put to a model: accuracies, exact matches and bits per byte, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError
from bloomery.core.progress import Progress
from bloomery.core.seeds import rng
from bloomery.corpus.tokenizer import encode_batch
from bloomery.generate.choices import BATCH_TOKENS, Candidate, Likelihood, encode_candidates, score
from bloomery.generate.decode import generate
from bloomery.generate.prompts import begin_token_id, encode_text, end_token_ids
from bloomery.generate.tasks import PRIMARY, Task
from bloomery.metrics import (
    Estimate,
    centered_accuracy,
    exact_match,
    exponential,
    mean,
    ratio,
    strict_match,
    token_f1,
)
from bloomery.models.decoder import Decoder

BITS = 1 / math.log(2)  # in a nat


@dataclass(frozen=True)
class TaskResult:
    """How a model did in a task.

    `metrics` holds, by kind of task:

    - choice: `accuracy` of the choice with the largest log-probability summed over its tokens, `accuracy_per_token`
      and `accuracy_per_byte` of the largest after division by the choice's tokens, or the bytes of its text (both
      favour no short choices). Where several are equally likely, the point is shared among them.
    - schema: `accuracy` of the context after which the continuation has the largest log-probability.
    - greedy: `accuracy`, the share of continuations all of whose tokens are the model's first choice.
    - exact: `exact_match` and `f1` after SQuAD's normalisation (see `bloomery.metrics.text`), `strict_match` after
      stripping white space only.
    - documents: `bits_per_byte` of UTF-8 text, `perplexity` per token (comparable between models of one tokenizer).

    `truncated` questions were longer than the model's context and lost their beginning.
    """

    task: str
    kind: str
    questions: int
    shots: int
    chance: float
    primary: str
    metrics: dict[str, Estimate]
    truncated: int
    answers: list[dict[str, Any]]  # what the model made of each question, in order

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary].value

    @property
    def centred(self) -> float | None:
        """Accuracy that is 0 for guessing and 1 for perfect; None for documents."""
        return None if self.kind == "documents" else centered_accuracy(self.value, self.chance)


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    task: Task,
    *,
    limit: int | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    quiet: bool = True,
) -> TaskResult:
    """Put a task to a model. The same seed asks the same questions with the same solved examples.

    `limit` asks only so many questions, a random part of the task. What is longer than the model's context loses its
    beginning, the farthest solved examples first. Batches of `batch_tokens` positions: speed and memory only.

    Raises ConfigError for a continuation that alone exceeds the model's context.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}", fix="it must be at least 1")
    count = len(task.questions)
    chosen = list(range(count))
    if limit is not None and limit < count:
        chosen = sorted(rng(seed, "limit", task.name).choice(count, limit, replace=False).tolist())
    examiner = _Examiner(model, tokenizer, batch_tokens, seed, quiet)
    metrics, answers, truncated = _JUDGES[task.kind](examiner, task, chosen)
    return TaskResult(
        task=task.name,
        kind=task.kind,
        questions=len(chosen),
        shots=task.shots,
        chance=task.guessing(chosen),
        primary=task.primary or PRIMARY[task.kind],
        metrics=metrics,
        truncated=truncated,
        answers=answers,
    )


def rolling_windows(ids: Sequence[int], begin: int, size: int, stride: int) -> list[Candidate]:
    """Windows that score every token of a text once, each seeing as much before it as fits.

    The text follows the token `begin`, which is not scored. A window holds at most `size` tokens of input and scores at
    most `stride` of its last ones (the first window scores all of its own), so every token after the first window has
    at least size - stride others in view before it. With stride = size the windows are disjoint but for the last, which
    looks back as far as it can.
    """
    if not 1 <= stride <= size:
        raise ConfigError(f"stride is {stride} for windows of {size}", fix="from 1 to the size")
    text = [begin, *ids]
    windows, scored = [], 0
    while scored < len(ids):
        end = min(scored + (stride if scored else size), len(ids))  # text[end] is the last token scored
        first = max(0, end - size)
        windows.append(Candidate(text[first : end + 1], scored + 1 - first))
        scored = end
    return windows


@dataclass(frozen=True)
class _Examiner:
    """What asking takes."""

    model: Decoder
    tokenizer: Tokenizer
    batch_tokens: int
    seed: int
    quiet: bool

    def score(self, what: str, questions: Sequence[Sequence[Candidate]]) -> list[list[Likelihood]]:
        """The likelihood of every candidate."""
        with Progress(what, total=sum(map(len, questions)), unit="answers", quiet=self.quiet) as progress:
            return score(self.model, questions, batch_tokens=self.batch_tokens, progress=progress)

    def fit(self, candidates: list[Candidate]) -> tuple[list[Candidate], bool]:
        """The candidates of a question without the beginning that exceeds the model, and whether they had one."""
        excess = max(len(candidate.ids) for candidate in candidates) - (self.model.config.max_positions + 1)
        if excess <= 0:
            return candidates, False
        if any(candidate.begin <= excess for candidate in candidates):
            raise ConfigError(
                f"an answer is as long as the model's {self.model.config.max_positions} positions",
                fix="leave the question out, or use a model with a longer context",
            )
        return [Candidate(c.ids[excess:], c.begin - excess) for c in candidates], True


Judged = tuple[dict[str, Estimate], list[dict[str, Any]], int]


def _choice(examiner: _Examiner, task: Task, chosen: list[int]) -> Judged:
    likelihoods, truncated = _ask(examiner, task, chosen)
    hits: dict[str, list[float]] = {"accuracy": [], "accuracy_per_token": [], "accuracy_per_byte": []}
    answers = []
    for index, found in zip(chosen, likelihoods, strict=True):
        question = task.questions[index]
        sums = [likelihood.logprob for likelihood in found]
        sizes = [len(text.encode()) for text in question.continuations]
        scores = {
            "accuracy": sums,
            "accuracy_per_token": [likelihood.logprob / likelihood.tokens for likelihood in found],
            "accuracy_per_byte": [s / size for s, size in zip(sums, sizes, strict=True)],
        }
        for name, values in scores.items():
            hits[name].append(_share(values, question.answer))
        answers.append({"logprobs": sums, "answer": question.answer} | {name: h[-1] for name, h in hits.items()})
    return {name: mean(values) for name, values in hits.items()}, answers, truncated


def _schema(examiner: _Examiner, task: Task, chosen: list[int]) -> Judged:
    likelihoods, truncated = _ask(examiner, task, chosen)
    answers: list[dict[str, Any]] = []
    for index, found in zip(chosen, likelihoods, strict=True):
        sums, right = [likelihood.logprob for likelihood in found], task.questions[index].answer
        answers.append({"logprobs": sums, "answer": right, "accuracy": _share(sums, right)})
    return {"accuracy": mean([answer["accuracy"] for answer in answers])}, answers, truncated


def _greedy(examiner: _Examiner, task: Task, chosen: list[int]) -> Judged:
    likelihoods, truncated = _ask(examiner, task, chosen)
    answers = [{"logprob": found.logprob, "accuracy": float(found.greedy)} for (found,) in likelihoods]
    return {"accuracy": mean([answer["accuracy"] for answer in answers])}, answers, truncated


def _exact(examiner: _Examiner, task: Task, chosen: list[int]) -> Judged:
    room = examiner.model.config.max_positions - task.max_new_tokens
    if room < 1:
        raise ConfigError(f"max_new_tokens is {task.max_new_tokens}, which leaves no position for the question")
    asked = [encode_text(examiner.tokenizer, task.prompt(index, examiner.seed)[0][0]) for index in chosen]
    rows = max(1, examiner.batch_tokens // (min(max(map(len, asked)), room) + task.max_new_tokens))
    written: list[str] = []
    with Progress(task.name, total=len(asked), unit="answers", quiet=examiner.quiet) as progress:
        for begin in range(0, len(asked), 4 * rows):  # a few batches at a time: `generate` sorts them by length
            done = generate(
                examiner.model,
                examiner.tokenizer,
                [ids[-room:] for ids in asked[begin : begin + 4 * rows]],
                max_new_tokens=task.max_new_tokens,
                stop=task.stop,
                batch_size=rows,
            )
            written.extend(completion.text for completion in done)
            progress.advance(len(done))
    judged: dict[str, Callable[[str, Sequence[str]], float]] = {
        "exact_match": exact_match,
        "strict_match": strict_match,
        "f1": token_f1,
    }
    answers: list[dict[str, Any]] = []
    for index, text in zip(chosen, written, strict=True):
        accepted = task.questions[index].continuations
        found = {name: metric(text, accepted) for name, metric in judged.items()}
        answers.append({"written": text, "accepted": list(accepted)} | found)
    metrics = {name: mean([answer[name] for answer in answers]) for name in judged}
    return metrics, answers, sum(len(ids) > room for ids in asked)


def _documents(examiner: _Examiner, task: Task, chosen: list[int]) -> Judged:
    """Windows overlap by half: after a document's first one, half of the model's positions at least are context."""
    begins = [begin_token_id(examiner.tokenizer), *end_token_ids(examiner.tokenizer)]
    begin = next((token for token in begins if token is not None), None)
    if begin is None:
        raise ConfigError("the tokenizer has no token that begins or ends a text, after which to score its first one")
    texts = [task.questions[index].continuations[0] for index in chosen]
    size = examiner.model.config.max_positions
    ids = [tokens.tolist() for tokens in encode_batch(examiner.tokenizer, texts)]
    windows = [rolling_windows(tokens, begin, size, max(1, size // 2)) for tokens in ids]
    found = iter(examiner.score(task.name, [[window] for some in windows for window in some]))
    nats = [-sum(next(found)[0].logprob for _ in some) for some in windows]
    tokens, sizes = [len(some) for some in ids], [len(text.encode("utf-8", "replace")) for text in texts]
    per_byte = ratio(nats, sizes)
    metrics = {
        "bits_per_byte": Estimate(per_byte.value * BITS, per_byte.error * BITS),
        "perplexity": exponential(ratio(nats, tokens)),
    }
    answers = [{"nats": n, "tokens": t, "bytes": b} for n, t, b in zip(nats, tokens, sizes, strict=True)]
    return metrics, answers, 0


_JUDGES = {"choice": _choice, "schema": _schema, "greedy": _greedy, "exact": _exact, "documents": _documents}


def _ask(examiner: _Examiner, task: Task, chosen: list[int]) -> tuple[list[list[Likelihood]], int]:
    """Likelihoods of every context with every continuation, and how many questions were too long."""
    asked, truncated = [], 0
    for index in chosen:
        contexts, continuations = task.prompt(index, examiner.seed)
        every = [c for context in contexts for c in encode_candidates(examiner.tokenizer, context, continuations)]
        fitted, cut = examiner.fit(every)
        asked.append(fitted)
        truncated += cut
    return examiner.score(task.name, asked), truncated


def _share(scores: Sequence[float], right: int) -> float:
    """The point for the largest score, shared among equal ones."""
    best = [i for i, value in enumerate(scores) if value == max(scores)]
    return (right in best) / len(best)
