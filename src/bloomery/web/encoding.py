"""Bytes to text the way browsers do it: byte order mark, then what the server says, then what the page says, then
UTF-8 if the bytes are valid UTF-8, then a statistical guess. Decoding never fails."""

from __future__ import annotations

import codecs
import re

from bloomery.core.errors import require

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_HEADER = re.compile(r"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)
_META = re.compile(rb"<meta\s[^<>]{0,500}?charset\s*=\s*[\"']?\s*([^\s\"'/>;]+)", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml\s[^<>]{0,200}?encoding\s*=\s*[\"']([^\"']+)", re.IGNORECASE)
_META_REACH = 4096  # bytes; the standard asks authors for 1024 and real pages often exceed that
# Labels that the web uses for a larger character set than their name says (WHATWG Encoding).
_SUPERSETS = {"shift_jis": "cp932", "gbk": "gb18030", "gb2312": "gb18030", "euc-kr": "cp949", "big5": "big5hkscs"}


def decode(body: bytes, content_type: str = "") -> tuple[str, str]:
    """(text, name of the encoding) of a page; `content_type` is the header, with its charset if it has one."""
    for bom, name in _BOMS:
        if body.startswith(bom):
            return body[len(bom) :].decode(name, "replace"), name
    declared = _HEADER.search(content_type)
    name = _codec(declared[1]) if declared else ""
    if not name:
        head = body[:_META_REACH]
        meta = _META.search(head) or _XML.match(head)
        name = _codec(meta[1].decode("ascii", "ignore")) if meta else ""
        if name.startswith("utf-16"):  # had it been UTF-16, the declaration itself would not have been readable
            name = "utf-8"
    if not name:
        try:
            return body.decode("utf-8"), "utf-8"
        except UnicodeDecodeError:
            detector = require("resiliparse.parse.encoding", "web")
            name = _codec(detector.detect_encoding(body) or "") or "cp1252"
    return body.decode(name, "replace"), name


def _codec(label: str) -> str:
    """The Python codec for a charset label, or "" for a label that names none."""
    label = label.strip().lower()
    if label in ("utf-8", "utf8"):
        return "utf-8"
    mapped = require("resiliparse.parse.encoding", "web").map_encoding_to_html5(label, False)
    try:
        name = codecs.lookup(_SUPERSETS.get(mapped, mapped)).name if mapped else ""
    except LookupError:
        return ""
    return name
