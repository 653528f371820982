"""The folder of a run: what is finished, where everything lies, and whose run it is."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

import bloomery
from bloomery.core.devices import free_memory
from bloomery.core.errors import ConfigError, DataError, StorageError
from bloomery.core.files import atomic_file, explain_os_errors, read_json, write_json
from bloomery.core.hashing import digest
from bloomery.core.log import logger
from bloomery.corpus.readers import DROPPED, RUN_STATE
from bloomery.corpus.remote import PAGES, Mirror, Source, Url, identity
from bloomery.corpus.report import Report, StepStats
from bloomery.corpus.steps import Barrier, Step, decision_notes
from bloomery.corpus.unit import Job, Reader, Segment

OURS = re.compile(r"[0-9]{5,}-[^/]*\.(?:parquet|jsonl|jsonl\.gz|jsonl\.zst|tar)|report\.json|dropped/[^/]*\.parquet")


@contextmanager
def opened(
    place: Path | Mirror,
    steps: Sequence[Step | Barrier],
    files: Sequence[Source],
    read: Reader,
    format: str,
    resume: bool,
) -> Iterator[State]:
    """Lock the folder for this run and check that what it holds is a run of the same steps over the same files.

    Of a remote folder, the scratch folder is locked: two machines are not kept from writing to one address.
    """
    manifest: dict[str, Any] = {
        "bloomery": bloomery.__version__,
        "reader": reader_name(read),
        "steps": [step.fingerprint() for step in steps],
        "inputs": [str(file) if isinstance(file, Url) else os.path.abspath(file) for file in files],
        "format": format,
    }
    mirror = place if isinstance(place, Mirror) else None
    folder = place if isinstance(place, Path) else place.folder
    if mirror is not None:
        if not resume:
            mirror.delete_run(RUN_STATE, OURS)
        mirror.pull(RUN_STATE)
    state = folder / RUN_STATE
    with explain_os_errors(folder):
        if not (state / "run.json").exists() and folder.exists() and any(folder.glob("[!.]*")):
            raise ConfigError("holds files, but no curation run", where=folder, fix="choose a new or empty folder")
        state.mkdir(parents=True, exist_ok=True)
        with (state / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError("another run is writing to this folder", where=folder) from error
            if not resume:
                _delete_run(folder)
            if (state / "run.json").exists():
                _check_same_run(mirror.url if mirror else folder, read_json(state / "run.json"), manifest)
            else:
                write_json(state / "run.json", manifest)
                if mirror is not None:
                    mirror.push(state / "run.json")
            for left_over in (*folder.glob(".*.tmp"), *folder.glob(f"{DROPPED}/.*.tmp"), *state.rglob(".*.tmp")):
                left_over.unlink()
            yield State(folder, files, cut(steps), manifest["reader"], format, mirror)


def cut(steps: Sequence[Step | Barrier]) -> list[Segment]:
    """Cut the steps at the barriers; there is always one segment more than barriers."""
    segments: list[Segment] = []
    previous: Barrier | None = None
    local: list[Step] = []
    for step in steps:
        if isinstance(step, Barrier):
            segments.append(Segment(previous, tuple(local), step))
            previous, local = step, []
        else:
            local.append(step)
    return [*segments, Segment(previous, tuple(local), None)]


class State:
    """What is finished and where it lies, by segment and unit (the position of the input file)."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[Source],
        segments: Sequence[Segment],
        reader: str,
        format: str = "parquet",
        mirror: Mirror | None = None,
    ) -> None:
        self.folder, self.files, self.segments = folder, files, segments
        self._format, self._mirror = format, mirror
        self._keys = unit_keys(files, segments, reader)
        self._names = [f"{index:05d}-{_stem(file)}" for index, file in enumerate(files)]

    def jobs(self, segment: int) -> list[Job]:
        """The segment's units, finished or not."""
        answer, first = self._place(segment - 1) / "decisions.arrow", 0
        jobs = []
        for unit in range(len(self.files)):
            job = self._job(segment, unit)
            if segment and answer.exists():
                rows = self._rows(segment - 1, unit)
                job = self._job(segment, unit, (answer, first, rows))
                first += rows
            jobs.append(job)
        return jobs

    def first_unfinished(self) -> int:
        """The first segment that has work to do. Its predecessor is complete and still has its data."""
        for segment in reversed(range(len(self.segments))):
            jobs = [[self._job(k, unit) for unit in range(len(self.files))] for k in range(segment + 1)]
            if all(map(has_record, (j for earlier in jobs for j in earlier))) and all(map(self.is_finished, jobs[-1])):
                return segment + 1
        return 0

    def is_finished(self, job: Job) -> bool:
        """Whether the unit is finished and what it wrote is still there."""
        written = [job.documents_out, job.dropped, *([job.sketches] if job.sketches else [])]
        return has_record(job) and all(path.exists() or self._is_sent(path) for path in written)

    def publish(self, job: Job) -> None:
        """Send what a finished unit wrote to the remote folder, its record last. Nothing to do where there is none."""
        if self._mirror is None:
            return
        results = [job.dropped] if job.sketches else [job.documents_out, job.dropped]  # the rest is for this machine
        fresh = [path for path in results if path.exists()]
        if fresh:
            self._mirror.forget(job.record)  # of an earlier state of the input
        for path in fresh:
            self._mirror.push(path, keep=False)
        if fresh or not self._is_sent(job.record):
            self._mirror.push(job.record)

    def save_report(self, report: Report) -> None:
        """Write `report.json`."""
        report.save(self.folder / "report.json")
        if self._mirror is not None:
            self._mirror.push(self.folder / "report.json")

    def decide(self, segment: int, force: bool = False) -> None:
        """Let the barrier before the segment decide over all sketches, in input order.

        Raises:
            ConfigError: now that the documents are counted, it needs more memory than there is (unless `force`).
        """
        barrier = self.segments[segment].previous
        if barrier is None:
            return
        answer, note = self._place(segment - 1) / "decisions.arrow", self._place(segment - 1) / "decisions.json"
        key = digest(self._keys[segment])
        if answer.exists() and note.exists() and read_json(note).get("key") == key:
            return
        sketches = pa.concat_tables(_mapped(job.sketches) for job in self.jobs(segment - 1))
        self._check_memory(barrier, len(sketches), force)
        start = time.perf_counter()
        table = barrier.decide(sketches)
        if table.num_columns == 0 or len(table) != len(sketches):
            raise DataError(f"{barrier.name} decided about {len(table)} documents of {len(sketches)}")
        with atomic_file(answer) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        write_json(note, {"key": key, "seconds": time.perf_counter() - start, "notes": decision_notes(table)})
        if self._mirror is not None:
            self._mirror.push(note)

    def documents_left(self, segment: int) -> int:
        """Documents that survived the segment."""
        return sum(self._rows(segment, unit) for unit in range(len(self.files)))

    def delete_intermediates(self, before: int) -> None:
        """Delete the documents, sketches and decisions of all segments before `before`; records stay."""
        for segment in range(before):
            for path in self._place(segment).glob("*.arrow"):
                path.unlink()

    def report(self, segments: int) -> Report:
        """The merged report of the first `segments` segments, from the records on disk."""
        report, position = Report(files=len(self.files)), 0
        for index in range(segments):
            segment = self.segments[index]
            report.steps += [StepStats(name) for name in segment.names[1 if index else 0 :]]
            if segment.barrier is not None:
                report.steps.append(StepStats(segment.barrier.name))
            for unit in range(len(self.files)):
                record = self._record(index, unit)
                report.add(Report.from_dict(record["report"]), at=position)
                report.steps[-1].seconds += record["sketch_seconds"]
            if index:
                note = read_json(self._place(index - 1) / "decisions.json")
                report.steps[position].seconds += note["seconds"]
                report.steps[position].notes = note["notes"]
            position += len(segment.names)
        return report

    def _place(self, segment: int) -> Path:
        return self.folder / RUN_STATE / f"segment-{segment}"

    def _job(self, segment: int, unit: int, decisions: tuple[Path, int, int] | None = None) -> Job:
        name, last, here = self._names[unit], segment == len(self.segments) - 1, self._place(segment)
        return Job(
            key=self._keys[segment][unit],
            source=self.files[unit],
            documents_in=self._place(segment - 1) / f"{name}.documents.arrow",
            documents_out=self.folder / f"{name}.{self._format}" if last else here / f"{name}.documents.arrow",
            dropped=self.folder / DROPPED / (f"{name}.{segment}.parquet" if segment else f"{name}.parquet"),
            record=here / f"{name}.json",
            sketches=None if last else here / f"{name}.sketches.arrow",
            decisions=decisions,
        )

    def _record(self, segment: int, unit: int) -> Any:
        return read_json(self._place(segment) / f"{self._names[unit]}.json")

    def _rows(self, segment: int, unit: int) -> int:
        return int(self._record(segment, unit)["report"]["steps"][-1]["kept"])

    def _is_sent(self, path: Path) -> bool:
        return self._mirror is not None and self._mirror.has(path)

    def _check_memory(self, barrier: Barrier, documents: int, force: bool) -> None:
        size = sum(self._record(0, unit)["report"]["text_bytes_in"] for unit in range(len(self.files)))
        need, there = barrier.plan(documents, size).ram_bytes, free_memory()
        if need <= there:
            return
        text = (
            f"{barrier.name} over {documents:,} documents needs {need / 1e9:,.1f} GB of memory, {there / 1e9:,.1f} GB"
        )
        if force:
            logger("corpus").warning("%s are free", text)
            return
        raise ConfigError(
            f"{text} are free",
            where=self.folder,
            fix=f"finished files are kept: go on with more memory, with {-(-need // there)} runs over parts of the "
            "input, or with force=True",
        )


