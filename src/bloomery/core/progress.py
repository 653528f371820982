"""Progress with rate and ETA: a live bar on a terminal, one plain line every few seconds elsewhere.

with Progress("crawl", total=2000, unit="pages") as progress:
    progress.advance(1, queue=len(frontier), errors=errors)
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

PLAIN_INTERVAL = 10.0  # seconds between plain lines


class Progress:
    """A counted piece of work. Extra keyword arguments to `advance` are shown beside the rate."""

    def __init__(
        self, what: str, total: float | None = None, unit: str = "", *, done: float = 0, quiet: bool = False
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.fields: dict[str, Any] = {}
        self._quiet = quiet
        self._began_at = done  # work finished by an earlier, interrupted run does not count for the rate
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None

    @property
    def rate(self) -> float:
        """Units per second since this object was entered."""
        return (self.done - self._began_at) / max(time.monotonic() - self._start, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds left, or None when the total is unknown or nothing has been done yet."""
        if self.total is None or self.rate <= 0:
            return None
        return max(self.total - self.done, 0) / self.rate

    def __enter__(self) -> Self:
        self._start = self._last_line = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            self._open_bar()
        return self

    def advance(self, amount: float = 1, **fields: Any) -> None:
        """Count `amount` more units as done and show the newest `fields`."""
        self.done += amount
        self.fields.update(fields)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(0, completed=self.done, extra=self._extra())
        elif not self._quiet and now - self._last_line >= PLAIN_INTERVAL:
            self._last_line = now
            print(self.line(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The state as one plain line."""
        total = "" if self.total is None else f"/{self.total:,.0f}"
        eta = "" if self.eta is None else f", {_clock(self.eta)} left"
        extra = self._extra()
        return f"{self.what}: {self.done:,.0f}{total} {self.unit} ({self.rate:,.1f}/s{eta})" + (
            f" {extra}" if extra else ""
        )

    def _extra(self) -> str:
        return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.fields.items())

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self.unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
            console=Console(stderr=True),
        )
        self._bar.add_task(self.what, total=self.total, completed=self.done, extra="")
        self._bar.start()


def _clock(seconds: float) -> str:
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
