"""Durable files: written aside, flushed to disk, renamed. A reader sees the old content or the new, never half."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from bloomery.core.errors import DataError, StorageError

_EXPLAINED = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again: finished parts are kept"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space and run the same command again: finished parts are kept",
    ),
    errno.EROFS: ("the file system is read-only", "choose another output folder"),
    errno.EACCES: ("permission denied", "choose a folder you may write to"),
}


@contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turn the operating system's write errors (full disk, read-only, no permission) into one clear `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _EXPLAINED:
            raise
        what, fix = _EXPLAINED[error.errno]
        raise StorageError(what, where=path, fix=fix) from error


@contextmanager
def safetensors_errors() -> Iterator[None]:
    """Safetensors writes files by itself and says "os error 28": raise that as the `OSError` it is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path`; on success fsync and rename it over `path`, on failure remove it."""
    path = Path(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the file from the user's group
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: Path | str, ours: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success it is renamed to `path`, on failure removed.

    An older folder at `path` is replaced if all it holds matches the name patterns `ours`; one that holds anything
    else is refused before the work begins, since replacing it would delete what the caller does not know.

    Replacing is two renames: the old folder moves aside before the new one takes its name, so a crash in between
    leaves the old content under `<name>.old`, which the next successful write removes.
    """
    path = Path(path)
    with explain_os_errors(path):
        _refuse_foreign(path, ours)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        old = path.with_name(path.name + ".old")
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    file.chmod(0o666 & ~_umask())  # some writers make their files private
                    _fsync_file(file)
                else:
                    fsync_folder(file)
            fsync_folder(temporary)
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            temporary.rename(path)
            fsync_folder(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as readable JSON, atomically."""
    with atomic_file(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path | str) -> Any:
    """Read JSON, or raise a `DataError` that names the file and the position of the fault."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("no such file", where=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON: {error}", where=path) from error


def _refuse_foreign(folder: Path, ours: Sequence[str]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError("is a file, not a folder", where=folder, fix="choose another name")
    foreign = sorted(e.name for e in folder.iterdir() if not any(fnmatch(e.name, pattern) for pattern in ours))
    if foreign:
        names = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise StorageError(f"replacing this folder would delete {names}", where=folder, fix="choose another folder")


def _fsync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