def has_record(job: Job) -> bool:
    """Whether the unit was finished at some time, under the same key."""
    return job.record.exists() and bool(read_json(job.record).get("key") == job.key)


def unit_keys(files: Sequence[Source], segments: Sequence[Segment], reader: str) -> list[list[str]]:
    """One key per segment and file. After a barrier a file's result depends on every file, and so does its key."""
    keys: list[list[str]] = []
    for segment in segments:
        parts = [*segment.steps, *([segment.barrier] if segment.barrier else [])]
        steps = [part.fingerprint() for part in parts]
        if not keys:
            keys.append([digest([reader, steps, _identity(file)]) for file in files])
        else:
            before = digest(keys[-1])
            keys.append([digest([before, steps, unit]) for unit in range(len(files))])
    return keys


def reader_name(read: Reader) -> str:
    """What identifies the reading function in a key: its module and name, and the arguments bound to it."""
    if isinstance(read, functools.partial):
        return digest([reader_name(read.func), read.args, read.keywords])
    return f"{read.__module__}.{getattr(read, '__qualname__', type(read).__qualname__)}"


def _identity(path: Source) -> list[Any]:
    """Size and modification time, of every file where the input is a folder of them."""
    if isinstance(path, Url):
        return identity(path)
    files = sorted(file for file in path.iterdir() if file.name.lower().endswith(PAGES)) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _stem(path: Source) -> str:
    """A short, safe name for the files made from `path`: at most 80 bytes, so that suffixes still fit."""
    name = path.name.partition(".")[0] or path.name
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    return safe.encode()[:80].decode(errors="ignore")


