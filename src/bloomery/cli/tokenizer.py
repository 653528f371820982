"""`bloomery tokenizer train | inspect | pack`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_table
from bloomery.core.errors import ConfigError, nearest

ABOUT = """Train a tokenizer, look at one, or pack documents into the token files that training reads.

Commands:
  bloomery tokenizer train    learn a vocabulary from documents
  bloomery tokenizer inspect  sizes and special tokens; with a text, how it is cut
  bloomery tokenizer pack     documents to memory-mapped tokens

Example:
  bloomery tokenizer train corpus/ --out tokenizer --vocab-size 8192
"""


@dataclass
class TrainOptions:
    """Train a byte-level BPE tokenizer; AutoTokenizer of transformers loads the folder.

    Example:
      bloomery tokenizer train corpus/ --out tokenizer --vocab-size 8192
    """

    inputs: Annotated[tuple[Path, ...], Positional]
    """Parquet, JSONL, text or WARC files, or folders of them."""
    out: Path = Path("tokenizer")
    """Folder to write."""
    vocab_size: int = 8192
    """Most tokens, special ones included."""
    min_frequency: int = 2
    """Pairs seen less often are not merged."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class InspectOptions:
    """Sizes and special tokens of a tokenizer; with a text, how it is cut.

    Example:
      bloomery tokenizer inspect tokenizer "os.path.join(a, *paths)"
    """

    folder: Annotated[Path, Positional]
    """tokenizer.json, or the folder that holds it."""
    text: Annotated[str, Positional] = ""
    """Text to cut."""
    json: bool = False
    """Machine-readable output."""


@dataclass
class PackOptions:
    """Tokenise documents into the memory-mapped files that `bloomery train` reads.

    Example:
      bloomery tokenizer pack corpus/ --tokenizer tokenizer --out packed/train --split train
    """

    inputs: Annotated[tuple[Path, ...], Positional]
    """Parquet, JSONL or text files, or folders of them."""
    tokenizer: Path = Path("tokenizer")
    """Tokenizer folder."""
    out: Path = Path("packed")
    """Folder to write."""
    split: Literal["train", "validation"] | None = None
    """Only documents whose split column says so."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Dispatch to train, inspect or pack."""
    commands = {"train": train, "inspect": inspect, "pack": pack}
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: bloomery tokenizer {'|'.join(commands)} …\n\n{ABOUT}", end="")
        return 0
    if not argv:
        raise ConfigError("which command?", fix=f"bloomery tokenizer {'|'.join(commands)} …")
    if argv[0] not in commands:
        raise ConfigError(f"unknown tokenizer command {argv[0]!r}", fix=nearest(argv[0], commands))
    return commands[argv[0]](argv[1:])


def train(argv: Sequence[str]) -> int:
    """Learn a vocabulary."""
    options = parse(TrainOptions, argv, prog="bloomery tokenizer train")
    from bloomery.corpus import tokenizer

    trained = tokenizer.train(read_texts(options.inputs), options.vocab_size, min_frequency=options.min_frequency)
    tokenizer.save(trained, options.out)
    _show({"folder": str(options.out), "tokens": trained.get_vocab_size()}, options.json)
    return 0


def inspect(argv: Sequence[str]) -> int:
    """Describe a tokenizer."""
    options = parse(InspectOptions, argv, prog="bloomery tokenizer inspect")
    from bloomery.corpus import tokenizer

    loaded = tokenizer.load(options.folder)
    special = {token.content: i for i, token in sorted(loaded.get_added_tokens_decoder().items()) if token.special}
    facts: dict[str, Any] = {"tokens": loaded.get_vocab_size(), "special": special, "digest": tokenizer.digest(loaded)}
    if options.text:
        encoding = loaded.encode(options.text, add_special_tokens=False)
        pieces = [options.text[start:end] for start, end in encoding.offsets]
        facts["text"] = [{"id": i, "text": piece} for i, piece in zip(encoding.ids, pieces, strict=True)]
    if options.json:
        print_json(facts)
        return 0
    print(f"{facts['tokens']:,} tokens, digest {facts['digest']}")
    print("special: " + ", ".join(f"{name} {i}" for name, i in special.items()))
    if options.text:
        print_table(("id", "text"), [(piece["id"], repr(piece["text"])) for piece in facts["text"]])
        size = len(options.text.encode())
        print(f"{len(facts['text'])} tokens for {size} bytes: {size / len(facts['text']):.2f} bytes per token")
    return 0


def pack(argv: Sequence[str]) -> int:
    """Write packed tokens."""
    options = parse(PackOptions, argv, prog="bloomery tokenizer pack")
    from bloomery import corpus
    from bloomery.corpus import packing, tokenizer

    words = tokenizer.load(options.tokenizer)
    documents: Any = corpus.find_inputs(options.inputs) if options.split else read_texts(options.inputs)
    packed = packing.pack(documents, words, options.out, split=options.split, quiet=options.quiet)
    _show(
        {
            "folder": str(options.out),
            "documents": packed.n_documents,
            "tokens": packed.n_tokens,
            "bytes": packed.n_bytes,
            "bytes_per_token": round(packed.bytes_per_token, 4),
        },
        options.json,
    )
    return 0


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The text of every document in the given files and folders."""
    from bloomery.corpus import find_inputs, kept, texts
    from bloomery.web import read_documents

    for path in find_inputs(paths):
        for batch in read_documents(path):
            yield from texts(kept(batch)).to_pylist()


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()))
