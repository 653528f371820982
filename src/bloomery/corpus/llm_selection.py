"""Document selection by a language model's judgement, made cheap: label a sample, distil, score the rest.

"Large Language Model-guided Document Selection" (arXiv 2406.04638): an instruction-tuned model says of a sample of
documents whether they are worth training on, a small classifier learns its answers and scores the corpus, and the best
quarter is kept. Averaging over many labels, the classifier is better than each of them.

    labels = LabelCache("labels.jsonl", labeler, identity=labeler.identity)(texts)
    scorer = distil(texts, labels)
    steps = [Score(scorer), Select(f"score_{scorer.name}", fraction=0.25)]

A *labeler* is any callable from texts to numbers between 0 and 1: `generate.labeler` has a local model and an endpoint,
a rule serves for tests. `train.distil` distils into a small transformer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.hashing import digest
from bloomery.core.progress import Progress
from bloomery.core.seeds import rng
from bloomery.corpus.quality import LinearScorer, Scorer

Labeler = Callable[[Sequence[str]], np.ndarray]
Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> (texts, dim)
BACKENDS = ("linear", "embedding")
BATCH = 32  # texts labelled between two lines of the file
# Of the linear scorer: labels that are wrong every fifth time must not be learned by heart.
NOISY: dict[str, Any] = {"bits": 16, "epochs": 3, "lr": 0.03, "l2": 1e-4}
RIDGE, STEPS = 1e-3, 60  # of the logistic regression on embeddings


class LabelCache:
    """A labeler that remembers its answers in a JSON-lines file, by the text's hash and the `identity` of who answered.

    `identity` says all that decides an answer (model, prompt): a change of it asks again. Killed and started again, the
    labelling goes on; a line cut short by the kill is ignored.
    """

    def __init__(self, path: Path | str, labeler: Labeler, identity: object, quiet: bool = True) -> None:
        self._path, self._labeler, self._who, self._quiet = Path(path), labeler, digest(identity), quiet
        self._known: dict[str, float] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    if row["by"] == self._who:
                        self._known[row["text"]] = float(row["label"])
                except (ValueError, KeyError, TypeError):
                    continue

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """A label for each text: float64 (texts,).

        Raises:
            DataError: the labeler gave a number outside [0, 1], or too few.
        """
        names = [xxhash.xxh3_128_hexdigest(text.encode("utf-8", "replace")) for text in texts]
        todo = list({name: i for i, name in enumerate(names) if name not in self._known}.values())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._path.open("a", encoding="utf-8") as file,
            Progress("label", total=len(todo), unit="documents", quiet=self._quiet) as progress,
        ):
            for start in range(0, len(todo), BATCH):
                some = todo[start : start + BATCH]
                labels = np.asarray(self._labeler([texts[i] for i in some]), dtype=float)
                if labels.shape != (len(some),) or not ((labels >= 0) & (labels <= 1)).all():
                    raise DataError(f"labels {labels.tolist()[:3]}… for {len(some)} texts", fix="numbers from 0 to 1")
                for i, label in zip(some, labels.tolist(), strict=True):
                    self._known[names[i]] = label
                    file.write(json.dumps({"text": names[i], "by": self._who, "label": label}) + "\n")
                file.flush()
                progress.advance(len(some))
        return np.array([self._known[name] for name in names])


def distil(
    texts: Sequence[str],
    labels: np.ndarray,
    *,
    backend: str = "linear",
    embed: Embed | None = None,
    name: str = "llm",
    seed: int = 0,
) -> Scorer:
    """A scorer that has learned the labels.

    Args:
        texts: what was labelled.
        labels: numbers from 0 to 1.
        backend: "linear" (hashed words and pairs, from labels cut at 0.5) or "embedding" (logistic regression on
            `embed`, from the labels as they are).
        embed: texts -> (texts, dim), for "embedding".
        name: the column becomes `score_<name>`.
        seed: of the training.
    """
    labels = np.asarray(labels, dtype=float)
    if len(labels) != len(texts):
        raise DataError(f"{len(labels)} labels for {len(texts)} texts")
    if backend == "linear":
        good = [text for text, label in zip(texts, labels, strict=True) if label > 0.5]
        bad = [text for text, label in zip(texts, labels, strict=True) if label <= 0.5]
        return LinearScorer.train(good, bad, seed=seed, name=name, **NOISY)
    if backend != "embedding":
        raise ConfigError(f"backend={backend!r}", fix=nearest(backend, BACKENDS))
    if embed is None:
        raise ConfigError("the backend embedding needs embed=", fix="give a function from texts to vectors")
    return EmbeddingScorer.train(texts, labels, embed, name, seed)


class EmbeddingScorer:
    """Logistic regression on embeddings."""

    def __init__(self, embed: Embed, weights: np.ndarray, bias: float, name: str) -> None:
        self.embed, self.weights, self.bias, self.name = embed, weights, bias, name

    @classmethod
    def train(cls, texts: Sequence[str], labels: np.ndarray, embed: Embed, name: str, seed: int) -> EmbeddingScorer:
        """Fit soft labels by Newton's method with a ridge; columns are scaled to unit variance."""
        x: Any = np.asarray(embed(texts), dtype=float)
        if x.ndim != 2 or len(x) != len(texts) or not np.isfinite(x).all():
            raise DataError(f"embeddings of shape {x.shape} for {len(texts)} texts", fix="finite, one row per text")
        mean: Any = x.mean(axis=0)
        std: Any = x.std(axis=0) + 1e-9
        rows = np.concatenate([(x - mean) / std, np.ones((len(x), 1))], axis=1)
        solution: Any = rng(seed, "embedding").normal(0, 1e-3, rows.shape[1])
        ridge = RIDGE * len(x) * np.eye(rows.shape[1])
        for _ in range(STEPS):
            p = _sigmoid(rows @ solution)
            gradient = rows.T @ (p - labels) + ridge @ solution
            step = np.linalg.solve((rows * (p * (1 - p))[:, None]).T @ rows + ridge, gradient)
            solution = solution - step
            if np.abs(step).max() < 1e-8:
                break
        weights = solution[:-1] / std
        return cls(embed, weights, float(solution[-1] - mean @ weights), name)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of a good label: float32 (texts,)."""
        logits = np.asarray(self.embed(texts), dtype=float) @ self.weights + self.bias
        return _sigmoid(logits).astype(np.float32)

    def fingerprint(self) -> dict[str, Any]:
        """Name and weights; the embedding must be named by its own `identity` where it has one."""
        return {
            "scorer": "embedding", "name": self.name, "embed": getattr(self.embed, "identity", repr(self.embed)),
            "weights": digest([round(float(w), 9) for w in (*self.weights, self.bias)]),
        }  # fmt: skip


def _sigmoid(x: np.ndarray) -> np.ndarray:
    p: np.ndarray = (1 + np.tanh(x / 2)) / 2
    return p