def _check_same_run(folder: Path | Url, there: dict[str, Any], now: dict[str, Any]) -> None:
    for what in ("bloomery", "reader", "steps", "inputs", "format"):
        if there.get(what) != now[what]:
            raise ConfigError(
                f"holds a run with other {'versions of bloomery' if what == 'bloomery' else what}: "
                f"{_difference(there.get(what), now[what])}",
                where=folder,
                fix="choose another output folder, or start that run again from nothing with resume=False",
            )


def _difference(there: Any, now: Any) -> str:
    """The first place where two lists differ, or the two values."""
    if not isinstance(there, list) or not isinstance(now, list):
        return f"there {there!r}, now {now!r}"
    for position, (old, new) in enumerate(zip(there, now, strict=False), start=1):
        if old != new:
            return f"number {position} there {old!r}, now {new!r}"
    return f"there {len(there)}, now {len(now)}"


def _delete_run(folder: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    state = folder / RUN_STATE
    if not (state / "run.json").exists():
        return
    documents = (path for path in folder.glob("[0-9][0-9][0-9][0-9][0-9]*-*") if OURS.fullmatch(path.name))
    for path in (*documents, folder / "report.json", state / "run.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / DROPPED, ignore_errors=True)
    for place in state.glob("segment-*"):
        shutil.rmtree(place)


def _mapped(path: Path | None) -> pa.Table:
    """A table whose columns stay on disk until they are used."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
