"""What a run will take, before it runs: documents, memory, disk and time; and a refusal of what cannot fit.

Numbers of documents and bytes of text come from the files' sizes (Parquet says them itself). Memory and disk come from
each step's own `plan`. Times are rates of one core: those of an earlier run, from its report, where there is one, else
`RATES`, measured on English web text and Wikipedia (8 MB, one core of an AMD EPYC). An estimate, not a promise: without
an earlier report every document is taken to reach every step.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.core.devices import free_memory
from bloomery.core.errors import ConfigError
from bloomery.corpus.readers import ARCHIVES, HTML, PAPERS, PARQUET
from bloomery.corpus.remote import Source, Url, size_of
from bloomery.corpus.report import Report
from bloomery.corpus.steps import Barrier, Step

if TYPE_CHECKING:
    from rich.table import Table

DOCUMENT_BYTES = 4_000  # text of an average document
PAGE_BYTES = 100_000  # HTML of an average page
PAPER_BYTES = 50_000  # text of an average paper
PACKED = (".gz", ".zst", ".lz4")
PACKING = 4  # how much smaller text and HTML become
WORKER_BYTES = 400 << 20  # a worker process with its libraries, batches and row groups
RATE = 10e6  # bytes of text per second and core of a step that is not in:
RATES = {
    "read": 150e6, "extract": 2e6, "Language": 35e6, "Length": 250e6, "Symbols": 60e6, "Repetition": 45e6,
    "Score": 55e6, "Select": 900e6, "Split": 900e6, "ExactDedup": 60e6, "NearDedup": 14e6, "BloomDedup": 24e6,
    "SubstringDedup": 13e6,
    "FetchImages": 0.5e6, "LoadImages": 4e6, "HashImages": 3e6,  # five images a document
}  # fmt: skip


@dataclass(frozen=True)
class StepPlan:
    """One step's needs. `seconds` are of one core; `measured` says whether they come from an earlier run."""

    name: str
    documents: int
    ram_bytes: int
    disk_bytes: int
    seconds: float
    measured: bool


