"""Filters for source files, by the rules of DeepSeek-Coder (arXiv:2401.14196 §2.1, taken over by arXiv:2406.11931 §2).

A file is a document whose name stands in its meta data as `path`, or else in its URL. Two steps: `CodeShape` looks at
the text of any file (minified, generated or binary data has endless lines and few letters), `CodeFormat` at formats
that are mostly markup or data. The rules only bound what is measured here, which anybody can call on texts:

* line: what ends in a newline, and a rest after the last one; blank lines count, "\\r" and "\\n" are not part of it;
* characters: Unicode code points; of a file all of them, white space included.

All of it takes time proportional to the text, whatever the text is.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError
from bloomery.corpus.documents import texts
from bloomery.corpus.steps import Step, drop
from bloomery.corpus.words import Words, blocks

XML_DECLARATION = "<?xml version="
XML_HEAD = 100  # characters in which the declaration counts
XSLT = ("xsl", "xslt")  # XML, but programs
HTML = ("html", "htm", "xhtml")
DATA = ("json", "yaml", "yml")
HIDDEN = (b"script", b"style", b"template", b"noscript", b"title")  # elements whose content is not on the page


@dataclass(frozen=True)
class CodeShape(Step):
    """Drop files with long lines or few letters: a mean line of over 100 characters, one of over 1,000, letters < 25 %.

    Letters are characters that are alphabetic in any script (`str.isalpha`), as a share of all characters; a file
    without characters has none.
    """

    max_mean_line: float = 100.0
    max_line: int = 1_000
    min_alphabetic: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_alphabetic <= 1:
            raise ConfigError(f"min_alphabetic={self.min_alphabetic}", where="CodeShape", fix="a share, 0 to 1")
        for name in ("max_mean_line", "max_line"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}", where="CodeShape", fix="above 0")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the files that break a rule."""
        found = measure_shape(texts(batch))
        batch = drop(batch, found["mean_line"] > self.max_mean_line, "lines too long on average")
        batch = drop(batch, found["longest_line"] > self.max_line, "a line too long")
        return drop(batch, found["alphabetic"] < self.min_alphabetic, "too few letters")


def measure_shape(texts: pa.StringArray) -> dict[str, np.ndarray]:
    """`mean_line`, `longest_line` (characters) and `alphabetic` (a share): one float64 per text, 0 for an empty one."""
    parts = [_shape(block) for block in blocks(texts)]
    names = ("mean_line", "longest_line", "alphabetic")
    return {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in names}


def _shape(block: Words) -> dict[str, np.ndarray]:
    bounds, size = block.bounds, len(block.data) - 8
    data = block.data[:size]
    begins = (data & 0xC0) != 0x80  # the first byte of every character
    newline = data == ord("\n")
    before = _running(begins & ~newline & (data != ord("\r")))  # characters of lines before each byte
    first = np.zeros(size + 1, bool)  # the first byte of every line; nothing begins after the last newline
    first[1:] = newline
    first[bounds[:-1]] = True  # lines never cross documents
    starts = np.flatnonzero(first[:size])
    lengths = before[np.append(starts[1:], size)[: len(starts)]] - before[starts]
    owner = np.searchsorted(bounds, starts, side="right") - 1
    longest = np.zeros(block.documents, np.int64)
    np.maximum.at(longest, owner, lengths)
    return {
        "mean_line": _share(np.diff(before[bounds]), np.bincount(owner, minlength=block.documents)),
        "longest_line": longest.astype(np.float64),
        "alphabetic": _share(np.diff(_running(block.alphabetic()[:size])[bounds]), np.diff(_running(begins)[bounds])),
    }


def _running(mask: np.ndarray) -> np.ndarray:
    """How many are set before each place, and before the end: int32 (B + 1,)."""
    total = np.zeros(len(mask) + 1, np.int32)
    np.cumsum(mask, dtype=np.int32, out=total[1:])
    return total


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)
    return share


