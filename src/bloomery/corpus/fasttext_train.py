"""Training of fastText classifiers (Joulin et al. 2016, arXiv 1607.01759): DCLM's quality filter from your examples.

Left out: character n-grams, other losses than softmax, quantisation, the library's search for hyperparameters.

The same computation as the fastText library's supervised training with one thread: for equal examples, order and start,
the weights agree to rounding, and the `.bin` (`fasttext_file.write`) is one that the library reads. A text is the mean
of the rows of its words and hashed word n-grams; a softmax over the labels; one step of gradient descent after every
text, with a rate that falls linearly to zero. The rows of a text are read, added to and written as one array.

The rows start uniform in ±1/dim all over, where the library with fewer than ten threads leaves a part of them at zero;
texts are shuffled once, where the library takes the order of its file.

Examples are read twice and held as numbers in a temporary file, 8 bytes for each distinct feature of a text; memory
holds the matrix, 4 · dim · (words + buckets) bytes.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.progress import Progress
from bloomery.core.seeds import rng
from bloomery.corpus import fasttext_file
from bloomery.corpus.fasttext_bin import LABEL_PREFIX, FastTextModel, one_line, split_tokens
from bloomery.corpus.fasttext_file import SOFTMAX, SUPERVISED, Arguments, DenseMatrix, FastTextFile
from bloomery.corpus.quality import MIN_PER_CLASS, auc

POSITIVE, NEGATIVE = "__label__hq", "__label__cc"  # DCLM's labels
MOST_HELD_OUT = 20_000  # texts of a label
CHUNK = 256  # texts whose features are found together
UPDATE = 100  # tokens after which the learning rate is set anew, as in the library
ROWS = 1 << 16  # of the matrix that are filled together


@dataclass(frozen=True)
class Hyperparameters:
    """The library's options by its names; the defaults are DCLM's: the library's own but for word pairs."""

    dim: int = 100
    word_ngrams: int = 2
    epoch: int = 5
    lr: float = 0.1
    min_count: int = 1
    bucket: int = 2_000_000

    def __post_init__(self) -> None:
        for name in ("dim", "word_ngrams", "epoch", "min_count", "bucket"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}", fix="1 or more")
        if not 0 <= self.lr < 100:
            raise ConfigError(f"lr = {self.lr}", fix="such as 0.1")

    def arguments(self) -> Arguments:
        """What the file says; fields that mean nothing to a classifier are the library's defaults."""
        return Arguments(
            dim=self.dim, ws=5, epoch=self.epoch, min_count=self.min_count, neg=5, word_ngrams=self.word_ngrams,
            loss=SOFTMAX, model=SUPERVISED, bucket=self.bucket if self.word_ngrams > 1 else 0, minn=0, maxn=0,
            lr_update_rate=UPDATE, t=1e-4,
        )  # fmt: skip


@dataclass
class Trained:
    """A classifier and how it went: texts, words, mean loss of the last epoch, held-out accuracy and AUC."""

    file: FastTextFile
    report: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> FastTextModel:
        """Ready to predict."""
        return FastTextModel(self.file)

    def save(self, path: Path | str) -> None:
        """Write the `.bin`."""
        fasttext_file.write(self.file, path)


def train(
    examples: Mapping[str, Iterable[str]],
    parameters: Hyperparameters = Hyperparameters(),
    *,
    held_out: float = 0.05,
    seed: int = 0,
    quiet: bool = True,
) -> Trained:
    """Train on texts by label: `train({POSITIVE: good, NEGATIVE: bad})`. Same texts and seed, same file.

    Args:
        examples: label ("__label__…") to texts. They are gone through twice, so not an iterator.
        parameters: see `Hyperparameters`.
        held_out: share of each label's texts that measures and is not trained on (20,000 at most); 0 for none.
        seed: of the start, the order and what is held out.
        quiet: no progress.

    Raises:
        ConfigError: a label without the prefix, fewer than two labels, an iterator.
        DataError: fewer than ten texts of a label.
    """
    _check(examples, held_out)
    labels = [label.encode() for label in examples]
    words, label_counts, tests = _count(examples, held_out, seed, quiet)
    counted = sorted(
        ((word, count) for word, count in words.items() if count >= parameters.min_count), key=lambda item: -item[1]
    )
    order = np.argsort(-label_counts, kind="stable")  # the library puts the most frequent label first
    rows = len(counted) + parameters.arguments().bucket
    file = FastTextFile(
        path=Path("the model in training"),
        args=parameters.arguments(),
        words={word: row for row, (word, _) in enumerate(counted)},
        word_counts=np.array([count for _, count in counted], np.int64),
        labels=[labels[i] for i in order],
        label_counts=label_counts[order],
        n_tokens=words.total() + int(label_counts.sum()),
        pruned=None,
        input=DenseMatrix(_start(rows, parameters.dim, seed)),
        output=DenseMatrix(np.zeros((len(labels), parameters.dim), np.float32)),
    )
    with tempfile.TemporaryDirectory() as folder:
        encoded = _encode(file, examples, held_out, seed, Path(folder), quiet)
        loss = fit(file, encoded, rng(seed, "order").permutation(len(encoded.labels)), parameters, quiet)
    report: dict[str, float] = {f"texts {label}": int(n) for label, n in zip(examples, label_counts, strict=True)}
    report |= {"words": len(counted), "loss": loss}
    if len({label for label, _ in tests}) > 1:
        report |= evaluate(file, tests, next(iter(examples)))
    return Trained(file, report)


