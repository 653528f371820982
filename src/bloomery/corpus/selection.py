"""Keep the best part of a corpus by a score: a share of all documents, or everything beyond a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.corpus.steps import Barrier, decisions


@dataclass
class Select(Barrier):
    """Keep documents by the number in `column`: exactly one of `fraction` and `threshold` is given.

    `fraction` keeps that share of the whole corpus, not of each file (DCLM keeps 0.1 by a quality score); of equal
    scores the earlier document wins, so the number kept is exact. `threshold` keeps scores at or beyond it.
    `order="high"` keeps high scores, `"low"` low ones. Documents without a score are dropped.
    """

    column: str
    fraction: float | None = None
    threshold: float | None = None
    order: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.threshold is None):
            raise ConfigError("Select needs either a fraction or a threshold", where=self.column)
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction = {self.fraction}", fix="use a share above 0 and up to 1")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ConfigError(f"threshold = {self.threshold}", fix="use a finite number")
        if self.order not in ("high", "low"):
            raise ConfigError(f"order = {self.order!r}", fix="use high or low")

    @property
    def reads(self) -> tuple[str, ...]:
        """The column with the score."""
        return ("id", self.column)

    def sketch(self, batch: pa.RecordBatch) -> pa.Table:
        """The scores of a batch; DataError naming the first document whose score is not a number."""
        if self.column not in batch.schema.names:
            raise ConfigError(
                f"no column {self.column!r} to select by",
                fix=f"run the step that writes it first; {nearest(self.column, batch.schema.names)}",
            )
        scores = batch.column(self.column).cast(pa.float64())
        bad = pc.fill_null(pc.is_nan(scores), False)
        if pc.any(bad).as_py():
            first = batch.column("id")[pc.index(bad, True).as_py()].as_py()
            raise DataError(f"{self.column} is not a number", where=f"document {first}")
        return pa.table({"score": scores})

    def decide(self, sketches: pa.Table) -> pa.Table:
        """The reason to drop each document, null where it is kept."""
        column = sketches.column("score")
        missing = column.is_null().to_numpy()
        scores = column.fill_null(0.0).to_numpy()
        better = -scores if self.order == "high" else scores
        if self.threshold is not None:
            keep = (scores >= self.threshold if self.order == "high" else scores <= self.threshold) & ~missing
        else:
            scored = np.flatnonzero(~missing)
            wanted = round(self.fraction * len(scored))  # type: ignore[operator]
            keep = np.zeros(len(scores), bool)
            keep[scored[np.argsort(better[scored], kind="stable")[:wanted]]] = True
        side = "low" if self.order == "high" else "high"
        reasons = np.where(missing, "no score", f"{self.column} too {side}")
        return decisions(drop=pa.array(reasons, pa.string(), mask=keep), notes=self._notes(scores[keep]))

    def _notes(self, kept: np.ndarray) -> dict[str, float]:
        """The threshold that the fraction amounts to, for the report and for use on another corpus."""
        if not len(kept):
            return {}
        return {"threshold": float(kept.min() if self.order == "high" else kept.max())}
