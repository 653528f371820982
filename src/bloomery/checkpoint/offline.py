"""Checkpoints read and written by one process, a few boxes at a time: what import, export, reshard and diff share.

Memory stays at a batch of boxes, whatever the size of the checkpoint. What is written appears whole or not at all, as
with `save`, and must tile every tensor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

import bloomery
from bloomery.checkpoint.boxes import Box, split, whole
from bloomery.checkpoint.comm import Comm
from bloomery.checkpoint.layout import Shard, Shards, dtype_named, row_bytes
from bloomery.checkpoint.loading import read_manifest, read_tensors
from bloomery.checkpoint.manifest import DATA, TABLE, Chunks, Manifest, TensorMeta, padded
from bloomery.checkpoint.planner import CHUNK_BYTES, FILE_BYTES, check_cover
from bloomery.checkpoint.storage import Storage, storage, write_all
from bloomery.core.errors import CheckpointError

BATCH = 64 << 20  # bytes of boxes that are read at once

Place = str | os.PathLike[str] | Storage


class Reader:
    """Parts of a checkpoint, checked against their checksums."""

    def __init__(self, path: Place) -> None:
        self.to = storage(path) if isinstance(path, str | os.PathLike) else path
        self.manifest = read_manifest(self.to)
        self._alone = Comm(alone=True)

    def read(self, name: str, box: Box | None = None) -> torch.Tensor:
        """One tensor, or the part of it in `box`."""
        return self.boxes([(name, whole(self.meta(name).shape) if box is None else box)])[0]

    def boxes(self, wanted: Sequence[tuple[str, Box]]) -> list[torch.Tensor]:
        """The tensors of some boxes, which may be of one tensor or of several."""
        parts: dict[str, list[Shard]] = {}
        found = []
        for name, box in wanted:
            meta = self.meta(name)
            found.append(torch.empty(box.size, dtype=dtype_named(meta.dtype)))
            parts.setdefault(name, []).append(Shard(found[-1], box.start, meta.shape))
        read_tensors(self.to, self.manifest, {name: Shards(shards) for name, shards in parts.items()}, self._alone)
        return found

    def stream(self, wanted: Iterable[tuple[str, Box]]) -> Iterator[tuple[str, Box, torch.Tensor]]:
        """The boxes in this order, some tens of megabytes read at once."""
        batch: list[tuple[str, Box]] = []
        size = 0
        for name, box in wanted:
            nbytes = box.volume * dtype_named(self.meta(name).dtype).itemsize
            if batch and size + nbytes > BATCH:
                yield from zip(*zip(*batch, strict=True), self.boxes(batch), strict=True)
                batch, size = [], 0
            batch.append((name, box))
            size += nbytes
        if batch:
            yield from zip(*zip(*batch, strict=True), self.boxes(batch), strict=True)

    def meta(self, name: str) -> TensorMeta:
        """What is known of a tensor, tied ones under any of their names."""
        meta = self.manifest.find(name)
        if meta is None:
            raise CheckpointError(f"holds no tensor {name!r}", where=self.to.path)
        return meta


def pieces_of(meta: TensorMeta, limit: int = BATCH) -> Iterator[tuple[str, Box]]:
    """A tensor as boxes of at most `limit` bytes, in row-major order; none of an empty one."""
    if meta.nbytes:
        for box in split(whole(meta.shape), max(1, limit // dtype_named(meta.dtype).itemsize)):
            yield meta.name, box


def write(
    path: Place, tensors: Sequence[TensorMeta], parts: Iterable[tuple[int, str, Box, torch.Tensor]],
    values: Mapping[str, Any], aliases: Mapping[str, str], *, world: int = 1, overwrite: bool = False,
) -> Manifest:  # fmt: skip
    """Write a checkpoint of `tensors` from a stream of (rank, name, box, data).

    Parts that come one after the other lie so in the files of that rank; ranks must not come back. A box may be of any
    size and is cut into chunks.

    Raises:
        CheckpointError: boxes that overlap or do not cover a tensor, data of another shape or dtype than promised.
    """
    to = storage(path) if isinstance(path, str | os.PathLike) else path
    draft = to.begin(overwrite)
    try:
        rows, files, ranks = _written(to, draft, {meta.name: i for i, meta in enumerate(tensors)}, tensors, parts)
        chunks = _table(rows, max((len(meta.shape) for meta in tensors), default=0))
        check_cover(list(tensors), chunks.tensor, chunks.start, chunks.size)
        about = {
            "bloomery": bloomery.__version__, "torch": torch.__version__, "world": world,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        manifest = Manifest(list(tensors), chunks, files, dict(values), dict(aliases), ranks, about)
        text, table = manifest.dump()
        with to.create(draft, TABLE) as file:
            write_all(file, memoryview(table))
        to.commit(draft, text, overwrite)
    except BaseException:
        to.abort(draft)
        raise
    return manifest


def _written(
    to: Storage, draft: str, numbers: Mapping[str, int], tensors: Sequence[TensorMeta],
    parts: Iterable[tuple[int, str, Box, torch.Tensor]],
) -> tuple[list[tuple[int, Box, int, int, int, int]], list[tuple[str, int]], list[dict[str, float]]]:  # fmt: skip
    """Write the data files: chunks as (tensor, box, bytes, file, offset, checksum), files, and what each rank has."""
    rows: list[tuple[int, Box, int, int, int, int]] = []
    files: list[tuple[str, int]] = []
    ranks: dict[int, dict[str, float]] = {}
    opened: dict[int, int] = {}  # rank -> files so far
    file, size, clock = None, 0, time.perf_counter()
    try:
        for rank, name, box, data in parts:
            if rank not in ranks or size >= FILE_BYTES:
                if file is not None:
                    file.__exit__(None, None, None)
                    files[-1] = (files[-1][0], size)
                files.append((f"{DATA}/{rank:05d}-{opened.setdefault(rank, 0)}.bin", 0))
                opened[rank] += 1
                file, size = to.create(draft, files[-1][0]), 0
                file.__enter__()
                told = ranks.setdefault(rank, {"bytes": 0, "write": 0.0})
            meta = tensors[numbers[name]]
            if data.dtype != dtype_named(meta.dtype) or tuple(data.shape) != box.size:
                found = f"{list(data.shape)} {data.dtype}"
                raise CheckpointError(f"{name} {box} should be {meta.dtype}, and its data is {found}", where=to.path)
            assert file is not None
            for chunk in split(box, max(1, CHUNK_BYTES // data.element_size())):
                content = row_bytes(data[chunk.within(box)].detach()).data
                check = xxhash.xxh3_64(content)
                padding = bytes(padded(len(content)) - len(content))
                check.update(padding)
                write_all(file, content)
                write_all(file, memoryview(padding))
                rows.append((numbers[name], chunk, len(content), len(files) - 1, size, check.intdigest()))
                size += len(content) + len(padding)
                told["bytes"] += len(content) + len(padding)
            now = time.perf_counter()
            told["write"], clock = round(told["write"] + now - clock, 6), now
        if file is not None:
            file.__exit__(None, None, None)
            files[-1] = (files[-1][0], size)
    except BaseException as error:
        if file is not None:
            file.__exit__(type(error), error, error.__traceback__)
        raise
    return rows, files, [ranks[rank] for rank in sorted(ranks)]


def _table(rows: Sequence[tuple[int, Box, int, int, int, int]], d: int) -> Chunks:
    start, size = np.zeros((len(rows), d), np.int64), np.ones((len(rows), d), np.int64)
    for i, (_, box, *_) in enumerate(rows):
        start[i, : len(box.start)], size[i, : len(box.size)] = box.start, box.size
    tensor, nbytes, file, offset = (np.array([row[i] for row in rows], np.int64) for i in (0, 2, 3, 4))
    checksum = np.array([row[5] for row in rows], np.uint64)
    return Chunks(tensor, start, size, nbytes, file, offset, checksum).by_tensor()


def local_folder(path: Place, what: str) -> Path:
    """A path that must be a folder of this machine."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path.path
    if "://" in text:
        raise CheckpointError(f"{what} is read and written as a local folder", where=text, fix="copy it here first")
    return Path(text)
