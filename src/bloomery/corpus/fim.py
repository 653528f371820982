"""Fill in the middle: documents told in another order, so that a left-to-right model learns to write into a gap.

A document is cut in three at two random places, and the middle is told last (arXiv:2207.14255; for DeepSeek-Coder-V2
arXiv:2406.11931 §3.1, whose tokens these are):

    psm   <begin> prefix <hole> suffix <end> middle        prefix, suffix, middle: the order of DeepSeek-Coder-V2
    spm   <hole> suffix <begin> prefix <end> middle        suffix first: prefix and middle stay neighbours

Three things are easily got wrong. It happens per document and before packing: cutting the packed windows would join
pieces of unrelated files. The cuts fall between characters, not tokens, so that the model learns to go on inside a
word. And a sentinel must reach the model as one token: it does through `encode_batch` (give it to `pack`) and, for
models of bytes, `encode_bytes`; what a file itself says is never taken for one.

    steps = [..., FillInTheMiddle(rate=0.5)]              # the last step: it rewrites the text
    fim.add_tokens(tokenizer)
    pack(Path("corpus"), tokenizer, "packed", encode=fim.encode_batch)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from tokenizers import AddedToken, Tokenizer

from bloomery.core.errors import ConfigError
from bloomery.core.log import logger
from bloomery.corpus import tokenizer as words
from bloomery.corpus.documents import texts, with_column, with_texts
from bloomery.corpus.steps import Step, drop, uniform

Order = Literal["psm", "spm"]
Marks = tuple[int, int, int]  # token ids of begin, hole and end
T = TypeVar("T")


class Sentinels(NamedTuple):
    """How the three tokens are spelled. None may overlap itself or another."""

    begin: str
    hole: str
    end: str


# The bars are U+FF5C and the underscores U+2581, as in the published tokenizer; the paper prints ASCII ones.
DEEPSEEK = Sentinels("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>")

BYTE_MARKS: Marks = (257, 258, 259)  # for models of bytes: after the 256 bytes and the token that ends a document
BYTE_VOCABULARY = 260


class Parts(NamedTuple, Generic[T]):
    """A document cut in three, in the order of the document: texts or arrays of token ids."""

    prefix: T
    middle: T
    suffix: T


# ------------------------------------------------------------------------------------------------- one document


def arrange(parts: Parts[str], order: Order = "psm", sentinels: Sentinels = DEEPSEEK) -> str:
    """The document as the model reads it."""
    return "".join(_told(parts, order, sentinels))


def arrange_ids(parts: Parts[np.ndarray], marks: Marks, order: Order = "psm") -> np.ndarray:
    """The same on token ids, int64 (prefix + middle + suffix + 3,)."""
    begin, hole, end = (np.array([mark], np.int64) for mark in marks)
    return np.concatenate(_told(parts, order, (begin, hole, end))).astype(np.int64)


def restore(text: str, sentinels: Sentinels = DEEPSEEK) -> tuple[Parts[str], Order] | None:
    """The inverse of `arrange`: the parts and the order they were told in, or None for a plain document."""
    pieces = _splitter(sentinels).split(text)  # text, sentinel, text, …
    found = _parts(pieces[1::2], sentinels)
    if found is None or pieces[0]:
        return None
    by_name = dict(zip(found.names, pieces[2::2], strict=True))
    return Parts(**by_name), found.order


def restore_ids(ids: np.ndarray, marks: Marks) -> tuple[Parts[np.ndarray], Order] | None:
    """The inverse of `arrange_ids`; begin and end tokens of the document must have been taken off."""
    places = np.flatnonzero(np.isin(ids, marks))
    found = _parts(ids[places].tolist(), marks)
    if found is None or places[0] != 0:
        return None
    by_name = dict(zip(found.names, (piece[1:] for piece in np.split(ids, places)[1:]), strict=True))
    return Parts(**by_name), found.order


def cut(document: str, begin: int, end: int) -> Parts[str]:
    """The three parts of a text."""
    return Parts(document[:begin], document[begin:end], document[end:])


def escape(text: str, sentinels: Sentinels = DEEPSEEK) -> str:
    """The text with a space put after the first character of every sentinel that it spells out."""
    return _splitter(sentinels).sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def _told(parts: Parts[Any], order: Order, marks: Sequence[Any]) -> tuple[Any, ...]:
    begin, hole, end = marks
    prefix, suffix = (begin, parts.prefix), (hole, parts.suffix)
    return (*prefix, *suffix, end, parts.middle) if order == "psm" else (*suffix, *prefix, end, parts.middle)


class _Reading(NamedTuple):
    names: tuple[str, str, str]
    order: Order


def _parts(found: Sequence[Any], marks: Sequence[Any]) -> _Reading | None:
    """Which part follows each of the sentinels `found`, or None when they are not those of a rearranged document."""
    begin, hole, end = marks
    if list(found) == [begin, hole, end]:
        return _Reading(("prefix", "suffix", "middle"), "psm")
    if list(found) == [hole, begin, end]:
        return _Reading(("suffix", "prefix", "middle"), "spm")
    return None


def _splitter(sentinels: Sentinels) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, sentinels)) + ")")


# ------------------------------------------------------------------------------------------------------ the step


@dataclass(frozen=True)
class FillInTheMiddle(Step):
    """Rearrange a share of the documents; everything random depends on the seed and the document's id alone.

    Two different cuts, uniform over the places between characters, leave no part empty; a document of fewer than three
    characters stays plain. The sentinels that a document spells out are escaped (see `escape`), or the document is
    dropped. Writes `fim`: "psm", "spm" or "plain", and `fim_lost`: characters cut off because of `max_length`.
    """

    rate: float = 0.5
    """Share of the documents that are rearranged."""
    spm: float = 0.0
    """Share of those that are told suffix first."""
    max_length: int | None = None
    """A document that will be rearranged is cut to so many characters first: its parts must end up in one training
    sequence, while a plain document can be split anywhere. The sentinels are not counted."""
    spelled_out: Literal["escape", "drop"] = "escape"
    """What happens to a document that contains a sentinel."""
    sentinels: Sentinels = DEEPSEEK
    seed: int = 0

    writes = ("fim", "fim_lost")

    def __post_init__(self) -> None:
        for name in ("rate", "spm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="FillInTheMiddle", fix="0 to 1")
        if self.max_length is not None and self.max_length < 3:
            raise ConfigError(f"max_length={self.max_length}", where="FillInTheMiddle", fix="3 or more")
        if self.spelled_out not in ("escape", "drop"):
            raise ConfigError(f"spelled_out={self.spelled_out!r}", where="FillInTheMiddle", fix="escape or drop")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rewrite the texts and add the columns."""
        splitter = _splitter(self.sentinels)
        documents = texts(batch).to_pylist()
        spelled = np.array([splitter.search(text) is not None for text in documents], dtype=bool)
        if self.spelled_out == "drop":
            batch = drop(batch, spelled, "spells out a fill-in-the-middle token")
        documents = [
            escape(text, self.sentinels) if bad else text for text, bad in zip(documents, spelled, strict=True)
        ]
        choice = self.choose(batch.column("id").to_pylist(), np.array([len(text) for text in documents], np.int64))
        told = [
            arrange(cut(text[:length], begin, end), order, self.sentinels) if order != "plain" else text
            for text, order, begin, end, length in zip(
                documents, choice.order, choice.begin, choice.end, choice.length, strict=True
            )
        ]
        if short := int((choice.lost > 0).sum()):
            logger("corpus").debug("fill in the middle: %d documents cut to %s characters", short, self.max_length)
        batch = with_column(with_texts(batch, told), "fim", pa.array(choice.order, pa.string()))
        return with_column(batch, "fim_lost", pa.array(choice.lost, pa.int64()))

    def tokens(self, ids: np.ndarray, name: str, marks: Marks) -> np.ndarray:
        """One document that is tokenised already, as the step would treat it, with cuts between tokens.

        `name` takes the place of the document's id, `marks` are the sentinels' ids (`token_ids`) and `max_length`
        counts tokens. The document comes without the tokens that begin and end it.
        """
        choice = self.choose([name], np.array([len(ids)], np.int64))
        order, begin, end = choice.order[0], int(choice.begin[0]), int(choice.end[0])
        if order == "plain":
            return ids.astype(np.int64)
        ids = ids[: choice.length[0]]
        return arrange_ids(Parts(ids[:begin], ids[begin:end], ids[end:]), marks, order)

    def choose(self, names: Sequence[str], lengths: np.ndarray) -> Choice:
        """What happens to documents of these ids and lengths, int64 (documents,)."""
        batch = pa.record_batch({"id": pa.array(names, pa.string())})
        chosen = (uniform(batch, self.seed, "fim", "rate") < self.rate) & (lengths >= 3)
        suffix_first = uniform(batch, self.seed, "fim", "order") < self.spm
        kept = lengths if self.max_length is None else np.where(chosen, np.minimum(lengths, self.max_length), lengths)
        places = np.maximum(kept - 1, 2)  # 1 … length - 1
        one = 1 + (uniform(batch, self.seed, "fim", "one") * places).astype(np.int64)
        other = 1 + (uniform(batch, self.seed, "fim", "other") * (places - 1)).astype(np.int64)
        other += other >= one  # uniform over the places that are left
        order = np.where(chosen, np.where(suffix_first, "spm", "psm"), "plain").tolist()
        return Choice(order, np.minimum(one, other), np.maximum(one, other), kept, lengths - kept)