def evaluate(file: FastTextFile, tests: list[tuple[str, str]], positive: str) -> dict[str, float]:
    """Accuracy of the most probable label on (label, text) pairs, and the AUC of `positive` against the rest."""
    model = FastTextModel(file)
    scores = model.predict([one_line(text) for _, text in tests])
    truth = np.array([model.labels.index(label) for label, _ in tests])
    column = model.labels.index(positive)
    return {
        "held_out": len(tests),
        "accuracy": float((scores.argmax(axis=1) == truth).mean()),
        "auc": auc(scores[:, column], (truth == column).astype(float)),
    }


@dataclass(frozen=True)
class Encoded:
    """Texts as numbers: the distinct input rows of each, how often each occurs, and what the rate's schedule counts."""

    ids: np.ndarray  # (features,) int32, text after text
    counts: np.ndarray  # (features,) float32
    starts: np.ndarray  # (texts + 1,) int64
    sizes: np.ndarray  # (texts,) int64: features with repeats
    labels: np.ndarray  # (texts,) int64
    tokens: np.ndarray  # (texts,) int64: words, the end of the line and the label


def fit(
    file: FastTextFile, texts: Encoded, order: np.ndarray, parameters: Hyperparameters, quiet: bool = True
) -> float:
    """Train the matrices of `file` in place, text by text in this order in every epoch; the last one's mean loss."""
    assert isinstance(file.input, DenseMatrix)
    assert isinstance(file.output, DenseMatrix)
    rows, output = file.input.values, file.output.values
    total, seen, fresh = parameters.epoch * file.n_tokens, 0, 0  # tokens
    one_hot = np.eye(len(output), dtype=np.float32)
    losses, visits = 0.0, 0
    with Progress("train", total=parameters.epoch * len(order), unit="texts", quiet=quiet) as progress:
        while seen < total:
            losses, visits = 0.0, 0
            for text in order.tolist():
                if seen >= total:
                    break
                lr = np.float32(parameters.lr * (1.0 - np.float32(seen) / np.float32(total)))
                fresh += int(texts.tokens[text])
                if fresh > UPDATE:
                    seen, fresh = seen + fresh, 0
                if not texts.sizes[text]:
                    continue
                some = slice(texts.starts[text], texts.starts[text + 1])
                ids, counts, size = texts.ids[some], texts.counts[some], np.float32(texts.sizes[text])
                mine = rows.take(ids, axis=0)
                hidden = counts @ mine / size
                logits = output @ hidden
                chances = np.exp(logits - logits.max())
                chances /= chances.sum()
                label = texts.labels[text]
                losses, visits = losses - float(np.log(chances[label] + 1e-5)), visits + 1
                alpha = lr * (one_hot[label] - chances)
                gradient = alpha @ output / size
                output += np.multiply.outer(alpha, hidden)
                mine += np.multiply.outer(counts, gradient)
                rows[ids] = mine
                if visits % CHUNK == 0:
                    progress.advance(CHUNK, loss=f"{losses / visits:.4f}")
    return losses / max(visits, 1)


