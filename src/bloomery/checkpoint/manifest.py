"""What a checkpoint says of itself: `manifest.json` (tensors, values, files) and `chunks.arrow` (where every box is).

    step-00000400/
        manifest.json       written last; a folder without it is not a checkpoint
        chunks.arrow        one row a chunk: tensor, box, file, offset, length, checksum
        data/00000-0.bin    raw little-endian chunks, each aligned to 64 bytes, by the rank that wrote them

Nothing here is pickled and nothing depends on how the run that wrote it was sharded. Every byte is under a checksum:
chunks with their padding under xxh3-64 in the table, the table and the manifest's own content under the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import torch

from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.layout import dtype_named
from bloomery.core.errors import CheckpointError
from bloomery.core.hashing import hash64

FORMAT = 2
ALIGN = 64
MANIFEST, TABLE, DATA = "manifest.json", "chunks.arrow", "data"


@dataclass(frozen=True)
class TensorMeta:
    """A whole tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * dtype_named(self.dtype).itemsize


@dataclass
class Chunks:
    """A table with one row for each chunk, ordered by tensor. Boxes are padded to d axes of size one."""

    tensor: np.ndarray  # (n,) index into the tensors of the manifest
    start: np.ndarray  # (n, d)
    size: np.ndarray  # (n, d)
    nbytes: np.ndarray  # (n,) without padding
    file: np.ndarray  # (n,) index into the files
    offset: np.ndarray  # (n,) in the file
    checksum: np.ndarray  # (n,) uint64

    def __len__(self) -> int:
        return len(self.tensor)

    def of(self, tensor: int) -> slice:
        """The rows of one tensor."""
        return slice(*np.searchsorted(self.tensor, [tensor, tensor + 1]).tolist())

    def by_tensor(self) -> Chunks:
        """The same rows in the order of tensors."""
        order = np.lexsort((self.offset, self.file, self.tensor))
        return Chunks(**{name: column[order] for name, column in vars(self).items()})

    def box(self, row: int, ndim: int) -> Box:
        """The box of one chunk of a tensor with `ndim` axes."""
        return Box(tuple(self.start[row, :ndim].tolist()), tuple(self.size[row, :ndim].tolist()))


