"""Rules for whole documents: OBELICS' filtering at document level (arXiv 2306.16527) and MINT-1T's bans.

MINT-1T (arXiv 2406.11271, §3.1.1) leaves OBELICS' text rules out: for HTML it drops documents without an image or with
more than 30, and those with an image whose address holds "logo", "avatar", "porn" or "xxx".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved.flat_parts import FlatParts
from bloomery.corpus.interleaved.paragraph_rules import BLANK_LINE
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.corpus.interleaved.text_rules import DOCUMENT, TextRules
from bloomery.corpus.steps import Step, drop, drop_reasons

MINT_BANS = ("logo", "avatar", "porn", "xxx")


@dataclass(frozen=True)
class ImageCount(Step):
    """Keep documents with `min_images` to `max_images` images."""

    min_images: int = 1
    max_images: int = 30

    def __post_init__(self) -> None:
        if not 0 <= self.min_images <= self.max_images:
            raise ConfigError(f"min_images={self.min_images}, max_images={self.max_images}", where="ImageCount")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents with too few or too many images."""
        flat = FlatParts.of(batch)
        found = flat.count(flat.is_image)
        batch = drop(batch, found < self.min_images, "too few images")
        return drop(batch, found > self.max_images, "too many images")


@dataclass(frozen=True)
class ImageAddressBan(Step):
    """Drop documents with an image whose address holds one of `substrings`, in either case.

    Names inside of papers (`figures/logo.pdf`) are not addresses.
    """

    substrings: tuple[str, ...] = MINT_BANS

    def __post_init__(self) -> None:
        if not self.substrings or "" in self.substrings:
            raise ConfigError(f"substrings={self.substrings}", where="ImageAddressBan", fix="leave the step out")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents."""
        flat = FlatParts.of(batch)
        choices = "://.*(?:" + "|".join(map(re.escape, self.substrings)) + ")"
        found = pc.match_substring_regex(pc.struct_field(flat.pieces, "ref"), choices, ignore_case=True)
        banned = flat.is_image & pc.fill_null(found, False).to_numpy(zero_copy_only=False)
        return drop(batch, flat.count(banned) > 0, "banned image address")


@dataclass(frozen=True)
class DocumentRules(Step):
    """Drop documents whose texts, joined by blank lines, break a rule.

    `compat` judges the marks between the articles of a page as words of the text, as the reference does.
    """

    rules: TextRules = DOCUMENT
    compat: bool = False

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the documents."""
        return drop_reasons(batch, self.rules.broken(self.texts(batch)))

    def texts(self, batch: pa.RecordBatch) -> list[str]:
        """The text of each document that is judged."""
        flat = FlatParts.of(batch)
        found: list[list[str]] = [[] for _ in range(flat.documents)]
        for owner, text in zip(flat.owner, flat.texts, strict=True):
            if text and not self.compat and END_OF_DOCUMENT in text:
                text = BLANK_LINE.join(p for p in text.split(BLANK_LINE) if p.strip() != END_OF_DOCUMENT)
            if text:
                found[owner].append(text)
        return [BLANK_LINE.join(some) for some in found]
