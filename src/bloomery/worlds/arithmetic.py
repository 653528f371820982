"""Verifiable text problems: arithmetic and work on digits, with exact answers and a checker for free completions.

`difficulty` is the number of digits of every operand (of terms minus one for "chain"). Problems of different difficulty
never coincide, so training on some difficulties and testing on others holds the latter out by construction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from bloomery.core.errors import ConfigError, nearest
from bloomery.core.seeds import rng

MAX_TERM = 20  # largest number in a chain
SEPARATORS = ",_'\u00a0\u202f"  # between groups of three digits
NUMBER = re.compile(
    rf"(?:(?<![\w)\]])[-+−])?(?<![0-9.])(?:[0-9]{{1,3}}(?:[{SEPARATORS}][0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question in words and its one right answer."""

    prompt: str
    answer: str
    kind: str
    difficulty: int


def generate(kind: str, difficulty: int, seed: int = 0, index: int = 0) -> Problem:
    """Problem number `index` of the stream (kind, difficulty, seed): a pure function of its arguments."""
    if kind not in MAKERS:
        raise ConfigError("no such kind of problem", where=f"kind: {kind!r}", fix=nearest(kind, MAKERS))
    if difficulty < 1:
        raise ConfigError(
            "must be at least 1", where=f"difficulty: {difficulty!r}", fix="it counts digits or operations"
        )
    prompt, answer = MAKERS[kind](rng(seed, "arithmetic", kind, difficulty, index), difficulty)
    return Problem(prompt, answer, kind, difficulty)


def examples(
    kinds: Sequence[str] | None = None, difficulty: int | Sequence[int] = 2, seed: int = 0
) -> Iterator[Problem]:
    """Endless problems: kinds (None: all) and difficulties take turns, so every combination comes equally often."""
    chosen = list(MAKERS if kinds is None else kinds)
    levels = [difficulty] if isinstance(difficulty, int) else list(difficulty)
    if not chosen or not levels:
        raise ConfigError(
            "needs at least one kind and one difficulty", where="arithmetic.examples", fix=nearest("", MAKERS)
        )
    for index in count():
        for level in levels:
            for kind in chosen:
                yield generate(kind, level, seed, index)


def check(problem: Problem, completion: str) -> bool:
    """Whether the last number in `completion` is the answer.

    Signs, thousands separators and a fraction of zeros are understood ("The sum is -1,234.0." answers -1234). Answers
    of the digit kinds are strings of digits, in which leading zeros count.
    """
    numbers = NUMBER.findall(completion)
    if not numbers:
        return False
    text = re.sub(f"[{SEPARATORS}]", "", numbers[-1]).replace("−", "-")
    if problem.kind in DIGIT_STRINGS:
        return text == problem.answer
    whole, _, fraction = text.partition(".")
    sign, size = ("-" if whole.startswith("-") else ""), whole.lstrip("+-").lstrip("0") or "0"
    return not fraction.strip("0") and (sign + size if size != "0" else size) == problem.answer


# -- makers: (random numbers, difficulty) -> (prompt, answer) ---------------------------------------------------------


def _add(random: np.random.Generator, digits: int) -> tuple[str, str]:
    a, b = _number(random, digits), _number(random, digits)
    return f"What is {a} + {b}?", str(a + b)


def _subtract(random: np.random.Generator, digits: int) -> tuple[str, str]:
    a, b = _number(random, digits), _number(random, digits)
    return f"What is {a} - {b}?", str(a - b)


def _multiply(random: np.random.Generator, digits: int) -> tuple[str, str]:
    a, b = _number(random, digits), _number(random, digits)
    return f"What is {a} * {b}?", str(a * b)


def _divide(random: np.random.Generator, digits: int) -> tuple[str, str]:
    """Without remainder: quotient and divisor have the digits, the dividend is their product."""
    quotient, divisor = _number(random, digits), _number(random, digits, low=1)
    return f"What is {quotient * divisor} / {divisor}?", str(quotient)


