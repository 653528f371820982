"""Published fastText classifiers (`.bin`, `.ftz`) with the predictions of the fastText library.

Rows are added in float32 in the library's own order, because on long repetitive pages another order of summation moves
a probability by more than 1e-5. Joulin et al., arXiv 1607.01759; the file format is in `fasttext_file`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.hashing import file_digest
from bloomery.corpus.fasttext_file import HIERARCHICAL, SOFTMAX, FastTextFile, Matrix, read
from bloomery.corpus.words import ranges

EOS = b"</s>"
LABEL_PREFIX = b"__label__"
LOG_FLOOR = 1e-5  # the library reports exp(log(p + 1e-5)), so its probabilities may exceed 1 by this much
GATHER = 1 << 20  # numbers gathered from the matrix at a time
BATCH_CHARS = 1 << 20  # text tokenised at a time


class FastTextModel:
    """A supervised fastText model, ready to predict. `labels` are in the file's order (most frequent first)."""

    def __init__(self, path: Path | str | FastTextFile) -> None:
        self.file = path if isinstance(path, FastTextFile) else read(path)
        self.path, self.args = self.file.path, self.file.args
        self.labels = [label.decode("utf-8", "replace") for label in self.file.labels]
        self._label_tokens = set(self.file.labels)
        self._tree = _huffman_tree(self.file) if self.args.loss == HIERARCHICAL else None
        outputs = np.arange(self.file.output.n_rows)
        self._head, self._head_norms = self.file.output.directions(outputs), self.file.output.norms(outputs)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of every label as the library reports it, (texts, labels) float32.

        With the hierarchical softmax the library leaves out labels below 1e-5; they are 0 here.
        A line break is treated as a space (the library refuses texts with line breaks).
        """
        scores = np.empty((len(texts), len(self.labels)), np.float32)
        for start, stop in _batches(texts):
            scores[start:stop] = self._loss(self._logits(texts[start:stop]))
        return scores

    def features(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Input rows of each text, concatenated, and how many there are of each: (ids, counts), both int64."""
        lines = [split_tokens(text) for text in texts]
        flat_tokens = list(chain.from_iterable(lines))
        unique = list(dict.fromkeys(flat_tokens))
        index = dict(zip(unique, range(len(unique)), strict=True))
        tokens = np.fromiter(map(index.__getitem__, flat_tokens), np.int64, len(flat_tokens))
        line_of = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
        is_word = np.array([self._is_word(token) for token in unique], bool)

        flat, offsets = self._subwords(unique)
        keep = is_word[tokens]
        tokens, line_of = tokens[keep], line_of[keep]
        lengths = np.diff(offsets)[tokens]
        ids = flat[ranges(offsets[tokens], lengths)]
        owners = np.repeat(line_of, lengths)
        if self.args.word_ngrams > 1 and len(tokens):
            hashes = fnv1a(unique)[tokens]
            ngram_ids, ngram_owners = self._word_ngrams(hashes, line_of)
            ids, owners = _by_owner([ids, ngram_ids], [owners, ngram_owners])
        return ids, np.bincount(owners, minlength=len(lines))

    def _is_word(self, token: bytes) -> bool:
        """Whether a token is text: labels in the text are skipped, known or not."""
        return token in self.file.words or not (token.startswith(LABEL_PREFIX) or token in self._label_tokens)

    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        """Linear outputs, (texts, outputs) float32; zero for a text without any known feature."""
        ids, counts = self.features(texts)
        hidden = _sums(self.file.input, ids, counts)  # (texts, dim)
        hidden *= (1.0 / np.maximum(counts, 1)).astype(np.float32)[:, None]
        logits = np.zeros((len(texts), self.file.output.n_rows), np.float32)
        for column, weights in zip(hidden.T, self._head.T, strict=True):  # one-vs-all is a step function of this sum
            logits += column[:, None] * weights
        logits *= self._head_norms
        return logits

    def _loss(self, logits: np.ndarray) -> np.ndarray:
        """Linear outputs to the probabilities that the library reports."""
        if self.args.loss == SOFTMAX:
            shifted = _exp(logits - logits.max(axis=1, keepdims=True))
            total = np.cumsum(shifted, axis=1)[:, -1:]  # the library adds one after the other
            return _exp(_log(shifted / total))
        if self._tree is None:
            return _exp(_log(_table_sigmoid(logits)))
        right = 1 / (1 + _exp(-logits))  # probability of each inner node's right child
        n = len(self.labels)
        log_p = np.zeros((2 * n - 1, len(logits)), np.float32)  # (nodes, texts), root last
        for node in range(2 * n - 2, n - 1, -1):
            p = right[:, node - n]
            log_p[self._tree[node - n, 0]] = log_p[node] + _log(1 - p)
            log_p[self._tree[node - n, 1]] = log_p[node] + _log(p)
        leaves: np.ndarray = log_p[:n].T
        return np.where(leaves < _log(np.zeros(1)), np.float32(0), _exp(leaves))

    def _subwords(self, tokens: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Row ids of each token (its own and its character n-grams'): flat ids and offsets (tokens + 1)."""
        word = np.fromiter((self.file.words.get(token, -1) for token in tokens), np.int64, len(tokens))
        ids, owners = word[word >= 0], np.flatnonzero(word >= 0)
        if self.args.maxn > 0 and tokens:
            spelled = [b"" if token == EOS else b"<" + token + b">" for token in tokens]
            hashes, token_of = _char_ngrams(spelled, self.args.minn, self.args.maxn)
            known, rows = self._bucket_rows(hashes.astype(np.uint64))
            ids, owners = _by_owner([ids, rows], [owners, token_of[known]])
        return ids, np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(tokens)))])

    def _word_ngrams(self, hashes: np.ndarray, line_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row ids of the hashed word n-grams (n >= 2) and the line of each."""
        signed = hashes.astype(np.int32).astype(np.int64).astype(np.uint64)  # the library widens a signed int
        ids, starts, running = [], [], signed
        for step in range(1, min(self.args.word_ngrams, len(signed))):
            running = running[:-1] * np.uint64(116049371) + signed[step:]
            inside = np.flatnonzero(line_of[step:] == line_of[:-step])
            known, rows = self._bucket_rows(running[inside])
            ids.append(rows)
            starts.append(inside[known])
        if not ids:
            return line_of[:0], line_of[:0]
        rows, first_words = _by_owner(ids, starts)
        return rows, line_of[first_words]

    def _bucket_rows(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes (uint64) to input rows: a mask of those that survived pruning, and their rows."""
        bucket = (hashes % np.uint64(self.args.bucket)).astype(np.int64)
        if self.file.pruned is None:
            return np.ones(len(bucket), bool), len(self.file.words) + bucket
        kept, rows = self.file.pruned  # sorted bucket numbers and their rows behind the words
        if not len(kept):
            return np.zeros(len(bucket), bool), bucket[:0]
        at = np.minimum(np.searchsorted(kept, bucket), len(kept) - 1)
        known = kept[at] == bucket
        return known, len(self.file.words) + rows[at[known]]


class FastTextScorer:
    """A two-label fastText classifier as a `Scorer`: the probability of `positive_label`.

    Lines are stripped of surrounding white space at both ends of the text and joined by spaces. As in DCLM and
    Craw4LLM the score is the top label's probability `p`, or `1 - p` where the top label is the other one.
    """

    def __init__(self, model: FastTextModel, positive_label: str = "__label__hq", name: str = "fasttext") -> None:
        if positive_label not in model.labels:
            raise ConfigError(
                f"the model has no label {positive_label!r}",
                where=model.path,
                fix=nearest(positive_label, model.labels),
            )
        if len(model.labels) != 2:
            raise ConfigError(
                f"a scorer needs a model with two labels, this one has {len(model.labels)}",
                where=model.path,
                fix="use FastTextModel.predict for the probability of every label",
            )
        self.model, self.positive_label, self.name = model, positive_label, name

    @classmethod
    def load(cls, path: Path | str, positive_label: str = "__label__hq", name: str = "fasttext") -> FastTextScorer:
        """Open a `.bin` or `.ftz` classifier."""
        return cls(FastTextModel(path), positive_label, name)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """(texts,) float32."""
        probabilities = self.model.predict([one_line(text) for text in texts])
        positive = self.model.labels.index(self.positive_label)
        first, second = probabilities.T
        top = np.where(second >= first, 1, 0)  # the library's heap lets the later label win a tie
        best = np.maximum(first, second)
        score: np.ndarray = np.where(top == positive, best, 1 - best)
        return score

    def fingerprint(self) -> dict[str, str]:
        """Identity of the file's bytes and of the label: a step that uses the scorer runs again when they change."""
        return {"scorer": "fasttext", "name": self.name, "label": self.positive_label, "model": self._digest}

    @cached_property
    def _digest(self) -> str:
        return file_digest(self.model.path)

    def __reduce__(self) -> tuple[Any, ...]:  # a worker process maps the file again instead of receiving the matrix
        return (FastTextScorer.load, (self.model.path, self.positive_label, self.name))


def one_line(text: str) -> str:
    """What DCLM gives to its classifier: the text's lines joined by spaces."""
    return " ".join(text.strip().splitlines())


def fnv1a(tokens: Sequence[bytes]) -> np.ndarray:
    """32-bit FNV-1a of each token with bytes taken as signed chars, as fastText does: (tokens,) uint32."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    data = _sign_extended(np.frombuffer(b"".join(tokens), np.uint8))
    ends = np.cumsum(lengths)
    hashes = np.full(len(tokens), 2166136261, np.uint32)
    at, alive = ends - lengths, np.flatnonzero(lengths)
    for step in range(min(int(lengths.max(initial=0)), 64)):
        hashes[alive] = (hashes[alive] ^ data[at[alive] + step]) * np.uint32(16777619)
        alive = alive[lengths[alive] > step + 1]
    for token in alive:  # the few tokens longer than 64 bytes
        h = int(hashes[token])
        for byte in data[at[token] + 64 : ends[token]].tolist():
            h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
        hashes[token] = h
    return hashes


def _char_ngrams(words: Sequence[bytes], minn: int, maxn: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint32) of the UTF-8 character n-grams of `<word>` strings and the index of the word of each."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    raw = np.frombuffer(b"".join(words), np.uint8)
    data = _sign_extended(raw)
    continuation = (raw & 0xC0) == 0x80
    word_of = np.repeat(np.arange(len(words)), lengths)
    ends = np.cumsum(lengths)
    start = np.flatnonzero(~continuation)  # an n-gram starts at every character
    begins, stop = (ends - lengths)[word_of[start]], ends[word_of[start]]
    at, hashes = start.copy(), np.full(len(start), 2166136261, np.uint32)
    found, starts = [], []
    for n in range(1, maxn + 1):
        alive = at < stop
        if not alive.any():
            break
        start, at, stop, begins, hashes = start[alive], at[alive], stop[alive], begins[alive], hashes[alive]
        moving = np.arange(len(at))  # take one byte, then the continuation bytes that follow
        while len(moving):
            hashes[moving] = (hashes[moving] ^ data[at[moving]]) * np.uint32(16777619)
            at[moving] += 1
            moving = moving[at[moving] < stop[moving]]
            moving = moving[continuation[at[moving]]]
        if n >= minn:
            whole = (start > begins) & (at < stop) if n == 1 else np.ones(len(at), bool)  # not "<" or ">" alone
            found.append(hashes[whole])
            starts.append(start[whole])
    if not found:
        return np.empty(0, np.uint32), np.empty(0, np.int64)
    ordered, first_bytes = _by_owner(found, starts)
    return ordered, word_of[first_bytes]


def _huffman_tree(file: FastTextFile) -> np.ndarray:
    """Children (left, right) of each inner node, (labels - 1, 2); leaves are 0..labels-1, the root comes last."""
    counts = file.label_counts
    n = len(counts)
    if (np.diff(counts) > 0).any() or (counts < 0).any() or counts.sum() >= 10**15:
        raise DataError("the label counts are not in descending order", where=file.path)
    weight = [*counts.tolist(), *[10**15] * (n - 1)]
    children = np.zeros((n - 1, 2), np.int64)
    leaf, node = n - 1, n
    for new in range(n, 2 * n - 1):
        for side in (0, 1):
            if leaf >= 0 and weight[leaf] < weight[node]:
                children[new - n, side], leaf = leaf, leaf - 1
            else:
                children[new - n, side], node = node, node + 1
        weight[new] = weight[children[new - n, 0]] + weight[children[new - n, 1]]
    return children


def _sums(matrix: Matrix, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of the rows of each text in their order, (texts, width) float32, a bounded number of rows at a time."""
    sums = np.zeros((len(counts), matrix.width), np.float32)
    step = max(1, GATHER // matrix.width)
    for text, stop in enumerate(np.cumsum(counts).tolist()):
        for start in range(stop - int(counts[text]), stop, step):
            rows = matrix.rows(ids[start : min(start + step, stop)])
            sums[text] = np.concatenate([sums[text : text + 1], rows]).sum(axis=0)
    return sums


def _log(probabilities: np.ndarray) -> np.ndarray:
    """The library's float32 logarithm with a floor."""
    return np.log(probabilities.astype(np.float64) + LOG_FLOOR).astype(np.float32)


def _exp(x: np.ndarray) -> np.ndarray:
    """float32 exponential, correctly rounded (numpy's own is a few units off in the last place)."""
    with np.errstate(over="ignore"):
        values: np.ndarray = np.exp(x.astype(np.float64)).astype(np.float32)
    return values


def _table_sigmoid(x: np.ndarray) -> np.ndarray:
    """The library's sigmoid for one-vs-all: a table of 512 steps on [-8, 8], rounded down."""
    grid = 1 / (1 + np.exp(-(np.arange(513, dtype=np.float32) * np.float32(16 / 512) - 8)))
    index = ((x + np.float32(8)) * np.float32(512) / np.float32(8) / np.float32(2)).clip(0, 512).astype(np.int64)
    return np.where(x < -8, 0, np.where(x > 8, 1, grid[index])).astype(np.float32)


def split_tokens(text: str) -> list[bytes]:
    """fastText's tokens: split at ASCII white space and NUL, closed by an end-of-line token (or by one in the text)."""
    tokens = text.encode("utf-8", "replace").replace(b"\0", b" ").split()
    tokens.append(EOS)
    return tokens[: tokens.index(EOS) + 1]


def _sign_extended(raw: np.ndarray) -> np.ndarray:
    return raw.view(np.int8).astype(np.int32).view(np.uint32)


def _by_owner(values: list[np.ndarray], owners: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated values sorted by owner; values of one owner stay in the order of the list."""
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.concatenate(values)[order], owner[order]


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive texts of about `BATCH_CHARS` characters, at least one text each."""
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARS:
            yield start, i + 1
            start, size = i + 1, 0
    if start < len(texts):
        yield start, len(texts)
