"""Quality scorers: a number per text that orders a crawl, filters a corpus or mines a domain.

`LinearScorer` is a logistic regression on hashed words and word pairs, the classifier family that DCLM (arXiv
2406.11794 §4.4) found to beat perplexity, PageRank and LLM judges as a filter. What is ours:

- Tokens are runs of letters and digits (any non-ASCII byte is a letter) and runs of punctuation. Case is kept, because
  shouting and missing capitals are evidence of quality; digits are all read as 0, because their values are not.
- Tokenising and hashing are array operations on the bytes of many texts at once (a polynomial hash from one running
  sum), so there is no Python loop over tokens.
- Counts enter as 1 + log(count), each text scaled to unit length, so a long page does not outvote a short one.
- Training is AdaGrad on minibatches; a held-out slice calibrates the probabilities (Platt scaling) and gives the AUC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.files import atomic_folder, read_json, safetensors_errors
from bloomery.core.hashing import hash64
from bloomery.core.seeds import rng
from bloomery.corpus.documents import texts as texts_of
from bloomery.corpus.documents import with_column
from bloomery.corpus.steps import Step

VERSION = 1
MIN_PER_CLASS = 10
CHUNK_CHARS = 1 << 20  # text tokenised at a time
LONGEST = 1 << 20  # characters of a text that are looked at
BATCH = 128  # texts a training step

_SPACE, _WORD, _PUNCTUATION = 0, 1, 2


@runtime_checkable
class Scorer(Protocol):
    """Texts to numbers, higher is better. `name` becomes the column `score_<name>`."""

    name: str

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """(texts,) float32."""


class LinearScorer:
    """P(positive) of a text under a linear model of hashed word 1- and 2-grams. `report` says how training went."""

    def __init__(
        self, weights: np.ndarray, bias: float, name: str = "quality", report: dict[str, float] | None = None
    ) -> None:
        self.weights, self.bias, self.name, self.report = weights, bias, name, report or {}
        self.bits = len(weights).bit_length() - 1
        if len(weights) != 1 << self.bits:
            raise ConfigError(f"{len(weights)} weights", fix="use a power of two")

    @classmethod
    def train(
        cls,
        positives: Sequence[str],
        negatives: Sequence[str],
        *,
        seed: int = 0,
        name: str = "quality",
        bits: int = 20,
        epochs: int = 6,
        lr: float = 0.3,
        l2: float = 1e-6,
        held_out: float = 0.1,
    ) -> LinearScorer:
        """Fit 2**bits weights; the same texts and seed give the same weights.

        A share `held_out` of the texts is kept from training to calibrate the probabilities and to measure the AUC,
        which `report` holds. Features are kept in memory: 12 bytes for every distinct one of a text.
        """
        if not 8 <= bits <= 28:
            raise ConfigError(f"bits = {bits}", fix="use 8 to 28")
        if epochs < 1 or lr <= 0 or l2 < 0 or not 0 < held_out < 1:
            raise ConfigError(f"epochs = {epochs}, lr = {lr}, l2 = {l2}, held_out = {held_out}", fix="all positive")
        for which, texts in (("positive", positives), ("negative", negatives)):
            if len(texts) < MIN_PER_CLASS:
                raise DataError(f"{len(texts)} {which} texts", fix=f"give at least {MIN_PER_CLASS} of each kind")

        rows = _concatenate([features(chunk, bits) for chunk in _chunks([*positives, *negatives])])
        labels = np.repeat([1.0, 0.0], [len(positives), len(negatives)])  # (texts,)
        random = rng(seed, "linear scorer")
        test = np.zeros(len(labels), bool)
        for kind in (1.0, 0.0):  # the same share of both
            mine = random.permutation(np.flatnonzero(labels == kind))
            test[mine[: max(2, round(held_out * len(mine)))]] = True

        weights, bias = _fit(rows, labels, np.flatnonzero(~test), random, 1 << bits, epochs, lr, l2)
        logits = _logits(rows, weights, bias)[test]
        slope, offset = _platt(logits, labels[test])
        weights, bias = (weights * slope).astype(np.float32), bias * slope + offset
        report = {
            "auc": auc(logits, labels[test]),
            "positives": len(positives),
            "negatives": len(negatives),
            "held_out": int(test.sum()),
        }
        return cls(weights, bias, name, report)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probability of being positive, (texts,) float32; an empty text gets the prior."""
        logits = [_logits(features(chunk, self.bits), self.weights, self.bias) for chunk in _chunks(texts)]
        return _sigmoid(np.concatenate(logits)).astype(np.float32) if logits else np.empty(0, np.float32)

    def save(self, folder: Path | str) -> None:
        """Write `weights.safetensors` and `scorer.json` as a new folder."""
        from safetensors.numpy import save_file

        with atomic_folder(folder, ours=("weights.safetensors", "scorer.json")) as temporary:
            with safetensors_errors():
                save_file({"weights": self.weights}, temporary / "weights.safetensors")
            about = {"version": VERSION, "name": self.name, "bits": self.bits, "bias": self.bias, "report": self.report}
            (temporary / "scorer.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> LinearScorer:
        """Read what `save` wrote."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        about = read_json(folder / "scorer.json")
        if (
            not isinstance(about, dict)
            or about.get("version") != VERSION
            or not {"name", "bias", "bits"} <= about.keys()
        ):
            raise DataError(f"not a linear scorer of version {VERSION}", where=folder, fix="train it again")
        try:
            weights = load_file(folder / "weights.safetensors")["weights"]
        except (OSError, KeyError, SafetensorError) as error:
            raise DataError(f"cannot read the weights: {error}", where=folder) from error
        if weights.shape != (1 << about["bits"],) or not np.isfinite(weights).all():
            raise DataError(f"the weights do not fit 2**{about['bits']} buckets", where=folder, fix="train it again")
        return cls(weights, float(about["bias"]), about["name"], about.get("report"))

    def fingerprint(self) -> dict[str, Any]:
        """Identity of name and weights: a step that uses the scorer runs again when they change."""
        return {"scorer": "linear", "name": self.name, "bias": self.bias, "weights": hash64(self.weights.tobytes())}


@dataclass
class Score(Step):
    """Write the scorer's number of every document into the column `score_<name>`.

    The scorer also needs a `fingerprint()` that changes with it (ours have one) and must be picklable.
    """

    scorer: Scorer

    @property
    def writes(self) -> tuple[str, ...]:
        """The column of the scores."""
        return (f"score_{self.scorer.name}",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Add the column; DataError naming the first document whose score is not a number."""
        scores = np.asarray(self.scorer.score(texts_of(batch).to_pylist()), np.float32)
        if scores.shape != (batch.num_rows,):
            raise DataError(f"the scorer {self.scorer.name} gave {scores.shape} scores for {batch.num_rows} documents")
        if np.isnan(scores).any():
            first = batch.column("id")[int(np.isnan(scores).argmax())].as_py()
            raise DataError(f"the scorer {self.scorer.name} gave no number", where=f"document {first}")
        return with_column(batch, self.writes[0], pa.array(scores))


class Features(NamedTuple):
    """Sparse rows: the features of all texts one after the other."""

    ids: np.ndarray  # bucket of each feature, int64
    values: np.ndarray  # float32
    starts: np.ndarray  # first feature of each text and the end, (texts + 1,) int64


def features(texts: Sequence[str], bits: int) -> Features:
    """Hashed word 1- and 2-grams of the texts, (1 + log count) scaled to unit length."""
    hashes, text_of = _tokens(texts)
    pairs = hashes[:-1] * np.uint64(0x9E3779B97F4A7C15) + hashes[1:]
    together = text_of[:-1] == text_of[1:]
    buckets = _bucket(np.concatenate([hashes, pairs[together]]), bits)
    keys = np.concatenate([text_of, text_of[1:][together]]).astype(np.uint64) << np.uint64(bits) | buckets
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1))) if len(keys) else np.empty(0, np.int64)
    counts = np.diff(first, append=len(keys))
    keys = keys[first]
    owner = (keys >> np.uint64(bits)).astype(np.int64)
    values = 1 + np.log(counts)
    norms = np.sqrt(np.bincount(owner, values**2, minlength=len(texts)))
    starts = np.searchsorted(owner, np.arange(len(texts) + 1))
    ids = (keys & np.uint64((1 << bits) - 1)).astype(np.int64)
    return Features(ids, (values / norms[owner]).astype(np.float32), starts)