def _remainder(random: np.random.Generator, digits: int) -> tuple[str, str]:
    a, b = _number(random, digits), int(random.integers(2, 10))
    return f"What is the remainder of {a} divided by {b}?", str(a % b)


def _chain(random: np.random.Generator, operations: int) -> tuple[str, str]:
    text, value, _ = _expression(random, operations + 1)
    return f"What is {text}?", str(value)


def _larger(random: np.random.Generator, digits: int) -> tuple[str, str]:
    a, b = _different(random, digits)
    return f"Which number is larger, {a} or {b}?", str(max(a, b))


def _smaller(random: np.random.Generator, digits: int) -> tuple[str, str]:
    a, b = _different(random, digits)
    return f"Which number is smaller, {a} or {b}?", str(min(a, b))


def _sort_digits(random: np.random.Generator, digits: int) -> tuple[str, str]:
    text = _digits(random, digits)
    return f"Sort the digits of {text} in ascending order.", "".join(sorted(text))


def _reverse_digits(random: np.random.Generator, digits: int) -> tuple[str, str]:
    text = _digits(random, digits)
    return f"Write the digits of {text} in reverse order.", text[::-1]


def _count_digit(random: np.random.Generator, digits: int) -> tuple[str, str]:
    text = _digits(random, digits)
    digit = text[random.integers(digits)] if random.random() < 0.8 else str(random.integers(10))
    return f"How many times does the digit {digit} occur in {text}?", str(text.count(digit))


def _digit_sum(random: np.random.Generator, digits: int) -> tuple[str, str]:
    text = _digits(random, digits)
    return f"What is the sum of the digits of {text}?", str(sum(map(int, text)))


def _digits(random: np.random.Generator, count: int) -> str:
    return "".join(str(digit) for digit in random.integers(0, 10, count))


def _number(random: np.random.Generator, digits: int, low: int = 0) -> int:
    """A number of exactly so many digits; with one digit, at least `low`."""
    first = random.integers(low if digits == 1 else 1, 10)
    return int(f"{first}{_digits(random, digits - 1)}")


def _different(random: np.random.Generator, digits: int) -> tuple[int, int]:
    """Two different numbers, half of the time with a common beginning, so that the first digit does not decide."""
    a = b = _number(random, digits)
    while a == b:
        b = _number(random, digits)
        if digits > 1 and random.random() < 0.5:
            shared = int(random.integers(1, digits))
            b = int(str(a)[:shared] + _digits(random, digits - shared))
    return a, b


def _expression(random: np.random.Generator, terms: int) -> tuple[str, int, str]:
    """(text, value, outermost operation) of a random expression; parentheses where needed, and sometimes elsewhere."""
    if terms == 1:
        value = int(random.integers(0, MAX_TERM + 1))
        return str(value), value, ""
    left_terms = int(random.integers(1, terms))
    left, a, left_op = _expression(random, left_terms)
    right, b, right_op = _expression(random, terms - left_terms)
    op = "+-*"[random.integers(3)]
    if (op == "*" and left_op in ("+", "-")) or (left_op and random.random() < 0.3):
        left = f"({left})"
    if (
        (op == "*" and right_op in ("+", "-"))
        or (op == "-" and right_op in ("+", "-"))
        or (right_op and random.random() < 0.3)
    ):
        right = f"({right})"
    return f"{left} {op} {right}", {"+": a + b, "-": a - b, "*": a * b}[op], op


MAKERS: dict[str, Callable[[np.random.Generator, int], tuple[str, str]]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "remainder": _remainder,
    "chain": _chain,
    "larger": _larger,
    "smaller": _smaller,
    "sort_digits": _sort_digits,
    "reverse_digits": _reverse_digits,
    "count_digit": _count_digit,
    "digit_sum": _digit_sum,
}
KINDS = tuple(MAKERS)
DIGIT_STRINGS = frozenset({"sort_digits", "reverse_digits"})
