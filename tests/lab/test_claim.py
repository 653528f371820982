from __future__ import annotations

import dataclasses
import json
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.lab import Claim

values = st.floats(-1e6, 1e6)


@st.composite
def claims(draw):
    seeds = draw(st.lists(st.integers(0, 100), min_size=1, max_size=6, unique=True))
    return Claim(
        statement=draw(st.text(max_size=20)),
        paper="arXiv:0000.00000",
        ours={s: draw(values) for s in seeds},
        baseline={s: draw(values) for s in seeds},
        better=draw(st.sampled_from(["lower", "higher"])),
        margin=draw(values),
        unit="nats",
    )


def claim(ours, baseline, better="lower", margin=0.1):
    return Claim("s", "p", dict(enumerate(ours)), dict(enumerate(baseline)), better, margin)


@settings(deadline=None, max_examples=50)
@given(claims())
def test_gain_is_the_mean_of_paired_differences(c):
    sign = 1 if c.better == "higher" else -1
    differences = [sign * (c.ours[s] - c.baseline[s]) for s in sorted(c.ours)]
    assert list(c.gains.values()) == differences
    assert c.gain == pytest.approx(statistics.fmean(differences))
    assert c.spread == pytest.approx(statistics.stdev(differences) if len(differences) > 1 else 0.0)
    assert c.range == (min(differences), max(differences))


@settings(deadline=None, max_examples=50)
@given(claims())
def test_json_round_trip_and_verdicts_are_computed_again(c):
    data = json.loads(json.dumps(c.to_dict()))
    assert Claim.from_dict(data) == c
    data["passes"] = not c.passes
    assert Claim.from_dict(data).passes == c.passes


@settings(deadline=None, max_examples=50)
@given(claims())
def test_swapping_sides_and_direction(c):
    flipped = dataclasses.replace(
        c, better="higher" if c.better == "lower" else "lower", ours=c.baseline, baseline=c.ours
    )
    assert flipped.gains == c.gains
    assert flipped.passes == c.passes
    swapped = dataclasses.replace(c, ours=c.baseline, baseline=c.ours, margin=abs(c.margin))
    assert not (swapped.passes and dataclasses.replace(c, margin=abs(c.margin)).passes)  # never both ways


def test_a_pass_needs_the_margin_and_every_seed():
    assert claim([0.8, 0.9, 0.7], [1.0, 1.1, 1.0]).passes
    assert not claim([0.95, 0.98, 0.96], [1.0, 1.0, 1.0]).passes  # every seed better, mean below the margin
    assert not claim([0.2, 0.2, 1.01], [1.0, 1.0, 1.0]).passes  # mean far above the margin, one seed contradicts
    assert not claim([1.0], [1.0], margin=0.0).passes  # a tie is not a win
    assert claim([1.2], [1.0], better="higher").passes


def test_negative_margin_means_not_worse_by_more_than():
    assert claim([1.05, 1.02], [1.0, 1.0], margin=-0.1).passes
    assert not claim([1.2, 0.9], [1.0, 1.0], margin=-0.1).passes  # one seed is worse by more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ours": {}, "baseline": {}}, "no values"),
        ({"baseline": {0: 1.0, 2: 1.0}}, r"differ in seeds \[1, 2\]"),
        ({"ours": {0: math.nan, 1: 1.0}}, "ours of seed 0 is nan"),
        ({"baseline": {0: 1.0, 1: math.inf}}, "baseline of seed 1 is inf"),
        ({"better": "bigger"}, "'lower' or 'higher'"),
        ({"margin": math.nan}, "margin"),
    ],
)
def test_nonsense_is_refused(change, message):
    good = {"ours": {0: 1.0, 1: 1.0}, "baseline": {0: 1.0, 1: 1.0}, "better": "lower", "margin": 0.1}
    with pytest.raises(ConfigError, match=message):
        Claim("s", "p", **{**good, **change})


def test_foreign_json_is_a_data_error():
    with pytest.raises(DataError, match="not a claim"):
        Claim.from_dict({"statement": "s"})
    with pytest.raises(DataError, match="not a claim"):
        Claim.from_dict({**claim([1.0], [1.0]).to_dict(), "ours": [1.0]})


def test_scalars_of_other_libraries_become_numbers():
    import numpy as np

    c = Claim("s", "p", {np.int64(3): np.float32(0.5)}, {3: np.float64(1)}, "lower", 0.1)
    assert json.loads(json.dumps(c.to_dict()))["ours"] == {"3": 0.5}
