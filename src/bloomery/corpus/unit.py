"""One unit of work: one input file through the local steps of one segment.

A segment is the stretch of local steps between two barriers. It reads documents (from the input, or from what the
previous segment left), applies the previous barrier's decisions, runs its steps, and writes the survivors, the dropped
documents, the next barrier's sketches and, last, the record that marks the unit as finished.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import BloomeryError, DataError
from bloomery.core.files import atomic_file, write_json
from bloomery.corpus.documents import SCHEMA, texts, with_column
from bloomery.corpus.readers import error_batch
from bloomery.corpus.remote import Source, local_copy
from bloomery.corpus.report import EXAMPLES, MAX_REASONS, MAX_SOURCES, Report, StepStats, add_capped
from bloomery.corpus.steps import DROP, ERROR, Barrier, Step, drop_reasons, kept, take_removed
from bloomery.corpus.writers import ParquetWriter, writer

HOST = r"^[a-zA-Z][a-zA-Z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>[^/?#:]+)"
SNIPPET = 160  # characters of a dropped document that the report shows

Reader = Callable[[Path], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Segment:
    """Local steps between two barriers. Stats are kept in the order reader, [previous barrier], steps, [barrier]."""

    previous: Barrier | None
    steps: tuple[Step, ...]
    barrier: Barrier | None

    @property
    def names(self) -> list[str]:
        """The names its stats carry: "read" for the input or the previous barrier, then the steps."""
        return [self.previous.name if self.previous else "read", *(step.name for step in self.steps)]


@dataclass(frozen=True)
class Job:
    """Where one unit reads and writes. `decisions` is (file, first row, rows) of the previous barrier's answer."""

    key: str
    source: Source
    documents_in: Path
    documents_out: Path
    dropped: Path
    record: Path
    sketches: Path | None = None
    decisions: tuple[Path, int, int] | None = None


def process(job: Job, segment: Segment, read: Reader, progress: Callable[[int], None]) -> None:
    """Do the unit's work. Nothing is visible under its final name until it is complete."""
    tally = _Tally(job.source, segment)
    with ExitStack() as stack:
        outputs: _Outputs | None = None
        for batch in _source(job, segment, read, tally):
            if outputs is None:
                outputs = stack.enter_context(_Outputs(job, segment, batch))
            progress(batch.num_rows)
            _through(segment.steps, 0, batch, outputs, tally)
        if outputs is None:
            outputs = stack.enter_context(_Outputs(job, segment, pa.RecordBatch.from_pylist([], schema=SCHEMA)))
    write_json(job.record, {"key": job.key, "sketch_seconds": tally.sketch_seconds, "report": tally.report().to_dict()})


# ------------------------------------------------------------------------------------------------------------ reading


def _source(job: Job, segment: Segment, read: Reader, tally: _Tally) -> Iterator[pa.RecordBatch]:
    """The unit's batches, with the reader's errors or the previous barrier's decisions marked, counted and timed."""
    batches = _input_batches(job.source, read) if segment.previous is None else _decided_batches(job)
    first = tally.steps[0]
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        first.seconds += time.perf_counter() - start
        if batch is None:
            return
        first.documents_in += batch.num_rows
        if segment.previous is None:
            tally.count_in(batch)
        yield batch


def _input_batches(source: Source, read: Reader) -> Iterator[pa.RecordBatch]:
    with local_copy(source) as path:
        batches = read(path)  # what is wrong before the first byte (unknown suffix) is the caller's mistake: raised
        try:
            yield from batches
        except DataError as error:  # a damaged file is one bad thing among many: counted, and the run goes on
            yield error_batch(path, "unreadable file", error.what)


def _decided_batches(job: Job) -> Iterator[pa.RecordBatch]:
    assert job.decisions is not None
    path, start, rows = job.decisions
    with pa.memory_map(str(path)) as source:
        answers = pa.ipc.open_file(source).read_all().slice(start, rows)
        with pa.OSFile(str(job.documents_in)) as documents:  # not mapped: it is read once, and mapped pages linger
            reader, row = pa.ipc.open_file(documents), 0
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                for name in answers.schema.names:
                    column = answers.column(name).slice(row, batch.num_rows)
                    batch = with_column(batch, name, column.combine_chunks())
                row += batch.num_rows
                yield batch


# ------------------------------------------------------------------------------------------------------------ running


