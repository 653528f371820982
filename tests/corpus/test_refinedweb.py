"""DCLM's filters beyond the golden rows: what the default fixes, hostile text, files of the reference, bad input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import BloomeryError, ConfigError
from bloomery.corpus import from_texts, texts
from bloomery.corpus.refinedweb import (
    CounterLines,
    LineLength,
    LineSubstring,
    NumericLines,
    UppercaseLines,
    UrlBan,
    UrlRemoval,
)
from bloomery.corpus.refinedweb.lines import is_counter
from bloomery.corpus.refinedweb.presets import dclm, refinedweb
from bloomery.corpus.refinedweb.upstream_yaml import load, make_step
from bloomery.corpus.steps import DROP


def test_bans_as_a_browser_sees_a_host_and_as_the_reference_does() -> None:
    fixed = UrlBan(("a.com",), match="domain")
    strict = UrlBan(("a.com",), match="domain", ignore_chars=("www",), strict_reference=True)
    for url in ("https://a.com/x", "https://www.a.com/", "https://a.com:443/", "https://user@a.com/", "a.com/page"):
        assert fixed.hits(url) == 1, url
    assert strict.hits("https://a.com/x") == 1
    for url in ("https://www.a.com/", "https://a.com:443/", "a.com/page"):  # quirks of the reference
        assert strict.hits(url) == 0, url
    assert fixed.hits("https://b.a.com/") == fixed.hits("http://[oops") == 0
    assert UrlBan(("bingo", "prize"), match="word", num_banned_substrs=2).hits("http://x.org/bingo-prize/bingo") == 2
    assert UrlBan(("bingo",), match="word").hits("http://x.org/bingos") == 0


def test_addresses_go_wherever_the_page_begins() -> None:
    text = "Unlike before, see https://Example.COM/page?x=1 and 192.168.0.1 or www.test.org. Done e.g. here"
    fixed = UrlRemoval().without_urls(text)
    assert fixed == "Unlike before, see and or Done e.g. here"
    strict = UrlRemoval(strict_reference=True).without_urls(text)
    assert "Example.COM" in strict  # lower-case domains only
    # "Quote" begins with no domain's letters, so nothing but the IPv4 address goes.
    assert UrlRemoval(strict_reference=True).without_urls("Quote www.test.org 10.0.0.1") == "Quote www.test.org"


def test_dots_are_dots_unless_the_reference_is_wanted() -> None:
    line = "Read moreXYZ"
    strict = LineSubstring("Read more...", "suffix", 10, True, strict_reference=True)
    fixed = LineSubstring("Read more...", "suffix", 10, True)
    assert fixed.edited(pa.array([f"some words\n{line}"])) == [f"some words\n{line}"]
    assert strict.edited(pa.array([f"some words\n{line}"])) == ["some words"]
    assert fixed.edited(pa.array(["some words Read more..."])) == ["some words"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("3 likes", True), ("1.2K followers!", True), ("» 1,000 views", True), ("likes 3", False), ("3 likes it", False)],
)
def test_counters(line: str, expected: bool) -> None:
    assert is_counter(line) is expected


LINE = st.text(alphabet="aB1 .\t", max_size=8)


@given(st.lists(st.lists(LINE, max_size=5).map("\n".join), min_size=1, max_size=5))
def test_line_edits_equal_a_loop_over_lines(content: list[str]) -> None:
    array = pa.array(content, pa.string())

    def kept(rule: Any) -> list[str]:
        return ["\n".join(line for line in text.split("\n") if rule(line)) for text in content]

    def share(line: str, test: Any) -> float:
        return sum(map(test, line)) / len(line) if line else 0.0

    upper = [text.strip() for text in kept(lambda line: share(line, str.isupper) <= 0.5)]
    assert UppercaseLines().edited(array) == upper
    digits = [text.strip() for text in kept(lambda line: share(line, str.isdigit) <= 0.999999)]
    assert NumericLines().edited(array) == digits
    assert LineLength(2).edited(array) == kept(lambda line: len(line.split()) >= 2 or not line)
    assert CounterLines().edited(array) == [text.strip() for text in content]


HOSTILE = {
    "letters": "a" * 1_000_000,
    "blanks": " " * 1_000_000,
    "lines": "\n" * 1_000_000,
    "dots": "." * 1_000_000,
    "addresses": "http://" * 150_000,
    "domains": "a.com" * 200_000,
    "labels": "." + "a-" * 500_000 + "_",
    "numbers": "1." * 500_000,
    "counters": "1" * 500_000 + " likes" + "!" * 400_000 + "x",
    "tabs": "\t \r" * 300_000,
    "marks": "a\u0301" * 300_000,
    "flags": "\U0001f1e9" * 250_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_of_anything_takes_no_time(name: str) -> None:
    batch = from_texts([HOSTILE[name]], urls=["https://a.example/"])
    for step in refinedweb():
        if step.name in ("Language", "RemovalRatio"):
            continue
        start = time.process_time()
        step(batch)  # type: ignore[operator]
        seconds = time.process_time() - start
        assert seconds < 3, (name, step.name, seconds)  # a quadratic step takes minutes


def test_a_page_in_a_hundred_pieces_is_dropped_for_what_was_removed() -> None:
    steps = [step for step in refinedweb() if step.name not in ("Language",)]
    good = " ".join(["the quick brown foxes of this forest have gone to sleep with all that they own"] * 1)
    page = "\n".join(f"{good} number {i} of what there is to say about it" for i in range(12))
    bad = page + "\n" + "\n".join(f"{i} likes" for i in range(60))
    batch = from_texts([page.replace("foxes", "f0xes"), bad])
    for step in steps:
        batch = step(batch)  # type: ignore[operator]
        if step.name == "RemovalRatio":
            assert batch.column(DROP).to_pylist()[1] is not None


def test_a_file_of_the_reference(tmp_path: Path) -> None:
    lists = tmp_path / "banlists"
    lists.mkdir()
    (lists / "domains.txt").write_text("bad.example\n")
    file = tmp_path / "config.yaml"
    file.write_text(
        "- source: cc\n  steps:\n    - func: move_url_modifier\n    - func: url_substring_filter\n"
        "      banlist_from_fname: baselines/mappers/banlists/domains.txt\n      exact_domain_match: True\n"
        "      ignore_chars: ['www']\n    - func: newline_removal_modifier\n      max_consecutive: 2\n"
        "    - func: page_length_filter\n      length_type: word\n      min_length: 3\n      ignore_punctuation: True\n"
    )
    with pytest.raises(ConfigError, match=r"domains\.txt"):
        load(file)
    (tmp_path / "domains.txt").write_text("bad.example\n")
    steps = load(file)
    batch = from_texts(
        ["one two three\n\n\n\nfour", "one two three", "one two"], urls=["https://x.y/", "https://bad.example/", None]
    )
    for step in steps:
        batch = step(batch)  # type: ignore[operator]
    assert [step.name for step in steps] == ["UrlBan[domain]", "CollapseNewlines", "PageLength"]
    assert texts(batch)[0].as_py() == "one two three\n\nfour"
    assert batch.column(DROP).to_pylist() == [None, "banned domain", "too few words"]


@pytest.mark.parametrize(
    ("func", "arguments", "match"),
    [
        ("stop_word_filer", {}, "stop_word_filter"),
        ("stop_word_filter", {"min_stop_words": 2}, "min_stop_word"),
        ("language_filter", {"keep_languages": ["en"]}, "language_model"),
        ("page_length_filter", {"length_type": "sentence"}, "length_type"),
        ("substring_line_modifier", {"banlist": "x", "location": "middle"}, "location"),
        ("substring_line_modifier", {"banlist": "x", "case_sensitive": True}, "case"),
        ("url_removal_modifier", {"tlds_filepath": "nowhere.txt"}, "nowhere"),
        ("url_removal_modifier", {"tlds": "x"}, "tlds"),
    ],
)
def test_what_is_not_understood_is_said(func: str, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(BloomeryError, match=match):
        make_step(func, arguments)


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "steps: []"), ("b.yaml", "{"), ("c.yaml", "- source: x\n  steps: [1]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            load(tmp_path / name)


def test_the_pipeline_of_dclm() -> None:
    names = [step.name for step in dclm()]
    assert names[-2:] == ["BloomDedup", "CutParagraphs"]
    assert len(names) == 22
    names = [step.name for step in dclm(dedup="minhash")]
    assert names[-3:] == ["NearDedup", "SubstringDedup", "CutSubstrings"]
    with pytest.raises(ConfigError, match="dedup"):
        dclm(dedup="none")  # type: ignore[arg-type]
