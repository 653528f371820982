"""Two-stage shuffle of tokenised documents that do not fit in memory (DCLM's tokshuf, arXiv 2406.11794, §3).

    1. tokens of a file, end to end → contexts of seq_len + 1 tokens → each into a random one of `cells` cells
    2. cell after cell: shuffle in memory → chunks of `chunk` contexts; what is left over goes into fewer cells, again

Cells are drawn independently and shuffled whole, so every order of the contexts is equally likely. The result is a
function of the files, in order, and of the seed.

A cell is not a file but a part of every *run*: contexts of one input, sorted by cell, written when `RUN_BYTES` are
full. Runs, chunks and the record of what is done appear whole or not at all, so after a full disk or a kill the same
call goes on: with the next input in the first stage, with the next cell in the second.

Output is a pack (`PackedTokens`) or, with `output="tar"`, what DCLM's tool writes for open_lm: tar files of gzipped
JSON lists and a manifest.jsonl. Of the tool's rules one is left out: a file whose tokens fill its contexts exactly gets
no context of padding alone.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from bloomery.core.devices import free_memory
from bloomery.core.errors import ConfigError, DataError, EmptyError, nearest
from bloomery.core.files import atomic_file, explain_os_errors, read_json, write_json
from bloomery.core.log import logger
from bloomery.core.progress import Progress
from bloomery.core.seeds import rng
from bloomery.corpus import packing
from bloomery.corpus.planning import guess
from bloomery.corpus.readers import find_inputs
from bloomery.corpus.steps import Plan
from bloomery.corpus.tokenizer import BOS, EOS, digest, encode_batch

if TYPE_CHECKING:
    from bloomery.corpus.remote import Source, Url

VERSION = 1
OUTPUTS = ("pack", "tar")
WORK = ".shuffle"  # folder inside the output while the work goes on
RUN_BYTES = 64 << 20  # contexts that are sorted by cell and written together
BYTES_PER_TOKEN = 4  # of text, for estimates
GZIPPED = 2  # bytes per token of gzipped JSON, with its share of tar headers, for estimates
PAD_OFFSET = 2  # the padding token's id is the size of the vocabulary and this, as in the reference


@dataclass(frozen=True)
class Shuffled:
    """What a shuffle has written."""

    folder: Path
    documents: int
    tokens: int  # without padding
    contexts: int
    shards: int  # tar files; 0 for a pack


def plan_shuffle(
    inputs: str | Path | Url | Iterable[str | Path | Url], *, cells: int = 512, output: str = "pack"
) -> Plan:
    """Memory and disk that `shuffle_tokens` will take, from the sizes of the inputs.

    A token is taken as four bytes of text, and as two once it is a number. Memory is twice the larger of a run and a
    cell; disk holds the runs (all tokens once) and the output.
    """
    tokens = sum(guess(file)[1] for file in find_inputs(inputs)) // BYTES_PER_TOKEN
    spilled = 2 * tokens
    return Plan(
        ram_bytes=2 * max(min(spilled, RUN_BYTES), 2 * spilled // cells),
        disk_bytes=spilled + (GZIPPED * tokens if output == "tar" else spilled),
    )


def shuffle_tokens(
    inputs: str | Path | Url | Iterable[str | Path | Url],
    tokenizer: Tokenizer,
    folder: Path | str,
    *,
    seq_len: int = 2048,
    output: str = "pack",
    cells: int = 512,
    chunk: int = 8192,
    seed: int = 0,
    split: str | None = None,
    bos_token: str | None = BOS,
    eos_token: str = EOS,
    encode: Callable[[Tokenizer, list[str]], list[np.ndarray]] = encode_batch,
    quiet: bool = False,
) -> Shuffled:
    """Tokenise the documents of `inputs`, cut them into contexts of seq_len + 1 tokens and write these shuffled.

    A document is its begin token (DCLM: `bos_token=None`), its text and its end token; the last context of an input
    file is padded, in a pack only shorter. The same call resumes what was interrupted and does nothing when all is
    done. `cells` must be so many that one fits in memory; `chunk` is the number of contexts in a tar file.

    Raises:
        ConfigError: settings out of range, or `folder` belongs to a shuffle with other settings.
        EmptyError: no document with text.
        StorageError: the disk is full; the same call goes on once there is space.
    """
    if output not in OUTPUTS:
        raise ConfigError(f"output={output!r}", where="shuffle_tokens", fix=nearest(output, OUTPUTS))
    for name, value in (("seq_len", seq_len), ("cells", cells), ("chunk", chunk)):
        if value < 1:
            raise ConfigError(f"{name}={value}", where="shuffle_tokens", fix="1 or more")
    folder = Path(folder)
    files = find_inputs(inputs)
    vocabulary = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    settings = {
        "version": VERSION,
        "inputs": [[file.name, guess(file)[1]] for file in files],
        "tokenizer": digest(tokenizer),
        **{"seq_len": seq_len, "output": output, "cells": cells, "chunk": chunk, "seed": seed, "split": split},
        **{"bos_token": bos_token, "eos_token": eos_token, "encode": f"{encode.__module__}.{encode.__qualname__}"},
    }
    done = _opened(folder, settings)
    if done is not None:
        return done
    _check_room(plan_shuffle(inputs, cells=cells, output=output), folder, cells)
    begin = np.array([] if bos_token is None else [packing.token_id(tokenizer, bos_token)], np.int64)
    end = np.array([packing.token_id(tokenizer, eos_token)])

    def encoded(file: Source) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
        for texts, blank in packing.text_batches(packing.file_texts(file, split)):
            parts = [part for ids in encode(tokenizer, texts) for part in (begin, ids, end)]
            tokens = np.concatenate([begin[:0], *parts])
            size = sum(len(text.encode("utf-8", "replace")) for text in texts)
            yield tokens, {"documents": len(texts), "tokens": len(tokens), "bytes": size, "blank": blank}

    spill = _Spill(folder / WORK, seq_len + 1, vocabulary + PAD_OFFSET, seed)
    counts: Counter[str] = Counter()
    runs: list[Path] = []
    with Progress("tokenize", total=len(files), unit="files", quiet=quiet) as progress:
        for number, file in enumerate(files):
            mark = folder / WORK / f"file-{number:06d}.json"
            if not mark.exists():
                write_json(mark, spill.file(number, file.name, encoded(file), cells))
            found = read_json(mark)
            runs += [spill.run(0, number, part) for part in range(found.pop("runs"))]
            counts.update(found)
            progress.advance(1, tokens=counts["tokens"])
    if not counts["documents"]:
        raise EmptyError("no document with text to shuffle", where=folder, fix="look at what the steps before dropped")

    writer: _Tars | _Pack = _Tars(folder, chunk) if output == "tar" else _Pack(folder, vocabulary, int(end[0]))
    contexts, state = _second_stage(spill, runs, cells, writer, quiet)
    about = {**settings, **counts, "contexts": contexts, "vocab_size": vocabulary, "shards": state.get("shards", 0)}
    writer.finish(state, about)
    write_json(folder / "shuffle.json", about)
    shutil.rmtree(folder / WORK)
    return _result(folder, about)


def _opened(folder: Path, settings: dict[str, Any]) -> Shuffled | None:
    """Make the folder ready for this shuffle, or give what it already holds."""
    for file in (folder / "shuffle.json", folder / WORK / "settings.json"):
        if not file.exists():
            continue
        before = read_json(file)
        other = [name for name, value in settings.items() if before.get(name) != value]
        if other:
            fix = "choose another folder, or delete this one"
            raise ConfigError(f"holds a shuffle with another {', '.join(other)}", where=folder, fix=fix)
        if file.name == "shuffle.json":
            shutil.rmtree(folder / WORK, ignore_errors=True)  # left by a process that was killed at the very end
            return _result(folder, before)
        return None
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name != WORK) if folder.exists() else []
    if foreign:
        raise ConfigError(f"the folder holds something else: {foreign[0]}", where=folder, fix="choose another folder")
    write_json(folder / WORK / "settings.json", settings)
    return None


def _check_room(plan: Plan, folder: Path, cells: int) -> None:
    """Refuse cells that memory cannot hold; warn of a disk that may be too small: the shuffle can go on later."""
    there = free_memory()
    if plan.ram_bytes > there:
        enough = -(-plan.ram_bytes * cells // there)
        need = (
            f"cells of about {plan.ram_bytes / 1e9:,.1f} GB need more memory than the {there / 1e9:,.1f} GB there are"
        )
        raise ConfigError(need, where="shuffle_tokens", fix=f"cells={enough}")
    free = shutil.disk_usage(folder).free
    if plan.disk_bytes > free:
        text = "the shuffle needs about %.1f GB of disk, %.1f GB are free"
        logger("corpus").warning(text, plan.disk_bytes / 1e9, free / 1e9)


def _result(folder: Path, found: dict[str, Any]) -> Shuffled:
    return Shuffled(folder, *(int(found[name]) for name in ("documents", "tokens", "contexts", "shards")))


class _Spill:
    """Runs on disk: one int64 count per cell, then the contexts, sorted by cell: (contexts, width) of `dtype`."""

    def __init__(self, folder: Path, width: int, pad: int, seed: int) -> None:
        self.folder, self.width, self.pad, self.seed = folder, width, pad, seed
        self.dtype = np.dtype(np.uint16 if pad < 1 << 16 else np.uint32)

    def run(self, level: int, number: int, part: int = 0) -> Path:
        """Where a run lies: `number` is that of the input file, on later levels of the cell it is left over from."""
        return self.folder / f"run-{level}-{number:06d}-{part:04d}"

    def file(
        self, number: int, name: str, batches: Iterable[tuple[np.ndarray, dict[str, int]]], cells: int
    ) -> dict[str, int]:
        """First stage of one input file, given as tokens and counts: write its runs, and sum up the counts."""
        found = Counter({"documents": 0, "runs": 0})
        random = rng(self.seed, "cells", number, name)
        full = max(1, RUN_BYTES // (self.width * self.dtype.itemsize)) * self.width  # tokens of a run
        waiting: list[np.ndarray] = []
        size = 0

        def spill(tokens: np.ndarray) -> None:
            contexts = tokens.reshape(-1, self.width)
            self.write(self.run(0, number, found["runs"]), contexts, random.integers(cells, size=len(contexts)), cells)
            found["runs"] += 1

        for batch, counts in batches:
            found.update(counts)
            waiting.append(batch.astype(self.dtype))
            size += len(batch)
            if size >= full:
                tokens = np.concatenate(waiting)
                for start in range(0, size - full + 1, full):
                    spill(tokens[start : start + full])
                waiting, size = [tokens[size // full * full :]], size % full
        if size:
            tail = np.full(-size % self.width, self.pad, dtype=self.dtype)
            spill(np.concatenate([*waiting, tail]))
        return dict(found)

    def write(self, path: Path, contexts: np.ndarray, cell: np.ndarray, cells: int) -> None:
        """Write a run: `cell` (contexts,) says where each belongs."""
        with atomic_file(path) as file:
            file.write(np.bincount(cell, minlength=cells).astype(np.int64).tobytes())
            file.write(np.ascontiguousarray(contexts[np.argsort(cell, kind="stable")]).data)

    def counts(self, runs: list[Path], cells: int) -> np.ndarray:
        """Contexts of each cell in each run: int64 (runs, cells)."""
        table = [np.fromfile(path, np.int64, cells) for path in runs]
        for path, row in zip(runs, table, strict=True):
            if path.stat().st_size != 8 * cells + int(row.sum()) * self.width * self.dtype.itemsize:
                raise DataError("a run of another size", where=path, fix="delete the output folder and start again")
        return np.array(table, dtype=np.int64).reshape(len(runs), cells)

    def cell(self, runs: list[Path], counts: np.ndarray, number: int) -> np.ndarray:
        """All contexts of one cell, run after run: (contexts, width)."""
        parts = [np.empty((0, self.width), dtype=self.dtype)]
        for path, row in zip(runs, counts, strict=True):
            if row[number]:
                before = 8 * len(row) + int(row[:number].sum()) * self.width * self.dtype.itemsize
                values = np.fromfile(path, self.dtype, int(row[number]) * self.width, offset=before)
                parts.append(values.reshape(-1, self.width))
        return np.concatenate(parts)


def _second_stage(
    spill: _Spill, runs: list[Path], cells: int, writer: _Tars | _Pack, quiet: bool
) -> tuple[int, dict[str, int]]:
    """Shuffle cell after cell, level after level, into the writer: how many contexts, and the writer's last state."""
    mark = spill.folder / "progress.json"
    done: dict[str, Any] = read_json(mark) if mark.exists() else {"level": 0, "cell": 0, "state": writer.start}
    level, contexts = 0, -1
    while True:
        counts = spill.counts(runs, cells)
        sizes = counts.sum(axis=0)
        contexts = int(sizes.sum()) if level == 0 else contexts
        left = np.zeros_like(sizes) if cells == 1 else sizes % writer.chunk
        below = max(1, int(left.sum()) // (4 * writer.chunk))  # cells of four chunks: what is left shrinks by as much
        with Progress(f"shuffle {level}", total=cells, unit="cells", quiet=quiet) as progress:
            for number in range(cells):
                if (level, number) >= (done["level"], done["cell"]):
                    random = rng(spill.seed, "order", level, number)
                    shuffled = spill.cell(runs, counts, number)
                    shuffled = shuffled[random.permutation(len(shuffled))]
                    state = writer.write(done["state"], shuffled[: len(shuffled) - left[number]])
                    rest = shuffled[len(shuffled) - left[number] :]
                    if len(rest):
                        spill.write(spill.run(level + 1, number), rest, random.integers(below, size=len(rest)), below)
                    done = {"level": level, "cell": number + 1, "state": state}
                    write_json(mark, done)
                progress.advance(1)
        if not left.any():
            return contexts, done["state"]
        runs = [spill.run(level + 1, number) for number in np.flatnonzero(left).tolist()]
        level, cells = level + 1, below


class _Tars:
    """Tar files as DCLM's tool writes them: `shard_00000000.tar` with `00000000_00000000.json.gz`, …

    State: how many shards are written, and the number of contexts in the last one (the others are full).
    """

    def __init__(self, folder: Path, chunk: int) -> None:
        self.folder, self.chunk = folder, chunk
        self.start = {"shards": 0, "last": 0}

    def write(self, state: dict[str, int], contexts: np.ndarray) -> dict[str, int]:
        """Write contexts (n, width) as shards after those of `state`; a shard that is there already is replaced."""
        for begin in range(0, len(contexts), self.chunk):
            some = contexts[begin : begin + self.chunk]
            name = f"shard_{state['shards']:08d}.tar"
            with atomic_file(self.folder / name) as file, tarfile.open(fileobj=file, mode="w") as tar:
                for index, context in enumerate(some.tolist()):
                    content = gzip.compress(json.dumps(context, separators=(",", ":")).encode(), 6, mtime=0)
                    member = tarfile.TarInfo(f"{state['shards']:08d}_{index:08d}.json.gz")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            state = {"shards": state["shards"] + 1, "last": len(some)}
        return state

    def finish(self, state: dict[str, int], about: dict[str, Any]) -> None:
        """Write the manifest, once its counts add up to the contexts there were."""
        sizes = [self.chunk] * (state["shards"] - 1) + [state["last"]]
        if sum(sizes) != about["contexts"]:
            raise DataError(f"{sum(sizes)} contexts written of {about['contexts']}", where=self.folder)
        with atomic_file(self.folder / "manifest.jsonl", "w") as file:
            for number, size in enumerate(sizes):
                file.write(json.dumps({"shard": f"shard_{number:08d}", "num_sequences": size}) + "\n")


class _Pack:
    """A pack of the shuffled contexts without their padding; each begins a document, as does what follows an end token.

    State: tokens and documents written. What a killed process has written beyond it is cut off.
    """

    chunk = 1  # nothing is ever left over

    def __init__(self, folder: Path, vocabulary: int, end: int) -> None:
        self.folder, self.vocabulary, self.end = folder, vocabulary, end
        self.dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
        self.start = {"tokens": 0, "documents": 0}

    def write(self, state: dict[str, int], contexts: np.ndarray) -> dict[str, int]:
        """Append contexts (n, width) after what `state` says is there."""
        real = contexts != self.vocabulary + PAD_OFFSET
        tokens = contexts[real]
        lengths = real.sum(axis=1)
        begins = np.concatenate([np.cumsum(lengths) - lengths, np.flatnonzero(tokens == self.end) + 1])
        begins = np.unique(begins[begins < len(tokens)]) + state["tokens"]
        for name, values, count in (
            ("tokens.bin", tokens.astype(self.dtype), state["tokens"]),
            ("boundaries.bin", begins.astype(np.int64), state["documents"]),
        ):
            path = self.folder / WORK / name
            with explain_os_errors(path), path.open("r+b" if path.exists() else "wb") as file:
                file.truncate(count * values.itemsize)
                file.seek(0, os.SEEK_END)
                file.write(values.data)
                file.flush()
                os.fsync(file.fileno())
        return {"tokens": state["tokens"] + len(tokens), "documents": state["documents"] + len(begins)}

    def finish(self, state: dict[str, int], about: dict[str, Any]) -> None:
        """Name the files as a pack's."""
        if state["tokens"] != about["tokens"]:
            raise DataError(f"{state['tokens']} tokens written of {about['tokens']}", where=self.folder)
        boundaries = np.memmap(self.folder / WORK / "boundaries.bin", np.int64, "r", shape=(state["documents"],))
        with atomic_file(self.folder / "boundaries.npy") as file:
            np.save(file, boundaries)
        unfinished = self.folder / WORK / "tokens.bin"
        if unfinished.exists():  # not moved by a process that was killed after that
            unfinished.replace(self.folder / "tokens.bin")
        write_json(
            self.folder / "pack.json",
            {
                "version": packing.VERSION,
                "dtype": self.dtype.name,
                **{f"n_{name}": about[name] for name in ("tokens", "bytes", "blank")},
                "n_documents": state["documents"],
                **{name: about[name] for name in ("vocab_size", "bos_token", "eos_token", "tokenizer")},
            },
        )