def _through(steps: Sequence[Step], done: int, batch: pa.RecordBatch, outputs: _Outputs, tally: _Tally) -> None:
    """Send a batch through the steps after the first `done`; before a step that takes few documents it is cut."""
    for index, step in enumerate(steps[done:], start=done + 1):
        batch = outputs.remove(tally, index - 1, batch)
        if batch.num_rows == 0:
            return
        if step.max_rows is not None and batch.num_rows > step.max_rows:
            for start in range(0, batch.num_rows, step.max_rows):
                piece = _run_step(step, batch.slice(start, step.max_rows), tally.steps[index])
                _through(steps, index, piece, outputs, tally)
            return
        batch = _run_step(step, batch, tally.steps[index])
    batch = outputs.remove(tally, len(steps), batch)
    if batch.num_rows:
        tally.count_out(batch)
        outputs.write(batch, tally)


def _run_step(step: Step, batch: pa.RecordBatch, stats: StepStats) -> pa.RecordBatch:
    stats.documents_in += batch.num_rows
    start = time.perf_counter()
    result, removed = take_removed(_isolated(step, batch))
    for reason, count in removed.items():
        add_capped(stats.removed, reason, count, MAX_REASONS)
    stats.seconds += time.perf_counter() - start
    if result.num_rows < batch.num_rows:
        raise DataError(
            f"step {step.name} got {batch.num_rows} documents and returned {result.num_rows}",
            fix="a step marks documents with drop(batch, mask, reason); the engine removes them",
        )
    stats.split += result.num_rows - batch.num_rows
    return result


def _isolated(step: Step, batch: pa.RecordBatch) -> pa.RecordBatch:
    """`step(batch)`; when it fails, document by document, so that one bad document costs one document."""
    try:
        return step(batch)
    except (BloomeryError, OSError, MemoryError):
        raise
    except Exception as error:
        if batch.num_rows == 1:
            return drop_reasons(batch, [f"{ERROR} {type(error).__name__}: {error}"[:SNIPPET]])
        rows = [pa.Table.from_batches([_isolated(step, batch.slice(row, 1))]) for row in range(batch.num_rows)]
        return pa.concat_tables(rows, promote_options="default").combine_chunks().to_batches()[0]


@dataclass
class _Tally:
    """The unit's account."""

    source: Source
    segment: Segment
    steps: list[StepStats] = field(init=False)
    totals: Report = field(default_factory=Report)
    sketch_seconds: float = 0.0
    examples: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = [StepStats(name) for name in self.segment.names]

    def count_in(self, batch: pa.RecordBatch) -> None:
        good = kept(batch)
        self.totals.documents_in += batch.num_rows
        self.totals.text_bytes_in += _text_bytes(good)
        self._count_sources(batch, 0)

    def count_out(self, batch: pa.RecordBatch) -> None:
        if self.segment.barrier is None:
            self.totals.documents_out += batch.num_rows
            self.totals.text_bytes_out += _text_bytes(batch)
            self._count_sources(batch, 1)

    def count_dropped(self, step: int, dropped: pa.RecordBatch, kept_rows: int) -> None:
        stats = self.steps[step]
        stats.kept += kept_rows
        reasons = dropped.column(DROP).to_pylist()
        for reason, count in Counter(reasons).items():
            add_capped(stats.errors if reason.startswith(ERROR) else stats.dropped, reason, count, MAX_REASONS)
        for row, reason in enumerate(reasons):
            shown = self.examples.setdefault((step, reason), []) if len(self.examples) < MAX_REASONS else None
            if shown is not None and len(shown) < EXAMPLES:
                one = dropped.slice(row, 1)
                snippet = texts(one)[0].as_py()[:SNIPPET]
                document = {"id": one.column("id")[0].as_py(), "url": one.column("url")[0].as_py(), "text": snippet}
                shown.append({"step": stats.name, "reason": reason, **document})

    def report(self) -> Report:
        self.totals.steps = self.steps
        self.totals.examples = [
            example for _, shown in sorted(self.examples.items(), key=lambda item: item[0]) for example in shown
        ]
        return self.totals

    def _count_sources(self, batch: pa.RecordBatch, slot: int) -> None:
        sources = self.totals.sources
        for host, count in _hosts(batch).items():
            name = host or self.source.name
            name = name if name in sources or len(sources) < MAX_SOURCES else "(other)"
            sources.setdefault(name, [0, 0])[slot] += count


def _text_bytes(batch: pa.RecordBatch) -> int:
    return pc.sum(pc.binary_length(texts(batch))).as_py() or 0


def _hosts(batch: pa.RecordBatch) -> dict[str, int]:
    """Documents by host of their url ("" where there is none)."""
    urls = batch.column("url")
    if urls.null_count == len(urls):
        return {"": len(urls)}
    found = pc.struct_field(pc.extract_regex(urls, HOST), "host")
    counts = pc.value_counts(pc.fill_null(pc.utf8_lower(found), ""))
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


# ------------------------------------------------------------------------------------------------------------ writing


