"""Documents out: Parquet (the default) or JSON lines, plain or compressed; with images also the layouts of OBELICS and
MINT-1T (`interleaved.obelics_parquet`, `interleaved.webdataset`). The file's suffix says which.

Equal documents give equal bytes: no file holds a time or a name of the machine.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.core.errors import DataError
from bloomery.corpus.documents import texts
from bloomery.corpus.interleaved.obelics_parquet import ObelicsWriter
from bloomery.corpus.interleaved.webdataset import WebDatasetWriter

LAYOUTS = ("obelics.parquet", "tar")  # of published sets: columns of ours, and with OBELICS ids, have no place there
FORMATS = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst", *LAYOUTS)
ROW_GROUP_DOCUMENTS = 10_000
ROW_GROUP_BYTES = 64 << 20
GZIP_LEVEL = 6


class ParquetWriter:
    """Parquet with row groups of a useful size, however small the surviving batches are."""

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._schema, self._waiting = schema, list[pa.RecordBatch]()
        self._rows = self._bytes = 0
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._flush()
            self._writer.close()
        else:
            with suppress(Exception):  # the file is about to be thrown away
                self._writer.close()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add documents with the writer's schema."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= ROW_GROUP_DOCUMENTS or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting = []
        self._rows = self._bytes = 0


class JsonLinesWriter:
    """One object a line: id, url, text, meta, then the columns that steps added; what is null is left out.

    Raises:
        DataError: a document has an image, which a line of text cannot hold.
    """

    def __init__(self, file: IO[bytes], suffix: str) -> None:
        self._stack = ExitStack()
        if suffix.endswith(".gz"):
            packed = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0)  # no name, no time: equal bytes
            self._file: Any = self._stack.enter_context(packed)
        elif suffix.endswith(".zst"):
            self._file = self._stack.enter_context(pa.CompressedOutputStream(_Unclosed(file), "zstd"))
        else:
            self._file = file

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add documents."""
        self._file.write("".join(f"{line}\n" for line in _lines(batch)).encode("utf-8", "replace"))


def writer(
    path: Path, file: IO[bytes], schema: pa.Schema
) -> ParquetWriter | JsonLinesWriter | ObelicsWriter | WebDatasetWriter:
    """The writer for a file of this name."""
    if path.name.endswith(".obelics.parquet"):
        return ObelicsWriter(file)
    if path.suffix == ".tar":
        return WebDatasetWriter(file)
    return ParquetWriter(file, schema) if path.suffix == ".parquet" else JsonLinesWriter(file, path.name)


def _lines(batch: pa.RecordBatch) -> Iterator[str]:
    kinds = pc.struct_field(batch.column("parts").flatten(), "kind")
    if pc.any(pc.not_equal(kinds, "text"), min_count=0).as_py():
        raise DataError("JSON lines hold text only, and a document has an image", fix="write Parquet instead")
    columns: dict[str, list[Any]] = {
        "id": batch.column("id").to_pylist(),
        "url": batch.column("url").to_pylist(),
        "text": texts(batch).to_pylist(),
        "meta": [None if meta is None else dict(meta) for meta in batch.column("meta").to_pylist()],
    }
    for name in batch.schema.names:
        if name not in ("parts", *columns):
            columns[name] = [_plain(value) for value in batch.column(name).to_pylist()]
    for row in zip(*columns.values(), strict=True):
        values = {name: value for name, value in zip(columns, row, strict=True) if value is not None}
        yield json.dumps(values, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """JSON has no number for infinity and none for what is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Unclosed:
    """A file that Arrow may write to but not close: whoever opened it has still to flush it to disk."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.flush()
