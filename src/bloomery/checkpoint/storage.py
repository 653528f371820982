"""Where checkpoints are kept. A draft becomes a checkpoint at one moment, or never.

    LocalStorage    a folder on a disk or NFS: written aside, flushed, renamed
    FsspecStorage   any address that fsspec opens (s3://, gs://, memory://): no renames, the manifest goes last

Both lock: of two runs that write the same checkpoint, one is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from bloomery.checkpoint.manifest import DATA, MANIFEST, TABLE
from bloomery.core.errors import CheckpointError, MissingExtraError, StorageError
from bloomery.core.files import explain_os_errors, fsync_folder

RETRIES = 3  # of a remote read
IOV_MAX = 1024  # buffers of one call to the system
LEFT = re.compile(r"\.(.+)\.(?:[0-9a-f]{12}(?:\.old)?|deleted)\.tmp")


class Storage(Protocol):
    """One checkpoint at one place. `name` is always a file inside it."""

    path: str

    def begin(self, overwrite: bool) -> str:
        """Lock, make a draft and return its token, 12 hexadecimal digits; the first rank calls this."""

    def create(self, draft: str, name: str) -> IO[bytes]:
        """A new file of the draft; closing it makes it durable."""

    def size(self, draft: str, name: str) -> int:
        """Bytes of a file of the draft."""

    def commit(self, draft: str, manifest: bytes, overwrite: bool) -> None:
        """Write the manifest and let the draft be the checkpoint."""

    def abort(self, draft: str) -> None:
        """Remove the draft and the lock."""

    def read(self, name: str) -> bytes:
        """A whole file of the checkpoint."""

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers`, one after another, from a file; the number of bytes, fewer only at its end."""

    def free_bytes(self) -> int | None:
        """Room left, where it can be known."""


def storage(path: str | os.PathLike[str]) -> Storage:
    """The storage behind a path or an address."""
    text = os.fspath(path)
    return (
        FsspecStorage(text)
        if "://" in text and not text.startswith("file://")
        else LocalStorage(text.removeprefix("file://"))
    )


