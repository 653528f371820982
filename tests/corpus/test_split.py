"""The split into training and validation documents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.config import decode
from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.documents import from_texts
from bloomery.corpus.split import Split, split_of

KEYS = [f"document {i}" for i in range(4000)]


def test_the_share_is_about_right_and_depends_on_the_seed() -> None:
    held_out = [key for key in KEYS if split_of(key, 0, 0.1) == "validation"]
    assert 320 < len(held_out) < 480
    assert held_out != [key for key in KEYS if split_of(key, 1, 0.1) == "validation"]


@given(st.text(), st.integers(0, 9), st.floats(0.01, 0.98))
def test_a_larger_share_only_adds(key: str, seed: int, share: float) -> None:
    if split_of(key, seed, share) == "validation":
        assert split_of(key, seed, min(share + 0.01, 1.0)) == "validation"


def test_the_step_agrees_with_the_function_and_ignores_other_documents() -> None:
    batch = from_texts(KEYS[:300], ids=KEYS[:300])
    sides = Split(validation=0.2, seed=3)(batch).column("split").to_pylist()
    assert sides == [split_of(key, 3, 0.2) for key in KEYS[:300]]
    part = Split(validation=0.2, seed=3)(batch.slice(100, 50)).column("split").to_pylist()
    assert part == sides[100:150]
    assert Split()(batch.slice(0, 0)).column("split").to_pylist() == []


class FirstLetter:
    """A key function that steps can be identified by."""

    def __call__(self, url: str, meta: dict[str, str]) -> str:
        return meta["book"][0]

    def fingerprint(self) -> str:
        return "first letter"


@pytest.mark.parametrize("by", ["host", "meta.book", FirstLetter()])
def test_groups_stay_together(by: object) -> None:
    groups = [f"{chr(97 + i % 26)}{i % 40}" for i in range(400)]
    batch = from_texts(
        [str(i) for i in range(400)],
        urls=[f"https://{g}.example:80/{i}" for i, g in enumerate(groups)],
        metas=[{"book": g} for g in groups],
    )
    step = Split(validation=0.3, by=by)
    sides = step(batch).column("split").to_pylist()
    assert set(sides) == {"train", "validation"}
    for key in set(groups):
        assert len({side for side, group in zip(sides, groups, strict=True) if group == key}) == 1
    assert step.fingerprint() != Split(validation=0.3).fingerprint()


def test_a_document_without_the_key_is_its_own_group() -> None:
    batch = from_texts(["a", "b"], ids=["a", "b"], urls=[None, "http://[broken"], metas=[None, {"x": "y"}])
    expected = [split_of("a", 0, 0.5), split_of("b", 0, 0.5)]
    for by in ("host", "meta.book"):
        assert Split(validation=0.5, by=by)(batch).column("split").to_pylist() == expected


def test_errors() -> None:
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="validation"):
            Split(validation=share)
    with pytest.raises(ConfigError, match="by = 'site'"):
        Split(by="site")
    with pytest.raises(DataError, match="is 7, not text"):
        Split(by=lambda url, meta: 7)(from_texts(["a"]))


def test_configuration_builds_the_step() -> None:
    assert decode(Split, {"by": "meta.book", "validation": 0.1}) == Split(0.1, "meta.book")
    with pytest.raises(ConfigError, match="by = 'books'"):
        decode(Split, {"by": "books"})
