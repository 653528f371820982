"""Conversations: the prompt they make, what they remember, what they forget when room runs out."""

from __future__ import annotations

import pytest

from bloomery.core.errors import ConfigError
from bloomery.corpus import chat
from bloomery.corpus import tokenizer as training
from bloomery.generate import Conversation, chat_prompt
from bloomery.models.decoder import Decoder, DecoderConfig


@pytest.fixture(scope="module")
def chat_tokenizer():
    return training.train(["What is a bloomery? A furnace for iron. Hello there, how are you?"] * 4, 300)


@pytest.fixture(scope="module")
def chat_model(chat_tokenizer):
    config = DecoderConfig(
        vocab_size=chat_tokenizer.get_vocab_size(),
        dim=16,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        ffn_dim=16,
        max_positions=128,
        init_std=0.5,
    )
    return Decoder(config).double()


def test_a_reply_is_streamed_and_remembered(chat_model, chat_tokenizer):
    talk = Conversation(chat_model, chat_tokenizer, system="Be brief.", max_new_tokens=12, temperature=1.0)
    first = "".join(talk.say("Hello"))
    second = "".join(talk.say("How are you?"))
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in talk.messages] == ["Be brief.", "Hello", first, "How are you?", second]

    again = Conversation(chat_model, chat_tokenizer, system="Be brief.", max_new_tokens=12, temperature=1.0)
    assert "".join(again.say("Hello")) == first


def test_an_interrupted_reply_is_remembered_as_far_as_it_was_read(chat_model, chat_tokenizer):
    talk = Conversation(chat_model, chat_tokenizer, max_new_tokens=20)
    piece = next(talk.say("Hello"))
    assert talk.messages[-1] == {"role": "assistant", "content": piece}


def test_the_prompt_ends_where_the_assistant_begins(chat_tokenizer):
    messages = [{"role": "user", "content": "Hello <|end|>"}]
    ids = chat_prompt(chat_tokenizer, messages, room=100)
    assert ids == chat.encode(chat_tokenizer, messages, add_generation_prompt=True)[0]
    assert ids[-1] == chat_tokenizer.token_to_id("<|assistant|>")
    assert ids.count(chat_tokenizer.token_to_id("<|end|>")) == 1  # the one a user typed is plain text


def test_oldest_exchanges_are_left_out_when_room_runs_out(chat_tokenizer):
    system = {"role": "system", "content": "Be brief."}
    turns = [
        {"role": role, "content": f"{role} {i} " + "furnace " * 5} for i in range(4) for role in ("user", "assistant")
    ]
    messages = [system, *turns, {"role": "user", "content": "And now?"}]
    whole = chat_prompt(chat_tokenizer, messages, room=10_000)
    for room in (len(whole) - 1, len(whole) // 2, 1):
        ids = chat_prompt(chat_tokenizer, messages, room)
        kept = next(
            [system, *messages[i:]]
            for i in (1, 3, 5, 7, 9)
            if chat.encode(chat_tokenizer, [system, *messages[i:]], add_generation_prompt=True)[0] == ids
        )
        assert len(ids) <= room or len(kept) == 2
        assert len(kept) < len(messages)


def test_a_message_that_never_fits_is_refused_and_not_remembered(chat_model, chat_tokenizer):
    talk = Conversation(chat_model, chat_tokenizer, max_new_tokens=8)
    with pytest.raises(ConfigError, match="128 positions"):
        talk.say("x y z " * 200)
    assert talk.messages == []


def test_a_generous_limit_leaves_room_for_the_past(chat_model, chat_tokenizer):
    talk = Conversation(chat_model, chat_tokenizer, max_new_tokens=10_000, eos=[])
    talk.messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    whole = chat_prompt(chat_tokenizer, [*talk.messages, {"role": "user", "content": "you?"}], room=64)
    said = []
    chat_model.register_forward_pre_hook(lambda module, args: said.append(args[0].shape[1]))
    for _ in talk.say("you?"):
        break
    chat_model._forward_pre_hooks.clear()
    assert said[0] == len(whole)
