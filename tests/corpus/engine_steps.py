"""Small steps for the engine's tests, in a module of their own so that worker processes can import them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import StorageError
from bloomery.corpus.documents import from_texts, texts, with_column, with_texts
from bloomery.corpus.readers import read_documents
from bloomery.corpus.steps import Barrier, Plan, Step, decisions, drop, removed_parts


@dataclass(frozen=True)
class WordCount(Step):
    writes = ("words",)

    def __call__(self, batch):
        counts = [len(text.split()) for text in texts(batch).to_pylist()]
        return with_column(batch, "words", pa.array(counts, pa.int64()))


@dataclass(frozen=True)
class AtLeast(Step):
    column: str
    value: float

    @property
    def reads(self):
        return (self.column,)

    def __call__(self, batch):
        return drop(batch, pc.less(batch.column(self.column), self.value), f"{self.column} too low")


@dataclass(frozen=True)
class Picky(Step):
    """Fails on a whole batch because of one document."""

    def __call__(self, batch):
        if any("explode" in text for text in texts(batch).to_pylist()):
            raise ValueError("cannot read explode")
        return batch


@dataclass(frozen=True)
class Halves(Step):
    """Splits documents of more than 60 words in two."""

    def __call__(self, batch):
        columns = (batch["id"].to_pylist(), batch["url"].to_pylist(), texts(batch).to_pylist())
        rows: list[tuple[str, str, str]] = []
        for name, url, text in zip(*columns, strict=True):
            words = text.split()
            if len(words) <= 60:
                rows.append((name, url, text))
            else:
                rows.append((f"{name}#0", url, " ".join(words[:30])))
                rows.append((f"{name}#1", url, " ".join(words[30:])))
        return from_texts([row[2] for row in rows], [row[0] for row in rows], [row[1] for row in rows])


@dataclass(frozen=True)
class NoLongWords(Step):
    """Takes out words of more than six letters, and says so as if they were parts."""

    def __call__(self, batch):
        words = [text.split() for text in texts(batch).to_pylist()]
        batch = with_texts(batch, [" ".join(w for w in some if len(w) <= 6) for some in words])
        return removed_parts(batch, [["long word"] * sum(len(w) > 6 for w in some) for some in words])


@dataclass(frozen=True)
class Stamp(Barrier):
    """Gives every document its position in the whole corpus."""

    writes = ("position",)

    def sketch(self, batch):
        return pa.table({"words": batch.column("words")})

    def decide(self, sketches):
        return decisions(position=pa.array(range(len(sketches)), pa.int64()), notes={"documents": len(sketches)})


@dataclass(frozen=True)
class Hungry(Barrier):
    """Says that it needs a petabyte, or much for every document."""

    per_document: int = 0

    def plan(self, documents, bytes):
        return Plan(ram_bytes=self.per_document * documents or 10**15)

    def sketch(self, batch):
        return pa.table({"id": batch.column("id")})

    def decide(self, sketches):
        return decisions(drop=pa.nulls(len(sketches), pa.string()))


@dataclass(frozen=True)
class Nothing(Step):
    def __call__(self, batch):
        return drop(batch, [True] * batch.num_rows, "not wanted")


@dataclass(frozen=True)
class Clumsy(Step):
    def __call__(self, batch):
        return batch.slice(0, batch.num_rows // 2)


def _file_of(batch: pa.RecordBatch) -> str | None:
    urls = [url for url in batch.column("url").to_pylist() if url]
    return f"part{urls[0].split('/')[3]}.jsonl" if urls else None


@dataclass(frozen=True)
class Deadly(Step):
    """Kills its own process, as the system does when memory runs out."""

    file: str

    def __call__(self, batch):
        if _file_of(batch) == self.file:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


@dataclass(frozen=True)
class DeadlyOnce(Step):
    """Kills its own process at one file, the first time only: `marker` is a file that remembers it."""

    file: str
    marker: str

    def __call__(self, batch):
        if _file_of(batch) == self.file and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


@dataclass(frozen=True)
class Logged(Step):
    """Writes down which files it sees, and fails at one of them until it is healed."""

    log: str
    fail_at: str

    def __call__(self, batch):
        name = _file_of(batch)
        if name:
            with Path(self.log).open("a") as log:
                log.write(name + "\n")
            if name == self.fail_at and "ENGINE_TEST_HEALED" not in os.environ:
                raise StorageError("the disk caught fire", where=name)
        return batch


def other_reader(path: Path) -> Iterator[pa.RecordBatch]:
    return read_documents(path)


def _kill_at_a_rename(moment: str, number: int) -> None:
    """Make this process kill itself just before or after its rename of that number."""
    rename, done = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        done.append(target)
        if moment == "before" and len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed = rename(self, target)
        if moment == "after" and len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    Path.replace = replace  # type: ignore[method-assign]


if "ENGINE_TEST_KILL" in os.environ:  # set for child processes of one test; their workers import this module as well
    _moment, _number = os.environ["ENGINE_TEST_KILL"].split()
    _kill_at_a_rename(_moment, int(_number))


@dataclass(frozen=True)
class AtMost(Step):
    """Takes three documents at a time, and writes down how many it got."""

    max_rows = 3
    writes = ("rows",)

    def __call__(self, batch):
        assert batch.num_rows <= 3
        return with_column(batch, "rows", pa.array([batch.num_rows] * batch.num_rows, pa.int64()))
