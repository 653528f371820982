"""The images of many documents at once: what is known of each without touching its bytes, and taking some out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import DataError
from bloomery.corpus.documents import SCHEMA, with_column
from bloomery.corpus.interleaved.flat_parts import FlatParts
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
    flat = FlatParts.of(batch)
    at = np.flatnonzero(flat.is_image)
    refs, metas = (pc.struct_field(flat.pieces, name).take(pa.array(at)).to_pylist() for name in ("ref", "meta"))
    found = []
    for number, text in enumerate(metas):
        try:
            meta = json.loads(text) if text else {}
        except ValueError:
            meta = None
        if not isinstance(meta, dict):
            name = batch.column("id")[int(flat.owner[at[number]])].as_py()
            raise DataError(f"metadata of an image is not a JSON object: {text!r:.80}", where=name)
        found.append(meta)
    begins = np.searchsorted(flat.owner, flat.owner[at])
    return Images(at, flat.owner[at], at - begins, refs, found)


def image_bytes(batch: pa.RecordBatch, at: Sequence[int] | np.ndarray) -> list[bytes | None]:
    """The encoded images at these numbers (`Images.at`)."""
    pieces = batch.column("parts").flatten()
    found: list[bytes | None] = pc.struct_field(pieces, "image").take(pa.array(at, pa.int64())).to_pylist()
    return found


def with_image_metas(batch: pa.RecordBatch, images: Images) -> pa.RecordBatch:
    """The batch with the metadata in `images`, which may have changed."""
    column = batch.column("parts")
    pieces = column.flatten()
    metas = np.array(pc.struct_field(pieces, "meta").to_pylist(), dtype=object)
    metas[images.at] = [json.dumps(meta, ensure_ascii=False) if meta else None for meta in images.metas]
    fields = {field.name: pc.struct_field(pieces, field.name) for field in pieces.type}
    fields["meta"] = pa.array(metas, pa.string())
    made = pa.StructArray.from_arrays(list(fields.values()), fields=list(pieces.type))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return with_column(batch, "parts", pa.ListArray.from_arrays(offsets, made, type=SCHEMA.field("parts").type))


def remove_images(batch: pa.RecordBatch, images: Images, reasons: Sequence[str | None]) -> pa.RecordBatch:
    """The batch without the images that have a reason; `reasons` is aligned with `images`."""
    gone = [(int(at), reason) for at, reason in zip(images.at, reasons, strict=True) if reason is not None]
    if not gone:
        return batch
    flat = FlatParts.of(batch)
    keep = np.ones(len(flat.owner), dtype=bool)
    keep[[at for at, _ in gone]] = False
    return removed_parts(flat.replaced(batch, keep), flat.by_document(gone))


def replace_parts(batch: pa.RecordBatch, documents: Iterable[Sequence[Part | str]]) -> pa.RecordBatch:
    """The batch with new parts; a string in the place of a part is the reason why that one went."""
    rows, told = [], []
    for parts in documents:
        rows.append([part.row() for part in parts if isinstance(part, Part)])
        told.append([part for part in parts if isinstance(part, str)])
    batch = with_column(batch, "parts", pa.array(rows, SCHEMA.field("parts").type))
    return removed_parts(batch, told) if any(told) else batch
