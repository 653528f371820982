"""A corpus is a stream of Arrow record batches; one row is one document.

A document is `id`, `url`, `parts` and `meta`. `parts` is a list of pieces of text and images in reading order; a
plain text document is the one-part case. Steps append columns of their own (`lang`, `score_quality`, …).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.core.errors import DataError

PART = pa.struct(
    [
        ("kind", pa.string()),  # "text" or "image"
        ("text", pa.string()),
        ("image", pa.binary()),  # the encoded image; null where only its reference is known
        ("ref", pa.string()),  # where an image comes from: its address, or its name in an archive
        ("meta", pa.string()),  # a JSON object about an image; see `interleaved.parts`
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("parts", pa.list_(PART)),
        ("meta", pa.map_(pa.string(), pa.string())),
    ]
)


def from_texts(
    texts: Sequence[str | None] | pa.StringArray,
    ids: Sequence[str | None] | None = None,
    urls: Sequence[str | None] | None = None,
    metas: Sequence[Mapping[str, Any] | None] | None = None,
) -> pa.RecordBatch:
    """Text-only documents, one part each. A missing id becomes the 128-bit content hash of url and text."""
    column = pc.fill_null(_as_strings(texts), "")
    urls = [None] * len(column) if urls is None else urls
    ids = [None] * len(column) if ids is None else ids
    metas = [None] * len(column) if metas is None else metas
    for name, values in (("ids", ids), ("urls", urls), ("metas", metas)):
        if len(values) != len(column):
            raise DataError(f"{len(column)} texts but {len(values)} {name}", fix="give one per text")
    names = [
        given or content_id(url or "", text) for given, url, text in zip(ids, urls, column.to_pylist(), strict=True)
    ]
    return pa.record_batch(
        [
            pa.array(names, pa.string()),
            pa.array(urls, pa.string()),
            text_parts(column),
            pa.array([_items(meta) for meta in metas], SCHEMA.field("meta").type),
        ],
        schema=SCHEMA,
    )


def content_id(url: str, text: str) -> str:
    """The id of a document that came without one: hex of the 128-bit hash of its url and text."""
    return xxhash.xxh3_128_hexdigest(f"{url}\x1f{text}".encode())


def texts(batch: pa.RecordBatch) -> pa.StringArray:
    """The text of every document: its text parts joined by a blank line ("" where there is none).

    When every document is exactly one text part (the usual case) no byte is copied.
    """
    parts = batch.column("parts")
    pieces = parts.flatten()  # skips null lists and honours slices
    piece_texts, kinds = pc.struct_field(pieces, "text"), pc.struct_field(pieces, "kind")
    lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy()
    is_text = pc.and_(pc.fill_null(pc.equal(kinds, "text"), False), pc.is_valid(piece_texts))
    if len(pieces) == len(parts) and (lengths == 1).all() and pc.all(is_text, min_count=0).as_py():
        return piece_texts
    owner = np.repeat(np.arange(len(parts)), lengths)[is_text.to_numpy(zero_copy_only=False)]
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum(np.bincount(owner, minlength=len(parts)), out=offsets[1:])
    return pc.binary_join(pa.ListArray.from_arrays(offsets, piece_texts.filter(is_text)), "\n\n")


def with_texts(batch: pa.RecordBatch, texts: Sequence[str] | pa.StringArray) -> pa.RecordBatch:
    """The same documents with new text, as one text part each.

    Raises:
        DataError: a document has an image part, which this would lose; edit its `parts` instead.
    """
    kinds = pc.struct_field(batch.column("parts").flatten(), "kind")
    if pc.any(pc.not_equal(kinds, "text"), min_count=0).as_py():
        raise DataError("replacing the text of a document with images would lose them", fix="edit its parts instead")
    return with_column(batch, "parts", text_parts(pc.fill_null(_as_strings(texts), "")))


def with_column(batch: pa.RecordBatch, name: str, values: Any) -> pa.RecordBatch:
    """The batch with column `name` replaced or appended; `values` is an Arrow or NumPy array or a list."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if len(array) != batch.num_rows:
        raise DataError(f"column {name!r} has {len(array)} values for {batch.num_rows} documents")
    index = batch.schema.get_field_index(name)
    if index < 0:
        return batch.append_column(name, array)
    return batch.set_column(index, name, array)


def text_parts(texts: pa.StringArray) -> pa.ListArray:
    """A `parts` column with one text part per document; the text is not copied."""
    kinds = pa.array(["text"], pa.string()).take(pa.array(np.zeros(len(texts), dtype=np.int32)))
    absent = [pa.nulls(len(texts), field.type) for field in list(PART)[2:]]
    pieces = pa.StructArray.from_arrays([kinds, texts, *absent], fields=list(PART))
    return pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), pieces, type=SCHEMA.field("parts").type)


def _as_strings(texts: Sequence[str | None] | pa.Array) -> pa.StringArray:
    return texts.cast(pa.string()) if isinstance(texts, pa.Array) else pa.array(texts, pa.string())


def _items(meta: Mapping[str, Any] | None) -> list[tuple[str, str]] | None:
    return None if meta is None else [(str(key), str(value)) for key, value in meta.items() if value is not None]
