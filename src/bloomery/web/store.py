"""What a crawl keeps on disk: WARC segments with the pages, and one SQLite file with every address met.

The order of writes is what makes a crawl survive SIGKILL. A page is first appended to a segment; its row, the links
found on it and the segment's new length are committed together, in small batches. Behind the committed length there
can only be pages of the last, lost batch: a restart adopts the complete ones and cuts a torn one off. So a page that
is in the archive is never fetched again, and a page that is in the table is always in the archive.
"""

from __future__ import annotations

import fcntl
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.core.errors import BloomeryError, ConfigError, StorageError
from bloomery.core.files import explain_os_errors
from bloomery.web.archive import http_page
from bloomery.web.fetch import Response
from bloomery.web.frontier import Link
from bloomery.web.page import Page
from bloomery.web.warc import WarcWriter, complete_members

QUEUED, STORED, FAILED, REDIRECTED, EXCLUDED = range(5)  # states of an address
COMMIT_SECONDS = 0.5
COMMIT_EVENTS = 1000
MAX_PENDING_BYTES = 64 << 20  # bodies waiting to be compressed; the crawler pauses above it
PREFIX = "pages"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS urls (
    url TEXT PRIMARY KEY, state INTEGER, depth INTEGER, parent TEXT, priority REAL, via TEXT,
    kind TEXT, detail TEXT, bytes INTEGER
) WITHOUT ROWID;
"""
# A link may be met again: while it waits, a better way to it replaces the one known.
_INSERT = """INSERT INTO urls VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, NULL)
ON CONFLICT (url) DO UPDATE SET
    depth = excluded.depth, parent = excluded.parent, priority = excluded.priority, via = excluded.via
