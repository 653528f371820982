"""WARC 1.1 out: an append-only, record-gzipped archive that survives being killed at any byte.

Every record is its own gzip member, so the file can be cut after any complete one. A page is a `response` record and a
`metadata` record that says how it was found, in the fields that other crawlers use (`via`, `hopsFromSeed`,
`fetchTimeMs`). The body is stored without its transfer and content coding, as Common Crawl does: the original headers
are kept under `X-Crawl-*` names where they no longer describe the bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bloomery.core.files import explain_os_errors, fsync_folder

LEVEL = 4  # within 4 % of the size that gzip's default level 6 gives on HTML, in 60 % of its time
_RENAMED = {"content-encoding", "content-length", "transfer-encoding"}


class WarcWriter:
    """Appends pages to `<folder>/<prefix>-00000.warc.gz`, `-00001`, …, a new file when one exceeds `max_bytes`."""

    def __init__(self, folder: Path, prefix: str, software: str, max_bytes: int = 1 << 30) -> None:
        self.folder, self.prefix, self.software, self.max_bytes = Path(folder), prefix, software, max_bytes
        self._file: IO[bytes] | None = None
        self.path, self.size = self._path(0), 0

    def resume(self, path: Path, size: int) -> None:
        """Continue `path` after its first `size` bytes; what lies behind them is cut off."""
        self.close()
        self.path, self.size = path, size
        with explain_os_errors(path):
            os.truncate(path, size)
            self._file = path.open("ab", buffering=0)

    def write_page(
        self,
        url: str,
        status: int,
        reason: str,
        headers: list[tuple[str, str]],
        body: bytes,
        metadata: dict[str, str],
        seconds: float | None = None,
    ) -> None:
        """Append one page. After an error the file is as it was before."""
        stamp = warc_date(seconds)
        head = http_head(status, reason, headers, len(body))
        page_id = _record_id()
        response = _record(
            "response",
            {
                "WARC-Target-URI": url,
                "WARC-Date": stamp,
                "WARC-Record-ID": page_id,
                "WARC-Payload-Digest": digest(body),
                "WARC-Block-Digest": digest(head, body),
                "Content-Type": "application/http; msgtype=response",
            },
            head + body,
        )
        about = "".join(f"{key}: {value}\r\n" for key, value in metadata.items()).encode()
        self.append(
            response
            + _record(
                "metadata",
                {
                    "WARC-Target-URI": url,
                    "WARC-Date": stamp,
                    "WARC-Record-ID": _record_id(),
                    "WARC-Concurrent-To": page_id,
                    "WARC-Block-Digest": digest(about),
                    "Content-Type": "application/warc-fields",
                },
                about,
            )
        )

    def append(self, members: bytes) -> None:
        """Append complete gzip members, starting a new file first when this one is full."""
        if self._file is None or self.size >= self.max_bytes:
            self._open_next()
        assert self._file is not None
        with explain_os_errors(self.path):
            view = memoryview(members)
            try:
                while view:  # an unbuffered write may be short
                    view = view[self._file.write(view) :]
            except OSError:
                os.truncate(self.path, self.size)
                raise
        self.size += len(members)

    def sync(self) -> None:
        """Make what was appended durable."""
        if self._file is not None:
            with explain_os_errors(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the next append opens a new one."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.prefix}-{number:05d}.warc.gz"

    def _open_next(self) -> None:
        self.close()
        number = 0
        while self._path(number).exists():
            number += 1
        self.path, self.size = self._path(number), 0
        with explain_os_errors(self.path):
            self._file = self.path.open("xb", buffering=0)
            fsync_folder(self.folder)
        info = (
            f"software: {self.software}\r\nformat: WARC File Format 1.1\r\nhostname: {platform.node()}\r\n"
            "conformsTo: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/\r\n"
        ).encode()
        self.append(
            _record(
                "warcinfo",
                {
                    "WARC-Date": warc_date(),
                    "WARC-Record-ID": _record_id(),
                    "WARC-Filename": self.path.name,
                    "WARC-Block-Digest": digest(info),
                    "Content-Type": "application/warc-fields",
                },
                info,
            )
        )


def complete_members(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(end offset, record bytes) of every whole gzip member from offset `start`; ends quietly at the first torn one."""
    with path.open("rb") as file:
        file.seek(start)
        end, rest = start, b""
        while True:
            inflate, parts, used = zlib.decompressobj(31), [], 0
            while not inflate.eof:
                chunk = rest or file.read(1 << 20)
                if not chunk:
                    return
                try:
                    parts.append(inflate.decompress(chunk))
                except zlib.error:
                    return
                rest = inflate.unused_data
                used += len(chunk) - len(rest)
            end += used
            yield end, b"".join(parts)


def http_head(status: int, reason: str, headers: list[tuple[str, str]], length: int) -> bytes:
    """Status line and headers of a stored response whose body is `length` bytes, uncoded."""
    lines = [f"HTTP/1.1 {status} {_one_line(reason)}".rstrip()]
    for name, value in headers:
        prefix = "X-Crawl-" if name.lower() in _RENAMED else ""
        lines.append(f"{prefix}{_one_line(name)}: {_one_line(value)}")
    lines.append(f"Content-Length: {length}\r\n\r\n")
    return "\r\n".join(lines).encode("utf-8", "replace")


def warc_date(seconds: float | None = None) -> str:
    """A WARC-Date, ISO 8601 in UTC, of a time in seconds since the epoch (default: now)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def digest(*parts: bytes) -> str:
    """`sha1:` and the base32 digest, the spelling that archives use."""
    sha = hashlib.sha1(usedforsecurity=False)
    for part in parts:
        sha.update(part)
    return "sha1:" + base64.b32encode(sha.digest()).decode()


def _record(kind: str, headers: dict[str, str], block: bytes) -> bytes:
    """One WARC record as one gzip member."""
    lines = ["WARC/1.1", f"WARC-Type: {kind}", *(f"{k}: {v}" for k, v in headers.items())]
    lines.append(f"Content-Length: {len(block)}\r\n\r\n")
    pack = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return b"".join(
        (pack.compress("\r\n".join(lines).encode()), pack.compress(block), pack.compress(b"\r\n\r\n"), pack.flush())
    )


def _record_id() -> str:
    return f"<urn:uuid:{uuid.uuid4()}>"


def _one_line(text: str) -> str:
    return " ".join(text.split())
