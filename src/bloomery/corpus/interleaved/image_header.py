"""Kind and size of an encoded image from its first bytes: nothing is decoded, so a bomb costs nothing.

Known are PNG (ISO/IEC 15948, §11.2.2), JPEG (ITU-T T.81, §B.2.2), WebP (RFC 9649, §2.5 to 2.7) and GIF (89a, §18). Of
an animation it is the size of the canvas.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

KINDS = ("jpeg", "png", "webp", "gif")
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's start-of-frame markers
_ALONE = frozenset(range(0xD0, 0xD9)) | {0x01}  # its markers without a length


class Header(NamedTuple):
    """What the beginning of an image says; sizes in pixels, as stored (before any rotation that EXIF asks for)."""

    kind: str
    width: int
    height: int


def image_header(data: bytes) -> Header | None:
    """Kind and size of an image, or None where it is of another kind or its header is broken or empty."""
    try:
        found = _read(data)
    except (struct.error, IndexError):  # it ends early
        return None
    return found if found is not None and found.width > 0 and found.height > 0 else None


def _read(data: bytes) -> Header | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return Header("png", *struct.unpack_from(">II", data, 16)) if data[12:16] == b"IHDR" else None
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Header("gif", *struct.unpack_from("<HH", data, 6))
    return None


def _jpeg(data: bytes) -> Header | None:
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # padding
            at += 1
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in _SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Header("jpeg", width, height)
        if marker in (0xD9, 0xDA):  # the picture begins, or ends, without a size
            return None
        at += 2
        if marker not in _ALONE:
            length = struct.unpack_from(">H", data, at)[0]
            if length < 2:
                return None
            at += length


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8X":
        fields = struct.unpack_from("<HBHB", data, 24)
        return Header("webp", 1 + fields[0] + (fields[1] << 16), 1 + fields[2] + (fields[3] << 16))
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    return None
