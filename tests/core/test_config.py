from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.config import decode, encode, load_yaml, save_yaml
from bloomery.core.errors import ConfigError


@dataclass(kw_only=True)
class Inner:
    rate: float = 0.1
    name: str = "x"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate is {self.rate}", fix="0 or more")


@dataclass(kw_only=True)
class Outer:
    size: int
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = field(default_factory=Inner)
    items: list[Inner] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | None = None
    folder: Path | None = None
    pair: tuple[float, float] = (0.9, 0.95)


inners = st.builds(Inner, rate=st.floats(0, 10), name=st.text(max_size=5))
outers = st.builds(
    Outer,
    size=st.integers(),
    mode=st.sampled_from(["fast", "slow"]),
    inner=inners,
    items=st.lists(inners, max_size=3),
    weights=st.dictionaries(st.text(max_size=4), st.floats(0, 1), max_size=3),
    limit=st.none() | st.integers(),
    pair=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)


@settings(deadline=None, max_examples=50)
@given(outers)
def test_encode_then_decode_is_identity(value: Outer) -> None:
    assert decode(Outer, encode(value)) == value


def test_yaml_round_trip(tmp_path: Path) -> None:
    value = Outer(size=3, folder=Path("a/b"), items=[Inner(rate=1e-5)])
    save_yaml(tmp_path / "c.yaml", value)
    assert decode(Outer, load_yaml(tmp_path / "c.yaml")) == value


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sise": 3}, ["'sise'", "did you mean 'size'"]),
        ({"size": "three"}, ["size", "expected int", "'three'"]),
        ({"size": True}, ["expected int"]),
        ({"size": 1, "mode": "quick"}, ["mode", "'quick'", "fast, slow"]),
        ({"size": 1, "inner": {"rte": 1}}, ["inner", "'rte'", "'rate'"]),
        ({"size": 1, "inner": {"rate": -1.0}}, ["inner", "rate is -1.0"]),
        ({"size": 1, "items": [{"rate": "x"}]}, ["items[0].rate", "expected float"]),
        ({"size": 1, "items": "ab"}, ["items", "expected a list"]),
        ({"size": 1, "pair": [1.0]}, ["pair", "expected 2 values"]),
        ({}, ["needs size"]),
    ],
)
def test_errors_name_the_path_the_value_and_the_remedy(data: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        decode(Outer, data)
    for word in words:
        assert word in str(error.value)


def test_numbers_that_yaml_reads_as_strings(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("rate: 1e-3\n")
    assert decode(Inner, load_yaml(tmp_path / "c.yaml")).rate == 1e-3


def test_yaml_faults_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: [1,\nb: 2")
    with pytest.raises(ConfigError, match=r"not valid YAML") as error:
        load_yaml(tmp_path / "c.yaml")
    assert "\n" not in str(error.value)
    (tmp_path / "d.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_yaml(tmp_path / "d.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_yaml(tmp_path / "none.yaml")
