"""The checkpoints of a run: one folder a step, the newest that is whole, and which older ones may go.

There is no pointer file that could name a checkpoint which is not there yet: the newest is the highest step whose
manifest is whole. An older one is deleted only after a newer one is durable, by a rename that no reader can see half.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from bloomery.checkpoint.comm import comm
from bloomery.checkpoint.loading import LoadReport, load, read_manifest, verify
from bloomery.checkpoint.manifest import MANIFEST, TABLE
from bloomery.checkpoint.saving import Handle, save_to
from bloomery.checkpoint.storage import FsspecStorage, LocalStorage, Storage, storage, sweep, write_all
from bloomery.core.errors import BloomeryError, CheckpointError
from bloomery.core.log import logger

BLOCK = 16 << 20

log = logger("checkpoint")


class Checkpoints:
    """`root/step-00000100`, `root/step-00000200`, … of one run, on a disk or at any fsspec address.

    The last `keep_last` whole ones stay (None: all), and those for whose step `protect(step)` is true. With `durable`,
    a second place, usually slower, gets a copy of each: a save counts as committed once both have it, the first place
    keeps `keep_last`, the second everything that is not pruned there.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, keep_last: int | None = None,
        protect: Callable[[int], bool] = lambda step: False, durable: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        if keep_last is not None and keep_last < 1:
            raise CheckpointError("keep_last is at least 1", where=root, fix="None keeps all")
        self.root, self.keep_last, self.protect = os.fspath(root), keep_last, protect
        self.durable = None if durable is None else Checkpoints(durable)

    def at(self, step: int) -> Storage:
        """The storage of one step."""
        return storage(f"{self.root.rstrip('/')}/step-{step:08d}")

    def steps(self) -> list[int]:
        """Steps with a folder, in order, whole or not."""
        names = _names(self.root)
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,}", name))

    def whole(self, step: int, *, check_data: bool = False) -> bool:
        """Whether the manifest and the table of chunks of a step are as they were written; all its data too."""
        with suppress(BloomeryError):
            verify(self.at(step)) if check_data else read_manifest(self.at(step))
            return True
        return False

    def latest(self, *, check_data: bool = False, group: Any = None) -> int | None:
        """The newest step that is whole; with `check_data`, all its bytes have been read. Others are warned of.

        The first rank looks, all are told.
        """
        return next(iter(_agreed(self._whole_steps(check_data), group, most=1)), None)

    def _whole_steps(self, check_data: bool) -> Iterator[int]:
        for step in reversed(self.steps()):
            try:
                verify(self.at(step)) if check_data else read_manifest(self.at(step))
            except BloomeryError as error:
                log.warning("skipped: %s", error)
            else:
                yield step

    def save(
        self, step: int, state: Mapping[str, Any], *, asynchronous: bool = False, group: Any = None,
    ) -> Handle:  # fmt: skip
        """Save `state` as `step`, copy it to the durable place, prune; a damaged one of that step is replaced."""
        to = self.at(step)
        broken = comm(group).rank == 0 and step in self.steps() and not self.whole(step, check_data=True)

        def after() -> None:
            if self.durable is not None:
                copy(to, self.durable.at(step))
            self.prune(step)

        return save_to(to, state, asynchronous=asynchronous, overwrite=broken, group=group, after=after)

    def load(
        self, state: MutableMapping[str, Any], *, group: Any = None, **options: Any
    ) -> tuple[int, LoadReport] | None:
        """Fill `state` from the newest checkpoint that can be read; None where there is none.

        A damaged one is skipped with a warning, and the one before it taken. One of another model is an error.
        """
        for step in _agreed(reversed(self.steps()), group):
            try:
                return step, load(self.at(step), state, group=group, **options)
            except CheckpointError as error:
                if "damaged" not in error.what and "not a complete" not in error.what:
                    raise
                log.warning("skipped: %s", error)
        return None

    def stale(self, newest: int) -> list[int]:
        """What `prune(newest)` would delete."""
        if self.keep_last is None:
            return []
        steps = self.steps()
        whole = [step for step in steps if step <= newest and (step == newest or self.whole(step))]
        kept = {*whole[-self.keep_last :], *(step for step in whole if self.protect(step))}
        return [step for step in steps if step not in kept]

    def prune(self, newest: int) -> list[int]:
        """Delete what is too old, given that `newest` has just become durable; the steps that went.

        Steps after `newest` are of a run that was given up; incomplete ones count for nothing. Both go too.
        """
        gone = self.stale(newest)
        for step in gone:
            delete(self.at(step))
        if isinstance(self.at(newest), LocalStorage):
            sweep(Path(self.at(newest).path).parent)
        return gone


def copy(source: Storage, target: Storage) -> None:
    """Copy a checkpoint between any two places and check the copy; the manifest goes last."""
    manifest = read_manifest(source)
    draft = target.begin(overwrite=True)
    try:
        with target.create(draft, TABLE) as file:
            write_all(file, memoryview(source.read(TABLE)))
        for name, size in manifest.files:
            with target.create(draft, name) as file:
                for begin in range(0, size, BLOCK):
                    block = memoryview(bytearray(min(BLOCK, size - begin)))
                    if source.read_into(name, begin, [block]) < len(block):
                        raise CheckpointError(f"damaged checkpoint: {name} is cut short", where=source.path)
                    write_all(file, block)
        target.commit(draft, source.read(MANIFEST), overwrite=True)
    except BaseException:
        target.abort(draft)
        raise
    verify(target)


def delete(place: Storage) -> None:
    """Remove a checkpoint: it stops being one before its first byte goes."""
    if isinstance(place, LocalStorage):
        hidden = place.folder.with_name(f".{place.folder.name}.deleted.tmp")
        shutil.rmtree(hidden, ignore_errors=True)
        place.folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    elif isinstance(place, FsspecStorage):
        with suppress(FileNotFoundError):
            place.fs.rm_file(f"{place.root}/{MANIFEST}")
        place.fs.rm(place.root, recursive=True)


def _names(root: str) -> list[str]:
    if "://" not in root or root.startswith("file://"):
        folder = Path(root.removeprefix("file://"))
        return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    place = FsspecStorage(root)
    place.fs.invalidate_cache(place.root)
    try:
        return [str(name).rstrip("/").rpartition("/")[2] for name in place.fs.ls(place.root, detail=False)]
    except FileNotFoundError:
        return []


def _agreed(steps: Iterator[int], group: Any, most: int | None = None) -> list[int]:
    """The first `most` of what the first rank finds, on every rank."""
    ranks = comm(group)
    told = ",".join(map(str, islice(steps, most))).encode() if ranks.rank == 0 else None
    return [int(step) for step in ranks.broadcast(told).decode().split(",") if step]