@dataclass(frozen=True)
class RunPlan:
    """A run's needs: `ram_bytes` of the hungriest step, `disk_bytes` beside the output, `seconds` by the clock."""

    files: int
    documents: int
    text_bytes: int
    workers: int
    steps: tuple[StepPlan, ...]
    ram_bytes: int
    worker_bytes: int
    disk_bytes: int
    output_bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def line(self) -> str:
        """The plan in one line."""
        return (
            f"about {self.documents:,} documents ({self.text_bytes / 1e9:,.2f} GB of text) in {self.files:,} files, "
            f"{self.workers} at a time: at most {self.ram_bytes / 1e9:,.2f} GB of memory for one step and "
            f"{self.worker_bytes / 1e9:,.1f} GB for the workers, {self.disk_bytes / 1e9:,.2f} GB of disk beside up to "
            f"{self.output_bytes / 1e9:,.2f} GB of output, {_clock(self.seconds)}"
        )

    def table(self) -> Table:
        """A row for every step, for `rich.print`."""
        from rich.table import Table

        table = Table(title=self.line(), title_justify="left")
        for column in ("step", "documents", "memory, GB", "disk, GB", "core time", "rate from"):
            table.add_column(column, justify="left" if column in ("step", "rate from") else "right")
        for step in self.steps:
            memory, disk = (f"{size / 1e9:,.3f}" if size else "–" for size in (step.ram_bytes, step.disk_bytes))
            origin = "the earlier run" if step.measured else "defaults"
            table.add_row(step.name, f"{step.documents:,}", memory, disk, _clock(step.seconds), origin)
        return table

    def check(self, folder: Path) -> None:
        """Refuse what cannot fit.

        Raises:
            ConfigError: with what is needed, what is there, and what to change.
        """
        there = free_memory()
        need = self.ram_bytes + self.worker_bytes
        if need > there:
            hungry = max(self.steps, key=lambda step: step.ram_bytes)
            fix = "use fewer workers"
            if self.ram_bytes > there // 2:
                parts = -(-self.ram_bytes // max(there - self.worker_bytes // self.workers, there // 2))
                fix = f"{hungry.name} takes most: leave it out, or curate the input in {parts} parts, each on its own"
            raise ConfigError(
                f"the run needs about {need / 1e9:,.1f} GB of memory ({hungry.name} {hungry.ram_bytes / 1e9:,.1f} GB, "
                f"workers {self.worker_bytes / 1e9:,.1f} GB), {there / 1e9:,.1f} GB are available",
                fix=f"{fix}; force=True (--force) runs it all the same",
            )
        place = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(place).free
        if self.disk_bytes + self.output_bytes > free:
            raise ConfigError(
                f"the run needs up to {(self.disk_bytes + self.output_bytes) / 1e9:,.1f} GB of disk "
                f"({self.output_bytes / 1e9:,.1f} GB of them output), {free / 1e9:,.1f} GB are free",
                where=place,
                fix="choose an output folder on a larger disk; force=True (--force) runs it all the same",
            )


def estimate(
    steps: Sequence[Step | Barrier], files: Sequence[Source], workers: int, like: Report | None = None
) -> RunPlan:
    """The plan for `steps` over `files`; rates and survival from the report of an earlier run where it knows a step."""
    documents = text = 0
    reading = 0.0
    for file in files:
        more_documents, more_bytes, pages = guess(file)
        documents, text = documents + more_documents, text + more_bytes
        reading += more_bytes / (RATES["extract"] if pages else RATES["read"])
    before = {stats.name: stats for stats in like.steps} if like is not None else {}
    rows, needs, alive = [], [], documents
    size = text / max(documents, 1)
    for name, step in (("read", None), *((step.name, step) for step in steps)):
        known = before.get(name)
        measured = known is not None and known.documents_in > 0 and known.seconds > 0
        seconds = reading if step is None else alive * size / RATES.get(name, RATE)
        if known is not None and measured:
            seconds = alive / known.documents_per_second
        need = step.plan(alive, int(alive * size)) if step is not None else None
        needs.append(need)
        rows.append(
            StepPlan(name, alive, need.ram_bytes if need else 0, need.disk_bytes if need else 0, seconds, measured)
        )
        if known is not None and known.documents_in:
            alive = int(alive * known.kept / known.documents_in)
    between = 2 * text // 3 if any(isinstance(step, Barrier) for step in steps) else 0  # two segments, compressed
    at_once = max(min(workers, len(files)), 1)
    return RunPlan(
        files=len(files),
        documents=documents,
        text_bytes=text,
        workers=at_once,
        steps=tuple(rows),
        ram_bytes=max(row.ram_bytes for row in rows),
        worker_bytes=at_once * WORKER_BYTES,
        disk_bytes=between + max(row.disk_bytes for row in rows),
        output_bytes=text // 2,  # kept and dropped together, compressed
        seconds=sum(row.seconds for row in rows) / at_once,
    )


def guess(file: Source) -> tuple[int, int, bool]:
    """About how many documents and bytes of text are in an input, and whether it holds pages; read only by its size."""
    name = file.name.lower()
    if isinstance(file, Path) and name.endswith(PARQUET):
        with suppress(pa.ArrowException, OSError):  # a damaged file is the reader's business
            metadata = pq.read_metadata(file)
            size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            return metadata.num_rows, size, False
    if isinstance(file, Path) and file.is_dir():
        sizes = [part.stat().st_size for part in file.iterdir() if part.is_file()]
        html = any(part.name.lower().endswith(HTML) for part in file.iterdir())
        return len(sizes), len(sizes) * DOCUMENT_BYTES if html else sum(sizes), html
    stored = size_of(file) if isinstance(file, Url) else file.stat().st_size
    size = stored * (PACKING if name.endswith((*PACKED, *PARQUET)) else 1)
    if name.endswith((*ARCHIVES, *HTML)) and ".wet" not in name:
        pages = -(-size // PAGE_BYTES)
        return pages, pages * DOCUMENT_BYTES, True
    if name.endswith(PAPERS):
        return 1, PAPER_BYTES, True
    return -(-size // DOCUMENT_BYTES), size, False


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
