"""FineWeb's page rules against a plain-Python reading of them, quirks in and out; datatrove itself is in parity/."""

from __future__ import annotations

import functools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.corpus import fineweb
from bloomery.corpus.c4 import C4Quality, count_sentences
from bloomery.corpus.documents import from_texts, texts
from bloomery.corpus.fineweb import FineWebQuality, GopherQuality, GopherRepetition
from bloomery.corpus.steps import DROP

PIECES = [
    *["the", "The", "of", "and", "#", "...", "…", "•", "- a", "12", "é", "日本。", "🙂", "—", "a", "b c", "bc", "ab"],
    *[
        " ",
        " ",
        " ",
        "\n",
        "\n",
        "\n\n",
        "\n\n\n",
        " \n",
        "\r\n",
        "\r",
        "\t",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "\u2029",
    ],
    *[".", "!", '."', "?)", "[1]", "[edit]", "x" * 70, "\u3000", "{", "cookie policy", "Lorem ipsum", "JavaScript"],
]
documents = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.lists(st.sampled_from(PIECES), max_size=80).map("".join),
        st.lists(st.sampled_from(["a", "b", "cc", "d"]), max_size=90).map(" ".join),
        st.lists(st.sampled_from(["It is so.", "a b c", "a  b c ", "", " ", "No. [1]"]), max_size=30).map("\n".join),
    ),
    min_size=1,
    max_size=6,
)


def reasons(step, given: list[str]) -> list[str | None]:
    batch = step(from_texts(given))
    return batch.column(DROP).to_pylist() if DROP in batch.schema.names else [None] * len(given)


# ---------------------------------------------------------------------------------------------------------- the oracle


def copies_of(segments: list[str]) -> list[str]:
    return [segment for i, segment in enumerate(segments) if segment in segments[:i]]


def naive_repetition(text: str) -> dict[str, float]:
    if not text:
        return {"empty": 1}
    found: dict[str, float] = {}
    words = text.split()
    for name, segments in (("paragraph", re.split(r"\n\n+", text.strip())), ("line", re.split(r"\n+", text))):
        copies = copies_of(segments)
        found[f"{name}s"] = len(copies) / len(segments)
        found[f"{name}_characters"] = sum(map(len, copies)) / len(text)
    for n in (2, 3, 4):
        counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = max(counts.items(), key=lambda item: item[1], default=("", 0))  # the first of several
        found[f"top_{n}gram"] = len(gram) * count / len(text)
    for n in range(5, 11):
        seen: set[str] = set()
        copied = i = 0
        while i + n <= len(words):
            gram = "".join(words[i : i + n])
            copied += len(gram) if gram in seen else 0
            i += n if gram in seen else 1
            seen.add(gram)
        found[f"repeated_{n}grams"] = copied / len(text)
    return found


def naive_lines(text: str, strict: bool) -> dict[str, float]:
    lines = [line if strict else line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return {"lines": 0}
    terminals = {chr(point) for point in fineweb.points(fineweb.TERMINALS)}
    return {
        "lines": len(lines),
        "terminated": sum(line[-1] in terminals for line in lines) / len(lines),
        "short_lines": sum(len(line) <= 30 for line in lines) / len(lines),
        "repeated": sum(map(len, copies_of(lines))) / len(text.replace("\n", "")),
        "newlines": text.count("\n") / len(text.split()),
    }


def measured(given: list[str], measure) -> list[dict[str, float]]:
    found = fineweb._measure(texts(from_texts(given)), "whitespace", measure)
    return [{name: values[row] for name, values in found.items()} for row in range(len(given))]


@given(documents=documents)
@settings(max_examples=150)
def test_repetition_equals_its_definition(documents):
    tops = ((2, 99.0), (3, 99.0), (4, 99.0))
    found: list[dict[str, float]] = [{} for _ in documents]
    for n in range(5, 11):  # each alone and with a bound below all, so that it is counted exactly
        measure = functools.partial(fineweb._repetition, top=tops, repeated=((n, -1.0),))
        found = [{**row, **more} for row, more in zip(found, measured(documents, measure), strict=True)]
    for row, text in zip(found, documents, strict=True):
        for name, value in naive_repetition(text).items():
            assert row[name] == value, (name, text)


@given(documents=documents)
@settings(max_examples=100)
def test_a_fraction_that_is_not_counted_is_not_above_its_bound(documents):
    whole = GopherRepetition(lines=9, paragraphs=9, line_characters=9, paragraph_characters=9, top_ngrams=())
    for text, reason in zip(documents, reasons(whole, documents), strict=True):
        found = naive_repetition(text)
        broken = [n for n, bound in whole.repeated_ngrams if text and found[f"repeated_{n}grams"] > bound]
        assert reason == ("no text" if not text else f"repeated {broken[0]}-grams" if broken else None)


@pytest.mark.parametrize("strict", [True, False])
@given(documents=documents)
@settings(max_examples=100)
def test_line_shape_equals_its_definition(strict, documents):
    found = measured(documents, lambda words, tokens: fineweb._line_shape(words, tokens, short=30, strict=strict))
    for row, text in zip(found, documents, strict=True):
        for name, value in naive_lines(text, strict).items():
            assert row[name] == value, (name, text)


@given(documents=documents)
@settings(max_examples=150)
def test_quality_equals_its_definition(documents):
    signs = {chr(point) for point in [*fineweb.points(fineweb.TERMINALS), *fineweb.points(fineweb.SYMBOLS)]}
    for row, text in zip(measured(documents, fineweb._quality), documents, strict=True):
        words, lines = text.split(), text.splitlines()
        real = [word for word in words if set(word) - signs]
        assert row["words"] == len(real)
        assert row["mean_length"] == (sum(map(len, real)) / len(real) if real else 0)
        assert row["stop_words"] == len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words))
        if words:
            assert row["hashes"] == text.count("#") / len(words)
            assert row["ellipses"] == (text.count("...") + text.count("…")) / len(words)
            assert row["alphabetic"] == sum(any(map(str.isalpha, word)) for word in words) / len(words)
        if lines:
            assert row["bullet_lines"] == sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
            assert row["ellipsis_lines"] == sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)


