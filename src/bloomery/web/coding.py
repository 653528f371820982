"""Content coding undone piece by piece, never past a limit: a few kilobytes of gzip can stand for gigabytes."""

from __future__ import annotations

import zlib
from typing import Any

from bloomery.core.errors import DataError, require

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names for the three framings of deflate


class TooLargeError(DataError):
    """More bytes than the limit; `part` is what the last piece had up to there."""

    def __init__(self, limit: int, part: bytes = b"") -> None:
        super().__init__(f"more than {limit:,} bytes")
        self.part = part


class Decoder:
    """Decodes identity, gzip (also of several members), deflate (with or without the zlib header) and brotli."""

    def __init__(self, coding: str, limit: int) -> None:
        coding = coding.strip().lower().removeprefix("x-")
        if coding not in ("", "identity", "gzip", "deflate", "br"):
            raise DataError(f"unknown content coding {coding[:40]!r}")
        self._coding, self._limit, self._room = coding, limit, limit
        self._framing = _GZIP if coding == "gzip" else _ZLIB
        self._inflate: Any = None

    def decode(self, chunk: bytes) -> bytes:
        """The next piece of the content. Raises `TooLargeError` past the limit and `DataError` for broken data."""
        if self._coding in ("", "identity"):
            part = chunk
        else:
            part = self._brotli(chunk) if self._coding == "br" else self._deflate(chunk)
        if len(part) > self._room:
            raise TooLargeError(self._limit, part[: self._room])
        self._room -= len(part)
        return part

    def finish(self) -> None:
        """Raise `DataError` if the coded data ended early."""
        if self._inflate is not None:
            ended = self._inflate.is_finished() if self._coding == "br" else self._inflate.eof
            if not ended:
                raise DataError(f"{self._coding} data ends early")

    def _deflate(self, chunk: bytes) -> bytes:
        parts: list[bytes] = []
        room = self._room + 1
        while chunk and room > 0:
            if self._inflate is None:
                if self._framing == _ZLIB and chunk[0] & 0x0F != 8:  # some servers send deflate without its header
                    self._framing = _RAW
                self._inflate = zlib.decompressobj(self._framing)
            elif self._inflate.eof:
                if self._framing != _GZIP or chunk[0] != 0x1F:
                    break  # padding behind the end
                self._inflate = zlib.decompressobj(self._framing)
            try:
                parts.append(self._inflate.decompress(chunk, room))
            except zlib.error as error:
                raise DataError(f"broken {self._coding} data: {error}") from error
            room -= len(parts[-1])
            chunk = self._inflate.unused_data  # what is left over for want of room ends the loop
        return b"".join(parts)

    def _brotli(self, chunk: bytes) -> bytes:
        brotli = require("brotli", "web")
        if self._inflate is None:
            self._inflate = brotli.Decompressor()
        try:
            part = bytes(self._inflate.process(chunk, output_buffer_limit=self._room + 1))
        except brotli.error as error:
            raise DataError(f"broken br data: {error}") from error
        if not self._inflate.can_accept_more_data():
            raise TooLargeError(self._limit, part[: self._room])
        return part
