"""Training a fastText quality classifier, beside the fastText library: processor time, accuracy on held-out texts.

Both sides train on the same texts with DCLM's settings (words and word pairs, 100 numbers a feature, 2 million buckets,
5 epochs): docstrings of what is installed against the first 6,000 characters of source and data files. Ours reads texts
in memory, the library a file; both figures hold everything up to the finished model. One thread; the sides take turns.

    python benchmarks/quality.py --rounds 3 --json quality.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import random
import statistics
import tempfile
import time
from pathlib import Path

import fasttext
import numpy as np

from bloomery.core.files import write_json
from bloomery.corpus.fasttext_bin import FastTextModel, FastTextScorer, one_line
from bloomery.corpus.fasttext_train import NEGATIVE, POSITIVE, Hyperparameters, train
from bloomery.metrics.classification import auc
from bloomery.worlds.installed_docs import InstalledDocs
from curate import library_texts

CHARACTERS = 6_000
TEST = 5  # every so manieth text measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=6_000, help="of each kind")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    texts = {POSITIVE: docstrings(options.texts), NEGATIVE: sources(options.texts)}
    training = {label: [t for i, t in enumerate(some) if i % TEST] for label, some in texts.items()}
    test = [(label == POSITIVE, text) for label, some in texts.items() for text in some[::TEST]]
    size = sum(len(text.encode()) for some in training.values() for text in some)
    seconds: dict[str, list[float]] = {"ours": [], "library": []}
    scores: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        lines = [f"{label} {one_line(text)}\n" for label, some in training.items() for text in some]
        random.Random(0).shuffle(lines)
        source, model = Path(scratch) / "lines", Path(scratch) / "model.bin"
        source.write_text("".join(lines), "utf-8")
        for _ in range(options.rounds):
            start = time.process_time()
            trained = train(training, Hyperparameters(), held_out=0.0)
            seconds["ours"].append(time.process_time() - start)
            scores["ours"] = FastTextScorer(FastTextModel(trained.file)).score([text for _, text in test])
            start = time.process_time()
            theirs = fasttext.train_supervised(input=str(source), wordNgrams=2, thread=1, verbose=0)
            seconds["library"].append(time.process_time() - start)
            theirs.save_model(str(model))
            scores["library"] = FastTextScorer.load(model).score([text for _, text in test])
    truth = np.array([positive for positive, _ in test])
    rows = [
        [name, f"{statistics.median(times):.1f}", f"{((scores[name] > 0.5) == truth).mean():.4f}",
         f"{auc(truth, scores[name]):.4f}"]
        for name, times in seconds.items()
    ]  # fmt: skip
    rows[0][0], rows[1][0] = "bloomery", f"fastText {importlib.metadata.version('fasttext-numpy2-wheel')}"
    columns = ["", "seconds of processor time", "accuracy", "AUC"]
    setup = (
        f"{len(lines):,} texts ({size / 1e6:.1f} MB), {len(test):,} held out, DCLM's settings, one thread; median of "
        f"{options.rounds} rounds in turns."
    )
    print(setup)
    for row in (columns, *rows):
        print("  ".join(cell.ljust(20) for cell in row))
    if options.json:
        write_json(
            options.json,
            {"title": "Training a quality classifier", "setup": setup, "columns": columns, "rows": rows, "notes": []},
        )


def docstrings(count: int) -> list[str]:
    found = [text for _, _, text in InstalledDocs(None).docstrings() if len(text.split()) > 30]
    random.Random(0).shuffle(found)
    return found[:count]


def sources(count: int) -> list[str]:
    found: list[str] = []
    for text in library_texts():
        found.append(text[:CHARACTERS])
        if len(found) == count:
            break
    random.Random(0).shuffle(found)
    return found


if __name__ == "__main__":
    main()
