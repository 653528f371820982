"""Where links and texts come from: a table in memory, or a corpus in the layout of ClueWeb22."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bloomery.core.errors import DataError
from bloomery.web.scheduling.frontier import PageId


class LinkSource(Protocol):
    """Who links to whom."""

    def links(self, pages: Sequence[PageId]) -> list[list[PageId]]:
        """The pages that each page links to."""

    def in_links(self, pages: Sequence[PageId]) -> list[int]:
        """How many pages of the whole web link to each page."""


class TextSource(Protocol):
    """What pages say."""

    def texts(self, pages: Sequence[PageId]) -> list[str | None]:
        """The text of each page, None where it cannot be had."""


@dataclass
class Pages:
    """A small web in memory, as both sources."""

    text: Mapping[PageId, str | None]
    out: Mapping[PageId, Sequence[PageId]]
    incoming: Mapping[PageId, int] = field(default_factory=dict)

    def texts(self, pages: Sequence[PageId]) -> list[str | None]:
        """The text of each page, None where there is none."""
        return [self.text.get(page) for page in pages]

    def links(self, pages: Sequence[PageId]) -> list[list[PageId]]:
        """The pages that each page links to."""
        return [list(self.out.get(page, ())) for page in pages]

    def in_links(self, pages: Sequence[PageId]) -> list[int]:
        """How many pages link to each page, 0 where it is not recorded."""
        return [self.incoming.get(page, 0) for page in pages]


OFFSET_BYTES = 11  # ten digits and a line end
MAX_RECORD = 64 << 20  # bytes of one record, unpacked


@dataclass
class ClueWeb22:
    """A corpus in the layout of ClueWeb22: `<root>/<kind>/<language>/<segment>/<directory>/<file>.json.gz`.

    `kind` is txt, inlink or outlink. Every record is a gzip member of its own, found through a `.offset` file of
    ten-digit byte positions. Links lead to pages whose ids begin with `prefix` only, as in the reference (the English
    A part). `target` is the place of the target's id in a link record.
    """

    root: Path
    prefix: str = "clueweb22-en0"
    target: int = 0

    def texts(self, pages: Sequence[PageId]) -> list[str | None]:
        """The clean text of each page, None where there is no record."""
        records = (self._record("txt", str(page)) for page in pages)
        return [None if record is None else str(record.get("Clean-Text", "")) for record in records]

    def links(self, pages: Sequence[PageId]) -> list[list[PageId]]:
        """The pages of this corpus that each page links to."""
        return [list(self._targets("outlink", "outlinks", str(page))) for page in pages]

    def in_links(self, pages: Sequence[PageId]) -> list[int]:
        """How many pages of this corpus link to each page."""
        return [sum(1 for _ in self._targets("inlink", "anchors", str(page))) for page in pages]

    def _targets(self, kind: str, key: str, page: str) -> Iterator[PageId]:
        record = self._record(kind, page)
        for link in (record or {}).get(key) or ():
            name = link[self.target] if isinstance(link, list) and len(link) > self.target else None
            if isinstance(name, str) and name.startswith(self.prefix):
                yield name

    def _record(self, kind: str, page: str) -> dict[str, Any] | None:
        """One JSON object of the corpus, None where there is none."""
        try:
            _, segment, file, number = page.split("-")
            language, row = segment[:2], int(number)
        except ValueError as error:
            raise DataError(f"{page!r} is not an id of ClueWeb22", fix="clueweb22-en0000-00-00000") from error
        base = self.root / kind / language / segment[:4] / segment / f"{segment}-{file}"
        try:
            with base.with_suffix(".offset").open("rb") as offsets:
                offsets.seek(row * OFFSET_BYTES)
                lines = offsets.read(2 * OFFSET_BYTES).split()
            if not lines:
                return None
            with base.with_suffix(".json.gz").open("rb") as data:
                data.seek(int(lines[0]))
                packed = data.read(int(lines[1]) - int(lines[0]) if len(lines) > 1 else -1)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError("not a file of ten-digit positions", where=base.with_suffix(".offset")) from error
        return _unpacked(packed, f"{base}.json.gz, record {row}")


def _unpacked(packed: bytes, where: str) -> dict[str, Any]:
    try:
        unpack = zlib.decompressobj(wbits=31)
        text = unpack.decompress(packed, MAX_RECORD)
        if unpack.unconsumed_tail:
            raise DataError(f"more than {MAX_RECORD >> 20} MB", where=where)
        record = json.loads(text)
    except (zlib.error, ValueError) as error:
        raise DataError(f"damaged: {error}", where=where) from error
    if not isinstance(record, dict):
        raise DataError("not a JSON object", where=where)
    return record


def write_clueweb22(root: Path, kind: str, records: Mapping[str, dict[str, Any]]) -> None:
    """Write records by page id in this layout; ids of one file must be numbered from 0 without a gap.

    Raises:
        DataError: a gap in the numbers.
    """
    files: dict[Path, dict[int, dict[str, Any]]] = {}
    for page, record in records.items():
        _, segment, file, number = page.split("-")
        base = root / kind / segment[:2] / segment[:4] / segment / f"{segment}-{file}"
        files.setdefault(base, {})[int(number)] = record
    for base, rows in files.items():
        if sorted(rows) != list(range(len(rows))):
            raise DataError("the pages of this file are not numbered from 0 without a gap", where=base)
        base.parent.mkdir(parents=True, exist_ok=True)
        members = [gzip.compress(json.dumps(rows[i]).encode(), mtime=0) for i in range(len(rows))]
        positions = [0]
        for member in members:
            positions.append(positions[-1] + len(member))
        base.with_suffix(".json.gz").write_bytes(b"".join(members))
        base.with_suffix(".offset").write_text("".join(f"{position:010d}\n" for position in positions))