class LocalStorage:
    """A folder of a local disk or of NFS."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Path(path).absolute()
        self.path = str(self.folder)
        self._lock = self.folder.with_name(f".{self.folder.name}.lock")

    def begin(self, overwrite: bool) -> str:
        """Lock, clear what a killed writer left, and make a draft."""
        token = uuid.uuid4().hex[:12]
        with explain_os_errors(self.folder.parent):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._refuse(overwrite)
            self._take_lock(token)
            try:
                home = self._home()
                if home != self.folder:
                    home.rename(self.folder)
                    self._refuse(overwrite)
                for left in self._left_over():
                    shutil.rmtree(left, ignore_errors=True)
                (self._draft(token) / DATA).mkdir(parents=True)
            except BaseException:
                self.abort(token)
                raise
        return token

    def create(self, draft: str, name: str) -> IO[bytes]:
        """A new file of the draft."""
        with explain_os_errors(self.path):
            return _DurableFile(self._draft(draft) / name, "wb", buffering=0)  # type: ignore[return-value]

    def size(self, draft: str, name: str) -> int:
        """Bytes of a file of the draft."""
        return (self._draft(draft) / name).stat().st_size

    def commit(self, draft: str, manifest: bytes, overwrite: bool) -> None:
        """The manifest, everything flushed, one rename."""
        at, old = self._draft(draft), self.folder.with_name(f".{self.folder.name}.{draft}.old.tmp")
        with explain_os_errors(self.path):
            with self.create(draft, MANIFEST) as file:
                write_all(file, memoryview(manifest))
            fsync_folder(at / "data")
            fsync_folder(at)
            if self.folder.exists():
                if not overwrite:
                    refuse_existing(self.path, True)
                self.folder.rename(old)
            try:
                at.rename(self.folder)
            except OSError:
                if old.exists():
                    old.rename(self.folder)
                raise
            fsync_folder(self.folder.parent)
        shutil.rmtree(old, ignore_errors=True)
        self._lock.unlink(missing_ok=True)

    def abort(self, draft: str) -> None:
        """Remove the draft and the lock."""
        shutil.rmtree(self._draft(draft), ignore_errors=True)
        if _told(self._lock).get("token") == draft:
            self._lock.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        """A whole file."""
        with explain_os_errors(self.path):
            return (self._home() / name).read_bytes()

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` from a file; the number of bytes there were."""
        left, at = [buffer for buffer in buffers if len(buffer)], offset
        with (self._home() / name).open("rb", buffering=0) as file:
            while left and (count := os.preadv(file.fileno(), left[:IOV_MAX], at)):
                at += count
                while left and count >= len(left[0]):
                    count -= len(left.pop(0))
                if count:
                    left[0] = left[0][count:]
        return at - offset

    def free_bytes(self) -> int | None:
        """Room left, where it can be known."""
        return shutil.disk_usage(self.folder.parent).free

    def _home(self) -> Path:
        """The folder; where it was put aside, if a writer was killed before the new one took its place."""
        aside = [] if self.folder.exists() else [left for left in self._left_over() if left.match("*.old.tmp")]
        return aside[0] if aside else self.folder

    def _left_over(self) -> list[Path]:
        return [left for name, left in _left_overs(self.folder.parent) if name == self.folder.name]

    def _refuse(self, overwrite: bool) -> None:
        if not self.folder.exists():
            return
        if not overwrite or not self.folder.is_dir():
            refuse_existing(self.path, (self.folder / MANIFEST).exists())
        foreign = sorted({entry.name for entry in self.folder.iterdir()} - {MANIFEST, TABLE, DATA})
        if foreign:
            what = f"replacing it would delete {', '.join(foreign[:3])}" + (", …" if len(foreign) > 3 else "")
            raise CheckpointError(what, where=self.path, fix="save under another name")

    def _draft(self, token: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.{token}.tmp")

    def _take_lock(self, token: str) -> None:
        for _ in range(2):
            try:
                _sign(self._lock, _signed(token))
                return
            except FileExistsError:
                holder = _told(self._lock)
                if not _is_dead(holder):
                    refuse_writer(self.path, holder, f"{self._lock.name} beside the checkpoint")
                self._lock.unlink(missing_ok=True)
        raise CheckpointError("is being written by another process", where=self.path)


class FsspecStorage:
    """An address of any file system that fsspec knows. Files without a manifest beside them count for nothing."""

    def __init__(self, path: str) -> None:
        import fsspec

        try:
            self.fs, self.root = fsspec.url_to_fs(path)
        except ImportError as error:
            raise MissingExtraError(str(error), where=path, fix="install the package it names") from error
        self.path = path
        self.root = self.root.rstrip("/")

    def begin(self, overwrite: bool) -> str:
        """Lock, clear what a killed writer left, and make a draft."""
        token = uuid.uuid4().hex[:12]
        with remote_errors(self.path):
            if self.fs.exists(f"{self.root}/{MANIFEST}") and not overwrite:
                refuse_existing(self.path, True)
            self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(f"{self.root}/lock-{token}.json", _signed(token).encode())
            try:
                for other in [name for name in self._locks() if token not in name]:
                    holder = json.loads(self.fs.cat_file(other))
                    if not _is_dead(holder):
                        refuse_writer(self.path, holder, other)
                    self.fs.rm_file(other)
            except BaseException:
                self.fs.rm_file(f"{self.root}/lock-{token}.json")
                raise
            self._remove(MANIFEST, TABLE, DATA)  # from here on the old one is none
        return token

    def create(self, draft: str, name: str) -> IO[bytes]:
        """A new file of the draft."""
        with remote_errors(self.path):
            self.fs.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
            return self.fs.open(f"{self.root}/{name}", "wb")

    def size(self, draft: str, name: str) -> int:
        """Bytes of a file of the draft."""
        with remote_errors(self.path):
            self.fs.invalidate_cache(self.root)
            return int(self.fs.info(f"{self.root}/{name}")["size"])

    def commit(self, draft: str, manifest: bytes, overwrite: bool) -> None:
        """The manifest, last."""
        with remote_errors(self.path):
            if not self.fs.exists(f"{self.root}/lock-{draft}.json"):
                raise CheckpointError("another process has taken over this checkpoint", where=self.path)
            self.fs.pipe_file(f"{self.root}/{MANIFEST}", manifest)
            self.fs.rm_file(f"{self.root}/lock-{draft}.json")

    def abort(self, draft: str) -> None:
        """Remove the draft and the lock."""
        with remote_errors(self.path):
            if self.fs.exists(f"{self.root}/lock-{draft}.json"):
                self._remove(MANIFEST, TABLE, DATA, f"lock-{draft}.json")

    def read(self, name: str) -> bytes:
        """A whole file."""
        with remote_errors(self.path):
            return bytes(_retried(lambda: self.fs.cat_file(f"{self.root}/{name}")))

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` from a file; the number of bytes there were."""
        end = offset + sum(map(len, buffers))
        with remote_errors(self.path):
            data = memoryview(_retried(lambda: self.fs.cat_file(f"{self.root}/{name}", start=offset, end=end)))
        at = 0
        for buffer in buffers:
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
        return at

    def free_bytes(self) -> int | None:
        """Room left, where it can be known."""
        return None

    def _remove(self, *names: str) -> None:
        """Remove what is a checkpoint's own, in this order; what else is there stays."""
        for name in names:
            if self.fs.exists(f"{self.root}/{name}"):
                self.fs.rm(f"{self.root}/{name}", recursive=True)

    def _locks(self) -> list[str]:
        self.fs.invalidate_cache(self.root)
        return [str(name) for name in self.fs.glob(f"{self.root}/lock-*.json")]


class _DurableFile:
    """A file that is flushed to the disk when it is closed without an error."""

    def __init__(self, path: Path, mode: str, buffering: int) -> None:
        self._file = path.open(mode, buffering=buffering)
        self.write = self._file.write

    def __enter__(self) -> _DurableFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def sweep(folder: Path) -> None:
    """Remove what killed writers and deletions have left in `folder`; what a living writer holds stays."""
    for name, left in _left_overs(folder):
        lock = folder / f".{name}.lock"
        if not os.path.lexists(lock) or _is_dead(_told(lock)):
            shutil.rmtree(left, ignore_errors=True)
    for lock in folder.glob(".*.lock"):
        if _is_dead(_told(lock)):
            lock.unlink(missing_ok=True)


def _left_overs(folder: Path) -> list[tuple[str, Path]]:
    """Drafts, replaced and deleted checkpoints that are still in `folder`, each with the checkpoint's name."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return [(found[1], entry) for entry in entries if (found := LEFT.fullmatch(entry.name))]


def write_all(file: IO[bytes], data: memoryview) -> None:
    """Write all of `data`: a raw file may take less than it is given."""
    while len(data):
        count = file.write(data)
        if not count:
            raise StorageError("the disk took no bytes")
        data = data[count:]


def refuse_existing(path: str, complete: bool) -> None:
    """A checkpoint is not written over unless that is asked for."""
    what = "already holds a checkpoint" if complete else "exists and is no checkpoint"
    raise CheckpointError(what, where=path, fix="save under another name, or pass overwrite=True")


def refuse_writer(path: str, holder: dict[str, Any], lock: str) -> None:
    """Two runs do not write one checkpoint; `lock` is what to delete where the other is no more."""
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    fix = "wait for it" + (f"; if it is gone, delete {lock}" if lock else "")
    raise CheckpointError(f"is being written by {who}", where=path, fix=fix) from None


@contextmanager
def remote_errors(path: str) -> Iterator[None]:
    """Whatever a driver raises, as one line."""
    try:
        yield
    except (CheckpointError, StorageError, FileNotFoundError):
        raise
    except Exception as error:
        raise StorageError(f"{type(error).__name__}: {error}"[:300], where=path) from error


def _retried(call: Any) -> Any:
    for attempt in range(RETRIES):
        try:
            return call()
        except FileNotFoundError:
            raise
        except Exception:
            if attempt == RETRIES - 1:
                raise
            time.sleep(0.1 * 4**attempt)


def _signed(token: str) -> str:
    pid = os.getpid()
    return json.dumps({"host": socket.gethostname(), "pid": pid, "started": _started(pid), "token": token})


def _sign(lock: Path, text: str) -> None:
    """Take a lock: a link whose target is the text, since it appears together with it, however its writer may end."""
    try:
        os.symlink(text, lock)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with lock.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
            except OSError:
                lock.unlink()
                raise


def _told(lock: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(os.readlink(lock) if lock.is_symlink() else lock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the process of a lock was on this machine and is gone."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    with suppress(PermissionError):
        try:
            os.kill(holder["pid"], 0)
        except (ProcessLookupError, OverflowError):
            return True
    then, now = holder.get("started"), _started(holder["pid"])
    return None not in (then, now) and then != now


def _started(pid: int) -> str | None:
    """When a process began, where that can be known: in a restarted container numbers of processes come again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
