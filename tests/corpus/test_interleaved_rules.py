"""Rules for documents of texts and images: the reference's numbers and decisions, and what is fixed by default."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery import corpus
from bloomery.core.config import decode
from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.documents import SCHEMA
from bloomery.corpus.fasttext_bin import FastTextModel
from bloomery.corpus.interleaved import Part, aligned, from_aligned, from_parts, parts_of
from bloomery.corpus.interleaved.document_rules import DocumentRules, ImageAddressBan, ImageCount
from bloomery.corpus.interleaved.filter_yaml import load, make_steps, published
from bloomery.corpus.interleaved.final_processing import FinalProcessing
from bloomery.corpus.interleaved.image_filters import ImageShape
from bloomery.corpus.interleaved.paragraph_rules import ParagraphRules
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.corpus.interleaved.text_ratios import normalized, plain_spaces, printing, ratios, split, word_ratio
from bloomery.corpus.interleaved.text_rules import DOCUMENT, PARAGRAPH, TextRules
from bloomery.corpus.interleaved.word_lists import WordLists, common_words
from bloomery.corpus.ngram_lm import NGramModel
from bloomery.corpus.pii import ReplacePII
from bloomery.corpus.steps import DROP, kept, take_removed

PROSE = "The cat sat on the mat, and then it looked at all of us for a while."
REFERENCE = {  # our name, the reference's
    "words": "number_words",
    "character_repetition": "character_repetition",
    "word_repetition": "word_repetition",
    "special_characters": "special_character",
    "stop_words": "stopword",
    "flagged_words": "flagged_word",
    "common_words": "common_word",
}


def golden(root: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(root / "mint1t" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def lists(golden_root: Path) -> WordLists:
    given = json.loads((golden_root / "mint1t" / "lists.json").read_text(encoding="utf-8"))
    return WordLists(
        stop_words=tuple(given["stopwords"]),
        flagged_words=tuple(given["flagged_words"]),
        common_words=tuple(given["common_words"]),
        special_characters="".join(given["special_characters"]),
        punctuation="".join(given["punctuation"]),
        spam_words=tuple(given["spam_words"]),
    )


def parts(row: dict[str, Any]) -> list[Part]:
    return from_aligned(row["texts"], row["images"], row["metadata"])


def words(text: str, special: str | None = None) -> list[str]:
    return [
        w.data[s:e].tobytes().decode() for w in split([text], special) for s, e in zip(w.starts, w.ends, strict=True)
    ]


def reasons(batch: pa.RecordBatch) -> list[str | None]:
    return batch.column(DROP).to_pylist() if DROP in batch.schema.names else [None] * batch.num_rows


# ------------------------------------------------------------------------------------------------------- the reference


def test_the_numbers_of_paragraphs_are_the_references(golden_root: Path, lists: WordLists) -> None:
    rows = golden(golden_root, "paragraphs")
    texts = [row["text"] for row in rows]
    found, short = ratios(texts, lists), ratios(texts, lists, min_tokens=12)
    expected = {ours: [row["out"][theirs] for row in rows] for ours, theirs in REFERENCE.items()}
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-12, name
    for numbers, name in ((found, "punctuation_any_length"), (short, "punctuation")):
        assert np.abs(numbers["punctuation"] - [row["out"][name] for row in rows]).max() <= 1e-12
    table = json.loads((golden_root / "mint1t" / "lists.json").read_text(encoding="utf-8"))["unicode_punctuation"]
    seen = set()
    for row in rows:
        text, out = row["text"], row["out"]
        seen |= set(out)
        if "words" in out:
            assert words(text, lists.special_characters) == out["words"]
        if "standardize_whitespace" in out:
            assert plain_spaces(text) == out["standardize_whitespace"]
        if "normalized" in out:
            assert normalized(text, table) == out["normalized"]
    assert {"words", "standardize_whitespace", "normalized"} < seen


def test_languages_are_the_references(golden_root: Path) -> None:
    model = golden_root / "dclm" / "language_model.bin"
    rows = golden(golden_root, "paragraphs")
    scores = FastTextModel(model).predict([row["text"].lower().replace("\n", " ") for row in rows])
    labels = [label.removeprefix("__label__") for label in FastTextModel(model).labels]
    for row, best, score in zip(rows, scores.argmax(axis=1), scores.max(axis=1), strict=True):
        language, probability = row["out"]["language"]
        assert (labels[best], score) == (language, pytest.approx(probability, abs=1e-5)), row["text"][:80]


def test_spam_ratios_are_the_references(golden_root: Path, lists: WordLists) -> None:
    rows = golden(golden_root, "spam_ratio")
    found = word_ratio([row["text"] for row in rows], lists, "spam_words")
    assert np.abs(found - [row["out"] for row in rows]).max() <= 1e-12
    assert found.any()


@pytest.mark.parametrize("name", ["default", "permissive"])
def test_node_filters_are_the_references(golden_root: Path, lists: WordLists, tmp_path: Path, name: str) -> None:
    """Paragraphs and images, with the reference's own configuration and every key of it."""
    config = json.loads((golden_root / "mint1t" / "config.json").read_text())["filter_configs"][name]
    file = tmp_path / "filter.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    model = golden_root / "dclm" / "language_model.bin"
    shape, paragraphs, count, documents = load(file, lists=lists, language_model=model)
    assert isinstance(count, ImageCount)
    assert isinstance(documents, DocumentRules)
    given: dict[str, Any] = {}
    checked = 0
    for row in golden(golden_root, "node_filters"):
        given = row.get("input", given)  # a permissive row shares the input of the row before
        if row["config"] == name:
            after = kept_parts(paragraphs(shape(from_parts([node_parts(given)]))))
            texts, _, metadata = aligned(after)
            assert texts == row["out"]["texts"], row["id"]
            assert [meta and meta.pop("slot") for meta in metadata] == row["out"]["image_index"], row["id"]
            assert [meta and in_pixels(meta) for meta in metadata] == [
                meta and renamed(meta) for meta in row["out"]["metadata"]
            ], row["id"]
            checked += 1
    assert checked > 100


