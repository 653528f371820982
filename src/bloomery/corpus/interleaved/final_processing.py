"""The last step for documents of texts and images, OBELICS' (arXiv 2306.16527): repeats, spam, marks, neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved.flat_parts import FlatParts
from bloomery.corpus.interleaved.paragraph_rules import BLANK_LINE
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.corpus.interleaved.text_ratios import word_ratio
from bloomery.corpus.interleaved.word_lists import WordLists
from bloomery.corpus.steps import Step, drop, removed_parts


@dataclass(frozen=True)
class FinalProcessing(Step):
    """In this order: images go whose address has come before in the document; paragraphs go in which the share of spam
    words is `max_spam_words` or more; neighbouring texts become one, with a blank line between them; of several marks
    between articles in a row one stays; a mark that nothing follows or precedes goes; documents without an image, or
    without a text that is more than a mark, are dropped. A second time it changes nothing.

    Args:
        max_spam_words: see above.
        lists: where the spam words and special characters are.
        compat: as the reference: blank paragraphs stay, and keep marks apart; a mark at the very beginning stays, and
            so does one at the end with white space around it.
    """

    max_spam_words: float = 0.12
    lists: WordLists = field(default_factory=WordLists)
    compat: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_spam_words <= 1:
            raise ConfigError(f"max_spam_words={self.max_spam_words}", where="FinalProcessing", fix="above 0, up to 1")

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The processed documents."""
        flat = FlatParts.of(batch)
        keep = flat.is_image | flat.is_text
        repeats = self._repeated_images(flat)
        keep[repeats] = False
        texts, spam = self._without_spam(flat.texts)
        reasons = [(part, "repeated image") for part in repeats] + [(part, "spam words") for part in spam]
        keep &= flat.is_image | np.array([bool(text) for text in texts], dtype=bool)
        for parts in self._runs(flat, keep):
            texts[parts[0]] = BLANK_LINE.join(texts[part] or "" for part in parts)
            keep[parts[1:]] = False
        self._settle_marks(flat, keep, texts)
        batch = removed_parts(flat.replaced(batch, keep, texts), flat.by_document(reasons))
        says = np.array([text is not None and not _is_marks(text) for text in texts], dtype=bool)
        batch = drop(batch, flat.count(keep & says) == 0, "no text")
        return drop(batch, flat.count(keep & flat.is_image) == 0, "no image")

    def _repeated_images(self, flat: FlatParts) -> list[int]:
        refs, seen, found = flat.refs, set[tuple[int, str]](), []
        for part in np.flatnonzero(flat.is_image).tolist():
            ref = refs[part]
            if ref is not None:
                key = (int(flat.owner[part]), ref)
                if key in seen:
                    found.append(part)
                seen.add(key)
        return found

    def _without_spam(self, before: list[str | None]) -> tuple[list[str | None], list[int]]:
        """The texts without paragraphs of spam, and the part of each such paragraph."""
        paragraphs = [(part, p) for part, text in enumerate(before) if text is not None for p in text.split(BLANK_LINE)]
        if not self.compat:
            paragraphs = [(part, paragraph) for part, paragraph in paragraphs if paragraph.strip()]
        shares = word_ratio([paragraph for _, paragraph in paragraphs], self.lists, "spam_words")
        after: list[list[str]] = [[] for _ in before]
        spam = []
        for (part, paragraph), share in zip(paragraphs, shares.tolist(), strict=True):
            if share < self.max_spam_words:
                after[part].append(paragraph)
            else:
                spam.append(part)
        texts = [None if text is None else BLANK_LINE.join(some) for text, some in zip(before, after, strict=True)]
        return texts, spam

    def _runs(self, flat: FlatParts, keep: np.ndarray) -> list[list[int]]:
        """The texts of a document that follow each other, of those that stay."""
        runs: list[list[int]] = []
        last: tuple[int, bool] | None = None
        for part in np.flatnonzero(keep).tolist():
            this = (int(flat.owner[part]), bool(flat.is_image[part]))
            if not this[1]:
                if last == this:
                    runs[-1].append(part)
                else:
                    runs.append([part])
            last = this
        return runs

    def _settle_marks(self, flat: FlatParts, keep: np.ndarray, texts: list[str | None]) -> None:
        """Collapse marks, and remove those at a document's ends."""
        left = np.flatnonzero(keep)
        begins = np.diff(flat.owner[left], prepend=-1) != 0
        ends = np.diff(flat.owner[left], append=-1) != 0
        for part, is_first, is_last in zip(left.tolist(), begins.tolist(), ends.tolist(), strict=True):
            text = texts[part]
            if text is None or END_OF_DOCUMENT not in text:
                continue
            paragraphs = text.split(BLANK_LINE)
            marks = [paragraph.strip() == END_OF_DOCUMENT for paragraph in paragraphs]
            kept = [p for i, p in enumerate(paragraphs) if not (marks[i] and i and marks[i - 1])]
            if is_last and (kept[-1] if self.compat else kept[-1].strip()) == END_OF_DOCUMENT:
                kept = kept[:-1]
            if is_first and not self.compat and kept and kept[0].strip() == END_OF_DOCUMENT:
                kept = kept[1:]
            texts[part] = BLANK_LINE.join(kept)
            keep[part] = bool(texts[part])


def _is_marks(text: str) -> bool:
    """Whether a text is nothing but one mark."""
    return text.strip() in ("", END_OF_DOCUMENT)
