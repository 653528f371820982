"""Pages out of WARC files (any compression fastwarc knows) and ARC files, good records despite bad ones.

Archives in the wild are truncated, have corrupt members, wrong lengths and broken HTTP. One bad record is counted with
its reason and reading goes on behind it; only a file that is no archive at all is an error.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bloomery.core.errors import DataError, require
from bloomery.web.coding import Decoder
from bloomery.web.page import Page

MAX_RECORD = 64 << 20  # bytes of one record, stored or decoded, that are read into memory

_GZIP = b"\x1f\x8b\x08"
_FRAMES = (b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd")  # LZ4, Zstandard
_WARC_START = re.compile(rb"WARC/\d\.\d\r?\n(?=(?:WARC|Content)-)")
# URL, IP address, date, media type (ARC 2 puts more fields here), length.
_ARC_START = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*:.*?) (\S*) (\d{8,}) (?:(\S+)(?: .*)?) (\S+)\s*")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})\b *(.*)")
_CHUNK = re.compile(rb"\s*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


@dataclass
class ReadStats:
    """What reading an archive met: pages yielded, good records of other kinds, bad records by reason."""

    pages: int = 0
    other: int = 0  # requests, metadata, warcinfo, DNS answers
    bad: Counter[str] = field(default_factory=Counter)

    @property
    def records(self) -> int:
        """All records met."""
        return self.pages + self.other + self.bad.total()


class BadRecordError(Exception):
    """Why one record is unusable."""


def iterate_pages(path: Path | str, stats: ReadStats | None = None) -> Iterator[Page]:
    """Every page of the archive in order, whatever its status; `stats`, if given, is filled while iterating.

    Raises:
        DataError: the file does not exist, or holds no record of a WARC or ARC file at all.
    """
    path, stats = Path(path), stats if stats is not None else ReadStats()
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    with file:
        records = _arc_records(file) if _head(file).startswith(b"filedesc:") else _warc_records(file)
        for page, fault in records:
            if fault:
                stats.bad[fault] += 1
            elif page is None:
                stats.other += 1
            else:
                stats.pages += 1
                yield page
        if not stats.pages + stats.other and not _is_archive(file):
            raise DataError("no WARC or ARC record in it", where=path, fix="give .warc, .warc.gz or .arc files")


def _warc_records(file: IO[bytes]) -> Iterator[tuple[Page | None, str]]:
    """(page or None, fault) of every record. Behind a fault, reading goes on at the next place a record may start."""
    warc = require("fastwarc.warc", "web")
    compressed = _starts_with(file, _GZIP)
    start: int | None = 0
    counted = False  # the damage we are in, or come from, has been reported
    while start is not None:
        file.seek(start)
        met, empty = start, True
        fault = "truncated record"
        try:
            for record in warc.ArchiveIterator(file, parse_http=False, strict_mode=False):
                met, empty = start + record.stream_pos, False
                try:
                    result = _warc_page(record, warc), ""
                except BadRecordError as bad:
                    result = None, str(bad)
                counted = bool(result[1])
                yield result
            # fastwarc ends quietly where the header of a record is cut, or swallowed by a damaged record before it.
            behind = _unread(file, met, compressed)
            damaged = behind is not None or (empty and _at(file, start) != b"")
            start = behind
        except (OSError, ValueError, RuntimeError):  # its ways to say that the stream is broken here
            start = _next_start(file, met + 1, compressed)
            fault, damaged = "corrupt record", True
        if damaged and not counted:
            counted = True
            yield None, fault


def _warc_page(record: Any, warc: Any) -> Page | None:
    """The page in a record, None for a good record that is not one."""
    length = record.content_length
    if record.headers.get("Content-Length") is None:
        raise BadRecordError("truncated record")
    if length > MAX_RECORD:
        record.consume()
        raise BadRecordError("record too large")
    block = record.reader.read()
    if len(block) < length:
        raise BadRecordError("truncated record")
    url = (record.headers.get("WARC-Target-URI") or "").strip("<> ")
    kind, content_type = record.record_type, (record.headers.get("Content-Type") or "").strip()
    date = record.headers.get("WARC-Date") or ""
    if not url or kind not in (warc.response, warc.resource, warc.conversion):
        return None
    if kind == warc.response and not url.startswith(("dns:", "whois:", "ftp:", "gemini:")):
        return http_page(url, date, block)
    if kind != warc.response and url.startswith(("http:", "https:")):
        return Page(url, 200, _media_type(content_type), block, date, [("Content-Type", content_type)])
    return None


def _arc_records(file: IO[bytes]) -> Iterator[tuple[Page | None, str]]:
    """The same for an ARC file: a line that describes the record, then as many bytes as it says."""
    stream: IO[bytes] = gzip.open(file) if _starts_with(file, _GZIP) else file  # type: ignore[assignment]  # noqa: SIM115
    counted = False
    try:
        while line := stream.readline(1 << 16):
            if not line.strip():
                continue
            described = _ARC_START.fullmatch(line)
            length = int(described[5]) if described and described[5].isdigit() else -1
            if described is None or length < 0:
                if not counted:
                    counted = True
                    yield None, "corrupt record"
                continue
            counted = False
            try:
                yield _arc_page(described, stream.read(min(length, MAX_RECORD + 1)), length), ""
            except BadRecordError as bad:
                yield None, str(bad)
    except (OSError, EOFError, zlib.error):
        yield None, "corrupt record"


def _arc_page(described: re.Match[bytes], block: bytes, length: int) -> Page | None:
    if length > MAX_RECORD:
        raise BadRecordError("record too large")
    if len(block) < length:
        raise BadRecordError("truncated record")
    url, stamp = described[1].decode("utf-8", "replace"), described[3].decode()
    if not url.startswith(("http:", "https:")):
        return None
    date = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[8:10]:0>2}:{stamp[10:12]:0>2}:{stamp[12:14]:0>2}Z"
    return http_page(url, date, block)


def http_page(url: str, date: str, block: bytes) -> Page:
    """A stored HTTP answer with its transfer and content coding undone.

    Archives often hold bodies that are already decoded under headers that say otherwise: a body that does not look
    coded is taken as it is.
    """
    end = re.search(rb"\r?\n\r?\n", block)
    head, body = (block[: end.start()], block[end.end() :]) if end else (block, b"")
    lines = head.splitlines()
    status = _STATUS.match(lines[0]) if lines else None
    if status is None:
        raise BadRecordError("no HTTP status line")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers.append((name.strip().decode("latin-1"), value.strip().decode("utf-8", "replace")))
    page = Page(url, int(status[1]), "", body, date, headers)
    page.content_type = _media_type(page.header("Content-Type"))
    if "chunked" in page.header("Transfer-Encoding").lower():
        page.body = _dechunk(body)
    coding = page.header("Content-Encoding")
    if coding and (coding.lower() not in ("gzip", "x-gzip") or page.body.startswith(b"\x1f\x8b")):
        try:
            decoder = Decoder(coding, MAX_RECORD)
            page.body = decoder.decode(page.body)
            decoder.finish()
        except DataError as error:
            raise BadRecordError("broken content coding") from error
    return page


def _dechunk(body: bytes) -> bytes:
    """The chunks joined; a body that does not begin like one is returned as it is, a cut one up to the cut."""
    parts, position = [], 0
    while (chunk := _CHUNK.match(body, position)) is not None:
        size = int(chunk[1], 16)
        if size == 0:
            break
        parts.append(body[chunk.end() : chunk.end() + size])
        position = chunk.end() + size
    return b"".join(parts) if position else body


def _head(file: IO[bytes]) -> bytes:
    """The first bytes, decompressed if they are gzip ("" where that fails)."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if head.startswith(_GZIP):
        try:
            return zlib.decompressobj(31).decompress(head, 16)
        except zlib.error:
            return b""
    return head[:16]


