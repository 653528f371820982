"""What images were fetched, on disk by their address, and whose turn it is to ask a host; for many processes at once.

    cache/3f/3f9a…      a line of JSON (address, policy, size, time, reason), then the image
    cache/hosts/…       one small file a host: when it may be asked again; locked while it is asked

A file appears whole by a rename, so a process that is killed leaves nothing broken. A lock is a lock of the system
(`flock`) and goes with its process; the folder may be shared by machines where the file system shares locks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bloomery.core.files import explain_os_errors


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer: an image, or the reason why there is none."""

    body: bytes = b""
    reason: str = ""
    passing: bool = False  # worth asking again later


class ImageCache:
    """Answers by address. Those that were given under another `policy` (limits, opt-outs) do not count.

    A passing failure counts for `retry_after` seconds.
    """

    def __init__(self, folder: Path, policy: str, retry_after: float) -> None:
        self._folder, self._policy, self._retry_after = folder, policy, retry_after

    def get(self, url: str) -> Entry | None:
        """What is known of the address, or None."""
        try:
            with self._path(url).open("rb") as file:
                about, body = json.loads(file.readline()), file.read()
        except (OSError, ValueError):
            return None
        if not isinstance(about, list) or about[:3] != [url, self._policy, len(body)]:
            return None
        when, reason, passing = about[3:]
        return None if passing and time.time() - when > self._retry_after else Entry(body, reason, passing)

    def put(self, url: str, entry: Entry) -> None:
        """Remember the answer."""
        path = self._path(url)
        about = [url, self._policy, len(entry.body), time.time(), entry.reason, entry.passing]
        with explain_os_errors(self._folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                aside.write_bytes(json.dumps(about).encode() + b"\n" + entry.body)
                aside.replace(path)  # not synced: after a power cut its length tells, and it is fetched again
            except BaseException:
                aside.unlink(missing_ok=True)
                raise

    def _path(self, url: str) -> Path:
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        return self._folder / name[:2] / name


@dataclass(slots=True)
class Turn:
    """The right to ask a host: not before `next` (seconds since 1970). `silent` requests in a row had no answer."""

    next: float = 0.0
    silent: int = 0


@contextmanager
def turn_of(folder: Path, host: str, forget: float) -> Iterator[Turn | None]:
    """Lock a host; what is changed in the turn is written down at the end. None where another process has the lock.

    What is older than `forget` seconds is forgotten.
    """
    with explain_os_errors(folder):
        place = folder / "hosts"
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(place / hashlib.sha256(host.encode()).hexdigest()[:32], os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        turn = Turn()
        if time.time() - os.fstat(handle).st_mtime <= forget:
            with suppress(ValueError, TypeError):
                turn = Turn(*json.loads(file.read()))
        before = replace(turn)
        try:
            yield turn
        finally:
            if turn != before:  # a write makes the file new, and what it says of silence
                with explain_os_errors(folder):
                    file.seek(0)
                    file.truncate()
                    file.write(json.dumps([turn.next, turn.silent]).encode())
                    file.flush()
