"""LLM-guided selection: a noisy judge of single documents, distilled, picks the quarter worth training on.

The corpus is a quarter documentation (docstrings of the running Python's standard library), the rest half pieces of
source code, half pages of log lines. The judge is a rule that knows which is which and is wrong every fifth time: it
stands for the prompted model of the paper (arXiv 2406.04638), whose labels are no better (`generate.labeler` has the
real one). Three classifiers learn from its labels of a sample, and the best-scored quarter of the corpus trains a
language model, beside one trained on all of it.

Held out are docstrings of modules that nothing has seen. The claims are the paper's: the distilled classifier is better
than its labels, and the quarter reaches the whole corpus's loss with at most 70 % of the reading. The language models
are byte 5-gram models, whose loss depends on what they have read and nothing else: transformers small enough for this
experiment differ more by seed than by data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive, rng
from bloomery.lab import Claim, Recipe, Run, figures, recipe

if TYPE_CHECKING:
    import numpy as np

SELECTED, EVERYTHING, RANDOM = "selected quarter", "whole corpus", "random quarter"
ARMS = (SELECTED, EVERYTHING, RANDOM)
LINEAR, EMBEDDING, TRANSFORMER = "linear", "embedding", "transformer"
BACKENDS = (LINEAR, EMBEDDING, TRANSFORMER)
SHARE = 0.25  # of the corpus that is kept
LINES, MIN_TEXT = 25, 150
POINTS = 20  # of each learning curve


@recipe(paper="arXiv:2406.04638", stage="curate")
@dataclass(kw_only=True)
class LLMSelection(Recipe):
    """A noisy judge of documents, distilled into a fast scorer that selects a corpus."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"packages": ["email", "asyncio", "unittest"], "documents": 400, "labels": 200, "budget": 40_000,
                  "trials": 1, "distil_bytes": 32},
        "cpu": {},
        "gpu": {"packages": [], "documents": 400_000, "labels": 50_000, "budget": 60_000_000},
    }  # fmt: skip

    # --8<-- [start:fields]
    packages: tuple[str, ...] = ("stdlib",)
    """Whose documentation is the good part; empty means everything installed."""
    documents: int = 6_000
    """Documents of the corpus, at most."""
    labels: int = 2_000
    """Documents that the judge labels."""
    accuracy: float = 0.8
    """How often the judge is right."""
    distil_bytes: int = 128
    """Bytes of a document that the transformer reads."""
    budget: int = 600_000
    """Bytes that each language model reads."""
    order: int = 5
    """Bytes of an n-gram of the language models."""
    trials: int = 3
    """Seeds of everything."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("documents", "labels", "distil_bytes", "budget", "order", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if not 0.5 < self.accuracy <= 1:
            raise ConfigError(f"accuracy is {self.accuracy}", fix="above 0.5, up to 1")
        if self.labels > self.documents:
            raise ConfigError(f"labels is {self.labels} of {self.documents} documents", fix="at most as many")

    def run(self, run: Run) -> Iterator[Claim]:
        """Label, distil, select, train, compare."""
        judged: dict[int, Any] = {}
        trained: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        for trial in range(self.trials):
            stage = run.stage(f"distil/{trial}")
            judged[trial] = stage(self.distil, stage.folder, trial)
            for arm in ARMS:
                name = arm.replace(" ", "-")
                trained[arm][trial] = run.stage(f"train/{name}-{trial}")(self.train, stage.folder, arm, trial)
        self.show(run, judged, trained)
        yield Claim(
            statement="Distilled from labels that are wrong every fifth time, a classifier tells good from bad",
            paper="arXiv:2406.04638",
            ours={t: r["auc"][LINEAR] for t, r in judged.items()},
            baseline=dict.fromkeys(judged, 0.95),
            better="higher",
            margin=0.0,
            unit="AUC on the whole corpus",
            names=(LINEAR, "0.95"),
            note=f"accuracy of the labels {judged[0]['label_accuracy']:.3f}; {self.labels:,} of them",
        )
        yield Claim(
            statement="The selected quarter reaches the whole corpus's loss with at most 70 % of the reading",
            paper="arXiv:2406.04638",
            ours={t: r["reached"] for t, r in self.reached(trained).items()},
            baseline=dict.fromkeys(judged, 0.7),
            better="lower",
            margin=0.0,
            unit="share of the bytes",
            names=(SELECTED, "0.7"),
            note="1.5 stands for never",
        )
        yield Claim(
            statement="A random quarter does not",
            paper="our own: the control of the selection",
            ours={t: r["loss"] for t, r in trained[SELECTED].items()},
            baseline={t: r["loss"] for t, r in trained[RANDOM].items()},
            better="lower",
            margin=0.05,
            unit="nats/byte",
            names=(SELECTED, RANDOM),
            note=f"{self.budget:,} bytes read by each model",
        )

    def distil(self, folder: Any, trial: int) -> dict[str, Any]:
        """Build the corpus, label a sample, train the three classifiers, write the corpus and its scores."""
        import numpy as np

        from bloomery.core.files import write_json
        from bloomery.corpus.llm_selection import LabelCache, distil
        from bloomery.metrics.classification import auc
        from bloomery.train.distil import TransformerScorer

        documents, good, held_out = self.corpus(trial)
        truth = dict(zip(documents, good, strict=True))

        def judge(texts: Sequence[str]) -> np.ndarray:
            right = [derive(self.seed, "judge", trial, text) % 1_000 < 1_000 * self.accuracy for text in texts]
            return np.array([float(truth[text] == r) for text, r in zip(texts, right, strict=True)])

        sample = rng(self.seed, "sample", trial).choice(len(documents), min(self.labels, len(documents)), replace=False)
        asked = [documents[i] for i in sample]
        labels = LabelCache(folder / "labels.jsonl", judge, identity={"rule": "kind", "accuracy": self.accuracy})(asked)
        scorers: dict[str, Any] = {
            LINEAR: distil(asked, labels, seed=trial),
            EMBEDDING: distil(asked, labels, backend="embedding", embed=byte_counts, seed=trial),
            TRANSFORMER: TransformerScorer.train(asked, labels, seq_len=self.distil_bytes, seed=trial),
        }
        scores = {name: np.asarray(scorer.score(documents)) for name, scorer in scorers.items()}
        best = np.argsort(-scores[LINEAR], kind="stable")[: round(SHARE * len(documents))]
        write_json(folder / "corpus.json", {"documents": documents, "held_out": held_out, "best": best.tolist()})
        return {
            "documents": len(documents), "good": int(good.sum()), "precision": float(good[best].mean()),
            "label_accuracy": float(((labels > 0.5) == good[sample]).mean()),
            "auc": {name: auc(good, values) for name, values in scores.items()},
        }  # fmt: skip

    def corpus(self, trial: int) -> tuple[list[str], np.ndarray, list[str]]:
        """The documents, which of them are good, and held-out good ones of other modules."""
        import numpy as np

        from bloomery.corpus.split import split_of
        from bloomery.recipes._domains import log_page
        from bloomery.worlds.installed_docs import InstalledDocs
        from bloomery.worlds.stdlib_source import source_files

        good: list[str] = []
        held_out: list[str] = []
        for _, module, text in InstalledDocs(list(self.packages) or None).docstrings():
            if len(text) >= MIN_TEXT:
                (good if split_of(module, self.seed, 0.15) == "train" else held_out).append(text)
        lines = [(file.module, file.text.splitlines()) for file in source_files()]
        pieces = ["\n".join(code[i : i + LINES]) for _, code in lines for i in range(0, len(code), LINES)]
        bad = [piece for piece in pieces if len(piece) >= MIN_TEXT]
        random = rng(self.seed, "corpus", trial)
        n_good = min(len(good), round(SHARE * self.documents))
        good = [good[i] for i in random.permutation(len(good))[:n_good]]
        bad = [bad[i] for i in random.permutation(len(bad))[: round(n_good / SHARE) - n_good]]
        bad = [log_page(derive(self.seed, "logs", trial), i) if i % 2 else text for i, text in enumerate(bad)]
        order = random.permutation(len(good) + len(bad))
        unique = dict.fromkeys([*good, *bad])
        documents = [text for i in order if (text := [*good, *bad][i]) in unique and unique.pop(text, True) is None]
        chosen = set(good)
        return documents, np.array([text in chosen for text in documents]), held_out

    def train(self, folder: Any, arm: str, trial: int) -> dict[str, Any]:
        """Held-out loss after reading more and more of one part of the corpus."""
        from bloomery.core.files import read_json
        from bloomery.corpus.ngram_lm import NGramModel

        corpus = read_json(folder / "corpus.json")
        documents, random = corpus["documents"], rng(self.seed, "reading", trial)
        count = len(corpus["best"])
        chosen = {
            SELECTED: corpus["best"],
            EVERYTHING: range(len(documents)),
            RANDOM: rng(self.seed, "random quarter", trial).choice(len(documents), count, replace=False),
        }[arm]
        text = "\n".join(documents[int(i)] for i in random.permutation(list(chosen))).encode()
        curve = []
        for part in range(1, POINTS + 1):
            model = NGramModel([text[: self.budget * part // POINTS]], self.order)
            curve.append((self.budget * part // POINTS, model.loss(corpus["held_out"])))
        return {"loss": curve[-1][1], "curve": curve, "bytes": len(text)}

    def reached(self, trained: Mapping[str, Mapping[int, Any]]) -> dict[int, dict[str, float]]:
        """By seed, the share of the bytes after which the quarter is as good as the whole corpus at the end."""
        found = {}
        for trial, result in trained[EVERYTHING].items():
            curve = trained[SELECTED][trial]["curve"]
            size = next((size for size, loss in curve if loss <= result["loss"]), None)
            found[trial] = {"reached": 1.5 if size is None else size / self.budget}
        return found

    def show(self, run: Run, judged: Mapping[int, Any], trained: Mapping[str, Mapping[int, Any]]) -> None:
        """Loss curves, and what each classifier is worth."""
        curves = {
            arm: [([float(s) for s, _ in r["curve"]], [v for _, v in r["curve"]]) for r in by.values()]
            for arm, by in trained.items()
        }
        figure = figures.lines(curves, x="bytes read", y="held-out nats per byte")
        run.figure("loss", figure, "Docstrings of unseen modules; the band spans the seeds.")
        auc = {name: {t: r["auc"][name] for t, r in judged.items()} for name in BACKENDS}
        auc["labels"] = {t: r["label_accuracy"] for t, r in judged.items()}
        run.figure("auc", figures.bars(auc, y="AUC (labels: accuracy)"), "What is distilled from noisy labels.")
        rows = [
            [t, r["documents"], f"{r['label_accuracy']:.3f}", *(f"{r['auc'][name]:.3f}" for name in BACKENDS),
             f"{r['precision']:.3f}"]
            for t, r in judged.items()
        ]  # fmt: skip
        columns = ["seed", "documents", "labels right", *(f"AUC {name}" for name in BACKENDS), "good in the quarter"]
        run.table("classifiers", columns, rows, "The selection uses the linear classifier.")
        losses = [
            [arm, f"{by[0]['bytes']:,}", ", ".join(f"{r['loss']:.3f}" for r in by.values())]
            for arm, by in trained.items()
        ]
        run.table("models", ["trained on", "bytes", "held-out loss by seed"], losses, "")


def byte_counts(texts: Sequence[str]) -> np.ndarray:
    """A plain embedding: the square root of each byte's share of the text, (texts, 128)."""
    import numpy as np

    rows = np.zeros((len(texts), 128))
    for i, text in enumerate(texts):
        data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
        rows[i] = np.bincount(data[data < 128], minlength=128) / max(1, len(data))
    return np.sqrt(rows)


byte_counts.identity = "share of each ASCII byte"  # type: ignore[attr-defined]
