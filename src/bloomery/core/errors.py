"""One family of errors. A message says what happened, where, and what to do next, in one line.

`exit_code` is what the command line returns: 2 when the input or the configuration is at fault, 1 otherwise.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class BloomeryError(Exception):
    """Base of every error raised on purpose. `fix` is appended to the message as the next thing to do."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        message = what if where is None else f"{where}: {what}"
        super().__init__(f"{message} ({fix})" if fix else message)

    def __reduce__(self) -> tuple[object, ...]:  # survives the trip back from a worker process
        return (_rebuild, (type(self), self.what, None if self.where is None else str(self.where), self.fix))


def _rebuild(kind: type[BloomeryError], what: str, where: str | None, fix: str) -> BloomeryError:
    return kind(what, where=where, fix=fix)


class ConfigError(BloomeryError):
    """A field, option or preset that does not exist, has the wrong type or contradicts another."""

    exit_code = 2


class DataError(BloomeryError):
    """Input data that cannot be read or is unusable as a whole (one bad record among many is counted, not raised)."""

    exit_code = 2


class EmptyError(DataError):
    """A stage that would hand on nothing: an empty corpus, a crawl without a page."""


class WebError(BloomeryError):
    """The network or a remote site is at fault, or a URL is refused by policy."""


class CheckpointError(BloomeryError):
    """A checkpoint with missing, extra, mis-shaped or damaged content, or one that belongs to something else."""

    exit_code = 2


class StorageError(BloomeryError):
    """The disk is full, read-only or unreadable."""


class MissingExtraError(BloomeryError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    exit_code = 2


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency where it is used, or raise naming the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"this needs the package {package!r}, which is not installed or does not import: {error}",
            fix=f'pip install "bloomery[{extra}]"',
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A "did you mean" clause: the closest known names, or all of them when they are few."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(options[:20]) + (", …" if len(options) > 20 else "")
