"""Images that occur too often: logos, buttons, advertisements, the same photograph on every page of a site.

An image goes everywhere when more than `most` images of the corpus are equal to it or nearly equal, itself counted;
and in a document it goes when an equal or nearly equal one has stayed before it (arXiv 2406.11271, §3.2: SHA-256
more than 10 times in a dump, and repeats inside a document; near equality is an addition of ours). Equal is equal
SHA-256; nearly equal are perceptual hashes (`image_hash`) that differ in at most `distance` bits. Counts are of
neighbours and not of clusters, so chains of small differences swallow nothing, and the order of the documents has no
influence on what is removed everywhere.

Pairs within `distance` bits are found without comparing all: the 64 bits are cut into `distance` + m blocks, of which
two such hashes share at least m; for every choice of m blocks, hashes with equal bits there are compared (G. S. Manku
et al., "Detecting Near-Duplicates for Web Crawling", 2007, §3). m grows with the number of hashes. Two hashes that are
both known to be too frequent need not be compared, so large groups are not quadratic either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved.flat_images import images_of, remove_images
from bloomery.corpus.interleaved.images import DOCUMENT_IMAGES
from bloomery.corpus.steps import Barrier, Plan, Step, decisions

CUT = "image_cut"  # column: places of the images to remove, and why
REASONS = ("occurs too often", "nearly the same occurs too often", "repeated in the document")
MAX_DISTANCE = 8
MAX_TABLES = 80
PAIRS = 1 << 20  # compared at a time

_CUTS = pa.list_(pa.struct([("place", pa.int32()), ("reason", pa.int8())]))


def image_dedup(**fields: Any) -> list[Step | Barrier]:
    """`ImageDedup` and the step that applies it."""
    return [ImageDedup(**fields), CutImages()]


@dataclass(frozen=True)
class ImageDedup(Barrier):
    """Decide which images occur too often; `CutImages` must follow.

    Reads `sha256` and `phash` of the images' metadata (`LoadImages`, `HashImages`); an image without them is compared
    by what it has, and stays when it has neither.

    Args:
        most: images of the corpus that may be (nearly) equal.
        distance: bits in which nearly equal hashes may differ; 0 to 8, or None to compare SHA-256 alone. Of the six
            million pairs among 3,470 different photographs none are within 4 bits, one is within 8, 20 within 12.
        within: whether repeats inside a document are removed.
    """

    most: int = 10
    distance: int | None = 4
    within: bool = True

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"most={self.most}", where="ImageDedup", fix="1 or more")
        if self.distance is not None and not 0 <= self.distance <= MAX_DISTANCE:
            raise ConfigError(f"distance={self.distance}", where="ImageDedup", fix=f"0 to {MAX_DISTANCE}, or null")

    @property
    def writes(self) -> tuple[str, ...]:
        """The images to cut."""
        return (CUT,)

    def plan(self, documents: int, bytes: int) -> Plan:
        """160 bytes per image while deciding, 30 on disk."""
        images = documents * DOCUMENT_IMAGES
        return Plan(ram_bytes=160 * images, disk_bytes=30 * images)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """Lists with an entry per image: `place`, `sha` (64 bits of the SHA-256), `phash`; null where not known."""
        images = images_of(batch)
        counts = np.bincount(images.document, minlength=batch.num_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
        columns = {
            "place": pa.array(images.place, pa.int32()),
            "sha": pa.array([_number(meta.get("sha256")) for meta in images.metas], pa.uint64()),
            "phash": pa.array([_number(meta.get("phash")) for meta in images.metas], pa.uint64()),
        }
        return pa.table({name: pa.LargeListArray.from_arrays(offsets, values) for name, values in columns.items()})

    def decide(self, sketches: pa.Table) -> pa.Table:
        """The images to cut from every document."""
        lengths = np.concatenate([np.zeros(0, np.int64), *map(_lengths, sketches["place"].chunks)])
        document = np.repeat(np.arange(len(lengths)), lengths)
        place, _ = _flat(sketches["place"])
        sha, has_sha = _flat(sketches["sha"])
        hashes, has_hash = _flat(sketches["phash"])
        has_hash &= self.distance is not None
        reason = np.full(len(place), -1, dtype=np.int8)

        _, inverse, count = np.unique(sha[has_sha], return_inverse=True, return_counts=True)
        reason[np.flatnonzero(has_sha)[count[inverse] > self.most]] = 0

        distinct, inverse, count = np.unique(hashes[has_hash], return_inverse=True, return_counts=True)
        near = neighbours(distinct, count, self.distance or 0, self.most)
        often = np.flatnonzero(has_hash)[(near > self.most)[inverse]]
        reason[often[reason[often] < 0]] = 1
        if self.within:
            self._repeats(document, (sha, has_sha), (hashes, has_hash), reason)

        gone = reason >= 0
        notes = {name: int((reason == number).sum()) for number, name in enumerate(REASONS)}
        per_document = np.bincount(document[gone], minlength=len(lengths))
        cuts = pa.StructArray.from_arrays(
            [pa.array(place[gone], pa.int32()), pa.array(reason[gone])], fields=list(_CUTS.value_type)
        )
        offsets = np.concatenate([[0], np.cumsum(per_document)]).astype(np.int32)
        return decisions(
            notes={"images": len(place), "distinct_hashes": len(distinct), **notes},
            **{CUT: pa.ListArray.from_arrays(offsets, cuts, type=_CUTS)},
        )

    def _repeats(
        self,
        document: np.ndarray,
        sha: tuple[np.ndarray, np.ndarray],
        hashes: tuple[np.ndarray, np.ndarray],
        reason: np.ndarray,
    ) -> None:
        """Mark images that are equal, or nearly, to an earlier one of their document that stays."""

        def same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            equal = (sha[0][first] == sha[0][second]) & sha[1][first] & sha[1][second]
            close = np.bitwise_count(hashes[0][first] ^ hashes[0][second]) <= (self.distance or 0)
            found: np.ndarray = equal | (close & hashes[1][first] & hashes[1][second])
            return found

        with_repeats: set[int] = set()
        at, step = np.flatnonzero(reason < 0), 1
        while step < len(at) and (pairs := document[at[:-step]] == document[at[step:]]).any():
            first, second = at[:-step][pairs], at[step:][pairs]
            with_repeats |= set(document[first[same(first, second)]].tolist())
            step += 1
        for one in sorted(with_repeats):
            begin, end = np.searchsorted(document, [one, one + 1])
            stay: list[int] = []
            for i in range(begin, end):
                if reason[i] >= 0:
                    continue
                if same(np.array(stay, dtype=np.int64), np.full(len(stay), i)).any():
                    reason[i] = 2
                else:
                    stay.append(i)


@dataclass(frozen=True)
class CutImages(Step):
    """Remove the images that `ImageDedup` decided about."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts, and the images to remove."""
        return ("parts", CUT)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without those images and without the column."""
        cuts = [{cut["place"]: REASONS[cut["reason"]] for cut in some or ()} for some in batch.column(CUT).to_pylist()]
        images = images_of(batch)
        reasons = [cuts[document].get(place) for document, place in zip(images.document, images.place, strict=True)]
        return remove_images(batch, images, reasons).drop_columns([CUT])


def neighbours(hashes: np.ndarray, counts: np.ndarray, distance: int, enough: int) -> np.ndarray:
    """For each of these distinct hashes (uint64), how many images have one within `distance` bits of it.

    `counts` are the images of each hash. A sum is exact up to `enough`; above that it may be anything above `enough`.
    """
    total = counts.astype(np.int64).copy()
    if distance == 0 or len(hashes) < 2:
        return total
    masks = _masks(hashes, distance)
    for table, mask in enumerate(masks):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        begins = np.flatnonzero(np.diff(keys[order], prepend=~keys[order[:1]]))
        for first, second in _pairs(order, begins, total, enough):
            differ = hashes[first] ^ hashes[second]
            close = np.bitwise_count(differ) <= distance
            first, second, differ = first[close], second[close], differ[close]
            new = np.ones(len(first), dtype=bool)
            for earlier in masks[:table]:  # a pair that shares the bits of an earlier mask has been counted there
                new &= (differ & earlier) != 0
            first, second = first[new], second[new]
            np.add.at(total, first, counts[second])
            np.add.at(total, second, counts[first])
    return total


def _masks(hashes: np.ndarray, distance: int) -> list[np.uint64]:
    """Masks such that any two hashes within `distance` share all bits of at least one; those with the fewest pairs."""
    best: tuple[int, list[np.uint64]] | None = None
    for common in range(1, 5):
        bounds = np.linspace(0, 64, distance + common + 1).round().astype(int)
        blocks = [sum(1 << bit for bit in range(a, b)) for a, b in pairwise(bounds.tolist())]
        masks = [np.uint64(sum(chosen)) for chosen in combinations(blocks, common)]
        if best is not None and len(masks) > MAX_TABLES:
            break
        pairs = 0
        for mask in masks:
            sizes = np.unique(hashes & mask, return_counts=True)[1]
            pairs += int((sizes * (sizes - 1) // 2).sum())
        if best is None or pairs < best[0]:
            best = pairs, masks
        if pairs <= 16 * len(hashes) * len(masks):  # sorting for more tables would cost more than it saves
            break
    assert best is not None
    return best[1]


def _pairs(
    order: np.ndarray, begins: np.ndarray, total: np.ndarray, enough: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs inside the groups that begin there, but for those whose members both have more than `enough` by then.

    A group of which that is true of all members is left.
    """
    sizes = np.diff(begins, append=len(order))
    end = np.repeat(begins + sizes, sizes)
    at, step = np.arange(len(order)), 1
    while len(at := at[at + step < end[at]]):
        if step & (step - 1) == 0:  # now and then
            full = np.repeat(np.minimum.reduceat(total[order], begins) > enough, sizes)
            at = at[~full[at]]
        first, second = order[at], order[at + step]
        todo = np.flatnonzero((total[first] <= enough) | (total[second] <= enough))
        for start in range(0, len(todo), PAIRS):
            some = todo[start : start + PAIRS]
            yield first[some], second[some]
        step += 1


def _number(digits: Any) -> int | None:
    """The first 64 bits of a hash in hex, or None."""
    try:
        return int(digits[:16], 16) if isinstance(digits, str) and len(digits) >= 16 else None
    except ValueError:
        return None


def _lengths(chunk: pa.LargeListArray) -> np.ndarray:
    lengths: np.ndarray = pc.list_value_length(chunk).to_numpy()
    return lengths


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists, 0 where null, and where they are not null."""
    values = [chunk.flatten() for chunk in column.chunks]
    kind = column.type.value_type.to_pandas_dtype()
    full = [pc.fill_null(chunk, 0).to_numpy() for chunk in values]
    known = [pc.is_valid(chunk).to_numpy(zero_copy_only=False) for chunk in values]
    return np.concatenate([np.zeros(0, kind), *full]), np.concatenate([np.zeros(0, bool), *known])