class _Outputs:
    """The unit's three files: survivors, dropped documents, sketches. Their columns come from an empty dry run."""

    def __init__(self, job: Job, segment: Segment, first: pa.RecordBatch) -> None:
        self._job, self._segment = job, segment
        self._schema = _dry_run(segment, first)
        columns = [field for field in self._schema if field.name not in ("step", "reason")]  # dropped before, once
        self._dropped_schema = pa.schema([*columns, pa.field("step", pa.string()), pa.field("reason", pa.string())])
        self._stack = ExitStack()

    def __enter__(self) -> _Outputs:
        with ExitStack() as stack:
            job, barrier = self._job, self._segment.barrier
            self._sketches: pa.RecordBatchWriter | None = None
            if barrier is None:
                file = stack.enter_context(atomic_file(job.documents_out))
                self._documents: Any = stack.enter_context(writer(job.documents_out, file, self._schema))
            else:
                assert job.sketches is not None
                self._documents = _ipc(stack, job.documents_out, self._schema, "zstd")
                shape = barrier.sketch(pa.RecordBatch.from_pylist([], schema=self._schema)).schema
                self._sketches = _ipc(stack, job.sketches, shape)  # uncompressed: read again as a memory map
            self._dropped = stack.enter_context(
                ParquetWriter(stack.enter_context(atomic_file(job.dropped)), self._dropped_schema)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def remove(self, tally: _Tally, step: int, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Take the marked documents out of the batch and write them to the dropped file."""
        if DROP not in batch.schema.names or batch.column(DROP).null_count == batch.num_rows:
            tally.steps[step].kept += batch.num_rows
            return kept(batch)
        survivors, dropped = kept(batch), batch.filter(pc.is_valid(batch.column(DROP)))
        tally.count_dropped(step, dropped, survivors.num_rows)
        columns = {name: dropped.column(name) for name in dropped.schema.names}
        columns["reason"] = columns.pop(DROP)
        columns["step"] = pa.array([tally.steps[step].name] * dropped.num_rows, pa.string())
        self._dropped.write_batch(_conform(columns, dropped.num_rows, self._dropped_schema, partial=True))
        return survivors

    def write(self, batch: pa.RecordBatch, tally: _Tally) -> None:
        columns = {name: batch.column(name) for name in batch.schema.names}
        batch = _conform(columns, batch.num_rows, self._schema)
        self._documents.write_batch(batch)
        if self._segment.barrier is not None and self._sketches is not None:
            start = time.perf_counter()
            sketch = self._segment.barrier.sketch(batch)
            tally.sketch_seconds += time.perf_counter() - start
            if len(sketch) != batch.num_rows:
                raise DataError(
                    f"{self._segment.barrier.name} made {len(sketch)} sketches of {batch.num_rows} documents"
                )
            self._sketches.write_table(sketch)


def _dry_run(segment: Segment, first: pa.RecordBatch) -> pa.Schema:
    """The columns that leave the segment, found by sending an empty batch through it."""
    batch = kept(first.slice(0, 0))
    for step in segment.steps:
        missing = [name for name in step.reads if name not in batch.schema.names]
        if missing and kept(first).num_rows == 0:  # a file that could not be read: there are no columns to find
            break
        if missing:
            raise DataError(f"step {step.name} reads the column {missing[0]!r}, which these documents do not have")
        batch = kept(take_removed(step(batch))[0])
        for name in step.writes:
            if name not in batch.schema.names:
                raise DataError(f"step {step.name} declares that it writes {name!r} but does not")
            if pa.types.is_null(batch.schema.field(name).type):
                raise DataError(
                    f"step {step.name} gives column {name!r} no type on an empty batch",
                    fix="use pa.array(values, type)",
                )
    needed = segment.barrier.reads if segment.barrier and kept(first).num_rows == 0 else ()
    unknown = [pa.field(name, pa.null()) for name in needed if name not in batch.schema.names]
    return pa.schema([*batch.schema, *unknown])


def _conform(columns: dict[str, pa.Array], rows: int, schema: pa.Schema, partial: bool = False) -> pa.RecordBatch:
    """The columns in the order and types of `schema`; with `partial`, missing ones are null."""
    arrays = []
    for wanted in schema:
        if wanted.name not in columns and not partial:
            raise DataError(f"column {wanted.name!r} is missing from a later batch of the same file")
        array = columns.get(wanted.name)
        arrays.append(pa.nulls(rows, wanted.type) if array is None else array.cast(wanted.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _ipc(stack: ExitStack, path: Path, schema: pa.Schema, compression: str | None = None) -> pa.RecordBatchWriter:
    file = stack.enter_context(atomic_file(path))
    return stack.enter_context(pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(compression=compression)))
