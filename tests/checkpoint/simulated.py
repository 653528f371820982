"""Ranks that are threads of one process: the room's `Comm` over a table and a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bloomery.checkpoint.comm import Comm, Room

PATIENCE = 60  # seconds until a rank that waits for one which has left is a failure, not a hang


class _Table:
    def __init__(self, world: int) -> None:
        self.cells: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=PATIENCE)


class SimulatedComm(Comm):
    """One of `world` ranks. What differs from gloo is how bytes travel, not who sends what: `agree` is inherited."""

    def __init__(self, rank: int, world: int, table: _Table) -> None:
        self.rank, self.world, self._table = rank, world, table

    def _swap(self, mine: Any) -> list[Any]:
        self._table.cells[self.rank] = mine
        self._table.barrier.wait()
        everyone = list(self._table.cells)
        self._table.barrier.wait()
        return everyone

    def gather(self, payload: bytes) -> list[bytes] | None:
        everyone = self._swap(payload)
        return everyone if self.rank == 0 else None

    def broadcast(self, payload: bytes | None) -> bytes:
        return bytes(self._swap(payload)[0])

    def exchange(self, outgoing: list[list[np.ndarray]], room: Room | None = None) -> list[np.ndarray]:
        sent = [np.concatenate([np.zeros(0, np.uint8), *parts]) for parts in outgoing]
        return [parts[self.rank] for parts in self._swap(sent)]

    def transfer(self, outgoing: list[list[np.ndarray]], incoming: list[list[np.ndarray]]) -> None:
        for sender, parts in enumerate(self._swap(outgoing)):
            for part, room in zip(parts[self.rank], incoming[sender], strict=True):
                room[:] = part

    def all_to_all(self, numbers: list[int]) -> list[int]:
        return [row[self.rank] for row in self._swap(numbers)]

    def extremes(self, number: int) -> tuple[int, int]:
        everyone = self._swap(number)
        return min(everyone), max(everyone)


def together(world: int, work: Callable[[SimulatedComm], Any]) -> list[Any]:
    """`work(comm)` on `world` ranks at once: what each returned, or the error that it raised."""
    table = _Table(world)

    def one(rank: int) -> Any:
        try:
            return work(SimulatedComm(rank, world, table))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def agreed(world: int, work: Callable[[SimulatedComm], Any]) -> list[Any]:
    """`together`, where no rank may fail."""
    results = together(world, work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
