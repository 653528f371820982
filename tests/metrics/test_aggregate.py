"""Means and ratios with their errors against the textbook and the bootstrap; CORE against published scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.metrics import (
    CORE_V2,
    Estimate,
    core_chances,
    core_score,
    exponential,
    mean,
    ratio,
    strict_match,
    suite_score,
)

# Raw accuracies of the 22 tasks, in the order of CORE_V2, and both scores, as published with DCLM (exp_data/evals):
# a 1B model trained on C4, and DCLM-7B with a context of 8k.
PUBLISHED = {
    "c4-1b": (
        [0.6150169372558594, 0.0193699155934155, 0.6056788563728333, 0.5909090638160706, 0.2918088734149933,
         0.7099999785423279, 0.20311219990253448, 0.7573449611663818, 0.3540000021457672, 0.5381331443786621,
         0.6240788698196411, 0.7692307829856873, 0.5722178220748901, 0.14499999582767487, 0.2130434811115265,
         0.41439393162727356, 0.1666666716337204, 0.03125, 0.191390722990036, 0.2605536878108978,
         0.5373088717460632, 0.25380000472068787],
        {"v1": 0.2548239376536739, "v2": 0.22853659049535457},
    ),
    "dclm-7b": (
        [0.7932682633399963, 0.5252136588096619, 0.734412670135498, 0.8249158263206482, 0.6126279830932617,
         0.8799999952316284, 0.7993447780609131, 0.8161044716835022, 0.44999998807907104, 0.7552881836891174,
         0.8102967739105225, 0.901098906993866, 0.7395422458648682, 0.34700000286102295, 0.260869562625885,
         0.5378788113594055, 0.5, 0.53125, 0.6316934823989868, 0.49805837869644165,
         0.8284403681755066, 0.5216000080108643],
        {"v1": 0.5713606422986358, "v2": 0.5596126827249299},
    ),
}  # fmt: skip

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("model", PUBLISHED)
def test_core_equals_the_published_scores(model, version):
    accuracies, expected = PUBLISHED[model]
    got = core_score(dict(zip(CORE_V2, accuracies, strict=True)), version)
    assert got.score == pytest.approx(expected[version], abs=1e-9)
    assert got.missing == got.unknown == ()


@given(st.sets(st.sampled_from(sorted(CORE_V2)), min_size=1))
def test_core_without_all_tasks_is_no_score_but_a_list(absent):
    got = core_score({name: 0.5 for name in CORE_V2 if name not in absent} | {"mine": 1.0})
    assert got.score is None
    assert set(got.missing) == absent
    assert set(got.centred) == CORE_V2.keys() - absent
    assert got.unknown == ("mine",)


def test_core_refuses_versions_and_numbers_that_are_none():
    with pytest.raises(ConfigError, match="no version 'v3' of CORE"):
        core_chances("v3")
    with pytest.raises(ValueError, match="accuracy of copa is 88"):
        core_score({"copa": 88})
    assert {name for name in CORE_V2 if core_chances("v1")[name] != core_chances("v2")[name]} == {
        "commonsense_qa", "agi_eval_lsat_ar", "bigbench_language_identification"
    }  # fmt: skip


def test_a_guesser_scores_zero_and_a_perfect_model_one():
    chances = {"a": 0.25, "b": 0.0, "c": 0.5}
    assert suite_score("mine", chances, chances).score == 0
    assert suite_score("mine", chances, dict.fromkeys(chances, 1.0)).score == 1


@given(numbers)
def test_mean_is_the_ratio_over_ones(values):
    a, b = mean(values), ratio(values, [1.0] * len(values))
    assert a.value == pytest.approx(np.mean(values), abs=1e-9)
    assert a.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)
    assert (a.value, a.error) == pytest.approx((b.value, b.error), abs=1e-9)


def test_errors_equal_the_bootstrap():
    random = np.random.default_rng(0)
    wholes = random.integers(50, 5000, 400).astype(float)
    parts = wholes * random.normal(0.8, 0.2, 400)
    draws = random.integers(0, 400, (4000, 400))
    resampled = parts[draws].sum(1) / wholes[draws].sum(1)
    got = ratio(parts, wholes)
    assert got.value == parts.sum() / wholes.sum()
    assert got.error == pytest.approx(resampled.std(), rel=0.05)
    assert exponential(got).error == pytest.approx(np.exp(resampled).std(), rel=0.05)


def test_one_question_has_no_error_and_no_question_no_mean():
    assert math.isnan(mean([1.0]).error)
    assert math.isnan(ratio([2.0], [4.0]).error)
    assert ratio([2.0], [4.0]).value == 0.5
    assert exponential(Estimate(1e4, 0.1)) == Estimate(math.inf, math.inf)
    for nothing in (lambda: mean([]), lambda: ratio([], []), lambda: ratio([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match=r"average over|that sum to"):
            nothing()


def test_a_strict_match_keeps_signs_and_case():
    assert strict_match(" -5\n", "-5") == 1.0
    assert strict_match("5", ["-5", "6"]) == 0.0
    assert strict_match("Paris", ["paris"]) == 0.0