def node_parts(given: dict[str, Any]) -> list[Part]:
    """Texts and fetched images; the reference's metadata, and the slot."""
    found = []
    for slot, (text, size, meta) in enumerate(
        zip(given["texts"], given["image_sizes"], given["metadata"], strict=True)
    ):
        if text is not None:
            found.append(Part(text))
        elif size != "missing":
            kind = {"format": size[2].lower()} if size[2] else {}
            found.append(
                Part(ref=meta["src"], meta={**meta, "width": size[0], "height": size[1], **kind, "slot": slot})
            )
    return found


def renamed(meta: dict[str, Any]) -> dict[str, Any]:
    """The reference's metadata after its filter, with our names for the size of the original."""
    return {key.removeprefix("original_"): value for key, value in meta.items()}


def in_pixels(meta: dict[str, Any]) -> dict[str, Any]:
    """Our metadata with the rendered size as the reference notes it: pixels instead of percent."""
    found = dict(meta)
    for side in ("width", "height"):
        value = meta.get(f"rendered_{side}")
        if isinstance(value, str):
            del found[f"rendered_{side}"]
            if value[:-1].isdigit():
                found[f"rendered_{side}"] = round(meta[side] * int(value[:-1]) / 100)
    return found


def kept_parts(batch: pa.RecordBatch) -> list[Part]:
    return next(parts_of(batch))


def test_document_filters_are_the_references(golden_root: Path, lists: WordLists) -> None:
    configs = json.loads((golden_root / "mint1t" / "config.json").read_text())["filter_configs"]
    model = golden_root / "dclm" / "language_model.bin"
    steps = {name: make_steps(config, lists=lists, language_model=model)[2:] for name, config in configs.items()}
    given: dict[str, Any] = {}
    rows = golden(golden_root, "document_filters")
    for row in rows:
        given = row.get("input", given)
        document = [*map(Part, given["texts"]), *[Part(ref="x")] * given["number_images"]]
        batch = from_parts([document])
        for step in steps[row["config"]]:
            batch = step(batch)
        assert (reasons(batch) == [None]) == row["keep"], row["id"]
        (rules,) = [step for step in steps[row["config"]] if isinstance(step, DocumentRules)]
        (text,) = rules.texts(batch)
        found = ratios([text], lists)
        for ours, theirs in {**REFERENCE, "punctuation": "punctuation"}.items():
            assert abs(found[ours][0] - row["values"][theirs]) <= 1e-12, (row["id"], ours)
    assert {row["keep"] for row in rows} == {True, False}


