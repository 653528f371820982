"""The Parquet layout of OBELICS and MINT-1T-HTML: `texts`, `images`, `metadata`, `general_metadata`.

`texts` and `images` (addresses) are lists of equal length with exactly one value at every place; `metadata` is JSON, a
list with an object where there is an image; `general_metadata` is a JSON object about the document (`url`, and where it
was found). Both are plain strings in the file and keep their bytes on the way through this library: JSON as Python's
`json.dumps` writes it comes out as it went in. Row groups are small and no column is nested more than once, because
viewers of the published sets failed on both (mlfoundations/MINT-1T, dataset discussions).

The layout holds addresses, not images: bytes of image parts are not written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.core.errors import DataError
from bloomery.core.files import atomic_file
from bloomery.corpus.interleaved.parts import aligned, from_aligned, from_parts, parts_of
from bloomery.corpus.steps import DROP, drop_reasons

ROW_GROUP = 200  # documents
GENERAL = "general_metadata"  # key of a document's meta that holds the string as it was read
SCHEMA = pa.schema(
    [
        ("texts", pa.list_(pa.string())),
        ("images", pa.list_(pa.string())),
        ("metadata", pa.string()),
        (GENERAL, pa.string()),
    ]
)


class ObelicsWriter:
    """Writes documents in this layout to an open file; use in a `with`."""

    def __init__(self, file: Any) -> None:
        self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd")
        self._waiting: list[dict[str, Any]] = []

    def __enter__(self) -> ObelicsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._flush(1)
        self._writer.close()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add documents."""
        self._waiting += _rows(batch)
        self._flush(ROW_GROUP)

    def _flush(self, least: int) -> None:
        while len(self._waiting) >= least:
            rows, self._waiting = self._waiting[:ROW_GROUP], self._waiting[ROW_GROUP:]
            self._writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def write_obelics(path: Path | str, batches: Iterable[pa.RecordBatch]) -> int:
    """Write documents in this layout to one file, all of them or none; returns how many."""
    count = 0
    with atomic_file(path) as file, ObelicsWriter(file) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def is_obelics(path: Path | str) -> bool:
    """Whether a Parquet file has this layout."""
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):  # whoever reads it says what is wrong
        return False
    return "texts" in names and "images" in names and "parts" not in names


def read_obelics(path: Path | str) -> Iterator[pa.RecordBatch]:
    """Documents of a file in this layout; also one with further columns.

    A document whose lists do not fit together, or whose metadata is not JSON, is a row marked as an error.

    Raises:
        DataError: not a Parquet file, or without these columns.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in ("texts", "images") if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"no column {' and '.join(missing)}", where=path, fix="OBELICS' layout has both")
            columns = [name for name in SCHEMA.names if name in file.schema_arrow.names]
            for number, batch in enumerate(file.iter_batches(ROW_GROUP, columns=columns)):
                yield _documents(batch.to_pylist(), f"{Path(path).name}:{number * ROW_GROUP}")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read: {' '.join(str(error).split())}", where=path) from error


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    rows = []
    urls, metas = batch.column("url").to_pylist(), batch.column("meta").to_pylist()
    for parts, url, meta in zip(parts_of(batch), urls, metas, strict=True):
        texts, images, metadata = aligned(parts)
        known = dict(meta or [])
        general = known.get(GENERAL) or json.dumps({"url": url, **known})
        rows.append({"texts": texts, "images": images, "metadata": json.dumps(metadata), GENERAL: general})
    return rows


def _documents(rows: list[dict[str, Any]], where: str) -> pa.RecordBatch:
    documents, urls, metas, reasons = [], [], [], []
    for row in rows:
        general = row.get(GENERAL)
        try:
            metadata = json.loads(row["metadata"]) if row.get("metadata") else None
            described = json.loads(general) if general else {}
            if not isinstance(metadata, list | None) or not isinstance(described, dict):
                raise DataError("metadata is not a list, or general_metadata is not an object")
            parts, reason = from_aligned(row["texts"] or [], row["images"] or [], metadata), None
        except (ValueError, DataError) as error:
            parts, described = [], {}
            reason = f"error: {error.what}" if isinstance(error, DataError) else f"error: not JSON: {error}"
        documents.append(parts)
        urls.append(described.get("url") if isinstance(described.get("url"), str) else None)
        metas.append({GENERAL: general} if general else None)
        reasons.append(reason)
    batch = from_parts(documents, urls=urls, metas=metas)
    if any(reasons):
        return drop_reasons(batch, reasons)
    return batch.append_column(DROP, pa.nulls(batch.num_rows, pa.string()))
