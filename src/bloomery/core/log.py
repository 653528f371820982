"""Logging: one logger tree under `bloomery`, human lines on standard error, quiet unless the user asks."""

from __future__ import annotations

import logging
import sys


def logger(name: str) -> logging.Logger:
    """The logger of a room, e.g. `logger("web")`."""
    return logging.getLogger(f"bloomery.{name}")


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever standard error is at the moment, as progress does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def setup(verbose: bool = False) -> None:
    """Send bloomery's log lines to standard error; called once by the command line, never by the library."""
    root = logging.getLogger("bloomery")
    if not root.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
