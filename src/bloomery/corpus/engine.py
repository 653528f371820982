"""Run steps over files: `run(steps, inputs, outputs)`. Killed and started again, it ends with the same bytes.

The unit of resume is one input file under one list of steps. A unit is finished when its record exists and carries the
unit's key: a hash of the steps up to there, the reader, and the file's size and modification time (what `make` trusts
too; hashing the content would read every input twice). Barriers cut the steps into segments. A segment's units are
independent; a barrier decides once over the sketches of all of them, in input order; so a run in this process, on a
pool of processes and on a Ray cluster write identical files, also when workers die on the way.

    outputs/00000-name.parquet …        one file of survivors per input
    outputs/dropped/00000-name.parquet  what was dropped, with `step` and `reason` (`….1.parquet` after a barrier)
    outputs/report.json                 the survival report
    outputs/.bloomery/                  records and, until the run has succeeded, intermediate documents
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.core.errors import ConfigError, EmptyError, nearest
from bloomery.core.log import logger
from bloomery.core.progress import Progress
from bloomery.corpus.documents import SCHEMA
from bloomery.corpus.pool import Inline, Pool, Processes
from bloomery.corpus.readers import PARQUET, find_inputs, read_documents
from bloomery.corpus.report import Report
from bloomery.corpus.state import State, is_finished, opened
from bloomery.corpus.steps import DROP, Barrier, Plan, Step
from bloomery.corpus.unit import Reader

ENGINES = ("inline", "processes", "ray")
WORTH_SAYING = 100_000_000  # bytes of memory or disk that a run needs before it says so
DOCUMENT_BYTES = 4_000  # of an average document, for estimates; of its page in an archive, some times more
PACKED = (".gz", ".zst", ".lz4")


def run(
    steps: Sequence[Step | Barrier],
    inputs: str | Path | Iterable[str | Path],
    outputs: str | Path,
    *,
    engine: str = "inline",
    workers: int | None = None,
    address: str | None = None,
    read: Reader = read_documents,
    resume: bool = True,
    quiet: bool = False,
) -> Report:
    """Send every document of `inputs` (files, folders, globs) through `steps`; write the survivors to `outputs`.

    Args:
        steps: local steps and barriers, in order.
        inputs: see `readers.find_inputs`; what lies in `outputs` is not an input.
        outputs: a new folder, or one that holds an earlier run of the same steps over the same files.
        engine: "inline" (this process), "processes" (one unit per process at a time) or "ray" (one unit per task; see
            `ray_pool` for what a cluster must share); the output is the same.
        workers: units at a time; by default the processors this process may use, or those of the cluster.
        address: of a running Ray cluster; None starts a local one for this run. Only with engine="ray".
        read: path -> iterator of document batches, e.g. `web.read_documents` for WARC files.
        resume: continue or reuse what is in `outputs`; False deletes that run and starts again.
        quiet: no progress.

    Raises:
        ConfigError: a step reads a column that nothing before it produces; unknown engine; `outputs` holds another run.
        EmptyError: no document survived (the report is written all the same).
        StorageError: the disk is full or the folder is in use.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}", fix=nearest(engine, ENGINES))
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} is not a number of workers", where="workers", fix="use 1 or more")
    if address is not None and engine != "ray":
        raise ConfigError(f"the engine {engine!r} takes no address", where="address", fix='use engine="ray"')
    folder = Path(outputs).resolve()
    files = [file for file in find_inputs(inputs) if not file.resolve().is_relative_to(folder)]
    if not files:
        raise ConfigError("the inputs lie in the output folder", where=outputs, fix="choose another output folder")
    check_columns(steps, files, read)
    with opened(Path(outputs), steps, files, read, resume) as state:
        last = len(state.segments) - 1
        count = workers or len(os.sched_getaffinity(0))
        with closing(_pool(engine, state, read, workers, address)) as work:
            first = state.first_unfinished()
            if first == 0 and not quiet:
                _announce(plan(steps, files), files, count)
            for index in range(first, last + 1):
                if index and state.documents_left(index - 1) == 0:
                    raise _empty(state, index)
                state.decide(index)
                _run_segment(state, index, work, quiet)
                state.delete_intermediates(before=index)
        if state.documents_left(last) == 0:
            raise _empty(state, last + 1)
        report = state.report(last + 1)
        report.save(state.folder / "report.json")
        state.delete_intermediates(before=last + 1)
    return report


