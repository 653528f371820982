"""Byte-level BPE tokenizers: trained on a corpus, saved so that `transformers.AutoTokenizer` loads the same thing.

A tokenizer is a plain `tokenizers.Tokenizer`. Every byte is in the vocabulary, so any text survives the round trip.
Words keep their leading space, digits are split one by one (so that numbers align), and the seven special tokens take
the first ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bloomery.core.errors import ConfigError, DataError, EmptyError
from bloomery.core.files import atomic_folder, read_json
from bloomery.core.hashing import digest as json_digest
from bloomery.core.log import logger

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, USER, ASSISTANT, SYSTEM, END)
MIN_VOCABULARY = 256 + len(SPECIAL_TOKENS)

WORDS = "|".join(
    [
        r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})",  # English clitics
        r"[^\S\r\n]?[\p{L}\p{M}]+",  # a word with the space before it
        r"\p{N}",  # one digit
        r" ?[^\s\p{L}\p{M}\p{N}]+",  # a run of punctuation
        r"\s*[\r\n]+",  # line breaks with what is blank before them
        r"\s+(?!\S)",  # blanks, the last of which goes to the word that follows
        r"\s+",
    ]
)

DEFAULT_CHAT_TEMPLATE = (
    "{{- '<|bos|>' -}}"
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train(texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> Tokenizer:
    """Train a byte-level BPE vocabulary of at most `vocab_size` tokens; the same texts give the same tokenizer.

    The vocabulary is smaller (a warning says so) when the texts do not hold enough pairs seen `min_frequency` times.
    """
    if vocab_size < MIN_VOCABULARY:
        raise ConfigError(
            f"vocab_size = {vocab_size} is too small", fix=f"256 bytes and the special tokens need {MIN_VOCABULARY}"
        )
    if min_frequency < 1:
        raise ConfigError(f"min_frequency = {min_frequency}", fix="use 1 or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    seen = [0]
    tokenizer.train_from_iterator(_counted(texts, seen), trainer)
    if not seen[0]:
        raise EmptyError("no text to train a tokenizer on", fix="look at what the steps before it dropped")
    if tokenizer.get_vocab_size() < vocab_size:
        logger("corpus").warning(
            "the tokenizer has %d tokens instead of %d: the text holds no more pairs seen %d times",
            tokenizer.get_vocab_size(),
            vocab_size,
            min_frequency,
        )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path | str, chat_template: str = DEFAULT_CHAT_TEMPLATE) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template) into a new folder, atomically."""
    with atomic_folder(folder, ours=("tokenizer.json", "tokenizer_config.json")) as temporary:
        write(tokenizer, temporary, chat_template)


def write(tokenizer: Tokenizer, folder: Path | str, chat_template: str = DEFAULT_CHAT_TEMPLATE) -> None:
    """Like `save`, but beside what the existing `folder` holds already (a model, for one)."""
    folder = Path(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    known = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: token for name, token in known.items() if tokenizer.token_to_id(token) is not None},
        "additional_special_tokens": [t for t in SPECIAL_TOKENS[3:] if tokenizer.token_to_id(t) is not None],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,  # the convention for "no limit"
        "chat_template": chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load(path: Path | str) -> Tokenizer:
    """Load `tokenizer.json`, or the folder that holds it."""
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise DataError("no such tokenizer file", where=file, fix="give a tokenizer.json or the folder that holds it")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"not a tokenizer: {error}", where=file) from error


def chat_template(folder: Path | str) -> str | None:
    """The chat template saved beside a tokenizer, or None."""
    folder = Path(folder)
    beside = folder / "chat_template.jinja"  # where transformers 5 puts it
    if beside.is_file():
        return beside.read_text("utf-8")
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return template if isinstance(template, str) else None


def encode_batch(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids (int64) of each text, in parallel threads.

    Special tokens spelled out in a text are encoded as the plain characters they are: what a page says cannot end a
    document or open a turn. Lone surrogates, which UTF-8 cannot spell, become question marks.
    """
    encodings = plain(tokenizer).encode_batch_fast([spellable(text) for text in texts], add_special_tokens=False)
    return [np.array(encoding.ids, np.int64) for encoding in encodings]


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that never produces a special token, whatever the text says; made once per tokenizer."""
    return _plain(tokenizer, tokenizer.get_vocab_size())


def spellable(text: str) -> str:
    """The text with every lone surrogate replaced by a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def digest(tokenizer: Tokenizer) -> str:
    """Identity of the vocabulary, merges and pre-tokenisation: stored with everything that was tokenised by it."""
    spec = json.loads(tokenizer.to_str())
    return json_digest({**spec, "padding": None, "truncation": None})


@lru_cache(maxsize=8)
def _plain(tokenizer: Tokenizer, size: int) -> Tokenizer:  # `size` renews the copy when tokens have been added
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    copy.no_padding()
    copy.no_truncation()
    return copy


def _counted(texts: Iterable[str], seen: list[int]) -> Iterator[str]:
    for text in texts:
        if text and not text.isspace():
            seen[0] += 1
            yield spellable(text)
