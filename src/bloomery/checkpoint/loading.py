"""Load: the manifest once, plans by intersection, every chunk from the disk once, pieces to the ranks that want them.

    read manifest    the first rank reads it, the others are told
    match            what each rank wants; one readable list of all that does not fit
    plan             chunks that meet a wanted box; each is read by one of the ranks that want it, spread by bytes
    rounds           read a window of chunks in large ranges, check, keep one's own part, exchange the rest

Reading costs the bytes of the state once, however many replicas want them (ByteCheckpoint, §4.1 "eliminating redundant
loading"); the next window is read while the last one is exchanged. A chunk counts only once its checksum agrees.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import xxhash

from bloomery.checkpoint.boxes import Box, overlaps
from bloomery.checkpoint.comm import Comm, Room, comm
from bloomery.checkpoint.layout import Piece, Tensorlike, bits, dtype_named, lazy, pieces, row_bytes
from bloomery.checkpoint.manifest import MANIFEST, TABLE, Chunks, Manifest, load_manifest, padded, parse, spans
from bloomery.checkpoint.planner import widened
from bloomery.checkpoint.saving import explained, finish
from bloomery.checkpoint.state import Wanted, want
from bloomery.checkpoint.storage import Storage, storage
from bloomery.core.errors import CheckpointError, StorageError, nearest
from bloomery.core.progress import Progress

WINDOW = 4 << 20, 64 << 20  # bytes that a rank reads before it exchanges: 1/64 of its share within these bounds
EXCHANGE = 16 << 20  # bytes that others want, at which ranks meet
KEPT = 256 << 20  # bytes of windows that parts for others may keep in memory until then
READERS = 2  # windows that are read and checked at once
BLOCK = 4 << 20  # bytes of neighbouring chunks that one rank reads for several
GAP = 64 << 10  # a hole this small between two chunks is read along
EVEN = 16  # bytes that parts of a buffer or a message are multiples of, so that any dtype is aligned in them
LARGE = 256 << 10  # a part this large is sent by itself, from where it is to where it belongs
SHOWN = 12  # differences in a message


@dataclass
class LoadReport:
    """What a load did, on this rank."""

    missing: list[str] = field(default_factory=list)  # in the state, not in the checkpoint; untouched
    unexpected: list[str] = field(default_factory=list)  # in the checkpoint, wanted by no rank
    cast: list[str] = field(default_factory=list)
    bytes_read: int = 0  # from the storage
    bytes_received: int = 0  # from other ranks
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Target:
    """A piece of memory to fill and the dtype that its bytes have in the checkpoint."""

    piece: Piece
    dtype: torch.dtype


@dataclass
class _Plan:
    """What this rank wants: parallel columns, ordered by chunk; a row is where one chunk meets one target."""

    chunk: np.ndarray
    target: np.ndarray
    start: np.ndarray  # (n, d) of the intersection, in the coordinates of the tensor
    size: np.ndarray


def load(
    path: str | os.PathLike[str] | Storage, state: MutableMapping[str, Any], *, strict: bool = True, cast: bool = False,
    group: Any = None,
) -> LoadReport:  # fmt: skip
    """Fill `state` in place from the checkpoint `path`, whatever layout it was saved from.

    Every rank of `group` passes its part of the state, in its own layout. Plain values are replaced in `state`. With
    `strict`, the checkpoint must hold all that is asked for, and nothing else under the keys of `state`; shapes must
    always agree, dtypes unless `cast`. All that does not fit is found before anything is changed.

    Raises:
        CheckpointError: not a checkpoint, one of another model (the differences are listed), or a damaged one (the
            chunk is named; then some tensors may have been filled).
        StorageError: it cannot be read.
    """
    finish()
    to = storage(path) if isinstance(path, str | os.PathLike) else path
    ranks, clock = comm(group), time.perf_counter()
    manifest = shared_manifest(to, ranks)
    wanted, failed = Wanted(), None
    try:
        wanted = want(state, manifest, ranks.rank, ranks.world, cast)
    except Exception as error:
        failed = error
    ranks.agree(failed)
    report = _compared(wanted, list(state), manifest, ranks, strict, to)
    report.seconds["plan"] = time.perf_counter() - clock
    read_tensors(to, manifest, wanted.tensors, ranks, report)
    for action in wanted.finish:
        action()
    report.seconds["all"] = time.perf_counter() - clock
    return report


def read_manifest(to: Storage) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of a newer version.
    """
    return load_manifest(parse(_file(to, MANIFEST), to.path), _file(to, TABLE), to.path)