def test_final_processing_is_the_references(golden_root: Path, lists: WordLists) -> None:
    rows = golden(golden_root, "final_processing")
    batch = FinalProcessing(lists=lists, compat=True)(from_parts([parts(row["input"]) for row in rows]))
    for row, found, reason in zip(rows, parts_of(batch), reasons(batch), strict=True):
        assert aligned(found) == (row["out"]["texts"], row["out"]["images"], row["out"]["metadata"]), row["id"]
        assert (reason is None) == row["keep"], row["id"]


# --------------------------------------------------------------------------------------------------------- the numbers


def by_hand(text: str, special: str, size: int) -> dict[str, float]:
    """Words, repetition and special characters, one text and one character at a time."""
    found = []
    for word in text.replace("\n", " ").replace("\t", " ").split(" "):
        word = word.lower()
        while word and word[0] in special:
            word = word[1:]
        while word and word[-1] in special:
            word = word[:-1]
        found += [word] if word else []
    grams = [text[i : i + size] for i in range(len(text) - size + 1)]
    counts = sorted((grams.count(gram) for gram in set(grams)), reverse=True)
    most = min(math.isqrt(len(counts)), sum(count > 1 for count in counts))
    pairs = list(pairwise(found))
    return {
        "words": len(found),
        "character_repetition": sum(counts[:most]) / len(grams) if grams else 0,
        "word_repetition": sum(pairs.count(pair) > 1 for pair in pairs) / len(pairs) if pairs else 0,
        "special_characters": sum(c in special for c in text) / len(text) if text else 0,
    }


TEXT = st.text(alphabet=st.sampled_from("aab BΣİß.!\t\n\u3000é𝒳'"), max_size=40)


@given(st.lists(TEXT, max_size=6), st.sampled_from([" .!\n\t", ".!", "", " aé𝒳"]), st.integers(1, 4))
def test_numbers_equal_a_loop_over_characters(content: list[str], special: str, size: int) -> None:
    lists = WordLists(special_characters=special)
    found = ratios(content, lists, character_ngram=size, word_ngram=2)
    for row, text in enumerate(content):
        for name, value in by_hand(text, special, size).items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), (text, name)


@given(st.lists(TEXT, min_size=1, max_size=6))
def test_numbers_of_a_text_do_not_depend_on_its_neighbours(content: list[str]) -> None:
    together = ratios(content, WordLists())
    for row, text in enumerate(content):
        alone = ratios([text], WordLists())
        assert {name: values[row] for name, values in together.items()} == {n: v[0] for n, v in alone.items()}


def test_our_lists() -> None:
    found = ratios([PROSE, "Ne pas fumer dans la salle d'attente", "Don’t… DON'T!"], WordLists())
    assert found["stop_words"].tolist() == [13 / 17, 0, 1]
    assert found["words"].tolist() == [17, 7, 2]
    assert words("(naïve) x́ 12 – “ok”") == ["naïve", "x́", "ok"]
    assert len(WordLists().stop_words) == len(set(WordLists().stop_words))


def test_common_words_of_a_corpus(tmp_path: Path) -> None:
    batches = [
        corpus.from_texts(["The cat, the dog", "a cat"]),
        corpus.from_texts([]),
        corpus.from_texts(["the (ant)"]),
    ]
    assert common_words(batches) == ("the", "cat", "a", "ant", "dog")
    assert common_words(batches, 2) == ("the", "cat")
    with pytest.raises(ConfigError, match="size=0"):
        common_words(batches, 0)
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"common_words": common_words(batches)}))
    assert WordLists.load(lists).common_words == ("the", "cat", "a", "ant", "dog")
    assert WordLists.load(lists).stop_words == WordLists().stop_words
    for content, error in (('{"stopwords": []}', "stopwords"), ("[", "JSON"), ('{"stop_words": 3}', "stop_words")):
        lists.write_text(content)
        with pytest.raises((ConfigError, DataError), match=error):
            WordLists.load(lists)


def test_counting_common_words_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomery.corpus.interleaved.word_lists.PRUNE", 4)
    batches = [corpus.from_texts([f"the the the cat cat w{i} v{i}"]) for i in range(50)]
    assert common_words(batches, 2) == ("the", "cat")


