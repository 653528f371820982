"""All parts of a batch in a row, so that rules see texts and addresses and the bytes of images are not touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.corpus.documents import SCHEMA, with_column


@dataclass(frozen=True, eq=False)
class FlatParts:
    """P parts of D documents, in order."""

    pieces: pa.StructArray  # (P,)
    owner: np.ndarray  # the document of each part: int64 (P,)
    documents: int  # D

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> FlatParts:
        """The parts of all documents of a batch."""
        parts = batch.column("parts")
        lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy()
        return cls(parts.flatten(), np.repeat(np.arange(len(parts)), lengths), len(parts))

    @property
    def is_image(self) -> np.ndarray:
        """Which parts are images: bool (P,)."""
        return self._is("image")

    @property
    def is_text(self) -> np.ndarray:
        """Which parts are texts: bool (P,)."""
        mask: np.ndarray = self._is("text") & pc.struct_field(self.pieces, "text").is_valid().to_numpy(False)
        return mask

    @property
    def texts(self) -> list[str | None]:
        """The text of every part; None for an image."""
        column = pc.struct_field(self.pieces, "text")
        shown: list[str | None] = pc.if_else(pa.array(self.is_text), column, pa.scalar(None, pa.string())).to_pylist()
        return shown

    @property
    def refs(self) -> list[str | None]:
        """The reference of every image; None for a text."""
        refs: list[str | None] = pc.struct_field(self.pieces, "ref").to_pylist()
        return refs

    def count(self, mask: np.ndarray) -> np.ndarray:
        """Parts of each document for which `mask` (P,) holds: int64 (D,)."""
        return np.bincount(self.owner[mask], minlength=self.documents)

    def replaced(
        self, batch: pa.RecordBatch, keep: np.ndarray, texts: Sequence[str | None] | None = None
    ) -> pa.RecordBatch:
        """The batch with the parts for which `keep` (P,) holds, and `texts` (P) in place of their texts."""
        pieces = self.pieces
        if texts is not None:
            columns = [pc.struct_field(pieces, field.name) for field in pieces.type]
            columns[pieces.type.get_field_index("text")] = pa.array(texts, pa.string())
            pieces = pa.StructArray.from_arrays(columns, fields=list(pieces.type))
        if not keep.all():
            pieces = pieces.filter(pa.array(keep))
        offsets = np.concatenate([[0], np.cumsum(self.count(keep))]).astype(np.int32)
        lists = pa.ListArray.from_arrays(offsets, pieces.cast(SCHEMA.field("parts").type.value_type))
        return with_column(batch, "parts", lists)

    def by_document(self, reasons: Sequence[tuple[int, str]]) -> list[list[str]]:
        """Reasons given with the number of a part, as a list for every document (for `steps.removed_parts`)."""
        found: list[list[str]] = [[] for _ in range(self.documents)]
        for part, reason in reasons:
            found[self.owner[part]].append(reason)
        return found

    def _is(self, kind: str) -> np.ndarray:
        equal = pc.fill_null(pc.equal(pc.struct_field(self.pieces, "kind"), kind), False)
        mask: np.ndarray = equal.to_numpy(zero_copy_only=False)
        return mask
