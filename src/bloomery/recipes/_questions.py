"""Questions with answers, as training examples and as a test (the documentation answers them: see `_inputs`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bloomery.core.seeds import rng

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bloomery.corpus import PackedExamples

CHOICES = 4
Question = Mapping[str, str]  # `question` and `answer`


def as_chat(tokenizer: Tokenizer, q: Question) -> tuple[list[int], list[int]]:
    """Ids and loss mask of a question and its answer as two chat turns."""
    from bloomery.corpus import chat

    turns = [{"role": "user", "content": q["question"]}, {"role": "assistant", "content": q["answer"]}]
    return chat.encode(tokenizer, turns)


def as_text(tokenizer: Tokenizer, q: Question) -> tuple[list[int], list[int]]:
    """The same as two plain paragraphs, for a model that knows no chat format."""
    before, answer = (tokenizer.encode(text).ids for text in (q["question"] + "\n\n", q["answer"]))
    return before + answer, [0] * len(before) + [1] * len(answer)


def lessons(tokenizer: Tokenizer, questions: Sequence[Question]) -> PackedExamples:
    """Chat turns whose answers, and their ends, are to be learned."""
    from bloomery.corpus import PackedExamples

    return PackedExamples([as_chat(tokenizer, q) for q in questions])


def answers(tokenizer: Tokenizer, questions: Sequence[Question], *, chat: bool) -> PackedExamples:
    """Questions whose answers are to be judged: the same bytes of text as chat and as plain text, `n_bytes` of them."""
    from bloomery.corpus import PackedExamples

    pairs = []
    for q in questions:
        ids, mask = as_chat(tokenizer, q) if chat else as_text(tokenizer, q)
        pairs.append((ids, [*mask[:-1], 0] if chat else mask))  # the token that ends a turn is no text
    return PackedExamples(pairs, n_bytes=sum(len(q["answer"].encode()) for q in questions))


def fitting(tokenizer: Tokenizer, questions: Sequence[Question], seq_len: int, count: int) -> list[Question]:
    """The first `count` questions that fit into a training sequence whole, so that no answer is judged by its half."""
    found: list[Question] = []
    for q in questions:
        if len(found) == count:
            break
        if len(as_chat(tokenizer, q)[0]) <= seq_len + 1:
            found.append(q)
    return found


def choice_accuracy(model: Any, tokenizer: Tokenizer, questions: Sequence[Question], seed: int) -> float:
    """Share of questions whose own answer is likelier (per byte) than three answers to other questions."""
    from bloomery.corpus import chat
    from bloomery.generate import choice_logprobs

    right = 0
    for i, q in enumerate(questions):
        others = rng(seed, "choices", i).choice(len(questions) - 1, CHOICES - 1, replace=False)
        answers = [q["answer"], *(questions[j + (j >= i)]["answer"] for j in others)]
        prompt = chat.render([{"role": "user", "content": q["question"]}], add_generation_prompt=True)
        scores = choice_logprobs(model, tokenizer, prompt, answers)
        per_byte = [score / len(answer.encode()) for score, answer in zip(scores, answers, strict=True)]
        right += per_byte[0] == max(per_byte)
    return right / len(questions)
