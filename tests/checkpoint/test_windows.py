"""Loading in many small windows: ranks meet as often as they have something to exchange, whatever they read alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from simulated import SimulatedComm, agreed

from bloomery.checkpoint import LoadReport, Shard, loading
from bloomery.checkpoint.comm import Room
from bloomery.checkpoint.faulty import Disk, MemoryStorage
from bloomery.checkpoint.manifest import Chunks
from bloomery.checkpoint.saving import Saver

WORLD, ROWS, WIDTH, TENSORS = 3, 6, 128, 24  # 3 KB a tensor


class CountingComm(SimulatedComm):
    """Counts exchanges."""

    exchanges = 0

    def exchange(self, outgoing: list[list[np.ndarray]], room: Room | None = None) -> list[np.ndarray]:
        self.exchanges += 1
        return super().exchange(outgoing, room)


def whole(number: int) -> torch.Tensor:
    return torch.arange(ROWS * WIDTH, dtype=torch.float32).view(ROWS, WIDTH) + 1000 * number


def state(rank: int, shared: int, fill: bool) -> dict[str, torch.Tensor | Shard]:
    """The first `shared` tensors whole on every rank, the others by rows."""
    mine = slice(ROWS // WORLD * rank, ROWS // WORLD * (rank + 1))
    found: dict[str, torch.Tensor | Shard] = {}
    for number in range(TENSORS):
        full = whole(number) if fill else torch.zeros(ROWS, WIDTH)
        found[f"t{number:02d}"] = full if number < shared else Shard(full[mine].clone(), (mine.start, 0), (ROWS, WIDTH))
    return found


@pytest.mark.parametrize("alone", [256, 1 << 20])  # parts that travel by themselves; all in one message
@pytest.mark.parametrize(("shared", "least", "most"), [(0, 1, 1), (1, 1, 2), (12, 3, 8), (TENSORS, 6, 12)])
def test_exchanges_follow_what_is_shared(
    shared: int, least: int, most: int, alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LARGE", alone)
    monkeypatch.setattr(loading, "WINDOW", (4096, 4096))
    monkeypatch.setattr(loading, "EXCHANGE", 4096)
    disk = Disk()

    def save(comm: SimulatedComm) -> None:
        Saver().save(
            MemoryStorage("c", disk), state(comm.rank, shared, True), comm, asynchronous=False, overwrite=False
        )

    def load(comm: SimulatedComm) -> tuple[int, LoadReport]:
        counting = CountingComm(comm.rank, comm.world, comm._table)
        wanted, report = state(comm.rank, shared, False), LoadReport()
        manifest = loading.shared_manifest(MemoryStorage("c", disk), counting)
        loading.read_tensors(MemoryStorage("c", disk), manifest, wanted, counting, report)
        for name, expected in state(comm.rank, shared, True).items():
            got, right = ((v.data if isinstance(v, Shard) else v) for v in (wanted[name], expected))
            assert torch.equal(got, right)
        return counting.exchanges - 1, report  # one for the requests

    agreed(WORLD, save)
    results = agreed(WORLD, load)
    assert {count for count, _ in results} == {results[0][0]}
    assert least <= results[0][0] <= most
    stored = 4 * ROWS * WIDTH * TENSORS
    assert sum(report.bytes_read for _, report in results) == stored  # once, though several want it


def test_a_little_of_much_does_not_keep_it_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten chunks of a megabyte of which another rank wants a row each: ranks meet before they all lie in memory."""
    monkeypatch.setattr(loading, "KEPT", 3 << 20)
    count, rows = 10, (1 << 20) // 64
    column = np.arange(count)
    start = np.stack([column * rows, 0 * column], axis=1)
    size = np.full((count, 2), [rows, 16])
    nbytes = np.full(count, 1 << 20)
    chunks = Chunks(0 * column, start, size, nbytes, 0 * column, column * (1 << 20), column.astype(np.uint64))
    windows = [np.array([row]) for row in column]
    wanted = np.concatenate([column[:, None], start, np.full((count, 2), [1, 16])], axis=1)
    assert [len(batch) for batch in loading._batches(chunks, windows, [wanted])] == [3, 3, 3, 1]
    assert [len(batch) for batch in loading._batches(chunks, windows, [wanted[:0]])] == [10]
