"""`bloomery quality train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bloomery.cli.options import parse, print_json
from bloomery.cli.tokenizer import read_texts
from bloomery.core.errors import ConfigError, nearest

ABOUT = """Train the classifier that picks the pages worth training on, as DCLM does: fastText on words and word pairs.

Commands:
  bloomery quality train  a .bin from good and ordinary texts, with held-out accuracy and AUC

Example:
  bloomery quality train good.jsonl ordinary/ --out classifier.bin
  bloomery curate crawl/ corpus/ --recipe dclm --model classifier.bin --keep 0.1
"""


@dataclass
class TrainOptions:
    """Train a fastText classifier on texts that are good and texts as they come; the fastText library reads it, too.

    Example:
      bloomery quality train good.jsonl ordinary/ --out classifier.bin
    """

    positives: Annotated[Path, Positional]
    """Good texts: a file or folder, as `bloomery curate` reads them."""
    negatives: Annotated[Path, Positional]
    """Ordinary texts, such as a sample of the crawl."""
    out: Annotated[Path, arg(aliases=("-o",))] = Path("classifier.bin")
    """File to write."""
    word_ngrams: int = 2
    """Longest run of words that is a feature."""
    dim: int = 100
    """Numbers of a feature."""
    bucket: int = 2_000_000
    """Rows for runs of words; a row takes 4 · dim bytes."""
    epoch: int = 5
    """Times that every text is seen."""
    lr: float = 0.1
    """Learning rate at the start; it falls to zero."""
    min_count: int = 1
    """Words seen less often are left out."""
    held_out: float = 0.05
    """Share of the texts that measures."""
    seed: int = 0
    """Of the start, the order and what is held out."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


class _Texts:
    """The texts of a file or folder, read anew every time."""

    def __init__(self, path: Path) -> None:
        from bloomery.corpus import find_inputs

        find_inputs([path])  # a missing file is a mistake of the caller's: now, not after the other's texts are read
        self._path = path

    def __iter__(self) -> Iterator[str]:
        return read_texts([self._path])


def main(argv: Sequence[str]) -> int:
    """Dispatch to train."""
    commands = {"train": train}
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: bloomery quality {'|'.join(commands)} …\n\n{ABOUT}", end="")
        return 0
    if not argv:
        raise ConfigError("which command?", fix=f"bloomery quality {'|'.join(commands)} …")
    if argv[0] not in commands:
        raise ConfigError(f"unknown quality command {argv[0]!r}", fix=nearest(argv[0], commands))
    return commands[argv[0]](argv[1:])


def train(argv: Sequence[str]) -> int:
    """Train, measure and write."""
    options = parse(TrainOptions, argv, prog="bloomery quality train")
    from bloomery.corpus import fasttext_train

    if options.out.suffix != ".bin":
        raise ConfigError(
            f"--out {options.out}", fix="end the name in .bin, by which `bloomery curate` knows the format"
        )
    parameters = fasttext_train.Hyperparameters(
        dim=options.dim,
        word_ngrams=options.word_ngrams,
        epoch=options.epoch,
        lr=options.lr,
        min_count=options.min_count,
        bucket=options.bucket,
    )
    trained = fasttext_train.train(
        {fasttext_train.POSITIVE: _Texts(options.positives), fasttext_train.NEGATIVE: _Texts(options.negatives)},
        parameters,
        held_out=options.held_out,
        seed=options.seed,
        quiet=options.quiet,
    )
    trained.save(options.out)
    facts = {"file": str(options.out), **trained.report}
    if options.json:
        print_json(facts)
    else:
        print("\n".join(f"{name}: {round(v, 4) if isinstance(v, float) else v}" for name, v in facts.items()))
    return 0
