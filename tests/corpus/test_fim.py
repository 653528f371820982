"""Fill in the middle: the inverse, the distribution of the cuts, the sentinels' spelling, and the way to tokens."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import fim, pack, run, tokenizer
from bloomery.corpus.documents import SCHEMA, from_texts, texts
from bloomery.corpus.fim import BYTE_MARKS, DEEPSEEK, FillInTheMiddle, Parts, Sentinels, arrange, cut, restore
from bloomery.corpus.steps import drop_reasons, kept

MARKS = (7001, 7002, 7003)
documents = st.lists(
    st.one_of(
        st.text(max_size=40), st.lists(st.sampled_from([*DEEPSEEK, "<", "a", "é\n", "｜>"]), max_size=9).map("".join)
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def vocabulary() -> Tokenizer:
    trained = tokenizer.train(["def add(a, b):\n    return a + b\n", "the sum of two numbers"] * 20, 300)
    fim.add_tokens(trained)
    return trained


def told(batch) -> list[str]:
    return texts(batch).to_pylist()


# ------------------------------------------------------------------------------------------------- one document


def test_the_two_orders_letter_by_letter():
    parts = cut("def f(x):\n    return x\n", 10, 20)
    assert parts == ("def f(x):\n", "    return", " x\n")
    assert arrange(parts) == (
        "<\uff5cfim\u2581begin\uff5c>def f(x):\n<\uff5cfim\u2581hole\uff5c> x\n<\uff5cfim\u2581end\uff5c>    return"
    )
    assert arrange(parts, "spm") == (
        "<\uff5cfim\u2581hole\uff5c> x\n<\uff5cfim\u2581begin\uff5c>def f(x):\n<\uff5cfim\u2581end\uff5c>    return"
    )
    assert [ord(c) for c in DEEPSEEK.begin if ord(c) > 127] == [0xFF5C, 0x2581, 0xFF5C]


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.sampled_from(["psm", "spm"]))
def test_restore_is_the_inverse_of_arrange(prefix, middle, suffix, order):
    parts = Parts(*map(fim.escape, (prefix, middle, suffix)))
    assert restore(arrange(parts, order)) == (parts, order)


@given(*[st.lists(st.integers(0, 7000), max_size=20)] * 3, st.sampled_from(["psm", "spm"]))
def test_restore_is_the_inverse_on_ids_too(prefix, middle, suffix, order):
    parts = Parts(*(np.array(part, np.int64) for part in (prefix, middle, suffix)))
    ids = fim.arrange_ids(parts, MARKS, order)
    assert len(ids) == sum(map(len, parts)) + 3
    assert ids.dtype == np.int64
    found, found_order = fim.restore_ids(ids, MARKS)
    assert found_order == order
    for one, other in zip(found, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "text",
    ["", "plain", DEEPSEEK.begin, "x" + arrange(Parts("a", "b", "c")), arrange(Parts("a", DEEPSEEK.end, "c")),
     "".join(reversed(DEEPSEEK)), arrange(Parts("a", "b", "c")).replace(DEEPSEEK.end, DEEPSEEK.hole)],
)  # fmt: skip
def test_what_was_not_rearranged_is_not_restored(text):
    assert restore(text) is None
    ids = fim.encode_bytes(text)
    assert fim.restore_ids(ids, BYTE_MARKS) is None


@given(documents)
def test_escaped_text_spells_no_sentinel_and_differs_by_spaces_only(pieces):
    text = "".join(pieces)
    escaped = fim.escape(text)
    assert not any(token in escaped for token in DEEPSEEK)
    assert escaped.replace(" ", "") == text.replace(" ", "")
    assert (escaped == text) == (not any(token in text for token in DEEPSEEK))


# ------------------------------------------------------------------------------------------------------ the step


@given(documents, st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_every_document_can_be_put_back(pieces, rate, spm, seed):
    batch = FillInTheMiddle(rate=rate, spm=spm, seed=seed)(from_texts(pieces))
    assert kept(batch).num_rows == len(pieces)
    for before, after, kind, lost in zip(
        pieces, told(batch), batch["fim"].to_pylist(), batch["fim_lost"].to_pylist(), strict=True
    ):
        assert lost == 0
        if kind == "plain":
            assert after == fim.escape(before)
            continue
        parts, order = restore(after)
        assert order == kind
        assert "".join(parts) == fim.escape(before)
        assert all(parts)  # no part is empty


def test_shares_follow_the_rate_and_short_documents_stay_plain():
    batch = from_texts([f"document number {i}" for i in range(4000)])
    kinds = FillInTheMiddle(rate=0.5, spm=0.25)(batch)["fim"].to_pylist()
    assert abs(kinds.count("plain") / 4000 - 0.5) < 0.03
    assert abs(kinds.count("spm") / 2000 - 0.25) < 0.04
    assert set(FillInTheMiddle(rate=0)(batch)["fim"].to_pylist()) == {"plain"}
    assert set(FillInTheMiddle(rate=1)(batch)["fim"].to_pylist()) == {"psm"}
    assert FillInTheMiddle(rate=1)(from_texts(["", "a", "ab", "abc"]))["fim"].to_pylist() == ["plain"] * 3 + ["psm"]


def test_cuts_are_uniform_over_pairs_of_places():
    step = FillInTheMiddle(rate=1)
    n = 12_000
    choice = step.choose([str(i) for i in range(n)], np.full(n, 5))
    pairs = list(zip(choice.begin.tolist(), choice.end.tolist(), strict=True))
    expected = set(itertools.combinations([1, 2, 3, 4], 2))
    assert set(pairs) == expected
    counts = np.array([pairs.count(pair) for pair in sorted(expected)])
    assert ((counts - n / 6) ** 2 / (n / 6)).sum() < 20.5  # chi-squared with 5 degrees of freedom: 0.999
    assert set(zip(*step.choose(["a", "b"], np.array([3, 3]))[1:3], strict=True)) == {(1, 2)}


def test_the_choice_depends_on_id_and_seed_and_on_nothing_else():
    batch = from_texts([f"some text {i % 7}" for i in range(300)], ids=[str(i) for i in range(300)])
    step = FillInTheMiddle()
    whole = told(step(batch))
    assert told(step(batch.slice(100, 50))) == whole[100:150]
    assert told(FillInTheMiddle(seed=1)(batch)) != whole
    renamed = from_texts(told(batch), ids=[f"x{i}" for i in range(300)])
    assert told(step(renamed)) != whole
    higher = FillInTheMiddle(rate=0.9)(batch)["fim"].to_pylist()  # a higher rate only adds
    assert all(b == "psm" for a, b in zip(step(batch)["fim"].to_pylist(), higher, strict=True) if a == "psm")


def test_long_documents_are_cut_before_they_are_rearranged_and_counted():
    batch = from_texts(["x" * 50, "0123456789", "y" * 9, "z" * 50], ids=["a", "b", "c", "d"])
    done = FillInTheMiddle(rate=1, max_length=10)(batch)
    assert done["fim_lost"].to_pylist() == [40, 0, 0, 40]
    assert ["".join(restore(text)[0]) for text in told(done)] == ["x" * 10, "0123456789", "y" * 9, "z" * 10]
    plain = FillInTheMiddle(rate=0, max_length=10)(batch)
    assert told(plain) == told(batch)  # a plain document may be split anywhere: nothing is lost
    assert plain["fim_lost"].to_pylist() == [0] * 4


def test_documents_that_spell_out_a_sentinel():
    batch = from_texts([f"a tokenizer has {DEEPSEEK.hole} in it", "a clean one"])
    escaped = FillInTheMiddle(rate=1)(batch)
    assert "".join(restore(told(escaped)[0])[0]) == "a tokenizer has < \uff5cfim\u2581hole\uff5c> in it"
    dropped = FillInTheMiddle(spelled_out="drop")(batch)
    assert drop_reasons(dropped, [None, None])["_drop"].to_pylist() == ["spells out a fill-in-the-middle token", None]


def test_an_empty_batch_and_a_document_with_an_image():
    empty = FillInTheMiddle()(from_texts([]))
    assert empty.schema.names == [*SCHEMA.names, "fim", "fim_lost"]
    import pyarrow as pa

    image = pa.RecordBatch.from_pylist(
        [{"id": "1", "parts": [{"kind": "image", "image": b"x"}, {"kind": "text", "text": "caption"}]}], schema=SCHEMA
    )
    with pytest.raises(DataError, match="images would lose them"):
        FillInTheMiddle()(image)


def test_the_engine_runs_it(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in range(20):
        (tmp_path / "in" / f"{i}.txt").write_text(f"document number {i} of twenty")
    run([FillInTheMiddle(rate=0.5, sentinels=DEEPSEEK)], tmp_path / "in", tmp_path / "out", quiet=True)
    (file,) = (tmp_path / "out").glob("*.parquet")
    assert {"plain", "psm"} == set(pq.read_table(file)["fim"].to_pylist())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"rate": 1.5}, "rate=1.5"), ({"spm": -1}, "spm=-1"), ({"max_length": 2}, "3 or more"),
     ({"spelled_out": "keep"}, "escape or drop")],
)  # fmt: skip
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        FillInTheMiddle(**wrong)


# ------------------------------------------------------------------------------------------------ text to tokens


def test_on_tokens_the_cuts_are_those_of_a_text_of_that_length():
    step = FillInTheMiddle(rate=0.6, spm=0.4, max_length=30)
    kinds = set()
    for i in range(60):
        text = "".join(chr(97 + k % 26) for k in range(i))
        done = step(from_texts([text], ids=[f"doc {i}"]))
        ids = step.tokens(np.frombuffer(text.encode(), np.uint8), f"doc {i}", BYTE_MARKS)
        np.testing.assert_array_equal(ids, fim.encode_bytes(told(done)[0]))
        kinds.add(done["fim"][0].as_py())
    assert kinds == {"plain", "psm", "spm"}


@given(documents, st.integers(0, 3))
def test_bytes_of_a_rearranged_document(pieces, seed):
    batch = FillInTheMiddle(rate=0.7, spm=0.5, seed=seed)(from_texts(pieces))
    for before, after, kind in zip(pieces, told(batch), batch["fim"].to_pylist(), strict=True):
        ids = fim.encode_bytes(after)
        assert ids.dtype == np.int64
        if kind == "plain":
            assert bytes(ids.tolist()) == fim.escape(before).encode()
        else:
            parts, order = fim.restore_ids(ids, BYTE_MARKS)
            assert order == kind
            assert b"".join(bytes(part.tolist()) for part in parts) == fim.escape(before).encode()


def test_sentinels_reach_the_pack_as_single_tokens_and_only_those_that_were_put_there(vocabulary, tmp_path):
    source = [f"def add(a, b):\n    return a + {i}\n" for i in range(30)] + [f"it spells {DEEPSEEK.begin} out"]
    batch = FillInTheMiddle(rate=0.5, spm=0.3)(from_texts(source))
    marks = fim.token_ids(vocabulary)
    assert marks == tuple(range(vocabulary.get_vocab_size() - 3, vocabulary.get_vocab_size()))
    packed = pack(told(batch), vocabulary, tmp_path / "pack", encode=fim.encode_batch, quiet=True)
    assert packed.n_documents == len(source)
    rebuilt, kinds = [], []
    for number in range(len(source)):
        ids = packed.document(number)[1:-1]  # without the tokens that begin and end it
        found = fim.restore_ids(ids, marks)
        kinds.append("plain" if found is None else found[1])
        parts = [ids] if found is None else found[0]
        rebuilt.append("".join(vocabulary.decode(part.tolist(), skip_special_tokens=False) for part in parts))
    assert rebuilt == list(map(fim.escape, source))
    assert kinds == batch["fim"].to_pylist()
    as_text = pack(told(batch), vocabulary, tmp_path / "text", quiet=True)  # without it they are spelled in characters
    assert not np.isin([t for i in range(31) for t in as_text.document(i)], marks).any()


def test_the_prompt_is_the_beginning_of_a_training_document(vocabulary):
    for order in ("psm", "spm"):
        document = arrange(Parts("def add(a, b):\n", "    return a", " + b\n"), order)
        (ids,) = fim.encode_batch(vocabulary, [document])
        prompt = fim.fim_prompt(vocabulary, "def add(a, b):\n", " + b\n", order)
        assert prompt[0] == vocabulary.token_to_id(tokenizer.BOS)
        assert prompt[1:] == ids[: len(prompt) - 1].tolist()
        assert prompt[-1] == fim.token_ids(vocabulary)[2]
    spelled = fim.fim_prompt(vocabulary, DEEPSEEK.end, "")
    assert sum(token in fim.token_ids(vocabulary) for token in spelled) == 3


def test_the_prompt_begins_as_the_tokenizer_does_it_itself():
    from tokenizers.processors import TemplateProcessing

    own = Tokenizer(models.WordLevel({"<s>": 0, "x": 1, "?": 2}, unk_token="?"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    begin, _, end = fim.add_tokens(own)
    assert fim.fim_prompt(own, "x", "")[0] == begin
    own.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert fim.fim_prompt(own, "x", "") == [0, begin, 1, begin + 1, end]


def test_a_tokenizer_without_the_tokens_is_refused_by_name():
    plain = tokenizer.train(["some text to learn from"] * 3, 270)
    with pytest.raises(ConfigError, match=r"'<\uff5cfim\u2581begin\uff5c>'.*'<\uff5cfim\u2581end\uff5c>'.*base model"):
        fim.fim_prompt(plain, "a", "b")
    plain.add_special_tokens([DEEPSEEK.begin, DEEPSEEK.hole])
    with pytest.raises(ConfigError, match="not a single token of this tokenizer: '<\uff5cfim\u2581end\uff5c>'"):
        fim.encode_batch(plain, ["a"])
    other = tokenizer.train(["some text to learn from"] * 3, 270)
    ascii_ones = Sentinels("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")  # as the paper prints them
    fim.add_tokens(other, ascii_ones)
    with pytest.raises(ConfigError, match=re.escape("it has '<|fim_begin|>', '<|fim_end|>', '<|fim_hole|>'")):
        fim.fim_prompt(other, "a", "b")
    assert len(fim.fim_prompt(other, "a", "b", sentinels=ascii_ones)) == 6