@dataclass
class Manifest:
    """One checkpoint."""

    tensors: list[TensorMeta]
    chunks: Chunks
    files: list[tuple[str, int]]  # name in the folder, bytes
    values: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)  # tied tensors: name -> the name it is stored under
    ranks: list[dict[str, float]] = field(default_factory=list)  # bytes and seconds of each writer
    about: dict[str, Any] = field(default_factory=dict)  # versions, time, world

    def __post_init__(self) -> None:
        self.index = {meta.name: i for i, meta in enumerate(self.tensors)}

    @cached_property
    def parts(self) -> list[str]:
        """Names of values that belong to one rank or one part (`PerRank`, `Rows`)."""
        return [name for name, value in self.values.items() if value["kind"] == "part"]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each once."""
        return sum(meta.nbytes for meta in self.tensors)

    def find(self, name: str) -> TensorMeta | None:
        """The tensor stored under `name`, tied ones under their other name."""
        at = self.index.get(self.aliases.get(name, name))
        return None if at is None else self.tensors[at]

    def equal(self, one: str, other: str) -> bool:
        """Whether two stored tensors are cut alike and all their chunks have the same checksums."""
        metas = self.find(one), self.find(other)
        if metas[0] is None or metas[1] is None or metas[0].nbytes != metas[1].nbytes:
            return False
        sides = []
        for meta in metas:
            rows = self.chunks.of(self.index[meta.name])  # type: ignore[union-attr]
            table = np.concatenate([self.chunks.start[rows], self.chunks.size[rows]], axis=1)
            order = np.lexsort(table.T)
            sides.append((table[order], self.chunks.checksum[rows][order]))
        return all(np.array_equal(a, b) for a, b in zip(*sides, strict=True))

    def dump(self) -> tuple[bytes, bytes]:
        """The bytes of `manifest.json` and of `chunks.arrow`."""
        table = _table_bytes(self.chunks)
        body = {
            "tensors": [[t.name, t.dtype, list(t.shape)] for t in self.tensors],
            "files": [list(file) for file in self.files],
            "chunks": {"rows": len(self.chunks), "bytes": len(table), "checksum": f"{hash64(table):016x}"},
            "aliases": self.aliases,
            "values": self.values,
            "ranks": self.ranks,
            "about": self.about,
        }
        text = json.dumps(body, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
        return _sealed(text), table


def _sealed(body: bytes) -> bytes:
    """JSON with its format and the digest of the very bytes of `body`."""
    seal = hashlib.blake2b(body, digest_size=16).hexdigest()
    return f'{{\n "format": {FORMAT},\n "digest": "{seal}",\n "body": '.encode() + body + b"\n}\n"


def parse(text: bytes, where: object) -> dict[str, Any]:
    """The content of `manifest.json`, or a `CheckpointError` that says why it is not to be trusted."""
    if text[:1] == b"\x80" or text[:2] == b"PK":
        raise CheckpointError("a pickle where manifest.json is expected: it is not opened", where=where)
    try:
        record = json.loads(text)
        version = record["format"]
        if version == 1:
            fix = "load it with the version that saved it, and save it anew"
            raise CheckpointError("format 1 is of bloomery's first training loop", where=where, fix=fix)
        if isinstance(version, int) and version > FORMAT:
            fix = "upgrade bloomery"
            raise CheckpointError(f"format {version} is newer than this library ({FORMAT})", where=where, fix=fix)
        body = record["body"]
        at = text.index(b'"body": ') + 8
        if text != _sealed(text[at:-3]):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise CheckpointError("damaged checkpoint: manifest.json is not as it was written", where=where) from None
    return dict(body)


def load_manifest(body: dict[str, Any], table: bytes, where: object) -> Manifest:
    """The manifest with its table of chunks. Checksums do not tell who made them: contradictions are refused too."""
    try:
        told = body["chunks"]
        if len(table) != told["bytes"] or f"{hash64(table):016x}" != told["checksum"]:
            raise CheckpointError(f"damaged checkpoint: {TABLE} does not match its checksum", where=where)
        tensors = [TensorMeta(str(name), str(dtype), tuple(map(int, shape))) for name, dtype, shape in body["tensors"]]
        files = [(str(name), int(size)) for name, size in body["files"]]
        for name, _ in files:
            if ".." in name.split("/") or name.startswith("/") or "\\" in name:
                raise CheckpointError(f"data file {name!r} lies outside the checkpoint", where=where)
        chunks = _chunks(table)
        if not _fits(chunks, tensors, files) or not all("kind" in value for value in body["values"].values()):
            raise ValueError
        return Manifest(
            tensors, chunks, files, body["values"], dict(body["aliases"]), body["ranks"], dict(body["about"])
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException):
        raise CheckpointError("not a checkpoint of bloomery: its manifest contradicts itself", where=where) from None


def _fits(chunks: Chunks, tensors: list[TensorMeta], files: list[tuple[str, int]]) -> bool:
    """Whether every chunk is of a tensor, of the length of its box, and inside a file."""
    if not len(chunks):
        return True
    known = all(0 <= column.min() <= column.max() < n for column, n in (
        (chunks.tensor, len(tensors)), (chunks.file, len(files)))
    )  # fmt: skip
    if not known or (chunks.size < 1).any() or (chunks.start < 0).any() or (np.diff(chunks.tensor) < 0).any():
        return False
    widths = np.array([getattr(getattr(torch, meta.dtype, None), "itemsize", 0) for meta in tensors])[chunks.tensor]
    whole = (widths == 0) | (chunks.nbytes == chunks.size.prod(axis=1) * widths)  # 0: a dtype of a newer PyTorch
    end = np.array([size for _, size in files])[chunks.file]
    inside = (chunks.offset >= 0) & (chunks.offset % ALIGN == 0) & (chunks.offset + padded(chunks.nbytes) <= end)
    return bool((whole & inside).all())


def padded(nbytes: np.ndarray | int) -> Any:
    """Bytes of a chunk in its file."""
    return -(-nbytes // ALIGN) * ALIGN


def spans(chunks: Chunks, rows: np.ndarray, most: int, gap: int) -> Iterator[np.ndarray]:
    """Rows grouped into ranges of one file to be read at once: at most `most` bytes, with holes of at most `gap`."""
    rows = rows[np.lexsort((chunks.offset[rows], chunks.file[rows]))]
    group: list[int] = []
    begin = end = 0
    for row in rows.tolist():
        at, length = int(chunks.offset[row]), int(padded(int(chunks.nbytes[row])))
        fits = group and chunks.file[row] == chunks.file[group[0]] and at - end <= gap and at + length - begin <= most
        if not fits:
            if group:
                yield np.array(group)
            group, begin = [], at
        group.append(row)
        end = at + length
    if group:
        yield np.array(group)


def _table_bytes(chunks: Chunks) -> bytes:
    d = chunks.start.shape[1]
    boxes = [
        pa.FixedSizeListArray.from_arrays(pa.array(a.reshape(-1)), max(d, 1))
        for a in (_wide(chunks.start, 0), _wide(chunks.size, 1))
    ]
    columns = [
        pa.array(chunks.tensor.astype(np.int32)),
        *boxes,
        *(pa.array(a) for a in (chunks.nbytes, chunks.file.astype(np.int32), chunks.offset, chunks.checksum)),
    ]
    batch = pa.record_batch(columns, names=["tensor", "start", "size", "nbytes", "file", "offset", "checksum"])
    sink = io.BytesIO()
    with ipc.new_file(sink, batch.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _wide(boxes: np.ndarray, fill: int) -> np.ndarray:
    return boxes if boxes.shape[1] else np.full((len(boxes), 1), fill, dtype=np.int64)


def _chunks(table: bytes) -> Chunks:
    read = ipc.open_file(pa.BufferReader(table)).read_all()
    column = {name: read.column(name).combine_chunks() for name in read.column_names}
    flat = {name: column[name].flatten().to_numpy(zero_copy_only=False) for name in ("start", "size")}
    d = read.schema.field("start").type.list_size
    return Chunks(
        column["tensor"].to_numpy(),
        flat["start"].reshape(-1, d),
        flat["size"].reshape(-1, d),
        *(column[name].to_numpy() for name in ("nbytes", "file", "offset", "checksum")),
    )