class Choice(NamedTuple):
    """Decisions about documents: orders, cuts, and how much of each is kept and lost, int64 (documents,)."""

    order: list[Any]  # "psm", "spm" or "plain"
    begin: np.ndarray
    end: np.ndarray
    length: np.ndarray
    lost: np.ndarray


# ------------------------------------------------------------------------------------------------ text to tokens


def add_tokens(tokenizer: Tokenizer, sentinels: Sentinels = DEEPSEEK) -> Marks:
    """Give a tokenizer the three tokens, behind its vocabulary; those that it has stay. Returns their ids."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sentinels])
    return token_ids(tokenizer, sentinels)


def token_ids(tokenizer: Tokenizer, sentinels: Sentinels = DEEPSEEK) -> Marks:
    """The ids of the three tokens.

    Raises:
        ConfigError: some are no single token of the tokenizer: its model has not learned to fill in with them, and
            their spelling cut into pieces means nothing to it.
    """
    ids: list[Any] = [tokenizer.token_to_id(token) for token in sentinels]
    if None in ids:
        missing = [token for token, number in zip(sentinels, ids, strict=True) if number is None]
        like = sorted(token for token in tokenizer.get_vocab() if "fim" in token.lower() and token not in sentinels)[:6]
        raise ConfigError(
            f"not a single token of this tokenizer: {', '.join(map(repr, missing))}",
            where="fill in the middle",
            fix=f"it has {', '.join(map(repr, like))}: name three of them with sentinels=Sentinels(begin, hole, end)"
            if len(like) >= 3
            else "use a base model that was trained to fill in, or add_tokens before training one",
        )
    begin, hole, end = ids
    return begin, hole, end


def encode_batch(tokenizer: Tokenizer, texts: list[str], sentinels: Sentinels = DEEPSEEK) -> list[np.ndarray]:
    """Token ids (int64) of texts in which every sentinel is one: what `FillInTheMiddle` wrote, and nothing else.

    The pieces between are encoded each for itself, as `tokenizer.encode_batch` does it.
    """
    marks = dict(zip(sentinels, token_ids(tokenizer, sentinels), strict=True))
    pieces = [_splitter(sentinels).split(text) for text in texts]  # text, sentinel, text, …
    encoded = iter(words.encode_batch(tokenizer, [plain for split in pieces for plain in split[::2]]))
    return [
        np.concatenate([np.array([marks[p]], np.int64) if i % 2 else next(encoded) for i, p in enumerate(split)])
        for split in pieces
    ]


def encode_bytes(text: str, sentinels: Sentinels = DEEPSEEK, marks: Marks = BYTE_MARKS) -> np.ndarray:
    """The UTF-8 bytes of a text as ids 0-255, int64, in which every sentinel is one id of `marks`."""
    ids = dict(zip(sentinels, marks, strict=True))
    pieces = [
        np.array([ids[piece]], np.int64)
        if i % 2
        else np.frombuffer(piece.encode("utf-8", "replace"), np.uint8).astype(np.int64)
        for i, piece in enumerate(_splitter(sentinels).split(text))
    ]
    return np.concatenate(pieces)


def fim_prompt(
    tokenizer: Tokenizer, prefix: str, suffix: str, order: Order = "psm", sentinels: Sentinels = DEEPSEEK
) -> list[int]:
    """The prompt whose continuation is what belongs between `prefix` and `suffix`, for `generate`.

    It begins with the token that begins a document, where the tokenizer has one. Sentinels spelled out in prefix or
    suffix are plain text. Meant for base models trained to fill in (of DeepSeek-Coder-V2: Lite-Base): neither the 236B
    models nor those tuned to follow instructions were.

    Raises:
        ConfigError: a sentinel is no single token of the tokenizer (see `token_ids`).
    """
    marks = token_ids(tokenizer, sentinels)
    before, after = words.encode_batch(tokenizer, [prefix, suffix])
    told = arrange_ids(Parts(before, np.zeros(0, np.int64), after), marks, order)
    return [*_begin(tokenizer), *told.tolist()]


def _begin(tokenizer: Tokenizer) -> list[int]:
    """The token that begins every text: ours, or the one that the tokenizer puts there itself."""
    ours = tokenizer.token_to_id(words.BOS)
    if ours is not None:
        return [ours]
    some, none = tokenizer.encode("x").ids[:1], tokenizer.encode("").ids[:1]
    return list(some) if some == none else []