def shared_manifest(to: Storage, ranks: Comm) -> Manifest:
    """The manifest on every rank, read by the first."""
    both, failed = b"", None
    if ranks.rank == 0:
        try:
            text, table = _file(to, MANIFEST), _file(to, TABLE)
            load_manifest(parse(text, to.path), table, to.path)
            both = len(text).to_bytes(8, "little") + text + table
        except Exception as error:
            failed = error
    ranks.agree(failed)
    both = ranks.broadcast(both)
    end = 8 + int.from_bytes(both[:8], "little")
    return load_manifest(parse(both[8:end], to.path), both[end:], to.path)


def verify(path: str | os.PathLike[str] | Storage, *, quiet: bool = True) -> Manifest:
    """Read every byte of a checkpoint and compare it with its checksum.

    Raises:
        CheckpointError: names the first damaged chunk by tensor, box, file and offset.
    """
    to = storage(path) if isinstance(path, str | os.PathLike) else path
    manifest = read_manifest(to)
    chunks = manifest.chunks
    end = [0] * len(manifest.files)
    with Progress("verify", sum(size for _, size in manifest.files), "bytes", quiet=quiet) as shown:
        for rows in spans(chunks, np.arange(len(chunks)), WINDOW[1], 0):
            _read_window(to, manifest, rows, {})
            begin, length = _extent(chunks, rows)
            if end[int(chunks.file[rows[0]])] != begin:
                raise CheckpointError("damaged checkpoint: chunks do not follow each other", where=to.path)
            end[int(chunks.file[rows[0]])] = begin + length
            shown.advance(length)
    for number, (name, size) in enumerate(manifest.files):
        if end[number] != size:
            raise CheckpointError(
                f"damaged checkpoint: {name} is {size} bytes, its chunks {end[number]}", where=to.path
            )
    return manifest


def _file(to: Storage, name: str) -> bytes:
    try:
        return to.read(name)
    except (FileNotFoundError, NotADirectoryError):
        if name == MANIFEST:
            fix = "an incomplete save or copy, or not a checkpoint of bloomery"
            raise CheckpointError(
                "not a complete checkpoint: it has no manifest.json", where=to.path, fix=fix
            ) from None
        raise CheckpointError(f"damaged checkpoint: {name} is missing", where=to.path) from None
    except OSError as error:
        raise StorageError(f"cannot be read: {error}", where=to.path) from error


# ----------------------------------------------------------------------------------------------------------- matching


def _compared(
    wanted: Wanted, keys: list[str], manifest: Manifest, ranks: Comm, strict: bool, to: Storage
) -> LoadReport:
    """All ranks' differences; raises on all of them."""
    told = json.dumps([wanted.missing, wanted.wrong, wanted.ties, sorted(wanted.claimed), keys]).encode()
    gathered, answer = ranks.gather(told), b""
    if gathered is not None:
        everyone = [json.loads(message) for message in gathered]
        claimed = {name for *_, names, _ in everyone for name in names}
        asked = {key for *_, keys in everyone for key in keys}  # the rest of a checkpoint is nobody's business
        held = [
            *manifest.index,
            *(n for n, v in manifest.values.items() if v["kind"] not in ("same", "part", "subclass")),
        ]
        unexpected = sorted({name for name in held if name not in claimed and name.partition("/")[0] in asked})
        answer = json.dumps([*(_union(e[i] for e in everyone) for i in range(3)), unexpected]).encode()
    missing, wrong, ties, unexpected = json.loads(ranks.broadcast(answer))
    differences = list(wrong)
    if strict:
        known = [*manifest.index, *manifest.values]
        differences += [
            f"missing {name}" + (f" ({nearest(name, known)})" if number < 3 and known else "")
            for number, name in enumerate(missing)
        ]
        differences += ties + [f"unexpected {name}" for name in unexpected]
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        fix = "strict=False loads what both have" if strict and not wrong else ""
        text = f"this checkpoint is of another model: {'; '.join(differences[:SHOWN])}{more}"
        raise CheckpointError(text, where=to.path, fix=fix)
    return LoadReport(wanted.missing, unexpected, wanted.cast)