WHERE state = 0 AND (-excluded.priority, excluded.depth, excluded.parent) < (-priority, depth, parent)"""
_UPDATE = "UPDATE urls SET state = ?, kind = ?, detail = ?, bytes = ? WHERE url = ?"


@dataclass(slots=True)
class Adopted:
    """A page that a killed run archived without getting to its row, and the links found on it."""

    link: Link
    page: Page
    children: list[Link]


class Store:
    """The folder of one crawl. The event loop hands over what happened; a thread compresses, writes and commits."""

    def __init__(self, folder: Path, software: str, segment_bytes: int) -> None:
        self.folder = folder
        self._warc = WarcWriter(folder, PREFIX, software, segment_bytes)
        self._touched: dict[str, int] = {}
        self._events: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._submitted = self._written = 0  # bytes of bodies, each counted by one thread alone
        self._thread: threading.Thread | None = None
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "crawl.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system drops it when the process dies
        except OSError as error:
            self._lock.close()
            raise StorageError(
                "another crawl is running in this folder", where=folder, fix="wait for it or choose another folder"
            ) from error
        self._database = self._connect()

    # --- before the crawl starts, from the caller's thread ---

    def check_identity(self, identity: dict[str, Any]) -> bool:
        """Remember what this crawl is, or compare with what the folder holds. True when it is a new crawl."""
        row = self._database.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()
        if row is None:
            self.set_meta("identity", json.dumps(identity))
            return True
        there, here = json.loads(row[0]), json.loads(json.dumps(identity))
        different = [key for key in here if there.get(key) != here[key]]
        if different:
            told = "; ".join(
                f"{key} is {_short(there.get(key))} there and {_short(here[key])} here" for key in different
            )
            raise ConfigError(
                f"the folder holds another crawl: {told}",
                where=self.folder,
                fix="choose another folder, or give the settings of that crawl to continue it",
            )
        return False

    def tail(self) -> Iterator[tuple[Page, dict[str, str]]]:
        """(page, metadata) of every complete page behind the committed lengths; then cuts off what is torn.

        Run to the end, this leaves the writer ready to append.
        """
        committed = dict(self._database.execute("SELECT name, bytes FROM segments"))
        paths = sorted(self.folder.glob(f"{PREFIX}-*.warc.gz"))
        for name, size in committed.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size < size:
                raise StorageError(
                    f"the crawl has written {size:,} bytes of this file, and they are gone",
                    where=path,
                    fix="put the file back or start in another folder",
                )
        for path in paths:
            size = committed.get(path.name, 0)
            page: Page | None = None  # a response whose metadata record may follow
            for size, record in complete_members(path, size):  # noqa: B007, B020 (the last end is used below)
                kind, url, date, block = _fields(record)
                if kind == b"metadata" and page is not None:
                    pairs = (line.partition(b": ")[::2] for line in block.splitlines())
                    yield page, {key.decode(): value.decode("utf-8", "replace") for key, value in pairs}
                    page = None
                elif kind == b"response":
                    page = http_page(url, date, block)
            if page is not None:  # its metadata record was torn off
                yield page, {}
            self._touched[path.name] = size
            if size == 0:
                path.unlink()
                del self._touched[path.name]
            elif path == paths[-1]:
                self._warc.resume(path, size)

    def rows(self, *states: int) -> Iterator[Link]:
        """The links in these states."""
        marks = ",".join("?" * len(states))
        for url, depth, parent, priority, via in self._database.execute(
            f"SELECT url, depth, parent, priority, via FROM urls WHERE state IN ({marks})", states
        ):
            yield Link(url, depth, parent, priority=priority, via=tuple(via.split()))

    def redirects(self) -> Iterator[tuple[str, str]]:
        """(address, where it redirects) of every redirect met."""
        return iter(self._database.execute("SELECT url, detail FROM urls WHERE state = ?", (REDIRECTED,)))

    def requeue(self, kinds: Iterable[str] | None) -> None:
        """Make failed addresses waiting ones again: of these kinds of failure, or (None) of all."""
        if kinds is None:
            self._database.execute("UPDATE urls SET state = ? WHERE state IN (?, ?)", (QUEUED, FAILED, EXCLUDED))
        for kind in kinds or ():
            self._database.execute("UPDATE urls SET state = ? WHERE state = ? AND kind = ?", (QUEUED, FAILED, kind))

    def adopt(self, adopted: list[Adopted]) -> None:
        """Record the pages found by `tail`, all at once: their bytes count as committed from then on."""
        self._database.execute("BEGIN")
        for item in adopted:
            self._insert([item.link, *item.children])
            self._database.execute(_UPDATE, (STORED, None, None, len(item.page.body), item.link.url))
        self._commit_segments()
        self._database.execute("COMMIT")

    def meta(self, key: str, default: str = "") -> str:
        """A value kept with the crawl."""
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else default

    def set_meta(self, key: str, value: str) -> None:
        """Keep a value with the crawl; from the thread while it runs."""
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread = threading.Thread(target=self._write, name="crawl-store", daemon=True)
        self._thread.start()

    # --- while the crawl runs, from the event loop ---

    def page(self, link: Link, response: Response, children: list[Link]) -> None:
        """Archive a page, and remember the links found on it in the same commit."""
        self._submitted += len(response.body)
        self._events.put(("page", link, response, children, time.time()))

    def links(self, links: list[Link]) -> None:
        """Remember links that wait to be fetched."""
        self._events.put(("links", links))

    def begin_round(self, links: list[Link]) -> None:
        """Remember what a round fetches, before any page of it is archived."""
        self._events.put(("round", json.dumps([link.url for link in links])))

    def settle(self, url: str, state: int, kind: str, detail: str) -> None:
        """An address that brought no page."""
        self._events.put(("settle", url, state, kind, detail))

    @property
    def congested(self) -> bool:
        """Whether the disk is behind the network."""
        return self._submitted - self._written > MAX_PENDING_BYTES

    def fail(self, error: BaseException) -> None:
        """Make `raise_error` raise this: something went wrong outside the thread."""
        self._error = self._error or error

    def raise_error(self) -> None:
        """Raise the first thing that went wrong, if anything did."""
        if self._error is not None:
            raise self._error

    # --- afterwards ---

    def stop(self) -> None:
        """Write and commit what is left, end the thread. Raises what went wrong in it."""
        if self._thread is not None:
            self._events.put(None)
            self._thread.join()
            self._thread = None
            self.raise_error()

    def close(self) -> None:
        """Release everything; never raises for the data's sake."""
        try:
            if self._thread is not None:
                self._events.put(None)
                self._thread.join()
        finally:
            self._warc.close()
            self._database.close()
            self._lock.close()

    def totals(self) -> dict[int, tuple[int, int]]:
        """state -> (addresses, bytes of their bodies)."""
        query = "SELECT state, COUNT(*), COALESCE(SUM(bytes), 0) FROM urls GROUP BY state"
        return {state: (count, size) for state, count, size in self._database.execute(query)}

    def failures(self, state: int = FAILED) -> dict[str, int]:
        """kind -> addresses that failed (or were excluded) that way, the most frequent first."""
        query = "SELECT kind, COUNT(*) AS n FROM urls WHERE state = ? GROUP BY kind ORDER BY n DESC, kind"
        return dict(self._database.execute(query, (state,)))

    def examples(self, kind: str, limit: int = 3) -> list[str]:
        """A few failures of a kind: "url: what happened"."""
        query = "SELECT url, detail FROM urls WHERE kind = ? AND state IN (?, ?) ORDER BY depth, url LIMIT ?"
        return [f"{url}: {detail}" for url, detail in self._database.execute(query, (kind, FAILED, EXCLUDED, limit))]

    def segments(self) -> list[Path]:
        """The WARC files, in order."""
        return sorted(self.folder.glob(f"{PREFIX}-*.warc.gz"))

    # --- the thread ---

    def _write(self) -> None:
        try:
            with explain_os_errors(self.folder):
                while self._write_batch():
                    pass
        except BloomeryError as error:
            self._error = error
        except sqlite3.Error as error:
            self._error = StorageError(
                f"the crawl's state cannot be written: {error}",
                where=self.folder / "crawl.sqlite",
                fix="free some space and run the same command again: stored pages are kept",
            )
        except BaseException as error:
            self._error = StorageError(f"writing failed: {error!r}", where=self.folder)

    def _write_batch(self) -> bool:
        """Handle events until a commit is due; False after the last one."""
        event = self._events.get()
        deadline = time.monotonic() + COMMIT_SECONDS
        self._database.execute("BEGIN")
        count = 0
        more = True
        while True:
            if event is None:
                more = False
                break
            self._handle(event)
            count += 1
            if count >= COMMIT_EVENTS or event[0] == "round":
                break
            try:
                event = self._events.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                break
        self._warc.sync()
        self._commit_segments()
        self._database.execute("COMMIT")
        return more

    def _handle(self, event: tuple[Any, ...]) -> None:
        if event[0] == "links":
            self._insert(event[1])
        elif event[0] == "round":
            self.set_meta("round", event[1])
            self.set_meta("rounds", str(int(self.meta("rounds", "0")) + 1))
        elif event[0] == "settle":
            _, url, state, kind, detail = event
            self._database.execute(_UPDATE, (state, kind, detail, None, url))
        else:
            _, link, response, children, when = event
            self._append(link, response, when)
            self._insert(children)
            self._database.execute(_UPDATE, (STORED, None, None, len(response.body), link.url))
            self._written += len(response.body)

    def _append(self, link: Link, response: Response, when: float) -> None:
        metadata = {"hopsFromSeed": str(link.depth), "fetchTimeMs": str(round(1000 * response.seconds))}
        if link.parent:
            metadata["via"] = link.parent
        self._warc.write_page(
            response.url, response.status, response.reason, response.headers, response.body, metadata, when
        )
        self._touched[self._warc.path.name] = self._warc.size

    def _insert(self, links: Iterable[Link]) -> None:
        self._database.executemany(
            _INSERT,
            [(link.url, QUEUED, link.depth, link.parent, link.priority, " ".join(link.via)) for link in links],
        )

    def _commit_segments(self) -> None:
        self._database.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?)", self._touched.items())
        self._touched.clear()

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / "crawl.sqlite"
        try:
            database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_SCHEMA}")
        except sqlite3.Error as error:
            self._lock.close()
            raise StorageError(
                f"not a usable crawl state: {error}",
                where=path,
                fix="remove the file to rebuild it from the pages in the folder, or start in another folder",
            ) from error
        return database


def _fields(record: bytes) -> tuple[bytes, str, str, bytes]:
    """(type, target URI, date, block) of one of our own records."""
    head, _, rest = record.partition(b"\r\n\r\n")
    fields = dict(line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
    block = rest[: int(fields[b"Content-Length"])]
    url = fields.get(b"WARC-Target-URI", b"").decode("utf-8", "replace")
    return fields[b"WARC-Type"], url, fields[b"WARC-Date"].decode(), block


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
