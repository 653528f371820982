"""Places that fail, two writers of one place, and files that are not as they were written."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from simulated import SimulatedComm, agreed, together

from bloomery import checkpoint
from bloomery.checkpoint import FlatShard, LocalStorage
from bloomery.checkpoint.faulty import Disk, FaultyStorage, MemoryStorage
from bloomery.checkpoint.saving import Saver
from bloomery.core.errors import BloomeryError, CheckpointError, StorageError

PLACES = ["local", "memory", "fsspec"]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Any]:
    """Storages of one kind by name."""
    if request.param == "fsspec":
        root = f"memory://{tmp_path.name}"
        return lambda name: checkpoint.storage(f"{root}/{name}")
    disk = Disk()
    return (
        (lambda name: MemoryStorage(name, disk)) if request.param == "memory" else lambda n: LocalStorage(tmp_path / n)
    )


def state_of(rank: int, world: int, value: float = 1.0) -> dict[str, Any]:
    """A flat shard of 1,000 elements for each rank, and a replica."""
    return {
        "flat": FlatShard(torch.full((1000,), value + rank), 1000 * rank, (1000 * world,)),
        "all": torch.full((300,), value),
        "step": value,
    }


def holds(place: Any, world: int, value: float) -> bool:
    state = {"flat": torch.zeros(1000 * world), "all": torch.zeros(300), "step": 0.0}
    checkpoint.load(place, state)
    flat = state["flat"].view(world, 1000)
    return (
        state["step"] == value
        and bool((state["all"] == value).all())
        and all(bool((flat[rank] == value + rank).all()) for rank in range(world))
    )


def save(place: Any, comm: SimulatedComm, value: float, saver: Saver | None = None, **options: Any) -> Any:
    options = {"asynchronous": False, "overwrite": False, **options}
    return (saver or Saver()).save(place, state_of(comm.rank, comm.world, value), comm, **options)


WRITES = {0: [2, 4, 9], 1: [1], 2: [1]}  # operations of each rank that write more than padding
OPERATIONS = {0: 13, 1: 5, 2: 5}


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_faults_at_random_points_reach_every_rank_and_leave_nothing(
    place: Callable[[str], Any], asynchronous: bool, tmp_path: Path
) -> None:
    chance, savers = random.Random(int(asynchronous)), [Saver() for _ in range(3)]
    counted = agreed(3, lambda comm: save(to := FaultyStorage(place("earlier")), comm, 1.0) and to.operations)
    assert dict(enumerate(counted)) == OPERATIONS
    for number in range(15):
        sick, kind = chance.randrange(3), chance.choice(["ENOSPC", "EIO", "EDQUOT", "EROFS", "lost"])
        at = chance.choice(WRITES[sick] if kind == "lost" else range(OPERATIONS[sick]))

        def work(comm: SimulatedComm, sick: int = sick, at: int = at, kind: str = kind, number: int = number) -> Any:
            to = FaultyStorage(place("next"), at=at if comm.rank == sick else None, kind=kind)
            handle = save(to, comm, 2.0, savers[comm.rank], asynchronous=asynchronous)
            if number % 2:
                handle.wait()
            return save(place("after"), comm, 3.0, savers[comm.rank])  # tells of the failure before it

        errors = together(3, work)
        assert all(isinstance(error, BloomeryError) for error in errors), (sick, kind, at, errors)
        assert all("\n" not in str(error) and "next: " in str(error) for error in errors), errors
        assert all(f"rank {sick} failed: " in str(errors[rank]) for rank in {0, 1, 2} - {sick})
        for name in ("next", "after"):
            with pytest.raises(CheckpointError, match="not a complete checkpoint"):
                checkpoint.verify(place(name))
    assert holds(place("earlier"), 3, 1.0)
    if isinstance(place("x"), LocalStorage):
        assert os.listdir(tmp_path) == ["earlier"]
    agreed(3, lambda comm: save(place("next"), comm, 4.0, savers[comm.rank], asynchronous=asynchronous).wait())
    assert holds(place("next"), 3, 4.0)


def test_short_writes_and_slowness_are_no_faults(tmp_path: Path) -> None:
    for at in range(13):
        to = FaultyStorage(LocalStorage(tmp_path / str(at)), latency=0.001, at=at, kind="short")
        agreed(1, lambda comm, to=to: save(to, comm, 1.0))
        assert holds(to, 1, 1.0)


def test_training_does_not_wait_for_a_slow_place_but_the_next_save_does() -> None:
    slow = FaultyStorage(MemoryStorage("c", disk := Disk()), latency=0.15)
    saver = Saver()
    begin = time.perf_counter()
    handle = agreed(1, lambda comm: save(slow, comm, 1.0, saver, asynchronous=True))[0]
    stalled = time.perf_counter() - begin
    assert handle.staged.done()
    assert not handle.committed.done()
    assert "c" not in disk.checkpoints
    agreed(1, lambda comm: save(MemoryStorage("d", disk), comm, 2.0, saver, asynchronous=True))
    assert handle.committed.done()
    assert time.perf_counter() - begin > 0.15 * (slow.operations - 1)
    assert stalled < 0.15 * slow.operations / 2  # begin is waited for, as is the lock of a place
    handle.wait()
    saver.finish()
    assert holds(MemoryStorage("c", disk), 1, 1.0)
    assert holds(MemoryStorage("d", disk), 1, 2.0)


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_reads_that_fail_are_one_line_on_every_rank(place: Callable[[str], Any]) -> None:
    agreed(2, lambda comm: save(place("c"), comm, 1.0))

    def load(comm: SimulatedComm, at: int) -> Any:
        state = state_of(comm.rank, comm.world, 0.0)
        to = FaultyStorage(place("c"), at=at if comm.rank == 0 else None)
        return checkpoint.load(to, state, group=comm)

    for at in range(3):
        errors = together(2, lambda comm, at=at: load(comm, at))
        assert all(isinstance(error, StorageError) for error in errors), errors
        assert "Input/output error" in str(errors[0])
        assert "rank 0 failed: " in str(errors[1])
    with pytest.raises(StorageError, match="Input/output error"):
        checkpoint.verify(FaultyStorage(place("c"), at=2))


def test_replacing_fails_and_the_old_one_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = LocalStorage(tmp_path / "c")
    agreed(1, lambda comm: save(place, comm, 1.0))
    rename = Path.rename
    for broken in (0, 1):  # the old one moves aside, the new one takes its place
        calls = itertools.count()

        def fails(self: Path, to: Any, calls: Any = calls, broken: int = broken) -> Path:
            if next(calls) == broken:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return rename(self, to)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", fails)
            with pytest.raises(StorageError, match="Input/output error"):
                checkpoint.save(place, state_of(0, 1, 2.0), overwrite=True)
        assert holds(place, 1, 1.0)
        assert os.listdir(tmp_path) == ["c"]
    checkpoint.save(place, state_of(0, 1, 2.0), overwrite=True)
    assert holds(place, 1, 2.0)
    assert os.listdir(tmp_path) == ["c"]


def test_killed_between_the_two_renames_of_a_replacement(tmp_path: Path) -> None:
    place = LocalStorage(tmp_path / "c")
    checkpoint.save(place, state_of(0, 1, 1.0))
    place.folder.rename(tmp_path / ".c.0123456789ab.old.tmp")
    assert holds(place, 1, 1.0)  # it is found where it was put
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        checkpoint.save(place, state_of(0, 1, 2.0))
    assert os.listdir(tmp_path) == ["c"]
    assert holds(place, 1, 1.0)


def test_a_writer_leaves_the_drafts_of_others_alone(tmp_path: Path) -> None:
    living = LocalStorage(tmp_path / "best.ema")
    draft = living.begin(overwrite=False)
    checkpoint.save(tmp_path / "best", {"x": torch.ones(3)})
    with living.create(draft, "data/x") as file:
        file.write(b"1")
    living.abort(draft)
    assert os.listdir(tmp_path) == ["best"]


def test_what_is_no_checkpoint_is_never_replaced_or_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="exists and is no checkpoint"):
        checkpoint.save(home, {"x": 1})
    with pytest.raises(CheckpointError, match=r"replacing it would delete thesis\.txt \(save under another name\)"):
        checkpoint.save(home, {"x": 1}, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="exists and is no checkpoint"):
        checkpoint.save(tmp_path / "file", {"x": 1}, overwrite=True)
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/{tmp_path.name}-bucket/thesis.txt", b"years of work")
    there = checkpoint.storage(f"memory://{tmp_path.name}-bucket")
    with pytest.raises(StorageError):
        checkpoint.save(FaultyStorage(there, at=3), {"x": torch.ones(3)})
    checkpoint.save(there, {"x": torch.ones(3)})
    checkpoint.save(there, {"y": torch.ones(3)}, overwrite=True)
    assert fs.cat_file(f"/{tmp_path.name}-bucket/thesis.txt") == b"years of work"


@pytest.mark.parametrize("links", [True, False])
def test_a_lock_is_there_with_its_text_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:  # exFAT, some network file systems
        monkeypatch.setattr(os, "symlink", refuse)
    place = LocalStorage(tmp_path / "c")
    draft = place.begin(overwrite=False)
    lock = tmp_path / ".c.lock"
    assert lock.is_symlink() == links
    assert json.loads(os.readlink(lock) if links else lock.read_text())["pid"] == os.getpid()
    with pytest.raises(CheckpointError, match=rf"is being written by process {os.getpid()} on "):
        LocalStorage(tmp_path / "c").begin(overwrite=False)
    place.abort(draft)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_of_two_writers_one_is_refused(place: Callable[[str], Any]) -> None:
    first = place("c").begin(overwrite=False)
    with pytest.raises(CheckpointError, match=r"c: is being written by process \d+ on .* \(wait for it") as caught:
        checkpoint.save(place("c"), state_of(0, 1, 1.0))
    assert "\n" not in str(caught.value)
    place("c").abort(first)
    checkpoint.save(place("c"), state_of(0, 1, 1.0))
    assert holds(place("c"), 1, 1.0)
    with pytest.raises(
        CheckpointError, match=r"already holds a checkpoint \(save under another name, or pass overwrite"
    ):
        checkpoint.save(place("c"), state_of(0, 1, 2.0))
    checkpoint.save(place("c"), state_of(0, 1, 2.0), overwrite=True)
    assert holds(place("c"), 1, 2.0)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    signed = json.dumps({"host": socket.gethostname(), "pid": dead, "token": "0" * 12})
    (tmp_path / ".c.lock").write_text(signed)
    (tmp_path / ".c.000000000000.tmp" / "data").mkdir(parents=True)
    checkpoint.save(tmp_path / "c", {"x": 1})
    assert os.listdir(tmp_path) == ["c"]
    fs, root = fsspec.filesystem("memory"), f"/{tmp_path.name}-dead"
    fs.pipe_file(f"{root}/lock-000000000000.json", signed.encode())
    checkpoint.save(f"memory:/{root}", {"x": 1})
    assert not fs.glob(f"{root}/lock-*")
    (tmp_path / ".l.lock").symlink_to(signed)
    checkpoint.save(tmp_path / "l", {"x": 1})
    assert sorted(os.listdir(tmp_path)) == ["c", "l"]
    if Path("/proc/self/stat").exists():  # this process has the number that the dead one had
        again = {"host": socket.gethostname(), "pid": os.getpid(), "started": "1", "token": "0" * 12}
        (tmp_path / ".m.lock").symlink_to(json.dumps(again))
        checkpoint.save(tmp_path / "m", {"x": 1})
    elsewhere = {"host": "another", "pid": dead, "token": "0" * 12}
    for text in (json.dumps(elsewhere), "", "5", "[]"):
        (tmp_path / ".d.lock").write_text(text)
        with pytest.raises(CheckpointError, match=r"is being written by process .* delete \.d\.lock beside"):
            checkpoint.save(tmp_path / "d", {"x": 1})


def test_a_disk_without_room_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4000))
    with pytest.raises(StorageError, match=r"c: the checkpoint needs 0\.00 GB, the disk has 0\.00 GB left \(free some"):
        checkpoint.save(tmp_path / "c", {"x": torch.ones(1000)})
    assert os.listdir(tmp_path) == []
    checkpoint.save(tmp_path / "c", {"x": torch.ones(900)})


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/c"):
        checkpoint.save(tmp_path / "file" / "c", {"x": 1})
    mkdir = Path.mkdir

    def read_only(self: Path, *args: Any, **options: Any) -> None:
        if ".tmp" in str(self):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)  # tests may run as root, whom no mode of a folder stops
    with pytest.raises(StorageError, match="the file system is read-only"):
        checkpoint.save(tmp_path / "c", {"x": 1})
    assert os.listdir(tmp_path) == ["file"]


# ------------------------------------------------------------------------------------------------------------- damage


def saved(tmp_path: Path) -> tuple[Path, Callable[[], None]]:
    """A checkpoint of two ranks, and a function that loads all of it."""
    folder = tmp_path / "c"
    agreed(2, lambda comm: save(LocalStorage(folder), comm, 0.1))

    def load() -> None:
        checkpoint.load(folder, {"flat": torch.zeros(2000), "all": torch.zeros(300), "step": 0.0})

    load()
    return folder, load


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    folder, load = saved(tmp_path)
    chance = random.Random(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 4
    for number in range(100):
        path = files[number % len(files)]
        content = path.read_bytes()
        bit = chance.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for look in (load, lambda: checkpoint.verify(folder)):
            with pytest.raises(
                CheckpointError, match=r"damaged checkpoint|is newer than|format 1 is|a pickle"
            ) as caught:
                look()
            assert "\n" not in str(caught.value)
        path.write_bytes(content)
    padding = [(path, len(path.read_bytes()) - 1) for path in files if path.suffix == ".bin"]
    for path, at in padding:
        content = path.read_bytes()
        assert content[at] == 0  # it is padding
        path.write_bytes(content[:at] + b"\1")
        for look in (load, lambda: checkpoint.verify(folder)):
            with pytest.raises(CheckpointError, match=r"\[\d+:\d+\] in data/0000\d-0\.bin at byte \d+ does not match"):
                look()
        path.write_bytes(content)
    load()


def test_files_cut_short_missing_renamed_and_swapped_are_found(tmp_path: Path) -> None:
    folder, load = saved(tmp_path)
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def restore() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in whole.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def broken(message: str) -> None:
        for look in (load, lambda: checkpoint.verify(folder)):
            with pytest.raises(CheckpointError, match=message) as caught:
                look()
            assert "\n" not in str(caught.value)
        restore()

    for name, content in whole.items():
        for length in (0, 1, len(content) // 2, len(content) - 1):
            (folder / name).write_bytes(content[:length])
            broken(f"damaged checkpoint: {name.as_posix()} ")
        (folder / name).rename(folder / "other")
        broken(
            "not a complete checkpoint: it has no" if name.name == "manifest.json" else f"{name.as_posix()} is missing"
        )
    a, b = sorted(folder.glob("data/*"))
    a.rename(folder / "x")
    b.rename(a)
    (folder / "x").rename(b)
    broken("damaged checkpoint: data/")
    shutil.rmtree(folder / "data")  # a copy that ended early
    broken(r"data/0000\d-0\.bin is missing")
    shutil.rmtree(folder)
    broken("not a complete checkpoint: it has no manifest.json")


def test_a_copied_checkpoint_is_a_checkpoint(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path)
    shutil.copytree(folder, tmp_path / "elsewhere" / "d")
    assert checkpoint.verify(tmp_path / "elsewhere" / "d").about["world"] == 2
    fsspec.filesystem("memory").put(str(folder), f"/{tmp_path.name}-copy", recursive=True)
    assert checkpoint.verify(f"memory://{tmp_path.name}-copy").about["world"] == 2


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save({"x": 1}, tmp_path / "model.pt")
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "model.pt", tmp_path / "c" / "manifest.json")
    (tmp_path / "c" / "chunks.arrow").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a pickle where manifest\.json is expected: it is not opened"):
        checkpoint.load(tmp_path / "c", {"x": 0})
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        checkpoint.load(tmp_path / "model.pt", {"x": 0})
