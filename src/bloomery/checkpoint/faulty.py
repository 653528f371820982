"""Storage for tests: checkpoints in memory, and any storage with latency and with faults at a chosen operation.

disk = Disk()
checkpoint.save(MemoryStorage("run/step-1", disk), state)
checkpoint.save(FaultyStorage(MemoryStorage("run/step-2", disk), at=5, kind="ENOSPC"), state)  # raises StorageError
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from bloomery.checkpoint.manifest import MANIFEST
from bloomery.checkpoint.storage import Storage, refuse_existing, refuse_writer


@dataclass
class Disk:
    """What several `MemoryStorage` have in common: files of checkpoints and of drafts, and who writes."""

    checkpoints: dict[str, dict[str, bytes]] = field(default_factory=dict)
    drafts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    writers: dict[str, str] = field(default_factory=dict)  # path -> token
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStorage:
    """A checkpoint in the memory of this process, with the promises of a local disk."""

    def __init__(self, path: str, disk: Disk) -> None:
        self.path, self.disk = path, disk

    def begin(self, overwrite: bool) -> str:
        """Lock, make a draft."""
        token = uuid.uuid4().hex[:12]
        with self.disk.lock:
            if self.path in self.disk.checkpoints and not overwrite:
                refuse_existing(self.path, True)
            if self.path in self.disk.writers:
                refuse_writer(self.path, {"host": "this machine", "pid": os.getpid()}, "")
            self.disk.writers[self.path] = token
            self.disk.drafts[token] = {}
        return token

    def create(self, draft: str, name: str) -> IO[bytes]:
        """A new file of the draft."""
        return _MemoryFile(self.disk.drafts[draft], name)

    def size(self, draft: str, name: str) -> int:
        """Bytes of a file of the draft."""
        return len(self.disk.drafts[draft][name])

    def commit(self, draft: str, manifest: bytes, overwrite: bool) -> None:
        """The manifest; from now on the draft is the checkpoint."""
        with self.disk.lock:
            self.disk.checkpoints[self.path] = {**self.disk.drafts.pop(draft), MANIFEST: manifest}
            del self.disk.writers[self.path]

    def abort(self, draft: str) -> None:
        """Remove the draft and the lock."""
        with self.disk.lock:
            self.disk.drafts.pop(draft, None)
            if self.disk.writers.get(self.path) == draft:
                del self.disk.writers[self.path]

    def read(self, name: str) -> bytes:
        """A whole file."""
        try:
            return self.disk.checkpoints[self.path][name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.path}/{name}") from None

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` from a file; the number of bytes there were."""
        file = io.BytesIO(self.read(name))
        file.seek(offset)
        return sum(file.readinto(buffer) for buffer in buffers)

    def free_bytes(self) -> int | None:
        """Memory is not asked for its room."""
        return None


class _MemoryFile(io.BytesIO):
    def __init__(self, files: dict[str, bytes], name: str) -> None:
        super().__init__()
        self._files, self._name = files, name

    def close(self) -> None:
        if not self.closed:
            self._files[self._name] = self.getvalue()
        super().close()


class FaultyStorage:
    """`inner`, slower and once wrong.

    Operations are counted from 0: begin, create, every write, close (which flushes), size, commit, every read. The one
    numbered `at` takes `latency` seconds like the others and then goes wrong as `kind` says: the name of an errno
    ("ENOSPC", "EIO") is raised; "short" writes half of what was given and says so, as a system may; "lost" writes half
    and says all of it was written, as a broken disk does. With `after`, every later operation fails too.
    """

    def __init__(
        self, inner: Storage, *, latency: float = 0.0, at: int | None = None, kind: str = "EIO", after: bool = False
    ) -> None:
        self.inner, self.latency, self.at, self.kind, self.after = inner, latency, at, kind, after
        self.path = inner.path
        self.operations = 0
        self._lock = threading.Lock()

    def begin(self, overwrite: bool) -> str:
        """Lock, make a draft."""
        self._turn()
        return self.inner.begin(overwrite)

    def create(self, draft: str, name: str) -> IO[bytes]:
        """A new file of the draft whose writes are operations."""
        self._turn()
        return _FaultyFile(self.inner.create(draft, name), self)  # type: ignore[return-value]

    def size(self, draft: str, name: str) -> int:
        """Bytes of a file of the draft."""
        self._turn()
        return self.inner.size(draft, name)

    def commit(self, draft: str, manifest: bytes, overwrite: bool) -> None:
        """Let the draft be the checkpoint."""
        self._turn()
        self.inner.commit(draft, manifest, overwrite)

    def abort(self, draft: str) -> None:
        """Remove the draft and the lock; not an operation."""
        self.inner.abort(draft)

    def read(self, name: str) -> bytes:
        """A whole file."""
        self._turn()
        return self.inner.read(name)

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers` from a file."""
        self._turn()
        return self.inner.read_into(name, offset, buffers)

    def free_bytes(self) -> int | None:
        """Room left."""
        return self.inner.free_bytes()

    def _turn(self) -> bool:
        """Count one operation; True where a write is to be cut."""
        with self._lock:
            number, self.operations = self.operations, self.operations + 1
        time.sleep(self.latency)
        hit = self.at is not None and (number == self.at or (self.after and number > self.at))
        if hit and self.kind not in ("short", "lost"):
            code = getattr(errno, self.kind)
            raise OSError(code, os.strerror(code), self.path)
        return hit


class _FaultyFile:
    def __init__(self, file: IO[bytes], storage: FaultyStorage) -> None:
        self._file, self._storage = file, storage

    def write(self, data: memoryview) -> int:
        if not self._storage._turn() or len(data) < 2:
            return self._file.write(data)
        count = self._file.write(data[: len(data) // 2])
        return count if self._storage.kind == "short" else len(data)

    def __enter__(self) -> _FaultyFile:
        self._file.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._storage._turn()
        except OSError as failed:
            self._file.__exit__(type(failed), failed, None)
            raise
        self._file.__exit__(kind, error, trace)
