"""Rewrite a checkpoint for the ranks that will load it, so that each of them reads its own files from end to end.

A checkpoint can be loaded into any layout as it is. Where many ranks load it often (evaluation, a job that restarts),
and were sharded differently when it was saved, each reads many small ranges; after this, one long one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.layout import dtype_named
from bloomery.checkpoint.manifest import Manifest, TensorMeta
from bloomery.checkpoint.offline import BATCH, Place, Reader, pieces_of, write
from bloomery.core.errors import CheckpointError
from bloomery.core.progress import Progress


def reshard(
    path: Place, out: Place, *, ranks: int = 1, axis: int = 0, overwrite: bool = False, quiet: bool = True
) -> Manifest:  # fmt: skip
    """Write the checkpoint `path` as `out`, cut for `ranks` ranks along `axis`, as FSDP2 and `torch.chunk` cut.

    Rank r's part of all tensors lies in `data/<r>-….bin`, in the order of the tensors; those without that axis go whole
    to the rank that has the least. One process does it, with a few hundred megabytes in memory; values, tied names
    and every bit of the tensors stay.

    Raises:
        CheckpointError: `ranks` below 1, a damaged source, an `out` that exists (unless `overwrite`).
    """
    if ranks < 1:
        raise CheckpointError(f"cannot be cut for {ranks} ranks", where=getattr(out, "path", out), fix="1 or more")
    reader = Reader(path)
    before = reader.manifest
    shares = _shares(before.tensors, ranks, axis)

    def parts() -> Iterator[tuple[int, str, Box, torch.Tensor]]:
        for rank, boxes in enumerate(shares):
            for name, box, data in reader.stream(boxes):
                shown.advance(data.nbytes)
                yield rank, name, box, data

    with Progress("reshard", before.nbytes, "bytes", quiet=quiet) as shown:
        return write(
            out, before.tensors, parts(), before.values, before.aliases, world=before.about["world"],
            overwrite=overwrite,
        )  # fmt: skip


def _shares(tensors: list[TensorMeta], ranks: int, axis: int) -> list[list[tuple[str, Box]]]:
    """The boxes of each rank, none larger than a batch."""
    shares: list[list[tuple[str, Box]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    undivided = []
    for meta in tensors:
        if len(meta.shape) <= axis or not meta.nbytes:
            undivided.append(meta)
            continue
        rows = -(-meta.shape[axis] // ranks)  # as torch.chunk: the last ranks may get fewer, or nothing
        for rank in range(ranks):
            begin, end = min(rank * rows, meta.shape[axis]), min((rank + 1) * rows, meta.shape[axis])
            if begin < end:
                part = TensorMeta(
                    meta.name, meta.dtype, (*meta.shape[:axis], end - begin, *meta.shape[axis + 1 :])
                )  # fmt: skip
                for name, box in pieces_of(part, BATCH):
                    start = tuple(a + (begin if i == axis else 0) for i, a in enumerate(box.start))
                    shares[rank].append((name, Box(start, box.size)))
                load[rank] += part.nbytes
    for meta in sorted(undivided, key=lambda meta: -meta.nbytes):
        rank = load.index(min(load))
        shares[rank] += pieces_of(meta, BATCH)
        load[rank] += max(meta.nbytes, dtype_named(meta.dtype).itemsize)
    return shares
