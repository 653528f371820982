"""Rules for single paragraphs: OBELICS' filtering at node level (arXiv 2306.16527).

A paragraph is what stands between two blank lines of a text part. `text_rules` says what a good one is. The bounds on
images that belong to the same level are steps of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from bloomery.corpus.interleaved.flat_parts import FlatParts
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.corpus.interleaved.text_ratios import plain_spaces, printing
from bloomery.corpus.interleaved.text_rules import PARAGRAPH, TextRules
from bloomery.corpus.steps import Step, drop, removed_parts

BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class ParagraphRules(Step):
    """Takes out paragraphs that break a rule; a text without paragraphs goes, and so does a document without parts.

    The mark `END_OF_DOCUMENT` between the articles of a page is not judged. Odd spaces become plain ones first.

    Args:
        rules: what a good paragraph is.
        plain: make odd spaces plain ones.
        remove_non_printing: delete control characters first.
        compat: delete line ends with the control characters, which makes one paragraph of a text, and judge a mark
            that has white space around it, as the reference does.
    """

    rules: TextRules = PARAGRAPH
    plain: bool = True
    remove_non_printing: bool = False
    compat: bool = False

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without the paragraphs."""
        flat = FlatParts.of(batch)
        before = flat.texts
        paragraphs = {
            part: self.prepared(text).split(BLANK_LINE) for part, text in enumerate(before) if text is not None
        }
        judged = [(part, text) for part, some in paragraphs.items() for text in some if not self._is_mark(text)]
        broken = iter(self.rules.broken([text for _, text in judged]))
        reasons: list[tuple[int, str]] = []
        after: list[str | None] = list(before)
        keep = flat.is_image | flat.is_text
        for part, some in paragraphs.items():
            good = []
            for text in some:
                reason = None if self._is_mark(text) else next(broken)
                if reason is None:
                    good.append(text)
                else:
                    reasons.append((part, reason))
            after[part] = BLANK_LINE.join(good)
            keep[part] = bool(good)
        batch = removed_parts(flat.replaced(batch, keep, after), flat.by_document(reasons))
        return drop(batch, flat.count(keep) == 0, "nothing left")

    def prepared(self, text: str) -> str:
        """The text that is split and judged, and stays."""
        if self.remove_non_printing:
            text = printing(text, keep_lines=not self.compat)
        return plain_spaces(text) if self.plain else text

    def _is_mark(self, paragraph: str) -> bool:
        return (paragraph if self.compat else paragraph.strip()) == END_OF_DOCUMENT
