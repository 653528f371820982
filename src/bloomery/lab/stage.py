"""Stages: the named, timed, resumable pieces of a run."""

from __future__ import annotations

import json
import numbers
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError
from bloomery.lab.environment import PeakMemory

if TYPE_CHECKING:
    from bloomery.lab.folder import Run


@dataclass
class StageRecord:
    """What `stages.json` keeps of one stage."""

    name: str
    key: str  # hash of the stage's inputs and of every stage before it
    state: Literal["running", "done", "failed"] = "running"
    seconds: float = 0.0  # of the attempt that finished, or of the attempts that failed cleanly
    peak_bytes: int = 0  # resident memory of the process tree
    gpu_peak_bytes: int = 0
    attempts: int = 0  # 2 and more: the stage was interrupted and taken up again
    result: Any = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


class Stage:
    """One stage of a run, made by `Run.stage`. Two ways to use it:

    ```python
    crawled = run.stage("crawl", pages=self.pages)(crawl, seeds, folder)   # calls crawl(seeds, folder) unless done

    with run.stage("crawl", pages=self.pages) as stage:
        if stage.todo:
            stage.result = crawl(seeds, stage.folder)
    ```

    `result` is kept as JSON and given back when a resumed run finds the stage done; the first run gets it through
    JSON too, so both see the same value. `folder` is the stage's own place on disk: a stage that was killed finds
    there what it had written, a stage whose inputs have changed finds it empty.
    """

    def __init__(self, run: Run, record: StageRecord, todo: bool) -> None:
        self._run, self._record = run, record
        self.name, self.todo = record.name, todo
        self.result: Any = record.result

    @property
    def folder(self) -> Path:
        """Folder for the stage's files, inside the run folder."""
        folder = self._run.folder / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of `function(*args, **kwargs)`, computed now unless the stage is done. Usable as a decorator."""
        with self:
            if self.todo:
                self.result = function(*args, **kwargs)
        return self.result

    def __enter__(self) -> Self:
        self._run._enter(self._record, self.todo)
        if self.todo:
            self._start = time.monotonic()
            self._memory = PeakMemory().__enter__()
            _reset_gpu_peak()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = self._record
        if self.todo:
            self._memory.__exit__()
            record.seconds += time.monotonic() - self._start
            record.peak_bytes = max(record.peak_bytes, self._memory.bytes)
            record.gpu_peak_bytes = max(record.gpu_peak_bytes, _gpu_peak())
            record.state = "failed"
        try:
            if self.todo and kind is None:
                self.result = record.result = as_json(self.result, f"result of stage {self.name!r}")
                record.state = "done"
        finally:
            self._run._leave(record, self.todo)


def as_json(value: Any, what: str) -> Any:
    """`value` as it looks after a trip through JSON; dataclasses become dictionaries, paths strings."""
    try:
        return json.loads(json.dumps(encode(value), default=_number))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} is not JSON: {error}", fix="return plain numbers, strings, lists and dictionaries, or file paths"
        ) from error


def _number(value: Any) -> int | float:
    """NumPy's scalars, which JSON does not know, as Python's."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} {value!r:.60}")


def remove(folder: Path) -> None:
    """Delete a stage's folder, if there is one."""
    shutil.rmtree(folder, ignore_errors=True)


def _cuda() -> Any:
    torch = sys.modules.get("torch")  # stages that never touched torch must not import it for a statistic
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _reset_gpu_peak() -> None:
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def _gpu_peak() -> int:
    cuda = _cuda()
    return int(cuda.max_memory_allocated()) if cuda else 0
