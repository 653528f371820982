"""Parts of interleaved documents as Python values, and the aligned lists in which OBELICS and MINT-1T publish them.

Interleaved documents are ordinary documents of the corpus (`corpus.documents.SCHEMA`) whose `parts` hold images. An
image part has a reference (`ref`: its address, or its name inside an archive), its bytes where they are known, and
`meta`, a JSON object. Keys that steps understand: `alt`, `width`, `height` (pixels of the original), `rendered_width`,
`rendered_height` (as the page asks), `format`, `sha256`, `filename`, `page`. Other keys are kept.

The aligned layout (arXiv 2306.16527, dataset card; arXiv 2406.11271, dataset cards): lists `texts` and `images` of
equal length, of which exactly one has a value at every place, and `metadata`, with an object where there is an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bloomery.core.errors import DataError
from bloomery.corpus.documents import SCHEMA, content_id

IMAGE_TOKEN = "<image>"
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"  # a paragraph: where a page concatenates articles


@dataclass(frozen=True)
class Part:
    """A piece of text, or an image (`text` is None)."""

    text: str | None = None
    image: bytes | None = None
    ref: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        """Whether this is an image."""
        return self.text is None

    def row(self) -> dict[str, Any]:
        """As a value of the `parts` column."""
        kind = "image" if self.is_image else "text"
        meta = json.dumps(self.meta, ensure_ascii=False) if self.meta else None
        return {"kind": kind, "text": self.text, "image": self.image, "ref": self.ref, "meta": meta}


Aligned = tuple[list[str | None], list[str | None], list[dict[str, Any] | None]]


def from_parts(
    documents: Sequence[Sequence[Part]],
    ids: Sequence[str | None] | None = None,
    urls: Sequence[str | None] | None = None,
    metas: Sequence[Mapping[str, Any] | None] | None = None,
) -> pa.RecordBatch:
    """Documents from lists of parts. A missing id becomes the hash of the url, the texts and the image references."""
    count = len(documents)
    ids, urls, metas = ids or [None] * count, urls or [None] * count, metas or [None] * count
    names = [
        given or content_id(url or "", token_text(parts) + "\x1f".join(p.ref or "" for p in parts if p.is_image))
        for given, url, parts in zip(ids, urls, documents, strict=True)
    ]
    items = [
        None if meta is None else [(str(k), str(v)) for k, v in meta.items() if v is not None] for meta in metas
    ]  # fmt: skip
    return pa.record_batch(
        [
            pa.array(names, pa.string()),
            pa.array(urls, pa.string()),
            pa.array([[part.row() for part in parts] for parts in documents], SCHEMA.field("parts").type),
            pa.array(items, SCHEMA.field("meta").type),
        ],
        schema=SCHEMA,
    )


def parts_of(batch: pa.RecordBatch) -> Iterator[list[Part]]:
    """The parts of every document; pieces that are neither text nor image are skipped.

    Raises:
        DataError: the metadata of an image is not a JSON object.
    """
    names = batch.column("id").to_pylist()
    for name, rows in zip(names, batch.column("parts").to_pylist(), strict=True):
        parts = []
        for row in rows or ():
            if row["kind"] == "text" and row["text"] is not None:
                parts.append(Part(row["text"]))
            elif row["kind"] == "image":
                parts.append(Part(None, row["image"], row["ref"], _object(row["meta"], name)))
        yield parts


def aligned(parts: Sequence[Part]) -> Aligned:
    """`texts`, `images` (references) and `metadata`; an image without a reference gets `image_<place>`."""
    texts: list[str | None] = []
    images: list[str | None] = []
    metadata: list[dict[str, Any] | None] = []
    for place, part in enumerate(parts):
        texts.append(part.text)
        images.append((part.ref or f"image_{place}") if part.is_image else None)
        metadata.append(dict(part.meta) if part.is_image else None)
    return texts, images, metadata


def from_aligned(
    texts: Sequence[str | None],
    images: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    where: str = "",
) -> list[Part]:
    """The inverse of `aligned`.

    Raises:
        DataError: lists of different lengths, or a place with both a text and an image, or with neither.
    """
    metadata = [None] * len(texts) if metadata is None else metadata
    if not len(texts) == len(images) == len(metadata):
        raise DataError(
            f"{len(texts)} texts, {len(images)} images and {len(metadata)} metadata", where=where or None,
            fix="the three lists describe the same places and need one length",
        )  # fmt: skip
    parts = []
    for place, (text, image, meta) in enumerate(zip(texts, images, metadata, strict=True)):
        if (text is None) == (image is None):
            raise DataError(
                f"place {place} has {'neither a text nor' if text is None else 'both a text and'} an image",
                where=where or None, fix="exactly one of texts[i] and images[i] is not null",
            )  # fmt: skip
        parts.append(Part(text) if image is None else Part(ref=image, meta=dict(meta or {})))
    return parts


def token_text(parts: Sequence[Part], token: str = IMAGE_TOKEN) -> str:
    """The document as plain text for training: `token` where an image stands, a blank line between parts."""
    return "\n\n".join(token if part.text is None else part.text for part in parts)


def _object(text: str | None, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise DataError(f"metadata of an image is not JSON: {error}", where=name) from error
    if not isinstance(found, dict):
        raise DataError(f"metadata of an image is not an object: {text!r:.80}", where=name)
    return found