def test_control_characters_and_punctuation() -> None:
    assert printing("a\x00b\nc\t\x85d") == "ab\nc\td"
    assert printing("a\x00b\nc\t\x85d", keep_lines=False) == "abcd"
    assert normalized(" 12　“a” — ，b ‘c’…") == "00 \"a\" - ,b 'c'..."


# ----------------------------------------------------------------------------------------------------------- the rules


def test_paragraphs_go_with_their_reason_and_documents_with_nothing_left() -> None:
    text = f"{PROSE}\n\nToo short\n\n{END_OF_DOCUMENT}\n\n{'same words here again ' * 9}\n\n{PROSE} ¶"
    rules = ParagraphRules()
    batch, why = take_removed(rules(from_parts([[Part(text), Part(ref="i")], [Part("no"), Part("")], [Part(ref="j")]])))
    assert why == {"too few words": 3, "repeated characters": 1}
    assert [[part.text or part.ref for part in document] for document in parts_of(batch)] == [
        [f"{PROSE}\n\n{END_OF_DOCUMENT}\n\n{PROSE} ¶", "i"], [], ["j"],
    ]  # fmt: skip
    assert reasons(batch) == [None, "nothing left", None]


def test_what_the_reference_does_to_lines_and_marks() -> None:
    text = f"{PROSE}\x07\n\n {END_OF_DOCUMENT}\n\n{PROSE}"
    for compat, expected in ((False, f"{PROSE}\n\n {END_OF_DOCUMENT}\n\n{PROSE}"), (True, None)):
        step = ParagraphRules(remove_non_printing=True, compat=compat)
        (found,) = parts_of(step(from_parts([[Part(text)]])))
        assert [part.text for part in found] == ([expected] if expected else [])  # all of it on one line: repeated
    marks = [Part("\n\n".join([PROSE, *[END_OF_DOCUMENT, PROSE.upper()] * 2]))]
    ours, theirs = (DocumentRules(compat=compat).texts(from_parts([marks]))[0] for compat in (False, True))
    assert ours == "\n\n".join([PROSE, PROSE.upper(), PROSE.upper()])
    assert theirs == marks[0].text


@given(st.lists(st.lists(st.sampled_from([PROSE, "no", "", "12 34 56 78", END_OF_DOCUMENT]), max_size=4), max_size=4))
def test_what_stays_is_in_order_and_judged_alone(documents: list[list[str]]) -> None:
    """The paragraphs that stay are a subsequence, the same whatever stands around them, and stay a second time."""
    rules, good = ParagraphRules(), {PROSE, END_OF_DOCUMENT}
    batch = rules(from_parts([[Part("\n\n".join(some)), Part(ref="i")] if some else [] for some in documents]))
    found = [["" if p.text is None else p.text for p in document] for document in parts_of(batch)]
    expected = []
    for some in documents:
        left = "\n\n".join(paragraph for paragraph in some if paragraph in good)
        expected.append(([left] if left else []) + ([""] if some else []))
    assert found == expected
    again = rules(kept(take_removed(batch)[0]))
    assert list(parts_of(kept(take_removed(again)[0]))) == list(parts_of(kept(take_removed(batch)[0])))


def test_bytes_and_metadata_of_images_are_not_touched() -> None:
    document = [Part("no"), Part(image=b"\x89PNG", ref="i", meta={"alt": "x"}), Part(PROSE), Part(image=b"2", ref="j")]
    (found,) = parts_of(ParagraphRules()(from_parts([document])))
    assert found == [document[1], document[2], document[3]]