@dataclass(frozen=True)
class CodeFormat(Step):
    """Rules for formats that are rarely code.

    - XML: a file with `<?xml version=` in its first 100 characters goes, except XSLT (by its suffix);
    - HTML (by its suffix): stays when what a reader sees is at least a fifth of its bytes, and 100 characters;
    - JSON and YAML (by their suffixes): stay with 50 to 5,000 characters.
    """

    min_visible_share: float = 0.2
    min_visible: int = 100
    min_data: int = 50
    max_data: int = 5_000

    reads = ("parts", "url", "meta")

    def __post_init__(self) -> None:
        if not 0 <= self.min_data <= self.max_data:
            given = f"min_data={self.min_data}, max_data={self.max_data}"
            raise ConfigError(given, where="CodeFormat", fix="0 <= min_data <= max_data")
        if not 0 <= self.min_visible_share <= 1:
            raise ConfigError(f"min_visible_share={self.min_visible_share}", where="CodeFormat", fix="0 to 1")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the files that break a rule."""
        documents, kinds = texts(batch).to_pylist(), list(suffixes(batch))
        rows = list(zip(documents, kinds, strict=True))
        xml = [XML_DECLARATION in text[:XML_HEAD] and kind not in XSLT for text, kind in rows]
        empty_pages = [kind in HTML and not self._shows_text(text) for text, kind in rows]
        batch = drop(batch, xml, "XML")
        batch = drop(batch, empty_pages, "HTML with little to read")
        short = [kind in DATA and len(text) < self.min_data for text, kind in rows]
        long = [kind in DATA and len(text) > self.max_data for text, kind in rows]
        return drop(drop(batch, short, "data file too short"), long, "data file too long")

    def _shows_text(self, text: str) -> bool:
        visible = visible_text(text)
        share = len(visible.encode()) / max(len(text.encode()), 1)
        return len(visible) >= self.min_visible and share >= self.min_visible_share


def suffixes(batch: pa.RecordBatch) -> Iterator[str]:
    """The suffix of every file's name in lower case without the dot, "" where it has none."""
    for path in paths(batch):
        _, dot, suffix = path.rpartition("/")[2].rpartition(".")
        yield suffix.lower() if dot else ""


def paths(batch: pa.RecordBatch) -> Iterator[str]:
    """Where every file lies: `path` in its meta data, or else its URL without query and fragment ("" without both)."""
    for url, meta in zip(batch.column("url").to_pylist(), batch.column("meta").to_pylist(), strict=True):
        yield dict(meta or ()).get("path") or (url or "").partition("#")[0].partition("?")[0]


_OPENING = re.compile(rb"<(?=[a-z/!?])")  # any other "<" is text
_IN_TAG = re.compile(rb"=\s{0,9}[\"']|>")  # within a tag: a quoted value begins, or the tag ends
_NAME = re.compile(rb"/?[a-z][a-z0-9]*")
_ENTITY = re.compile(r"&#?\w{1,9};")


def visible_text(page: str) -> str:
    """What a reader of an HTML page sees, white space as single spaces.

    Tags, comments and the contents of `HIDDEN` elements are left out; what is never closed hides the rest, as it does
    in a browser. This is a measure for filtering; extraction for reading is `web.extract`.
    """
    data = page.encode("utf-8", "replace")
    lower = data.lower()  # bytes: A-Z only, so places stay the same
    seen: list[bytes] = []
    at = 0
    while at >= 0:
        opening = _OPENING.search(lower, at)
        if opening is None:
            seen.append(data[at:])
            break
        tag = opening.start()
        seen.append(data[at:tag])
        name = _NAME.match(lower, tag + 1)
        if name is not None:
            at = _after_tag(lower, name.end())
            if name[0] in HIDDEN and at >= 0:
                at = _after(lower, b"</" + name[0], at)
                at = _after_tag(lower, at) if at >= 0 else at
        elif lower.startswith(b"<!--", tag):
            at = _after(lower, b"-->", tag + 4)
        else:  # a declaration, an instruction, or nothing that anybody knows
            at = _after(lower, b">", tag + 2)
    text = b"".join(seen).decode("utf-8", "replace")
    return " ".join(_ENTITY.sub(lambda match: html.unescape(match[0]), text).split())


def _after(data: bytes, end: bytes, at: int) -> int:
    """The place behind the next `end`, -1 without one."""
    found = data.find(end, at)
    return found + len(end) if found >= 0 else -1


def _after_tag(data: bytes, at: int) -> int:
    """The place behind the ">" that ends a tag; one in a quoted value does not."""
    while (found := _IN_TAG.search(data, at)) is not None:
        if found[0] == b">":
            return found.end()
        at = _after(data, found[0][-1:], found.end())
        if at < 0:
            return -1
    return -1
