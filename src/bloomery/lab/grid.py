"""Many small trainings that differ in their configuration: each is run once, whoever asks, and its result kept.

    grid = RunGrid(run.folder / "grid.jsonl", train)
    loss = grid(domain="code", factor=3.0, seed=1)["loss"]     # trained now, or read back

A line of the file is one finished training. Killed and started again, only the gaps are filled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bloomery.core.hashing import digest
from bloomery.core.progress import Progress

Train = Callable[..., Mapping[str, Any]]


class RunGrid:
    """Results by configuration. `train(**configuration)` gives plain JSON values, and the same ones every time."""

    def __init__(self, path: Path | str, train: Train, quiet: bool = True) -> None:
        self._path, self._train, self._quiet = Path(path), train, quiet
        self._results: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                try:
                    row = json.loads(line)
                    self._results[row["key"]] = row["result"]
                except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
                    continue
            if text and not text.endswith("\n"):  # or the next result would go on that line, and be lost with it
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("\n")

    def __len__(self) -> int:
        return len(self._results)

    def __call__(self, **configuration: Any) -> dict[str, Any]:
        """The result of one configuration."""
        key = digest(configuration)
        if key not in self._results:
            result = json.loads(json.dumps(dict(self._train(**configuration))))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"key": key, "configuration": configuration, "result": result})
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._results[key] = result
        return self._results[key]

    def fill(self, configurations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The results of all configurations, in order."""
        wanted = list(configurations)
        results = []
        with Progress("grid", total=len(wanted), unit="runs", quiet=self._quiet) as progress:
            for configuration in wanted:
                results.append(self(**configuration))
                progress.advance(1)
        return results