def test_parts_of_no_known_kind_and_documents_without_a_list() -> None:
    rows = [
        {"id": "a", "parts": [{"kind": "video", "text": PROSE}, {"kind": "text", "text": None}, {"kind": "image"}]},
        {"id": "b", "parts": None},
        {"id": "c", "parts": [{"kind": "text", "text": PROSE}]},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    for step, left in ((ParagraphRules(), [1, 0, 1]), (ReplacePII(), [1, 0, 1]), (FinalProcessing(), [1, 0, 1])):
        found = step(batch)
        assert [len(parts) for parts in parts_of(found)] == left
        assert [len(parts) for parts in parts_of(step(batch.slice(1)))] == left[1:]
    assert reasons(ParagraphRules()(batch)) == [None, "nothing left", None]
    assert reasons(ImageCount()(batch)) == [None, "too few images", "too few images"]
    assert reasons(DocumentRules(TextRules(min_stop_words=None))(batch)) == ["too few words", "too few words", None]


def test_number_and_addresses_of_images() -> None:
    many = [Part(ref=f"http://a.example/{i}.jpg") for i in range(31)]
    batch = from_parts([[Part("x")], many[:1], many[:30], many])
    assert reasons(ImageCount()(batch)) == ["too few images", None, None, "too many images"]
    batch = from_parts(
        [[Part(ref="http://a/LOGO.png")], [Part("a logo"), Part(ref="http://a/x.png")], [Part(image=b"")]]
    )
    assert reasons(ImageAddressBan()(batch)) == ["banned image address", None, None]
    assert reasons(ImageAddressBan(("a.b",))(from_parts([[Part(ref="http://a.b/")], [Part(ref="http://axb/")]]))) == [
        "banned image address", None,
    ]  # fmt: skip
    for wrong in (lambda: ImageCount(3, 2), lambda: ImageAddressBan(("",))):
        with pytest.raises(ConfigError):
            wrong()


def test_perplexity_and_language() -> None:
    model = NGramModel([PROSE * 20], order=4)
    noise = "the zqqqj of xvvvv in jkkkk to wpppp and ghhhh as bnnnn or it."
    rules = TextRules(max_perplexity=20, perplexity=model)
    assert PARAGRAPH.broken([PROSE, noise]) == [None, None]
    assert rules.broken([PROSE, noise]) == [None, "perplexity"]
    pytest.importorskip("py3langid")
    rules = TextRules(min_stop_words=None, min_language=0.8)
    assert rules.broken([PROSE, "Der Hund liegt den ganzen Tag faul auf dem Sofa und schläft.", "no"]) == [
        None, "language de", "too few words",
    ]  # fmt: skip


def test_rules_that_lack_what_they_need() -> None:
    for wrong, match in (
        ({"min_common_words": 0.8}, "list of common words"),
        ({"max_perplexity": 1500}, "without a scorer"),
        ({"min_words": 5, "max_words": 4}, "min_words=5"),
        ({"word_ngram": 0}, "word_ngram"),
    ):
        with pytest.raises(ConfigError, match=match):
            TextRules(**wrong)  # type: ignore[arg-type]


def test_steps_from_plain_values() -> None:
    """As `bloomery curate --steps` makes them: nested fields, and errors that say where."""
    values = {"rules": {"min_words": 2, "min_stop_words": None, "lists": {"stop_words": ["uh"]}}, "compat": True}
    rules = TextRules(min_words=2, min_stop_words=None, lists=WordLists(stop_words=("uh",)))
    assert decode(ParagraphRules, values) == ParagraphRules(rules, compat=True)
    with pytest.raises(ConfigError, match=r"rules: unknown field 'min_word' .*min_words"):
        decode(DocumentRules, {"rules": {"min_word": 2}})


def test_fingerprints_and_pickles_do_not_depend_on_use() -> None:
    rules = ParagraphRules(dataclasses.replace(PARAGRAPH, lists=WordLists(common_words=("a",)), min_common_words=0.1))
    before = rules.fingerprint()
    rules(from_parts([[Part(PROSE)]]))
    assert rules.fingerprint() == before != ParagraphRules().fingerprint()
    assert len(pickle.dumps(rules)) < 20_000
    assert pickle.loads(pickle.dumps(rules)) == rules
    json.dumps(before)


# ---------------------------------------------------------------------------------------------------- the configuration


def test_the_published_configuration(golden_root: Path) -> None:
    config = json.loads((golden_root / "mint1t" / "config.json").read_text())["filter_configs"]["default"]
    off = "cond_check_perplexity_score_doc_level"  # the only difference: off where the vectors were made
    theirs = {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}
    ours = {key: sorted(value) if isinstance(value, list) else value for key, value in published().items()}
    assert ours == {**theirs, off: True}
    lists = WordLists(common_words=("the",))
    shape, paragraphs, count, documents = make_steps({off: False}, lists=lists)
    assert shape == ImageShape(150, 20_000, 2, 2, ("jpeg", "jpg", "png", "webp"))
    assert paragraphs == ParagraphRules(dataclasses.replace(PARAGRAPH, lists=lists, min_common_words=0.8), compat=True)
    assert count == ImageCount(1, 30)
    assert documents == DocumentRules(dataclasses.replace(DOCUMENT, lists=lists, min_common_words=0.9), compat=True)


def test_switches_and_sets(tmp_path: Path) -> None:
    file = tmp_path / "filter.yaml"
    every = [key for key in published() if key.startswith("cond_check_")]
    file.write_text("valid_formats: !!set {jpg, png}\n" + "".join(f"{key}: False\n" for key in every))
    shape, paragraphs, documents = load(file)
    assert shape == ImageShape(1, 1 << 62, math.inf, math.inf, None)
    batch = paragraphs(shape(from_parts([[Part("x"), Part(ref="i", meta={"width": 1, "height": 9, "format": "gif"})]])))
    assert len(kept_parts(batch)) == 2
    assert reasons(documents(batch)) == [None]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"number_words_min_cutoff": 3}, "unknown key 'number_words_min_cutoff'.*number_words_node_level_min_cutoff"),
        ({"cond_check_format": 1}, "cond_check_format: 1"),
        ({"aspect_ratio_max_cutoff": "2"}, "aspect_ratio_max_cutoff: '2'"),
        ({"number_words_doc_level_min_cutoff": 1.5}, "number_words_doc_level_min_cutoff"),
        ({"stopword_ratio_doc_level_min_cutoff": float("nan")}, "stopword_ratio"),
        ({"valid_formats": "jpg"}, "valid_formats"),
        ({"rendered_width_min_cutoff": 50}, "the same"),
        ({}, "common words"),
        ({"cond_check_common_word_ratio_node_level": False, "cond_check_common_word_ratio_doc_level": False}, "scorer"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, values: dict[str, Any], match: str) -> None:
    file = tmp_path / "filter.yaml"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=match):
        load(file)


