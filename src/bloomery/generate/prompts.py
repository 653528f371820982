"""Prompts to token ids, and the special tokens that begin and end a text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError
from bloomery.corpus.tokenizer import BOS, END, EOS
from bloomery.models.decoder import DecoderConfig

# Ours first, then those of the published tokenizers that the known model families use.
BEGIN_TOKENS = (BOS, "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")
END_TOKENS = (EOS, END, "</s>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>")


def begin_token_id(tokenizer: Tokenizer) -> int | None:
    """The token that begins a text, or None when the tokenizer has none of the known ones."""
    ids = [tokenizer.token_to_id(name) for name in BEGIN_TOKENS]
    return next((i for i in ids if i is not None), None)


def end_token_ids(tokenizer: Tokenizer) -> list[int]:
    """All known tokens of the tokenizer that end a text or a chat turn."""
    ids = [tokenizer.token_to_id(name) for name in END_TOKENS]
    return [i for i in ids if i is not None]


def encode_prompts(config: DecoderConfig, tokenizer: Tokenizer, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    """Token ids of every prompt.

    Text is encoded as the tokenizer does it (special tokens that are spelled out count as such) and begins with
    `<|bos|>` where there is one, as the documents of training do. Lists of ids are taken as they are. A prompt without
    any token becomes the token that begins a text.

    Raises ConfigError for a prompt that leaves no position for a new token, for tokens outside the model's vocabulary,
    and for an empty prompt when there is no begin token.
    """
    encoded = [list(p) if not isinstance(p, str) else encode_text(tokenizer, p) for p in prompts]
    begin = begin_token_id(tokenizer)
    for i, ids in enumerate(encoded):
        if not ids:
            if begin is None:
                raise ConfigError(
                    f"prompt {i} is empty and the tokenizer has no token that begins a text",
                    fix="give at least one token",
                )
            ids.append(begin)
        if len(ids) >= config.max_positions:
            raise ConfigError(
                f"prompt {i} has {len(ids)} tokens, but the model sees {config.max_positions} positions",
                fix=f"shorten it to at most {config.max_positions - 1} tokens, so that a new one fits",
            )
        if not 0 <= min(ids) <= max(ids) < config.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < config.vocab_size)
            raise ConfigError(
                f"prompt {i} holds token {wrong}, but the model knows 0 to {config.vocab_size - 1}",
                fix="use the tokenizer that the model was trained with",
            )
    return encoded


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids as the tokenizer makes them, with `<|bos|>` in front where there is one."""
    bos = tokenizer.token_to_id(BOS)
    ids: list[int] = tokenizer.encode(text).ids
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
