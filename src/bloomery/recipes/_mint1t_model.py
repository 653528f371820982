"""A small language model that reads interleaved documents of the generated web: images as a few tokens each.

An image enters as 16 tokens, one for every cell of a 4 x 4 grid and level of its mean brightness (eight levels), and a
mark where it ends. That stands in for a vision encoder and its patches: what is compared is the order of documents, not
how images are seen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomery.core.errors import require
from bloomery.core.seeds import rng
from bloomery.corpus.bytes_stream import EDGE, VOCAB_SIZE, ByteStream
from bloomery.corpus.interleaved import Part
from bloomery.recipes._mint1t_truth import Document
from bloomery.worlds.interleaved_pages import SHAPES

if TYPE_CHECKING:
    from bloomery.models import Decoder
    from bloomery.train import TrainConfig

GRID, LEVELS = 4, 8
IMAGE_END = VOCAB_SIZE + GRID * GRID * LEVELS
FIRST_WORD = IMAGE_END + 1
_WORD = re.compile(r"\w+|[^\w\s]")


def vocabulary(documents: Sequence[Document]) -> dict[str, int]:
    """Every word of the documents with its token."""
    words = {word for parts in documents for part in parts if part.text for word in _words(part.text)}
    return {word: FIRST_WORD + number for number, word in enumerate(sorted(words | set(SHAPES)))}


def codes(image: bytes) -> np.ndarray:
    """The tokens of an image: int (17,)."""
    opened = require("PIL.Image", "interleave").open(io.BytesIO(image)).convert("L").resize((GRID, GRID), resample=4)
    levels = np.asarray(opened, dtype=np.int64).ravel() * LEVELS // 256
    return np.append(VOCAB_SIZE + np.arange(GRID * GRID) * LEVELS + levels, IMAGE_END)


def encode(parts: Document, words: Mapping[str, int]) -> np.ndarray:
    """The tokens of a document; words that are not known are left out, and so are images without bytes."""
    pieces = []
    for part in parts:
        if part.text is None:
            pieces.append(codes(part.image) if part.image else np.zeros(0, np.int64))
        else:
            pieces.append(np.array([words[word] for word in _words(part.text) if word in words], np.int64))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def paragraphs_apart(parts: Document) -> Document:
    """The document with every paragraph a part of its own."""
    return [
        piece
        for part in parts
        for piece in ([part] if part.text is None else [Part(text) for text in part.text.split("\n\n")])
    ]


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The same parts of every document in random order."""
    random = rng(seed, "shuffled parts")
    return [[parts[i] for i in random.permutation(len(parts))] for parts in documents]


def fit_order(documents: Sequence[Document], words: Mapping[str, int], model: Decoder, config: TrainConfig) -> None:
    """Train `model` in place on documents in the order they have."""
    from bloomery.train import next_token, train

    stream = ByteStream([encode(parts, words).astype(np.uint16) for parts in documents])
    train(model, next_token, stream, config, quiet=True)


def word_after_image(
    model: Decoder, documents: Sequence[Document], words: Mapping[str, int], seq_len: int
) -> dict[str, Any]:
    """How often the model names the shape right after an image: its best word, and the best of the six shapes.

    Measured where the word after an image is the name of a shape, as in every article of the generated web.
    """
    import torch

    shape_ids = np.array([words[shape] for shape in SHAPES])
    best = among = asked = 0
    nats = 0.0
    model.eval()
    for parts in documents:
        tokens = np.concatenate([[EDGE], encode(parts, words)])
        for start in range(0, len(tokens), seq_len // 2):  # half of every window is context of the other half
            window = tokens[start : start + seq_len + 1]
            places = np.flatnonzero((window[:-1] == IMAGE_END) & np.isin(window[1:], shape_ids))
            places = places[(places >= seq_len // 2) | (start == 0)]
            if not len(places):
                continue
            with torch.no_grad():
                output = model(torch.from_numpy(window[:-1].copy()).to(model.head_weight.device)[None])
                logits = (output.hidden[0, places] @ model.head_weight.T).float().cpu()
            truth = window[places + 1]
            best += int((logits.argmax(-1).numpy() == truth).sum())
            among += int((shape_ids[logits[:, shape_ids].argmax(-1).numpy()] == truth).sum())
            nats -= float(torch.log_softmax(logits, -1)[range(len(truth)), truth].sum())
            asked += len(places)
    return {"best": best / max(1, asked), "among": among / max(1, asked), "nats": nats / max(1, asked), "asked": asked}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
