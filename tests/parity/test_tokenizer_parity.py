"""A saved tokenizer folder means the same to transformers as to us."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bloomery.corpus import chat
from bloomery.corpus import tokenizer as tokenizers_

transformers = pytest.importorskip("transformers")

TEXTS = [
    "Once upon a time, 12 naïve robots said “hello”.\n",
    "for i in range(10):\n    print(i)\n",
    "日本語の文章",
] * 20
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HARMLESS = TEXT.filter(lambda text: not any(token in text for token in tokenizers_.SPECIAL_TOKENS))
MIXED = st.lists(st.one_of(TEXT, st.sampled_from(tokenizers_.SPECIAL_TOKENS)), max_size=6).map("".join)
CHATML = (
    "{% for message in messages %}\n  {% if message.role == 'system' and not loop.first %}{{ raise_exception('no') }}"
    "{% endif %}\n{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}\n"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}{{ messages | tojson }}"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "saved"
    tokenizers_.save(tokenizers_.train(TEXTS, 350), folder)
    return folder


@pytest.fixture(scope="module")
def ours(saved: Path) -> Tokenizer:
    return tokenizers_.load(saved)


@pytest.fixture(scope="module")
def theirs(saved: Path) -> object:
    return transformers.AutoTokenizer.from_pretrained(saved)


@given(MIXED)
def test_ids_and_decoding_are_the_same(ours: Tokenizer, theirs: object, text: str) -> None:
    ids = ours.encode(text).ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_the_same(ours: Tokenizer, theirs: object) -> None:
    for name in ("bos", "eos", "pad"):
        assert getattr(theirs, f"{name}_token_id") == ours.token_to_id(f"<|{name}|>")
    assert set(theirs.all_special_tokens) == set(tokenizers_.SPECIAL_TOKENS)
    assert len(theirs) == ours.get_vocab_size()


ROLES = ("user", "assistant")
CONVERSATION = st.builds(
    lambda system, turns: [
        *([{"role": "system", "content": system}] if system is not None else []),
        *({"role": role, "content": text} for turn in turns for role, text in zip(ROLES, turn, strict=True)),
    ],
    st.none() | HARMLESS,
    st.lists(st.tuples(HARMLESS, HARMLESS), min_size=1, max_size=3),
)


@given(CONVERSATION, st.booleans())
def test_chat_is_the_same(ours: Tokenizer, theirs: object, messages: list[dict[str, str]], prompt: bool) -> None:
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    assert chat.render(messages, add_generation_prompt=prompt) == rendered
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"]
    assert chat.encode(ours, messages, add_generation_prompt=prompt)[0] == ids


@given(CONVERSATION, st.booleans())
def test_other_templates_render_the_same(theirs: object, messages: list[dict[str, str]], prompt: bool) -> None:
    expected = theirs.apply_chat_template(messages, chat_template=CHATML, tokenize=False, add_generation_prompt=prompt)
    assert chat.render(messages, CHATML, add_generation_prompt=prompt) == expected