def _union(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


# ------------------------------------------------------------------------------------------------------------ reading


def read_tensors(
    to: Storage, manifest: Manifest, tensors: Mapping[str, Tensorlike], ranks: Comm, report: LoadReport | None = None
) -> None:
    """Fill this rank's `tensors` (by their names in the checkpoint, tied ones too); every rank calls this."""
    report = LoadReport() if report is None else report
    targets: list[_Target] = []
    plan, failed = None, None
    try:
        plan = _plan(manifest, tensors, targets)
    except Exception as error:
        failed = error
    ranks.agree(failed)
    assert plan is not None
    owner = _owners(manifest, plan, ranks)
    requests = _requests(plan, owner, ranks)
    _rounds(to, manifest, plan, targets, owner, requests, ranks, report)


def _plan(manifest: Manifest, tensors: Mapping[str, Tensorlike], targets: list[_Target]) -> _Plan:
    chunks = manifest.chunks
    columns: list[tuple[np.ndarray, ...]] = []
    d = chunks.start.shape[1]
    for name, value in tensors.items():
        meta = manifest.find(name)
        assert meta is not None
        at, ndim = chunks.of(manifest.index[meta.name]), len(meta.shape)
        starts, sizes = chunks.start[at, :ndim], chunks.size[at, :ndim]
        for piece in pieces(value, name):
            hit, start, size = overlaps(starts, sizes, piece.box)
            if int(size.prod(axis=1).sum()) != piece.box.volume:
                raise CheckpointError(
                    f"damaged checkpoint: {meta.name} is not stored as a whole: {piece.box} has holes"
                )
            number = np.full(len(hit), len(targets))
            columns.append((hit + at.start, number, widened(start, d, 0), widened(size, d, 1)))
            targets.append(_Target(piece, dtype_named(meta.dtype)))
    empty = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, d), np.int64), np.zeros((0, d), np.int64)
    chunk, target, start, size = (np.concatenate(c) for c in zip(empty, *columns, strict=True))
    order = np.argsort(chunk, kind="stable")
    return _Plan(chunk[order], target[order], start[order], size[order])


def _owners(manifest: Manifest, plan: _Plan, ranks: Comm) -> np.ndarray:
    """The rank that reads each chunk, -1 where nobody wants it: every rank comes to the same answer."""
    wanted = np.zeros(len(manifest.chunks), bool)
    wanted[plan.chunk] = True
    if ranks.world == 1:
        return np.where(wanted, 0, -1)
    gathered = ranks.gather(np.packbits(wanted).tobytes())
    masks = ranks.broadcast(None if gathered is None else b"".join(gathered))
    rows = np.frombuffer(masks, np.uint8).reshape(ranks.world, -1)
    holds = np.unpackbits(rows, axis=1, count=len(wanted)).astype(bool)  # (world, chunks)
    holders = holds.sum(axis=0)
    owner = np.where(holders > 0, holds.argmax(axis=0), -1)
    nbytes = manifest.chunks.nbytes
    load = np.bincount(owner[holders == 1], nbytes[holders == 1], ranks.world)
    shared = np.flatnonzero(holders > 1)
    runs = _neighbours(manifest.chunks, shared, holds, ranks.world)
    sums = np.array([nbytes[run].sum() for run in runs])
    for number in np.argsort(-sums, kind="stable").tolist():
        candidates = np.flatnonzero(holds[:, runs[number][0]])
        best = candidates[load[candidates].argmin()]
        owner[runs[number]] = best
        load[best] += sums[number]
    return owner


def _neighbours(chunks: Chunks, shared: np.ndarray, holds: np.ndarray, world: int) -> list[np.ndarray]:
    """Chunks that several ranks want, in runs that lie together in a file and are wanted by the same ranks."""
    if not len(shared):
        return []
    shared = shared[np.lexsort((chunks.offset[shared], chunks.file[shared]))]
    wanted = np.packbits(holds[:, shared], axis=0)
    changes = (np.diff(chunks.file[shared]) != 0) | (np.diff(wanted, axis=1) != 0).any(axis=0)
    length = np.cumsum(chunks.nbytes[shared])
    block = length // max(1, min(BLOCK, int(length[-1]) // (16 * world)))
    return np.split(shared, np.flatnonzero(changes | (np.diff(block) != 0)) + 1)


