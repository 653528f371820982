"""What the ranks of a checkpoint tell each other: bytes, over a gloo group of its own, so that a background thread can
talk while the training step uses the main group. One process alone is the case of one rank."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bloomery.core.errors import BloomeryError, CheckpointError, StorageError

_LARGEST = 1 << 30  # bytes of one message


class Room:
    """Memory for exchanges that follow one another: fresh memory for each would cost as much as the copy into it."""

    def __init__(self) -> None:
        self._send = self._receive = torch.empty(0, dtype=torch.uint8)

    def to_send(self, size: int) -> torch.Tensor:
        """`size` bytes."""
        if len(self._send) < size:
            self._send = torch.empty(size, dtype=torch.uint8)
        return self._send[:size]

    def to_receive(self, size: int) -> torch.Tensor:
        """`size` other bytes."""
        if len(self._receive) < size:
            self._receive = torch.empty(size, dtype=torch.uint8)
        return self._receive[:size]


class Comm:
    """The ranks that save or load one checkpoint together; `alone`, this process whatever others there are."""

    def __init__(self, group: Any = None, *, alone: bool = False) -> None:
        together = not alone and dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if together else 0
        self.world = dist.get_world_size(group) if together else 1
        self._peers = (
            list(range(self.world)) if group is None else (dist.get_process_group_ranks(group) if together else [0])
        )
        self._group = dist.new_group(self._peers, backend="gloo") if self.world > 1 else None

    def gather(self, payload: bytes) -> list[bytes] | None:
        """Every rank's bytes, on the first rank (None elsewhere), along a binomial tree: log2(world) steps."""
        parts, step = [payload], 1
        while step < self.world:
            if self.rank & step:
                self._send(_joined(parts), self.rank - step)
                return None
            if self.rank + step < self.world:
                parts += _separated(self._receive(self.rank + step))
            step <<= 1
        return parts

    def broadcast(self, payload: bytes | None) -> bytes:
        """The first rank's bytes, everywhere."""
        if self.world == 1:
            assert payload is not None
            return payload
        size = torch.tensor([len(payload or b"")])
        dist.broadcast(size, self._peers[0], group=self._group)
        data = _tensor(payload) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        for begin in range(0, int(size), _LARGEST):
            dist.broadcast(data[begin : begin + _LARGEST], self._peers[0], group=self._group)
        return data.numpy().tobytes()

    def exchange(self, outgoing: list[list[np.ndarray]], room: Room | None = None) -> list[np.ndarray]:
        """`outgoing[r]` (uint8 arrays, joined) goes to rank r; what every rank sent here comes back, by sender.

        With `room`, what comes back lies there and lasts until the next exchange.
        """
        room = room or Room()
        lengths = [sum(map(len, parts)) for parts in outgoing]
        sent = room.to_send(sum(lengths))
        if sum(lengths):
            np.concatenate([part for parts in outgoing for part in parts], out=sent.numpy())
        if self.world == 1:
            return [sent.numpy()]
        counts = self.all_to_all(lengths)
        received = room.to_receive(sum(counts))
        dist.all_to_all_single(received, sent, counts, lengths, group=self._group)
        return np.split(received.numpy(), np.cumsum(counts)[:-1])

    def transfer(self, outgoing: list[list[np.ndarray]], incoming: list[list[np.ndarray]]) -> None:
        """Send the arrays `outgoing[r]` (uint8) to rank r and fill `incoming[r]` with those it sends, without copies.

        Both sides know how many there are, and how long each is.
        """
        pending = [
            call(torch.from_numpy(part), self._peers[peer], group=self._group)
            for call, parts in ((dist.irecv, incoming), (dist.isend, outgoing))
            for peer in range(self.world)
            for part in parts[peer]
        ]
        for work in pending:
            if work is not None:  # what the type of isend allows: a rank outside the group
                work.wait()

    def all_to_all(self, numbers: list[int]) -> list[int]:
        """`numbers[r]` goes to rank r."""
        if self.world == 1:
            return numbers
        received = torch.empty(self.world, dtype=torch.int64)
        dist.all_to_all_single(received, torch.tensor(numbers), group=self._group)
        return [int(n) for n in received]

    def extremes(self, number: int) -> tuple[int, int]:
        """The least and the greatest of all ranks' numbers."""
        if self.world == 1:
            return number, number
        pair = torch.tensor([number, -number])
        dist.all_reduce(pair, dist.ReduceOp.MIN, group=self._group)
        return int(pair[0]), -int(pair[1])

    def agree(self, error: BaseException | None) -> None:
        """Raise on every rank if any rank has failed: its own error where it failed, one that names it elsewhere."""
        least, _ = self.extremes(-1 if error else 0)
        if least == 0:
            return
        told = json.dumps(None if error is None else [self.rank, type(error).__name__, str(error)]).encode()
        gathered = self.gather(told)
        failures = self.broadcast(None if gathered is None else b"\n".join(gathered))
        if error is not None:
            raise error
        rank, kind, message = next(json.loads(line) for line in failures.splitlines() if line != b"null")
        known: dict[str, type[BloomeryError]] = {"CheckpointError": CheckpointError, "StorageError": StorageError}
        raise known.get(kind, StorageError)(f"rank {rank} failed: {message}")

    def _send(self, payload: bytes, to: int) -> None:
        dist.send(torch.tensor([len(payload)]), self._peers[to], group=self._group)
        data = _tensor(payload)
        for begin in range(0, len(payload), _LARGEST):
            dist.send(data[begin : begin + _LARGEST], self._peers[to], group=self._group)

    def _receive(self, sender: int) -> bytes:
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, self._peers[sender], group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        for begin in range(0, int(size), _LARGEST):
            dist.recv(data[begin : begin + _LARGEST], self._peers[sender], group=self._group)
        return data.numpy().tobytes()


_comms: dict[Any, tuple[Any, Comm]] = {}


def comm(group: Any = None) -> Comm:
    """The communicator beside `group` (default: all ranks); made once, by all its ranks together.

    A `Comm` is taken as it is: ranks that talk in a way of their own derive one.
    """
    if isinstance(group, Comm):
        return group
    if not (dist.is_available() and dist.is_initialized()):
        return Comm()
    parent = dist.group.WORLD if group is None else group
    known = _comms.get(id(parent))
    if known is None or known[0] is not parent:
        if group is None:
            _comms.clear()  # another world: the groups of the one before are gone
        _comms[id(parent)] = known = (parent, Comm(group))
    return known[1]


def forget() -> None:
    """Let go of all groups; they are made again when they are needed."""
    _comms.clear()


def _tensor(payload: bytes | None) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(payload or b""), dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
    )


def _joined(parts: list[bytes]) -> bytes:
    lengths = np.array([len(parts), *map(len, parts)], dtype=np.int64)
    return lengths.tobytes() + b"".join(parts)


def _separated(message: bytes) -> list[bytes]:
    count = int(np.frombuffer(message, np.int64, 1)[0])
    lengths = np.frombuffer(message, np.int64, count, offset=8)
    ends = 8 * (count + 1) + np.cumsum(lengths)
    return [message[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
