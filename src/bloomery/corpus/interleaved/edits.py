"""Parts of many documents at once: what is known of each without touching its bytes, and taking some of them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import DataError
from bloomery.corpus.documents import SCHEMA, with_column
from bloomery.corpus.interleaved.parts import Part
from bloomery.corpus.steps import removed_parts


class Images(NamedTuple):
    """The images of a batch, in order. `at` numbers a part among all parts of the batch, `place` in its document."""

    at: np.ndarray
    document: np.ndarray
    place: np.ndarray
    refs: list[str | None]
    metas: list[dict[str, Any]]


def images_of(batch: pa.RecordBatch) -> Images:
    """The images of a batch, without their bytes.

    Raises:
        DataError: the metadata of an image is not a JSON object.
    """
    owner, place = _places(batch)
    parts = batch.column("parts").flatten()
    at = np.flatnonzero(pc.fill_null(pc.equal(pc.struct_field(parts, "kind"), "image"), False))
    refs, metas = (pc.struct_field(parts, name).take(pa.array(at)).to_pylist() for name in ("ref", "meta"))
    found = []
    for number, text in enumerate(metas):
        try:
            meta = json.loads(text) if text else {}
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            name = batch.column("id")[int(owner[at[number]])].as_py()
            raise DataError(f"metadata of an image is not a JSON object: {text!r:.80}", where=name)
        found.append(meta)
    return Images(at, owner[at], place[at], refs, found)


def image_bytes(batch: pa.RecordBatch, at: Sequence[int] | np.ndarray) -> list[bytes | None]:
    """The encoded images at these numbers (`Images.at`)."""
    found: list[bytes | None] = (
        pc.struct_field(batch.column("parts").flatten(), "image").take(pa.array(at, pa.int64())).to_pylist()
    )
    return found


def with_image_metas(batch: pa.RecordBatch, images: Images) -> pa.RecordBatch:
    """The batch with the metadata in `images`, which may have changed."""
    column = batch.column("parts")
    parts = column.flatten()
    metas = np.array(pc.struct_field(parts, "meta").to_pylist(), dtype=object)
    metas[images.at] = [json.dumps(meta, ensure_ascii=False) if meta else None for meta in images.metas]
    fields = {field.name: pc.struct_field(parts, field.name) for field in parts.type}
    fields["meta"] = pa.array(metas, pa.string())
    made = pa.StructArray.from_arrays(list(fields.values()), fields=list(parts.type))
    return with_column(batch, "parts", _lists(made, _lengths(column)))


def remove_parts(batch: pa.RecordBatch, reasons: Sequence[str | None]) -> pa.RecordBatch:
    """The batch without the parts that have a reason; `reasons` is aligned with all parts of the batch."""
    goes = np.array([reason is not None for reason in reasons], dtype=bool)
    if not goes.any():
        return batch
    owner, _ = _places(batch)
    told: list[list[str]] = [[] for _ in range(batch.num_rows)]
    for part in np.flatnonzero(goes).tolist():
        told[owner[part]].append(reasons[part] or "")
    left = batch.column("parts").flatten().filter(pa.array(~goes))
    lengths = np.bincount(owner[~goes], minlength=batch.num_rows)
    return removed_parts(with_column(batch, "parts", _lists(left, lengths)), told)


def remove_images(batch: pa.RecordBatch, images: Images, reasons: Sequence[str | None]) -> pa.RecordBatch:
    """The batch without the images that have a reason; `reasons` is aligned with `images`."""
    of_parts: list[str | None] = [None] * int(_lengths(batch.column("parts")).sum())
    for at, reason in zip(images.at, reasons, strict=True):
        of_parts[at] = reason
    return remove_parts(batch, of_parts)


def replace_parts(batch: pa.RecordBatch, documents: Iterable[Sequence[Part | str]]) -> pa.RecordBatch:
    """The batch with new parts; a string in the place of a part is the reason why that one went."""
    rows, told = [], []
    for parts in documents:
        rows.append([part.row() for part in parts if isinstance(part, Part)])
        told.append([part for part in parts if isinstance(part, str)])
    batch = with_column(batch, "parts", pa.array(rows, SCHEMA.field("parts").type))
    return removed_parts(batch, told) if any(told) else batch


def _lengths(column: pa.ListArray) -> np.ndarray:
    lengths: np.ndarray = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return lengths


def _places(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """The document of every part, and its place there."""
    lengths = _lengths(batch.column("parts"))
    owner = np.repeat(np.arange(batch.num_rows), lengths)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _lists(parts: pa.StructArray, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, parts, type=SCHEMA.field("parts").type)
