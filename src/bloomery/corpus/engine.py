"""Run steps over files: `run(steps, inputs, outputs)`. Killed and started again, it ends with the same bytes.

The unit of resume is one input file under one list of steps. A unit is finished when its record exists and carries the
unit's key: a hash of the steps up to there, the reader, and the file's size and modification time (what `make` trusts
too; hashing the content would read every input twice). Barriers cut the steps into segments. A segment's units are
independent; a barrier decides once over the sketches of all of them, in input order; so a run in this process, on a
pool of processes and on a Ray cluster write identical files, also when workers die on the way.

    outputs/00000-name.parquet …        one file of survivors per input (or .jsonl, .jsonl.gz, .jsonl.zst)
    outputs/dropped/00000-name.parquet  what was dropped, with `step` and `reason` (`….1.parquet` after a barrier)
    outputs/report.json                 the survival report
    outputs/.bloomery/                  records and, until the run has succeeded, intermediate documents
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from bloomery.core.errors import ConfigError, EmptyError, nearest
from bloomery.core.log import logger
from bloomery.core.progress import Progress
from bloomery.corpus.documents import SCHEMA
from bloomery.corpus.planning import RunPlan, estimate
from bloomery.corpus.pool import Inline, Pool, Processes
from bloomery.corpus.readers import RUN_STATE, find_inputs, read_documents
from bloomery.corpus.remote import Mirror, Source, Url, local_copy, source_of
from bloomery.corpus.report import Report
from bloomery.corpus.state import State, opened
from bloomery.corpus.steps import DROP, REMOVED, Barrier, Step
from bloomery.corpus.unit import Reader
from bloomery.corpus.writers import FORMATS

ENGINES = ("inline", "processes", "ray")
Inputs = str | Path | Url | Iterable[str | Path | Url]


def run(
    steps: Sequence[Step | Barrier],
    inputs: Inputs,
    outputs: str | Path,
    *,
    engine: str = "inline",
    workers: int | None = None,
    address: str | None = None,
    read: Reader = read_documents,
    format: str = "parquet",
    scratch: Path | None = None,
    resume: bool = True,
    force: bool = False,
    quiet: bool = False,
) -> Report:
    """Send every document of `inputs` (files, folders, globs, addresses) through `steps`; write the survivors.

    Args:
        steps: local steps and barriers, in order.
        inputs: see `readers.find_inputs`; what lies in `outputs` is not an input.
        outputs: a new folder, or one that holds an earlier run of the same steps over the same files; also an address
            (`s3://…`), see `remote`.
        engine: "inline" (this process), "processes" (one unit per process at a time) or "ray" (one unit per task; see
            `ray_pool` for what a cluster must share); the output is the same.
        workers: units at a time; by default the processors this process may use, or those of the cluster.
        address: of a running Ray cluster; None starts a local one for this run. Only with engine="ray".
        read: path -> iterator of document batches, e.g. `web.read_documents` for WARC files.
        format: of the survivors, one of `writers.FORMATS`.
        scratch: local folder to work in when `outputs` is an address; by default one in the user's cache.
        resume: continue or reuse what is in `outputs`; False deletes that run and starts again.
        force: run although the plan says that memory or disk will not do.
        quiet: no plan and no progress.

    Raises:
        ConfigError: a step reads a column that nothing before it produces; unknown engine or format; `outputs` holds
            another run; the plan does not fit this machine.
        EmptyError: no document survived (the report is written all the same).
        StorageError: the disk is full or the folder is in use.
    """
    for name, value, known in (("engine", engine, ENGINES), ("format", format, FORMATS)):
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r}", fix=nearest(value, known))
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} is not a number of workers", where="workers", fix="use 1 or more")
    if address is not None and engine != "ray":
        raise ConfigError(f"the engine {engine!r} takes no address", where="address", fix='use engine="ray"')
    target = source_of(outputs)
    place = Mirror(target, scratch) if isinstance(target, Url) else target
    files = _without(find_inputs(inputs), target)
    check_columns(steps, files, read)
    folder = place.folder if isinstance(place, Mirror) else place
    needs = estimate(steps, files, 1 if engine == "inline" else workers or len(os.sched_getaffinity(0)))
    if not force and not (folder / RUN_STATE / "run.json").exists():  # a run that was begun has been checked
        needs.check(folder)
    with opened(place, steps, files, read, format, resume) as state:
        last = len(state.segments) - 1
        first = state.first_unfinished()
        if first == 0 and not quiet:
            logger("corpus").info("%s", needs.line())
        with closing(_pool(engine, state, read, workers, address)) as work:
            for index in range(first, last + 1):
                if index and state.documents_left(index - 1) == 0:
                    raise _empty(state, index)
                state.decide(index, force)
                _run_segment(state, index, work, quiet)
                state.delete_intermediates(before=index)
        if state.documents_left(last) == 0:
            raise _empty(state, last + 1)
        report = state.report(last + 1)
        state.save_report(report)
        state.delete_intermediates(before=last + 1)
    return report


def plan(
    steps: Sequence[Step | Barrier], inputs: Inputs, *, workers: int | None = None, like: Report | None = None
) -> RunPlan:
    """What a run will need, guessed from file sizes without reading anything; see `planning`.

    `like` is the report of an earlier run, say of a sample: its rates and survival are used for the steps it knows.
    """
    return estimate(steps, find_inputs(inputs), workers or len(os.sched_getaffinity(0)), like)


def _without(files: Sequence[Source], outputs: Source) -> list[Source]:
    """The inputs that do not lie in the output folder."""
    if isinstance(outputs, Url):
        below = outputs.address.rstrip("/") + "/"
        found = [file for file in files if not str(file).startswith(below)]
    else:
        folder = outputs.resolve()
        found = [file for file in files if isinstance(file, Url) or not file.resolve().is_relative_to(folder)]
    if not found:
        raise ConfigError("the inputs lie in the output folder", where=outputs, fix="choose another output folder")
    return found


def check_columns(steps: Sequence[Step | Barrier], files: Sequence[Source] = (), read: Reader = read_documents) -> None:
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
        for column in (DROP, REMOVED):
            if column in step.writes:
                raise ConfigError(f"step {position} ({step.name}) writes the reserved column {column!r}", where="steps")
        known.update(step.writes)


def _columns(source: Source, read: Reader) -> list[str]:
    """The columns of the first batch of a file."""
    with local_copy(source) as path:
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
    todo = [job for job in jobs if not state.is_finished(job)]
    for job in jobs:
        if state.is_finished(job):
            state.publish(job)  # in case the run was killed between finishing and sending it
    finished = len(jobs) - len(todo)
    name = "curate" if len(state.segments) == 1 else f"curate {index + 1}/{len(state.segments)}"
    with Progress(name, unit="documents", quiet=quiet or not todo) as progress:

        def advance(documents: int) -> None:
            progress.advance(documents, files=f"{finished}/{len(jobs)}")

        for job in work.run(index, todo, advance):
            state.publish(job)
            finished += 1
            advance(0)


def _empty(state: State, segments: int) -> EmptyError:
    """The error for a run that keeps nothing; the report is written all the same."""
    report = state.report(segments)
    state.save_report(report)
    reasons = "; ".join(f"{reason} ({count:,})" for reason, count in report.top_reasons()) or "the inputs are empty"
    return EmptyError(
        f"none of {report.documents_in:,} documents was kept: {reasons}",
        where=state.folder,
        fix="see report.json and dropped/ there, and loosen that step",
    )
