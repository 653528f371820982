"""Incremental text: whole characters, no part of a stop string, and the same text as decoding at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bloomery.generate.text import TextBuilder

REPLACEMENT = "\ufffd"


def build(tokenizer, tokens, stop=()):
    """Push until a stop or the end; returns the builder and the pieces taken after every token."""
    builder, pieces = TextBuilder(tokenizer, stop), []
    for token in tokens:
        stopped = builder.push(token)
        pieces.append(builder.take())
        if stopped:
            break
    builder.close()
    pieces.append(builder.take())
    return builder, pieces


@settings(deadline=None, max_examples=100)
@given(tokens=st.lists(st.integers(0, 319), max_size=40))
def test_any_tokens_give_the_text_of_decoding_them_at_once(tokenizer, tokens):
    builder, pieces = build(tokenizer, tokens)
    assert builder.text == "".join(pieces) == tokenizer.decode(tokens)


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=30))
def test_no_piece_ends_inside_a_character(tokenizer, text):
    tokens = tokenizer.encode(text).ids
    builder, pieces = build(tokenizer, tokens)
    assert builder.text == "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces) or REPLACEMENT in text


def test_a_four_byte_character_appears_with_its_last_byte(tokenizer):
    tokens = tokenizer.encode("a🧭b").ids
    assert len(tokens) > 4
    pieces = build(tokenizer, tokens)[1]
    assert [piece for piece in pieces if piece] == ["a", "🧭", "b"]
    cut = tokens[: tokens.index(tokenizer.encode("b").ids[0]) - 1]
    assert build(tokenizer, cut)[0].text == "a" + REPLACEMENT


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_stop_strings_are_cut_wherever_the_tokens_break(tokenizer, data):
    letters = st.sampled_from("abé ")
    text = data.draw(st.text(letters, min_size=1, max_size=25))
    stop = data.draw(st.lists(st.text(letters, min_size=1, max_size=4), min_size=1, max_size=3))
    tokens = [tokenizer.token_to_id(byte) for character in text for byte in byte_names(character)]
    builder, pieces = build(tokenizer, tokens, stop)
    assert builder.text == "".join(pieces) == cut_at_first_stop(text, stop)


def cut_at_first_stop(text: str, stop: list[str]) -> str:
    """Characters arrive one by one; the first to complete a stop string ends the text where that string begins."""
    for end in range(1, len(text) + 1):
        found = [at for s in stop if (at := text[:end].find(s)) >= 0]
        if found:
            return text[: min(found)]
    return text


def byte_names(character: str) -> list[str]:
    """The byte-level alphabet's name of each byte of a character."""
    return list(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(character)[0][0])


def test_stop_string_across_tokens_is_held_back_and_never_shown(tokenizer):
    tokens = [t for word in ("The end", "S", "T", "O", "P", " more") for t in tokenizer.encode(word).ids]
    builder, pieces = build(tokenizer, tokens, ["STOP"])
    assert builder.text == "The end"
    assert "S" not in "".join(pieces)


def test_text_that_only_began_like_a_stop_string_is_shown(tokenizer):
    tokens = [t for word in ("S", "T", "O", "x", "S", "T") for t in tokenizer.encode(word).ids]
    builder, pieces = build(tokenizer, tokens, ["STOP"])
    assert builder.text == "".join(pieces) == "STOxST"
    assert pieces[:4] == ["", "", "", "STOx"]
    assert pieces[-1] == "ST"


def test_stop_inside_one_token_keeps_what_comes_before_it(tokenizer):
    token = next(i for i in range(320) if len(tokenizer.decode([i])) >= 3 and tokenizer.decode([i]).isalpha())
    word = tokenizer.decode([token])
    assert build(tokenizer, [token], [word[1:]])[0].text == word[0]


def test_stop_string_before_bytes_that_never_become_a_character(tokenizer):
    half = tokenizer.encode("é").ids[:1]
    builder, _ = build(tokenizer, tokenizer.encode("ab").ids + half, ["b" + REPLACEMENT])
    assert builder.text == "a"


def test_special_tokens_are_silent(tokenizer):
    eos = tokenizer.token_to_id("<|eos|>")
    tokens = [eos, *tokenizer.encode("The token").ids, eos, *tokenizer.encode(" text").ids]
    assert build(tokenizer, tokens)[0].text == "The token text"


@pytest.fixture(scope="module")
def sentencepiece_like() -> Tokenizer:
    """Words marked by ▁ with bytes as a fallback, as in Llama 2's tokenizer; decoding drops the first space."""
    vocab = {"<unk>": 0, "</s>": 1, "▁the": 2, "▁model": 3, "s": 4, "▁": 5}
    vocab |= {f"<0x{byte:02X}>": 6 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["</s>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def test_spaces_survive_decoders_that_strip_the_first_one(sentencepiece_like):
    compass = [6 + byte for byte in "🧭".encode()]
    tokens = [2, 3, 4, 1, 3, *compass, 2, 5, 4]
    builder, pieces = build(sentencepiece_like, tokens)
    assert builder.text == "".join(pieces) == sentencepiece_like.decode(tokens) == "the models model🧭 the s"
    assert "🧭" in pieces
