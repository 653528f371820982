"""What two checkpoints differ in: names, shapes, dtypes, values; with one batch of elements in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bloomery.checkpoint.layout import bits
from bloomery.checkpoint.manifest import Manifest
from bloomery.checkpoint.offline import BATCH, Place, Reader, pieces_of
from bloomery.core.progress import Progress

SILENT = ("same", "part", "subclass", "member")  # records that say nothing of their own


@dataclass
class Changed:
    """Elements of one tensor whose bits differ (values, where dtypes do); NaN equals NaN, whatever its bits.

    `largest` is NaN where one side alone is.
    """

    unequal: int
    of: int
    largest: float  # absolute difference


@dataclass
class Difference:
    """What b lacks, what it has besides, and what it has otherwise."""

    missing: list[str] = field(default_factory=list)  # tensors of a alone
    unexpected: list[str] = field(default_factory=list)  # tensors of b alone
    shape: dict[str, list[list[int]]] = field(default_factory=dict)
    dtype: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, Changed] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # plain values: missing, unexpected, or changed
    equal: int = 0  # tensors with all elements equal (after conversion where dtypes differ)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any((self.missing, self.unexpected, self.shape, self.dtype, self.changed, self.values))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def diff(a: Place, b: Place, *, quiet: bool = True) -> Difference:
    """Compare two checkpoints, however each is cut into chunks. Reads every byte that both have, once.

    Tied names are compared as the tensors that they name. Where dtypes differ, values are compared as float64.

    Raises:
        CheckpointError: one of them is damaged.
    """
    one, two = Reader(a), Reader(b)
    found = Difference(values=_values(one.manifest, two.manifest))
    names, others = _names(one.manifest), _names(two.manifest)
    found.missing = sorted(names.keys() - others.keys())
    found.unexpected = sorted(others.keys() - names.keys())
    common = []
    for name in (name for name in names if name in others):
        before, after = one.meta(name), two.meta(name)
        if before.shape != after.shape:
            found.shape[name] = [list(before.shape), list(after.shape)]
            continue
        if before.dtype != after.dtype:
            found.dtype[name] = [before.dtype, after.dtype]
        common.append(name)
    total = sum(one.meta(name).nbytes for name in common)
    counts = {name: Changed(0, 0, 0.0) for name in common}

    def both() -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        boxes = [(name, box) for name in common for _, box in pieces_of(one.meta(name), BATCH // 2)]
        for (name, _, x), (_, _, y) in zip(one.stream(boxes), two.stream(boxes), strict=True):
            yield name, x, y

    with Progress("diff", total, "bytes", quiet=quiet) as shown:
        for name, x, y in both():
            _count(counts[name], x, y)
            shown.advance(x.nbytes)
    found.changed = {name: count for name, count in counts.items() if count.unequal}
    found.equal = len(common) - len(found.changed)
    return found


def _count(so_far: Changed, x: torch.Tensor, y: torch.Tensor) -> None:
    so_far.of += x.numel()
    if x.is_complex() or y.is_complex():
        x, y = torch.view_as_real(x.to(torch.complex128)), torch.view_as_real(y.to(torch.complex128))
    if x.dtype == y.dtype and torch.equal(bits(x), bits(y)):
        return
    wide_x, wide_y = x.double(), y.double()
    differs = bits(x) != bits(y) if x.dtype == y.dtype else wide_x != wide_y
    differs &= ~(wide_x.isnan() & wide_y.isnan())
    if differs.any():
        so_far.unequal += int(differs.sum())
        gap = (wide_x[differs] - wide_y[differs]).abs().max()  # NaN if any is
        so_far.largest = float(torch.maximum(gap, torch.tensor(so_far.largest, dtype=torch.float64)))


def _names(manifest: Manifest) -> Mapping[str, None]:
    return dict.fromkeys([*manifest.index, *manifest.aliases])


def _values(a: Manifest, b: Manifest) -> dict[str, str]:
    told = [{n: v for n, v in m.values.items() if v["kind"] not in SILENT} for m in (a, b)]
    parts = [{n: v for n, v in m.values.items() if v["kind"] == "part"} for m in (a, b)]
    found = {name: "missing" for name in told[0].keys() - told[1].keys()}
    found |= {name: "unexpected" for name in told[1].keys() - told[0].keys()}
    for name in told[0].keys() & told[1].keys():
        inner = [{n: v for n, v in side.items() if n.startswith(f"{name}/")} for side in parts]
        if told[0][name] != told[1][name] or inner[0] != inner[1]:
            found[name] = "changed"
    return dict(sorted(found.items()))
