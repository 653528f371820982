"""Metrics: `metrics.jsonl` is the record; TensorBoard and Weights & Biases are told the same when asked."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from bloomery.core.errors import require
from bloomery.core.files import atomic_file, explain_os_errors

Track = Literal["tensorboard", "wandb"]
Line = dict[str, Any]

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Metrics:
    """Append-only `metrics.jsonl`: one JSON object a line with `step`, `stage`, `time` and the logged values.

    Each line is flushed as it is written, so a killed run loses at most a torn last line, which is ignored on
    reading. NaN and infinities, which JSON lacks, are written as the strings "nan", "inf" and "-inf".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            self._rewrite(lambda line: True)  # drops a torn last line, so that appending starts on a fresh one
        self._file = self._open()

    def append(self, step: int, stage: str | None, values: dict[str, Any]) -> Line:
        """Write one line and return it as it will be read back."""
        line = {"step": int(step), "stage": stage, "time": round(time.time(), 3)}
        line |= {name: _plain(value) for name, value in values.items()}
        with explain_os_errors(self.path):
            self._file.write(_dump(line))
            self._file.flush()
        return line

    def lines(self) -> list[Line]:
        """Everything logged so far."""
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):  # not at U+2028 and its like
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict):
                lines.append({k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in line.items()})
        return lines

    def keep(self, wanted: Callable[[Line], bool]) -> None:
        """Rewrite the file with only the lines that `wanted` accepts (work that will be done again is dropped)."""
        self._file.close()
        self._rewrite(wanted)
        self._file = self._open()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> IO[str]:
        with explain_os_errors(self.path):
            return self.path.open("a", encoding="utf-8")

    def _rewrite(self, wanted: Callable[[Line], bool]) -> None:
        lines = self.lines()
        with atomic_file(self.path, "w") as file:
            file.writelines(_dump(line) for line in lines if wanted(line))


class Sink(Protocol):
    """Another place that wants to see the metrics."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take numbers of one step."""

    def close(self) -> None:
        """Flush and close."""


def open_sink(kind: Track, folder: Path, slug: str, config: dict[str, Any]) -> Sink:
    """The sink named by `track=`; raises `MissingExtraError` where its package is not installed."""
    return TensorBoardSink(folder) if kind == "tensorboard" else WandbSink(folder, slug, config)


class TensorBoardSink:
    """Event files under `<run>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "track")
        self._writer = require("torch.utils.tensorboard", "track").SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take numbers of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run named after the run folder; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, folder: Path, slug: str, config: dict[str, Any]) -> None:
        wandb = require("wandb", "track")
        self._run = wandb.init(project=f"bloomery-{slug}", name=folder.name, dir=str(folder), config=config)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Take numbers of one step."""
        self._run.log({**values, "step": step})  # its own step must never go back, ours restarts in every stage

    def close(self) -> None:
        """Flush and close."""
        self._run.finish()


def _dump(line: Line) -> str:
    strict = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(strict, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Tensors and NumPy scalars as Python numbers; strings, booleans and None as they are."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple, dict)):
        raise TypeError(f"metrics are single numbers or strings, got {type(value).__name__}")
    return value.item()