def _requests(plan: _Plan, owner: np.ndarray, ranks: Comm) -> list[np.ndarray]:
    """For each other rank, the rows (chunk, start, size) that it wants of the chunks that this rank reads."""
    d = plan.start.shape[1]
    table = np.concatenate([plan.chunk[:, None], plan.start, plan.size], axis=1).astype(np.int64)
    holder = owner[plan.chunk]
    outgoing = [table[holder == r] if r != ranks.rank else table[:0] for r in range(ranks.world)]
    received = ranks.exchange([[np.ascontiguousarray(rows).view(np.uint8).reshape(-1)] for rows in outgoing])
    return [np.frombuffer(part.tobytes(), np.int64).reshape(-1, 1 + 2 * d) for part in received]


def _rounds(
    to: Storage, manifest: Manifest, plan: _Plan, targets: list[_Target], owner: np.ndarray,
    requests: list[np.ndarray], ranks: Comm, report: LoadReport,
) -> None:  # fmt: skip
    """Read windows of this rank's chunks, fill its own targets from them, and exchange what others want of them."""
    chunks = manifest.chunks
    mine = np.flatnonzero(owner == ranks.rank)
    window = int(np.clip(chunks.nbytes[mine].sum() // 64, *WINDOW))
    windows = list(spans(chunks, mine, window, GAP))
    batches = _batches(chunks, windows, requests)
    rounds, room = ranks.extremes(len(batches))[1], Room()
    wanted = [np.flatnonzero(owner[plan.chunk] == sender) for sender in range(ranks.world)]

    with ThreadPoolExecutor(READERS) as readers:

        def work(rows: np.ndarray) -> dict[int, memoryview]:
            in_place = _in_place(manifest, plan, targets, rows)
            views = _read_window(to, manifest, rows, in_place)
            _fill_own(manifest, plan, targets, views, in_place)
            return views

        ahead = deque(readers.submit(work, rows) for rows in windows[:READERS])
        following = iter(windows[READERS:])
        for batch in [*batches, *[[]] * (rounds - len(batches))]:
            failed: BaseException | None = None
            outgoing: list[list[np.ndarray]] = [[] for _ in range(ranks.world)]
            large: list[list[np.ndarray]] = [[] for _ in range(ranks.world)]
            try:
                for rows in batch:
                    views = ahead.popleft().result()
                    ahead += [readers.submit(work, more) for more in islice(following, 1)]
                    report.bytes_read += _extent(chunks, rows)[1]
                    for rank, asked in enumerate(requests):
                        joined, alone = _cut_out(manifest, asked, views)
                        outgoing[rank] += joined
                        large[rank] += alone
            except Exception as error:
                failed = error
            ranks.agree(explained(failed, to.path))
            if ranks.world > 1:
                incoming: list[list[np.ndarray]] = [[] for _ in range(ranks.world)]
                fills: list[Callable[[], None]] = []
                for sender, content in enumerate(ranks.exchange(outgoing, room)):
                    incoming[sender], later = _take(manifest, plan, targets, wanted[sender], content)
                    fills += later
                    report.bytes_received += len(content) + sum(map(len, incoming[sender]))
                ranks.transfer(large, incoming)
                for fill in fills:
                    fill()


def _batches(chunks: Chunks, windows: list[np.ndarray], requests: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Windows between two exchanges: until others want `EXCHANGE` bytes of them, or something of `KEPT` bytes."""
    asked, d = np.zeros(len(chunks), np.int64), chunks.start.shape[1]
    width = chunks.nbytes // np.maximum(chunks.size.prod(axis=1), 1)
    for rows in requests:
        np.add.at(asked, rows[:, 0], rows[:, d + 1 :].prod(axis=1) * width[rows[:, 0]])
    batches: list[list[np.ndarray]] = [[]]
    held = kept = 0
    for window in windows:
        batches[-1].append(window)
        held += int(asked[window].sum())
        kept += _extent(chunks, window)[1]
        if held >= EXCHANGE or (held and kept >= KEPT):
            batches.append([])
            held = kept = 0
    return [batch for batch in batches if batch]


def _extent(chunks: Chunks, rows: np.ndarray) -> tuple[int, int]:
    """Where a window begins in its file, and its bytes."""
    begin = int(chunks.offset[rows].min())
    return begin, int((chunks.offset[rows] + padded(chunks.nbytes[rows])).max()) - begin


def _in_place(manifest: Manifest, plan: _Plan, targets: list[_Target], rows: np.ndarray) -> dict[int, memoryview]:
    """Chunks that one target takes as they are, with the memory where they belong: read without a copy."""
    found = {}
    low, high = np.searchsorted(plan.chunk, rows), np.searchsorted(plan.chunk, rows, side="right")
    for row, a, b in zip(rows.tolist(), low.tolist(), high.tolist(), strict=True):
        if b - a == 1:
            size = plan.size[a]
            if (size == manifest.chunks.size[row]).all():
                target = targets[plan.target[a]]
                memory = _memory(target, _part(plan.start[a], size, target.piece.data.ndim))
                if memory is not None:
                    found[row] = memory.data
    return found


def _read_window(
    to: Storage, manifest: Manifest, rows: np.ndarray, in_place: Mapping[int, memoryview]
) -> dict[int, memoryview]:
    """Read and check the chunks `rows`, which lie close together in one file: the bytes of each."""
    chunks = manifest.chunks
    begin, length = _extent(chunks, rows)
    name, size = manifest.files[int(chunks.file[rows[0]])]
    scratch = memoryview(bytearray(length - sum(map(len, in_place.values())) + 2 * EVEN * len(rows)))

    def take(count: int) -> memoryview:
        nonlocal scratch
        taken, scratch = scratch[:count], scratch[count + -count % EVEN :]
        return taken

    views: dict[int, tuple[memoryview, memoryview]] = {}  # a chunk and its padding
    buffers, at = [], begin
    for row in rows.tolist():  # in the order of the file
        offset, nbytes = int(chunks.offset[row]), int(chunks.nbytes[row])
        gap = take(offset - at)
        views[row] = in_place[row] if row in in_place else take(nbytes), take(int(padded(nbytes)) - nbytes)
        buffers += [gap, *views[row]]
        at = offset + int(padded(nbytes))
    try:
        count = to.read_into(name, begin, [buffer for buffer in buffers if len(buffer)])
    except FileNotFoundError:
        raise CheckpointError(f"damaged checkpoint: {name} is missing", where=to.path) from None
    except OSError as error:
        raise StorageError(f"{name} cannot be read: {error}", where=to.path) from error
    if count < length:
        what = f"damaged checkpoint: {name} ends at {begin + count} of {size} bytes"
        raise CheckpointError(what, where=to.path)
    for row, (data, padding) in views.items():
        check = xxhash.xxh3_64(data)
        check.update(padding)
        if check.intdigest() != int(chunks.checksum[row]):
            meta = manifest.tensors[int(chunks.tensor[row])]
            where = f"{meta.name} {chunks.box(row, len(meta.shape))} in {name} at byte {int(chunks.offset[row])}"
            raise CheckpointError(f"damaged checkpoint: {where} does not match its checksum", where=to.path)
    return {row: data for row, (data, _) in views.items()}


def _stored(manifest: Manifest, row: int, data: memoryview) -> tuple[Box, torch.Tensor]:
    """A chunk that has been read: its box, and its elements as integers in that shape."""
    meta = manifest.tensors[int(manifest.chunks.tensor[row])]
    box = manifest.chunks.box(row, len(meta.shape))
    return box, _elements(data, meta.dtype).view(box.size)


def _elements(data: memoryview | np.ndarray, dtype: str) -> torch.Tensor:
    kind = dtype_named(dtype)
    width = kind.itemsize
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(width, kind)
    return torch.frombuffer(data, dtype=integer)


def _fill_own(
    manifest: Manifest, plan: _Plan, targets: list[_Target], views: Mapping[int, memoryview], done: Collection[int]
) -> None:
    """Copy the parts of a window that this rank wants itself; chunks in `done` are where they belong."""
    rows = np.array([row for row in views if row not in done], np.int64)
    low, high = np.searchsorted(plan.chunk, rows), np.searchsorted(plan.chunk, rows, side="right")
    for row, a, b in zip(rows.tolist(), low.tolist(), high.tolist(), strict=True):
        if a < b:
            box, stored = _stored(manifest, row, views[row])
            for i in range(a, b):
                part = _part(plan.start[i], plan.size[i], len(box.start))
                _fill(targets[plan.target[i]], part, stored[part.within(box)])


def _cut_out(
    manifest: Manifest, asked: np.ndarray, views: Mapping[int, memoryview]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What another rank `asked` for of a window: a message with the small parts, and the large ones by themselves.

    The message begins with the number of parts and which requests they answer; the complement (~) stands for a part
    that travels alone.
    """
    window = np.sort(np.array(list(views), np.int64))
    low, high = np.searchsorted(asked[:, 0], window), np.searchsorted(asked[:, 0], window, side="right")
    d = (asked.shape[1] - 1) // 2
    answered: list[int] = []
    small: list[np.ndarray] = []
    large: list[np.ndarray] = []
    for row, a, b in zip(window.tolist(), low.tolist(), high.tolist(), strict=True):
        if a < b:
            box, stored = _stored(manifest, row, views[row])
            for i in range(a, b):
                part = row_bytes(stored[_part(asked[i, 1 : d + 1], asked[i, d + 1 :], len(box.start)).within(box)])
                alone = len(part) >= LARGE
                (large if alone else small).append(part if alone else part.copy())  # a copy lets go of the window
                answered.append(~i if alone else i)
    if not answered:
        return [], []
    head = np.array([len(answered), *answered], np.int64).view(np.uint8)
    return [array for part in (head, *small) for array in (part, np.zeros(-len(part) % EVEN, np.uint8))], large


def _take(
    manifest: Manifest, plan: _Plan, targets: list[_Target], asked: np.ndarray, content: np.ndarray
) -> tuple[list[np.ndarray], list[Callable[[], None]]]:
    """Copy the small parts that another rank sent, window after window; `asked` are this rank's requests to it.

    Returns the memory for the large parts that follow, where they belong if that is possible, and what is to be done
    with the others once they are there.
    """
    at = 0
    large: list[np.ndarray] = []
    fills: list[Callable[[], None]] = []
    while at < len(content):
        end = at + 8 + 8 * int(content[at : at + 8].view(np.int64)[0])
        requests = content[at + 8 : end].view(np.int64).tolist()
        at = end + -end % EVEN
        for request in requests:
            i = asked[max(request, ~request)]
            target = targets[plan.target[i]]
            meta = manifest.tensors[int(manifest.chunks.tensor[plan.chunk[i]])]
            part = _part(plan.start[i], plan.size[i], len(meta.shape))
            size = part.volume * dtype_named(meta.dtype).itemsize
            if request >= 0:
                _fill(target, part, _elements(content[at : at + size], meta.dtype).view(part.size))
                at += size + -size % EVEN
                continue
            memory = _memory(target, part)
            if memory is None:
                memory = np.empty(size, np.uint8)
                stored = _elements(memory, meta.dtype).view(part.size)
                fills.append(partial(_fill, target, part, stored))
            large.append(memory)
    return large, fills


def _memory(target: _Target, part: Box) -> np.ndarray | None:
    """The bytes of a part of a target, uint8 (n,), if they lie as in the file."""
    room = target.piece.data
    if room.device.type != "cpu" or room.dtype != target.dtype:
        return None
    room = room[part.within(target.piece.box)]
    return row_bytes(room) if room.is_contiguous() and not lazy(room) else None


def _part(start: np.ndarray, size: np.ndarray, ndim: int) -> Box:
    return Box(tuple(start[:ndim].tolist()), tuple(size[:ndim].tolist()))


def _fill(target: _Target, part: Box, stored: torch.Tensor) -> None:
    """Copy integers of the stored dtype's width to the part of a target; values are converted where dtypes differ."""
    room = target.piece.data[part.within(target.piece.box)]
    if room.dtype == target.dtype and not lazy(room):
        bits(room).copy_(stored)
    else:
        room.copy_(stored.view(target.dtype))