def _tokens(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hash of every token and the index of its text."""
    encoded = [text[:LONGEST].encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b" ".join([*encoded, b""]), np.uint8)  # a blank after every text ends its last token
    kind = _BYTE_KIND[data]
    change = np.flatnonzero(kind[1:] != kind[:-1]) + 1
    edges = np.concatenate([[0], change, [len(data)]])
    starts = edges[:-1][kind[edges[:-1]] != _SPACE] if len(data) else edges[:0]
    stops = edges[1:][kind[edges[:-1]] != _SPACE] if len(data) else edges[:0]

    powers, inverse = _powers(len(data))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(_BYTE_CODE[data] * powers[: len(data)], out=sums[1:])
    hashes = (sums[stops] - sums[starts]) * inverse[starts]  # polynomial in the token's own bytes
    ends = np.cumsum([len(text) + 1 for text in encoded], dtype=np.int64)
    return hashes, np.searchsorted(ends, starts, side="right")


def _bucket(hashes: np.ndarray, bits: int) -> np.ndarray:
    mixed: np.ndarray = (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    mixed >>= np.uint64(64 - bits)
    return mixed


_MULTIPLIER = 0x5851F42D4C957F2D  # odd, hence invertible modulo 2**64


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier and of its inverse modulo 2**64, at least `length` of each."""
    return _power_table(1 << max(20, (length - 1).bit_length()))


@lru_cache(maxsize=2)
def _power_table(length: int) -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for base in (_MULTIPLIER, pow(_MULTIPLIER, -1, 1 << 64)):
        factors = np.full(length, base, np.uint64)
        factors[0] = 1
        tables.append(np.cumprod(factors))
    return tables[0], tables[1]


def _byte_tables() -> tuple[np.ndarray, np.ndarray]:
    """Kind of each byte, and the 64-bit number it enters the hash with (all digits the same)."""
    kind = np.full(256, _PUNCTUATION, np.uint8)
    kind[:33] = kind[127] = _SPACE
    kind[128:] = _WORD
    for character in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
        kind[character] = _WORD
    code = rng(0, "byte codes").integers(1, 1 << 63, 256, dtype=np.uint64)
    code[ord("0") : ord("9") + 1] = code[ord("0")]
    return kind, code


_BYTE_KIND, _BYTE_CODE = _byte_tables()


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts of about `CHUNK_CHARS` characters, at least one text each."""
    start = size = 0
    for i, text in enumerate(texts):
        size += min(len(text), LONGEST)
        if size >= CHUNK_CHARS:
            yield texts[start : i + 1]
            start, size = i + 1, 0
    if start < len(texts):
        yield texts[start:]


def _concatenate(parts: list[Features]) -> Features:
    sizes = np.cumsum([0, *(len(part.ids) for part in parts)])
    starts = [part.starts[:-1] + size for part, size in zip(parts, sizes, strict=False)]
    return Features(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([*starts, sizes[-1:]]),
    )


def _logits(rows: Features, weights: np.ndarray, bias: float) -> np.ndarray:
    """(texts,) float64."""
    owner = np.repeat(np.arange(len(rows.starts) - 1), np.diff(rows.starts))
    return np.bincount(owner, weights[rows.ids] * rows.values, minlength=len(rows.starts) - 1) + bias


def _fit(
    rows: Features,
    labels: np.ndarray,
    training: np.ndarray,
    random: np.random.Generator,
    buckets: int,
    epochs: int,
    lr: float,
    l2: float,
) -> tuple[np.ndarray, float]:
    """Minimise the logistic loss with AdaGrad (Duchi et al. 2011) over shuffled minibatches."""
    weights, squares = np.zeros(buckets), np.full(buckets, 1e-8)
    bias, bias_squares = 0.0, 1e-8
    for _ in range(epochs):
        order = random.permutation(training)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            lengths = rows.starts[batch + 1] - rows.starts[batch]
            ends = np.cumsum(lengths)
            at = np.arange(ends[-1]) + np.repeat(rows.starts[batch] - (ends - lengths), lengths)
            ids, values, owner = rows.ids[at], rows.values[at], np.repeat(np.arange(len(batch)), lengths)

            logits = np.bincount(owner, weights[ids] * values, minlength=len(batch)) + bias
            error = (_sigmoid(logits) - labels[batch]) / len(batch)  # d loss / d logit
            touched, index = np.unique(ids, return_inverse=True)
            gradient = np.bincount(index, error[owner] * values) + l2 * weights[touched]
            squares[touched] += gradient**2
            weights[touched] -= lr * gradient / np.sqrt(squares[touched])
            bias_squares += error.sum() ** 2
            bias -= lr * error.sum() / np.sqrt(bias_squares)
    return weights, float(bias)


def _platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset that calibrate the logits: Platt (1999) with his smoothed targets, by Newton's method."""
    n_pos, n_neg = labels.sum(), (1 - labels).sum()
    targets = np.where(labels == 1, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    scale = max(float(np.abs(logits).max()), 1e-6)  # Newton's method likes logits of size one
    x = np.stack([logits / scale, np.ones_like(logits)], axis=1)  # (texts, 2)
    solution = np.zeros(2)
    ridge = 1e-6 * np.eye(2)  # keeps a separable slice finite
    for _ in range(50):
        p = _sigmoid(x @ solution)
        gradient = x.T @ (p - targets) + ridge @ solution
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, gradient)
        solution -= step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
    slope = float(solution[0]) / scale
    return (slope, float(solution[1])) if slope > 0 else (1e-3, 0.0)  # never turn the order round


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half."""
    _, index, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]  # mean rank of each value, from 1
    n_pos, n_neg = labels.sum(), (1 - labels).sum()
    return float((ranks[labels == 1].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2
