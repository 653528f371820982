"""Training and validation documents, told apart by a hash of their key.

A document's side depends on its key, the seed and the fraction alone: adding documents moves none, a larger fraction
only adds to the validation side, and all documents of one key (a site, a book) are on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import pyarrow as pa

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.hashing import hash64
from bloomery.core.seeds import derive
from bloomery.corpus.documents import with_column
from bloomery.corpus.steps import Step

Side = Literal["train", "validation"]
Key = Callable[[str, Mapping[str, str]], str]


def split_of(key: str, seed: int, validation: float) -> Side:
    """The side of the document or group `key`; `validation` is the expected share of keys held out."""
    return "validation" if hash64(key, seed=derive(seed, "split")) < validation * 2.0**64 else "train"


@dataclass
class Split(Step):
    """Write the column `split`: "train" or "validation".

    Documents that share a key stay together. `by` is "id", "url", "host" (of the URL), "meta.<name>" for an entry of
    the document's meta data, or a callable of (url, meta) with a
    `fingerprint()`. A document without that key is its own group (by its id).
    """

    validation: float = 0.05
    by: str | Key = "id"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ConfigError(f"validation = {self.validation}", fix="use a share between 0 and 1")
        if isinstance(self.by, str) and self.by not in ("id", "url", "host") and not self.by.startswith("meta."):
            raise ConfigError(f"by = {self.by!r}", fix="use id, url, host or meta.<name>")

    @property
    def reads(self) -> tuple[str, ...]:
        """Where keys come from."""
        return ("id", "url", "meta")

    @property
    def writes(self) -> tuple[str, ...]:
        """The column of the sides."""
        return ("split",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Add the column."""
        ids = batch.column("id").to_pylist()
        keys = self._keys(batch)
        sides = [split_of(key or id_, self.seed, self.validation) for key, id_ in zip(keys, ids, strict=True)]
        return with_column(batch, "split", pa.array(sides, pa.string()))

    def _keys(self, batch: pa.RecordBatch) -> list[str | None]:
        if self.by in ("id", "url"):
            return list(batch.column(self.by).to_pylist())
        urls = [url or "" for url in batch.column("url").to_pylist()]
        if self.by == "host":
            return [_host(url) for url in urls]
        metas = [dict(meta or []) for meta in batch.column("meta").to_pylist()]
        if isinstance(self.by, str):
            return [meta.get(self.by.removeprefix("meta.")) for meta in metas]
        keys: list[str | None] = []
        for url, meta in zip(urls, metas, strict=True):
            key = self.by(url, meta)
            if key is not None and not isinstance(key, str):
                raise DataError(f"the split key of {url or meta} is {key!r}, not text")
            keys.append(key)
        return keys


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # not a URL: the document is its own group
        return None