def _is_archive(file: IO[bytes]) -> bool:
    """Whether a file without one good record was meant to be an archive: damaged, empty, or in a compressed form."""
    head = _head(file)
    return any(head.startswith(magic[: len(head)]) for magic in (b"WARC/", b"filedesc:", *_FRAMES))


def _starts_with(file: IO[bytes], magic: bytes) -> bool:
    file.seek(0)
    found = file.read(len(magic)) == magic
    file.seek(0)
    return found


def _next_start(file: IO[bytes], position: int, compressed: bool) -> int | None:
    """Where the next record may begin at or behind `position`: a gzip member, or a WARC version line."""
    overlap = 16
    file.seek(position)
    window = file.read(1 << 20)
    while window:
        if compressed:
            found = window.find(_GZIP)
        else:
            match = _WARC_START.search(window)
            found = match.start() if match else -1
        if found >= 0:
            return position + found
        more = file.read(1 << 20)
        if not more:
            return None
        position += max(len(window) - overlap, 0)
        window = window[-overlap:] + more
    return None


def _at(file: IO[bytes], position: int) -> bytes:
    file.seek(position)
    return file.read(16)


def _unread(file: IO[bytes], last: int, compressed: bool) -> int | None:
    """Where data lies behind the last record that reading met (at offset `last`), None if that was all."""
    if not compressed:
        return _next_start(file, last + 1, compressed)
    file.seek(last)
    inflate, end = zlib.decompressobj(31), file.tell()
    try:
        while not inflate.eof and (chunk := file.read(1 << 16)):
            inflate.decompress(chunk)
            end += len(chunk) - len(inflate.unused_data)
    except zlib.error:  # not a member of its own: the whole file is one gzip stream
        return None
    rest = inflate.unused_data or file.read(16)
    return end if inflate.eof and rest.strip(b"\0") else None


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()
