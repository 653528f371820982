"""What a curation step is: a function from batch to batch that says which columns it needs and which it adds.

A *local* step (`Step`) looks at one batch at a time. A *barrier* (`Barrier`) must see the whole corpus: it makes a
small sketch of every document, decides once over all sketches in input order, and its decisions are applied to the
documents. Both are small dataclasses whose fields are their parameters, so that a list of steps can be hashed,
pickled and written down.

The outcome of a document: kept; dropped with a reason; an error (a reason that starts with "error:"); or split into
several rows with ids `parent#0`, `parent#1`, …. A step never removes rows: it marks them with `drop`, and the engine
counts and removes them. A step that takes single parts out of documents says why with `removed_parts`. Randomness comes
from `uniform(batch, seed, …)`, which depends on the document's id alone.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive
from bloomery.corpus.documents import with_column

DROP = "_drop"  # reserved column: null = keep, otherwise the reason
REMOVED = "_removed"  # reserved column: a reason for every part that a step has taken out of the document
ERROR = "error:"  # a reason with this prefix counts as an error, not as a decision


@dataclass(frozen=True)
class Plan:
    """What a step needs beyond one batch: peak memory and temporary disk, in bytes."""

    ram_bytes: int = 0
    disk_bytes: int = 0


class _Declared:
    """The part that local steps and barriers share: name, columns, estimate, fingerprint."""

    @property
    def name(self) -> str:
        """How reports call the step."""
        return type(self).__name__

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that must exist before the step."""
        return ("parts",)

    @property
    def writes(self) -> tuple[str, ...]:
        """Columns the step adds or replaces."""
        return ()

    def plan(self, documents: int, bytes: int) -> Plan:
        """Estimated needs for a corpus of that many documents and bytes of text."""
        return Plan()

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the step's result, as plain JSON values; two equal fingerprints share results.

        A field that is not plain data (a model) must have a `fingerprint()` of its own.
        """
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        fields: list[str] = [f.name for f in dataclasses.fields(self)] if dataclasses.is_dataclass(self) else []
        return {"step": kind, **{field: _plain(self, field) for field in fields}}


class Step(_Declared, ABC):
    """A local step: subclasses are dataclasses with `__call__(batch) -> batch`. It must accept an empty batch."""

    @property
    def max_rows(self) -> int | None:
        """Most documents of a batch, for a step that makes documents large; None: as they come."""
        return None

    @abstractmethod
    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with new columns, dropped documents marked."""


class Barrier(_Declared, ABC):
    """A step that needs the whole corpus. `decide` runs once, in one process, over all sketches in input order."""

    @abstractmethod
    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """A few small columns, one row per document, in order."""

    @abstractmethod
    def decide(self, sketches: pa.Table) -> pa.Table:
        """One row per sketch, in order: made by `decisions(...)`."""


def decisions(
    *, drop: Sequence[str | None] | pa.Array | None = None, notes: Mapping[str, Any] | None = None, **columns: Any
) -> pa.Table:
    """The answer of `Barrier.decide`: drop reasons (null = keep), new column values, and notes for the report."""
    arrays = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    if drop is not None:
        arrays[DROP] = drop if isinstance(drop, pa.Array) else pa.array(drop, pa.string())
    return pa.table(arrays).replace_schema_metadata({"notes": json.dumps(dict(notes or {}))})


def decision_notes(table: pa.Table) -> dict[str, Any]:
    """The notes given to `decisions`."""
    notes: dict[str, Any] = json.loads((table.schema.metadata or {}).get(b"notes", b"{}"))
    return notes


def drop(batch: pa.RecordBatch, mask: Any, reason: str) -> pa.RecordBatch:
    """Mark the documents where `mask` (boolean, Arrow or NumPy) is true; an earlier reason stays."""
    chosen = mask if isinstance(mask, (pa.Array, pa.ChunkedArray)) else pa.array(np.asarray(mask, dtype=bool))
    return drop_reasons(batch, pc.if_else(pc.fill_null(chosen, False), pa.scalar(reason), pa.scalar(None, pa.string())))


def drop_reasons(batch: pa.RecordBatch, reasons: Sequence[str | None] | pa.Array) -> pa.RecordBatch:
    """Mark every document whose reason is not null; an earlier reason stays."""
    new = reasons if isinstance(reasons, pa.Array) else pa.array(reasons, pa.string())
    if DROP in batch.schema.names:
        new = pc.coalesce(batch.column(DROP), new)
    elif new.null_count == len(new):
        return batch
    return with_column(batch, DROP, new)


def removed_parts(batch: pa.RecordBatch, reasons: Sequence[Sequence[str]]) -> pa.RecordBatch:
    """Say, for every document, why each of the parts went that this step has taken out; the report counts them."""
    return with_column(batch, REMOVED, pa.array(reasons, pa.list_(pa.string())))


def take_removed(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
    """The batch without what `removed_parts` said, and how often each reason was given."""
    if REMOVED not in batch.schema.names:
        return batch, {}
    counts = pc.value_counts(batch.column(REMOVED).flatten())
    found = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return batch.drop_columns([REMOVED]), found


def kept(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The documents that are not marked, without the reserved column."""
    if DROP not in batch.schema.names:
        return batch
    return batch.filter(pc.is_null(batch.column(DROP))).drop_columns([DROP])


def uniform(batch: pa.RecordBatch, seed: int, *names: object) -> np.ndarray:
    """One number in [0, 1) per document from hash(seed, names, id): float64 (documents,)."""
    key = derive(seed, *names)
    hashes = [xxhash.xxh3_64_intdigest((name or "").encode(), seed=key) for name in batch.column("id").to_pylist()]
    return (np.array(hashes, dtype=np.uint64) >> np.uint64(11)) * 2.0**-53


def _plain(step: _Declared, field: str) -> Any:
    value = getattr(step, field)
    value = value.fingerprint() if callable(getattr(value, "fingerprint", None)) else encode(value)
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ConfigError(
            f"cannot be written down: {value!r}", where=f"{step.name}.{field}", fix="give its class a fingerprint()"
        ) from error