@pytest.mark.parametrize("step", [GopherRepetition(), GopherQuality(), C4Quality(), FineWebQuality()])
@given(documents=documents)
@settings(max_examples=40)
def test_a_document_is_judged_alone(step, documents):
    assert reasons(step, documents) == [reasons(step, [text])[0] for text in documents]


# -------------------------------------------------------------------------------------------------------------- quirks


def test_windows_line_ends_are_no_reason_by_default():
    text = "\r\n".join(f"Line {i} of this page has some words in it, and it ends well." for i in range(9)) + "\r\n"
    assert reasons(FineWebQuality(), [text]) == [None]
    assert reasons(FineWebQuality(strict_reference=True), [text]) == ["too few terminated lines"]


def test_a_citation_at_the_end_of_a_sentence():
    text = "\n".join(f"Sentence {i} is a sentence. [{i}]" for i in range(6))
    clean = C4Quality()(from_texts([text]))
    assert texts(clean).to_pylist() == ["\n".join(f"Sentence {i} is a sentence." for i in range(6))]
    assert reasons(C4Quality(), [text]) == [None]
    assert reasons(C4Quality(strict_reference=True), [text]) == ["too few sentences"]


def test_citations_are_no_words_by_default():
    line = "[1] [2] Yes."
    assert reasons(C4Quality(min_sentences=1), [line]) == ["too few sentences"]
    assert reasons(C4Quality(min_sentences=1, strict_reference=True), [line]) == [None]


def test_words_run_together_are_equal_to_gopher_repetition():
    step = GopherRepetition(top_ngrams=(), repeated_ngrams=((2, 0.1),))
    assert reasons(step, ["ab c q r s t u a bc", "ab c q r s t u a bd"]) == ["repeated 2-grams", None]


# ------------------------------------------------------------------------------------------------------------------- C4


def test_c4_edits_lines_and_drops_pages():
    good = ["This is a line of prose.", "Does it stay? It does!", 'He said "yes, it does."', "Two more. And three."]
    bad = ["No end", "Too short.", "Trails off like this...", "Please enable Javascript here.", "We use cookies on it."]
    page = "\n".join([good[0], *bad, " " + good[1], *good[2:], "x" * 1_001 + " is a long word."])
    batch = C4Quality()(
        from_texts([page, page + "\nLorem IPSUM dolor sit.", page + "\nint main() { return 0.", good[0]])
    )
    assert batch.column(DROP).to_pylist() == [None, "lorem ipsum", "curly bracket", "too few sentences"]
    assert texts(batch).to_pylist()[0] == "\n".join(good)
    assert texts(batch).to_pylist()[3] == good[0]


def test_without_the_rule_on_punctuation_a_line_stays():
    page = "\n".join(["Heading of three words", *["It is so. It is so."] * 3])
    batch = C4Quality(terminal_punctuation=False)(from_texts([page]))
    assert texts(batch).to_pylist() == [page]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("One", 1),
        ("It is 3.14 long.", 1),
        ('"So." (He said.) Left', 3),
        ("一。 二。", 2),
        ("...", 1),
    ],
)
def test_sentences_end_with_terminals(text, count):
    assert count_sentences(text) == count


def test_unknown_tokenizer_and_no_words_are_refused():
    with pytest.raises(ConfigError, match=r"unknown tokenizer 'spacey'.*spacy"):
        C4Quality(tokenizer="spacey")
    with pytest.raises(ConfigError, match="1 or more"):
        GopherQuality(min_words=0)


@pytest.mark.parametrize("step", [GopherRepetition(), GopherQuality(), C4Quality(), FineWebQuality()])
def test_empty_batches_pass(step):
    assert len(step(from_texts(["a"]).slice(0, 0))) == 0
