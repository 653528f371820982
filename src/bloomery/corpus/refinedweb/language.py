"""Language by a fastText model such as lid.176, over the whole page."""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError
from bloomery.core.hashing import file_digest
from bloomery.corpus.documents import texts, with_column
from bloomery.corpus.fasttext_bin import LABEL_PREFIX, FastTextModel
from bloomery.corpus.steps import Step, drop_reasons


@dataclass(frozen=True)
class FastTextLanguage(Step):
    """Keep pages whose most probable language is one of `keep_languages`, with more than `threshold` probability.

    Writes `lang` and `lang_score`. A page of nothing but white space and ASCII punctuation has no language and is
    dropped. `strict_reference` deletes line ends, so that the last word of a line and the first of the next become one
    (by default a space takes their place), and has the model judge a page of line ends alone.

    `model` is a fastText classifier (lid.176.bin, lid.176.ftz, or your own). `corpus.Language` needs no file.
    """

    model: Path
    keep_languages: tuple[str, ...] = ("en",)
    threshold: float = 0.65
    strict_reference: bool = False

    writes = ("lang", "lang_score")

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}", where="FastTextLanguage", fix="0 to 1")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages in other languages."""
        found, scores = self.identify(texts(batch).to_pylist())
        batch = with_column(batch, "lang", pa.array(found, pa.string()))
        batch = with_column(batch, "lang_score", pa.array(scores, pa.float32()))
        reasons = [
            "no language"
            if name is None
            else f"language {name}"
            if name not in self.keep_languages
            else None
            if score > self.threshold
            else "language uncertain"
            for name, score in zip(found, scores, strict=True)
        ]
        return drop_reasons(batch, reasons)

    def identify(self, texts: list[str]) -> tuple[list[str | None], np.ndarray]:
        """The most probable language of each text and its probability, float32 (texts,)."""
        model = self._loaded
        lines = [text.replace("\n", "" if self.strict_reference else " ") for text in texts]
        scores = model.predict(lines)
        blank = string.punctuation + (" " if self.strict_reference else string.whitespace)
        known = np.array([bool(text.strip(blank)) for text in texts], dtype=bool)
        best = scores.argmax(axis=1)
        languages = [label.removeprefix(LABEL_PREFIX.decode()) for label in model.labels]
        names = [languages[i] if is_known else None for i, is_known in zip(best, known, strict=True)]
        return names, np.where(known, scores[np.arange(len(lines)), best], 0).astype(np.float32)

    @functools.cached_property
    def _loaded(self) -> FastTextModel:
        return FastTextModel(self.model)

    def fingerprint(self) -> dict[str, Any]:
        """The model's content, not the name of its file."""
        return {**super().fingerprint(), "model": file_digest(self.model)}

    def __getstate__(self) -> dict[str, Any]:  # a worker process maps the file again instead of receiving the matrix
        return {name: value for name, value in self.__dict__.items() if name != "_loaded"}