def plan(steps: Sequence[Step | Barrier], inputs: str | Path | Iterable[str | Path]) -> Plan:
    """What a run will need beside its output and a batch per worker: the largest of its steps, guessed from file sizes.

    The disk holds the documents of two segments at a barrier, compressed to about a third, and its sketches.
    """
    documents = size = 0
    for file in find_inputs(inputs):
        more_documents, more_bytes = _guess(file)
        documents, size = documents + more_documents, size + more_bytes
    needs = [step.plan(documents, size) for step in steps]
    between = 2 * size // 3 if any(isinstance(step, Barrier) for step in steps) else 0
    return Plan(max((n.ram_bytes for n in needs), default=0), between + max((n.disk_bytes for n in needs), default=0))


def _guess(file: Path) -> tuple[int, int]:
    """About how many documents and bytes of text are in an input, without reading it."""
    if file.name.lower().endswith(PARQUET):
        with suppress(pa.ArrowException, OSError):  # a damaged file is the reader's business
            metadata = pq.read_metadata(file)
            return metadata.num_rows, sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if file.is_dir():
        sizes = [part.stat().st_size for part in file.iterdir() if part.is_file()]
        return len(sizes), sum(sizes)
    size = file.stat().st_size * (4 if file.name.lower().endswith(PACKED) else 1)
    return -(-size // DOCUMENT_BYTES), size


def _announce(needs: Plan, files: Sequence[Path], workers: int) -> None:
    if max(needs.ram_bytes, needs.disk_bytes) < WORTH_SAYING:
        return
    ram, disk = needs.ram_bytes / 1e9, needs.disk_bytes / 1e9
    text = "%d files, %d workers; at most about %.2f GB of memory for one step, %.2f GB of disk beside the output"
    logger("corpus").info(text, len(files), workers, ram, disk)


def check_columns(steps: Sequence[Step | Barrier], files: Sequence[Path] = (), read: Reader = read_documents) -> None:
    """Check that every step's columns exist when it runs; the first input is opened only if a column is in doubt."""
    known = set(SCHEMA.names)
    peeked = False
    for position, step in enumerate(steps, start=1):
        if not isinstance(step, (Step, Barrier)):
            raise ConfigError(f"step {position} is not a Step or Barrier: {step!r}", where="steps")
        if not peeked and not known.issuperset(step.reads) and files:
            peeked = True
            known.update(_columns(files[0], read))
        for column in step.reads:
            if column not in known:
                raise ConfigError(
                    f"step {position} ({step.name}) reads the column {column!r}, which no earlier step writes",
                    where="steps",
                    fix=nearest(column, known),
                )
        if DROP in step.writes:
            raise ConfigError(f"step {position} ({step.name}) writes the reserved column {DROP!r}", where="steps")
        known.update(step.writes)


def _columns(path: Path, read: Reader) -> list[str]:
    """The columns of the first batch of a file."""
    first = next(iter(read(path)), None)
    return [] if first is None else list(first.schema.names)


def _pool(engine: str, state: State, read: Reader, workers: int | None, address: str | None) -> Pool:
    if engine == "inline":
        return Inline(state.segments, read)
    if engine == "processes":
        return Processes(state.segments, read, workers or len(os.sched_getaffinity(0)))
    from bloomery.corpus.ray_pool import RayCluster

    return RayCluster(state.segments, read, workers, address)


def _run_segment(state: State, index: int, work: Pool, quiet: bool) -> None:
    jobs = state.jobs(index)
    todo = [job for job in jobs if not is_finished(job)]
    finished = len(jobs) - len(todo)
    name = "curate" if len(state.segments) == 1 else f"curate {index + 1}/{len(state.segments)}"
    with Progress(name, unit="documents", quiet=quiet or not todo) as progress:

        def advance(documents: int) -> None:
            progress.advance(documents, files=f"{finished}/{len(jobs)}")

        for _ in work.run(index, todo, advance):
            finished += 1
            advance(0)


def _empty(state: State, segments: int) -> EmptyError:
    """The error for a run that keeps nothing; the report is written all the same."""
    report = state.report(segments)
    report.save(state.folder / "report.json")
    reasons = "; ".join(f"{reason} ({count:,})" for reason, count in report.top_reasons()) or "the inputs are empty"
    return EmptyError(
        f"none of {report.documents_in:,} documents was kept: {reasons}",
        where=state.folder,
        fix="see report.json and dropped/ there, and loosen that step",
    )
