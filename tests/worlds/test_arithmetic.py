"""Arithmetic problems: true answers, purity, disjoint difficulties, and a checker that reads what models write."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.worlds.arithmetic import KINDS, Problem, check, examples, generate

kinds = st.sampled_from(KINDS)
problems = st.builds(generate, kinds, st.integers(1, 9), st.integers(0, 3), st.integers(0, 10_000))


@settings(deadline=None, max_examples=200)
@given(problems)
def test_expressions_are_answered_as_python_does(problem: Problem) -> None:
    if problem.kind in ("add", "subtract", "multiply", "chain"):
        expression = re.fullmatch(r"What is (.*)\?", problem.prompt)
        assert expression is not None
        assert int(problem.answer) == eval(expression[1])
    numbers = [int(n) for n in re.findall(r"\d+", problem.prompt)]
    match problem.kind:
        case "divide":
            assert numbers[0] == numbers[1] * int(problem.answer)
            assert len(problem.answer) == len(str(numbers[1])) == problem.difficulty
        case "remainder":
            assert int(problem.answer) == numbers[0] % numbers[1]
        case "larger":
            assert int(problem.answer) == max(numbers) > min(numbers)
        case "smaller":
            assert int(problem.answer) == min(numbers) < max(numbers)
        case "count_digit":
            digit, text = re.findall(r"\d+", problem.prompt)
            assert int(problem.answer) == sum(c == digit for c in text)
        case "sort_digits":
            (text,) = re.findall(r"\d+", problem.prompt)
            assert list(problem.answer) == sorted(text)
        case "reverse_digits":
            (text,) = re.findall(r"\d+", problem.prompt)
            assert problem.answer == "".join(reversed(text))
        case "digit_sum":
            (text,) = re.findall(r"\d+", problem.prompt)
            assert int(problem.answer) == sum(int(c) for c in text)


@settings(deadline=None, max_examples=50)
@given(problems, st.integers(0, 3), st.integers(0, 10_000))
def test_generation_is_pure_and_its_own_answer_passes(problem: Problem, seed: int, index: int) -> None:
    again = generate(problem.kind, problem.difficulty, seed, index)
    assert again == generate(problem.kind, problem.difficulty, seed, index)
    assert check(again, again.answer)
    assert check(again, f"Let me think: 12 + 7 is 19, but the answer is {again.answer}.")


@settings(deadline=None, max_examples=100)
@given(problems, st.integers(-5, 5).filter(bool))
def test_a_different_number_fails(problem: Problem, off: int) -> None:
    wrong = str(int(problem.answer) + off)
    assert not check(problem, wrong)
    assert not check(problem, f"{problem.answer} or {wrong}")
    assert not check(problem, f"{problem.answer}.5")


@pytest.mark.parametrize("kind", KINDS)
def test_difficulties_share_no_prompt(kind: str) -> None:
    prompts = [{generate(kind, level, 0, i).prompt for i in range(300)} for level in range(1, 6)]
    for easy in range(5):
        for hard in range(easy):
            assert not prompts[easy] & prompts[hard]
    assert len(prompts[4]) > 290  # hard problems hardly ever repeat


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("1234567", "1,234,567", True),
        ("1234567", "about 1_234_567!", True),
        ("1234567", "1\u202f234\u202f567", True),
        ("-12", "−12", True),
        ("-12", "It is -12.", True),
        ("-12", "12", False),
        ("12", "-12", False),
        ("12", "+12", True),
        ("7", "10-3=7", True),
        ("3", "10-3", True),  # a minus between numbers is an operation, not a sign
        ("-3", "x = (-3)", True),
        ("7", "7.0", True),
        ("5", "7.5", False),
        ("3", "1, 2, 3", True),
        ("234", "1,234", False),
        ("8", "**8**", True),
        ("8", "", False),
        ("8", "eight", False),
        ("0", "0", True),
        ("12", "12 apples cost $12", True),
        ("5", "\\boxed{5}", True),
        ("5", "005", True),
        ("0", "-0", True),
        ("5", "9" * 10_000, False),
    ],
)
def test_check_reads_the_last_number(answer: str, completion: str, right: bool) -> None:
    assert check(Problem("", answer, "add", 1), completion) is right


def test_leading_zeros_count_in_digit_strings() -> None:
    problem = Problem("Sort the digits of 2010 in ascending order.", "0012", "sort_digits", 4)
    assert check(problem, "0012")
    assert not check(problem, "12")


@settings(deadline=None, max_examples=100)
@given(problems, st.text(max_size=40))
def test_check_survives_any_text(problem: Problem, completion: str) -> None:
    assert check(problem, completion) in (True, False)


def test_examples_take_turns() -> None:
    first = list(islice(examples(["add", "chain"], [1, 3], seed=5), 8))
    assert [(p.kind, p.difficulty) for p in first[:4]] == [("add", 1), ("chain", 1), ("add", 3), ("chain", 3)]
    assert first[4] == generate("add", 1, 5, 1)
    assert {p.kind for p in islice(examples(), len(KINDS))} == set(KINDS)


def test_bad_arguments_name_the_field() -> None:
    with pytest.raises(ConfigError, match="did you mean 'multiply'"):
        generate("multiplyy", 2)
    with pytest.raises(ConfigError, match="difficulty"):
        generate("add", 0)
    with pytest.raises(ConfigError, match="at least one kind"):
        next(examples([], 2))