# -------------------------------------------------------------------------------------------------------- the last step


def test_the_last_step() -> None:
    mark = END_OF_DOCUMENT
    document = [
        Part(mark), Part("a"), Part("b\n\nshare tweet cookie"), Part(ref="i"), Part("x"), Part(ref="i"), Part(""),
        Part(f"{mark}\n\n\n\n{mark}"), Part("y"), Part(f" {mark} "),
    ]  # fmt: skip
    only = [[Part(mark), Part(ref="i")], [Part("a")], [Part("tweet this"), Part(ref="i")], []]
    batch, why = take_removed(FinalProcessing()(from_parts([document, *only])))
    assert why == {"repeated image": 1, "spam words": 2}
    assert reasons(batch) == [None, "no text", "no image", "no text", "no text"]
    assert aligned(kept_parts(batch))[:2] == (["a\n\nb", None, f"x\n\n{mark}\n\ny"], [None, "i", None])


PIECES = ["a", "b\n", "\nc", "", " ", "share", END_OF_DOCUMENT, f" {END_OF_DOCUMENT}", "\n"]
RAW = st.lists(
    st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=4).map(lambda some: Part("\n\n".join(some))),
        st.sampled_from([Part(ref="i"), Part(ref="j"), Part(image=b"k")]),
    ),
    max_size=7,
)


@given(st.lists(RAW, max_size=3))
def test_the_last_step_twice_is_the_last_step_once(documents: list[list[Part]]) -> None:
    step = FinalProcessing()
    once = kept(take_removed(step(from_parts(documents)))[0])
    twice = step(once)
    assert reasons(twice) == [None] * once.num_rows
    assert list(parts_of(twice)) == list(parts_of(once))
    for found in parts_of(once):
        assert any(part.is_image for part in found)
        assert any((part.text or "").strip() not in ("", END_OF_DOCUMENT) for part in found)
        refs = [part.ref for part in found if part.is_image and part.ref]
        assert len(refs) == len(set(refs))
        kinds = [part.is_image for part in found]
        assert all(a or b for a, b in pairwise(kinds))


@given(RAW)
def test_the_last_step_keeps_the_order(document: list[Part]) -> None:
    """Every word and image that stays stands where it stood."""

    def flat(some: list[Part]) -> list[str]:
        return [w for p in some for w in ([f"[{p.ref}]"] if p.is_image else (p.text or "").split())]

    before, after = flat(document), flat(kept_parts(FinalProcessing()(from_parts([document]))))
    rest = iter(before)
    assert all(word in rest for word in after)
    assert {w for w in before if w in "abc"} == {w for w in after if w in "abc"}