def _check(examples: Mapping[str, Iterable[str]], held_out: float) -> None:
    if len(examples) < 2:
        raise ConfigError(f"{len(examples)} labels", fix="give texts of two labels or more")
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out = {held_out}", fix="a share below 1")
    for label, texts in examples.items():
        if not label.startswith(LABEL_PREFIX.decode()) or len(label.split()) != 1:
            raise ConfigError(f"{label!r} is no label", fix=f"begin it with {LABEL_PREFIX.decode()}, without spaces")
        if isinstance(texts, Iterator):
            raise ConfigError(f"the texts of {label} are an iterator", fix="a list, or what can be iterated again")


def _split(label: str, texts: Iterable[str], held_out: float, seed: int) -> Iterator[tuple[str, bool]]:
    """The texts that are not empty, and whether each is held out."""
    random, tests = rng(seed, "held out", label), 0
    for text in texts:
        if text.strip():
            test = bool(random.random() < held_out) and tests < MOST_HELD_OUT
            tests += test
            yield text, test


def _count(
    examples: Mapping[str, Iterable[str]], held_out: float, seed: int, quiet: bool
) -> tuple[Counter[bytes], np.ndarray, list[tuple[str, str]]]:
    """How often each word occurs, how many texts each label has to train on, and the texts that are held out."""
    words, numbers, tests = Counter[bytes](), np.zeros(len(examples), np.int64), list[tuple[str, str]]()
    labels = {label.encode() for label in examples}
    with Progress("read", unit="texts", quiet=quiet) as progress:
        for index, (label, texts) in enumerate(examples.items()):
            for text, test in _split(label, texts, held_out, seed):
                progress.advance(1, words=len(words))
                if test:
                    tests.append((label, text))
                else:
                    words.update(split_tokens(one_line(text)))
                    numbers[index] += 1
            if numbers[index] < MIN_PER_CLASS:
                raise DataError(f"{numbers[index]} texts of {label} to train on", fix=f"at least {MIN_PER_CLASS}")
    for word in [word for word in words if word.startswith(LABEL_PREFIX) or word in labels]:
        del words[word]  # a label in a text is not text
    return words, numbers, tests


def _encode(
    file: FastTextFile,
    examples: Mapping[str, Iterable[str]],
    held_out: float,
    seed: int,
    folder: Path,
    quiet: bool,
) -> Encoded:
    """All training texts as numbers, on disk."""
    model = FastTextModel(file)
    distinct: list[np.ndarray] = [np.zeros(1, np.int64)]
    sizes: list[np.ndarray] = []
    labels: list[int] = []
    tokens: list[int] = []
    total = int(file.label_counts.sum())
    with ExitStack() as stack:
        ids_file, counts_file = (stack.enter_context((folder / name).open("wb")) for name in ("ids", "counts"))
        progress = stack.enter_context(Progress("encode", total=total, unit="texts", quiet=quiet))
        for label, texts in examples.items():
            for chunk in _chunks(text for text, test in _split(label, texts, held_out, seed) if not test):
                ids, counts = model.features(chunk)
                owners = np.repeat(np.arange(len(chunk)), counts)
                keys, occurrences = np.unique(owners << 32 | ids, return_counts=True)
                ids_file.write((keys & 0xFFFFFFFF).astype(np.int32).data)
                counts_file.write(occurrences.astype(np.float32).data)
                distinct.append(np.bincount(keys >> 32, minlength=len(chunk)))
                sizes.append(counts)
                labels += [model.labels.index(label)] * len(chunk)
                tokens += [len(split_tokens(text)) + 1 for text in chunk]
                progress.advance(len(chunk))
    starts = np.cumsum(np.concatenate(distinct))
    if not starts[-1]:
        raise DataError("no text has a known word", fix="lower min_count")
    rows = np.asarray(np.memmap(folder / "ids", np.int32, "r"))  # a plain view: slicing a memmap is slow
    times = np.asarray(np.memmap(folder / "counts", np.float32, "r"))
    return Encoded(rows, times, starts, np.concatenate(sizes), np.array(labels), np.array(tokens))


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(one_line(text))
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _start(rows: int, dim: int, seed: int) -> np.ndarray:
    """Uniform in ±1/dim: (rows, dim) float32."""
    random, values = rng(seed, "rows"), np.empty((rows, dim), np.float32)
    for start in range(0, rows, ROWS):
        block = values[start : start + ROWS]
        random.random(dtype=np.float32, out=block)
        block *= np.float32(2 / dim)
        block -= np.float32(1 / dim)
    return values
