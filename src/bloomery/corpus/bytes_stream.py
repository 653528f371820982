"""Text as bytes, in memory: a vocabulary of 257 and no tokenizer, for experiments small enough to need neither."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bloomery.core.errors import EmptyError
from bloomery.corpus.packing import TokenWindows

EDGE = 256  # before and after every document, so that its first byte has a context and its end is learned
VOCAB_SIZE = 257


class ByteStream(TokenWindows):
    """Documents as bytes, each between two `EDGE` tokens, end to end; read as `PackedTokens` is.

    A document is a string (taken as UTF-8), bytes, or an array of token ids, where ids from 257 on are the caller's
    own special tokens; `n_bytes` counts the ids below 256.
    """

    def __init__(self, documents: Sequence[str | bytes | np.ndarray]) -> None:
        parts = [_ids(document) for document in documents]
        if not any(map(len, parts)):
            raise EmptyError("no text to read", fix="give at least one document that is not empty")
        sizes = np.array([len(part) + 2 for part in parts])
        boundaries = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        tokens = np.full(int(sizes.sum()), EDGE, np.uint16)
        for begin, part in zip(boundaries, parts, strict=True):
            tokens[begin + 1 : begin + 1 + len(part)] = part
        super().__init__(tokens, boundaries, int((tokens < EDGE).sum()), "stream of bytes")


def _ids(document: str | bytes | np.ndarray) -> np.ndarray:
    if isinstance(document, np.ndarray):
        return document
    data = document.encode("utf-8", "replace") if isinstance(document, str) else document
    return np.frombuffer(data, np.uint8)
