"""Chat templates: rendering, the assistant mask, and text that pretends to be a special token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import chat
from bloomery.corpus import tokenizer as tokenizers_

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CONTENT = st.lists(st.one_of(TEXT, st.sampled_from(tokenizers_.SPECIAL_TOKENS)), max_size=3).map("".join)
CONVERSATION = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": CONTENT}), min_size=1, max_size=4
)
CHATML = (
    "{% for m in messages %}{{ '<|user|>' + m.role + '\n' + m.content | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello you"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers_.train(["hello you, says the assistant to the user\n"] * 10, 300)


def assistant_text(tokenizer: Tokenizer, ids: list[int], mask: list[int]) -> str:
    return tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special_tokens=False)


def test_default_template() -> None:
    messages = [{"role": "system", "content": "be brief"}, *HELLO]
    assert chat.render(messages) == ("<|bos|><|system|>be brief<|end|><|user|>hi<|end|><|assistant|>hello you<|end|>")
    assert chat.render(HELLO[:1], add_generation_prompt=True) == "<|bos|><|user|>hi<|end|><|assistant|>"


def test_mask_covers_the_answer_and_its_end(tokenizer: Tokenizer) -> None:
    ids, mask = chat.encode(tokenizer, [*HELLO, *HELLO])
    assert ids == tokenizer.encode(chat.render([*HELLO, *HELLO])).ids
    assert assistant_text(tokenizer, ids, mask) == "hello you<|end|>" * 2
    assert not any(chat.encode(tokenizer, HELLO[:1], add_generation_prompt=True)[1])


def test_an_empty_answer_still_ends(tokenizer: Tokenizer) -> None:
    ids, mask = chat.encode(tokenizer, [HELLO[0], {"role": "assistant", "content": ""}])
    assert assistant_text(tokenizer, ids, mask) == "<|end|>"


@given(CONVERSATION, st.sampled_from([None, CHATML]))
def test_what_people_write_cannot_become_special(
    tokenizer: Tokenizer, messages: list[dict[str, str]], template: str | None
) -> None:
    ids, _ = chat.encode(tokenizer, messages, template)
    rendered = chat.render(messages, template)
    assert tokenizer.decode(ids, skip_special_tokens=False) == rendered
    harmless = [{**m, "content": "text"} for m in messages]
    special = range(len(tokenizers_.SPECIAL_TOKENS))
    expected = [i for i in tokenizer.encode(chat.render(harmless, template)).ids if i in special]
    assert [i for i in ids if i in special] == expected
    if not any(token in m["content"] for m in messages for token in tokenizers_.SPECIAL_TOKENS):
        assert ids == tokenizer.encode(rendered).ids


def test_mask_with_text_of_the_template_around_the_answer(tokenizer: Tokenizer) -> None:
    ids, mask = chat.encode(tokenizer, [HELLO[0], {"role": "assistant", "content": "  hello you "}], CHATML)
    assert assistant_text(tokenizer, ids, mask).strip() == "hello you<|end|>"
    assert ids == tokenizer.encode(chat.render(HELLO, CHATML)).ids


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty"),
        ("hi", "non-empty"),
        ([{"role": "user"}], "message 0: expected role and content"),
        ([{"role": "bot", "content": "x"}], "unknown role 'bot'"),
        ([{"role": "user", "content": None}], "NoneType, not text"),
        ([HELLO[0], {"role": "system", "content": "x"}], "message 1: a system message"),
    ],
)
def test_bad_conversations(messages: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        chat.render(messages)


def test_bad_templates(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="line 1"):
        chat.render(HELLO, "{% for %}")
    with pytest.raises(DataError, match="only two turns"):
        chat.render(HELLO, "{{ raise_exception('only two turns') }}")
    with pytest.raises(DataError, match="refuses"):
        chat.render(HELLO, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError, match="rewrites the messages"):
        chat.encode(tokenizer, HELLO, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")


def test_the_prompt_of_deepseek_ends_without_a_space() -> None:
    messages = [{"role": "system", "content": "be brief"}, *HELLO, {"role": "user", "content": "why?"}]
    tokens = {"bos_token": "<b>", "eos_token": "<e>"}
    prompt = chat.render(messages, chat.DEEPSEEK_TEMPLATE, add_generation_prompt=True, **tokens)
    assert prompt == "<b>be brief\n\nUser: hi\n\nAssistant: hello you<e>User: why?\n\nAssistant:"
    assert prompt == prompt.rstrip()


@given(CONVERSATION)
def test_an_answer_to_the_prompt_of_deepseek_continues_it_as_in_training(messages: list[dict[str, str]]) -> None:
    prompt = chat.render(messages, chat.DEEPSEEK_TEMPLATE, add_generation_prompt=True)
    trained = chat.render([*messages, {"role": "assistant", "content": "yes"}], chat.DEEPSEEK_TEMPLATE)
    assert trained == prompt + " yes" + tokenizers_.EOS  # the space begins the answer


def test_the_prompt_of_deepseek_in_tokens(tokenizer: Tokenizer) -> None:
    prompt, _ = chat.encode(tokenizer, HELLO[:1], chat.DEEPSEEK_TEMPLATE, add_generation_prompt=True)
    trained, mask = chat.encode(tokenizer, HELLO, chat.DEEPSEEK_TEMPLATE)
    assert trained[: len(prompt)] == prompt
    assert tokenizer.decode(prompt, skip_special_tokens=False).endswith("Assistant:")
    assert sum(mask[: len(prompt)]) == 0
    assert assistant_text(tokenizer, trained, mask).lstrip() == "hello you<|eos|>"
