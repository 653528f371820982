"""Whole pipelines for documents of text and images: MINT-1T's and OBELICS'. Each returns steps for `corpus.run`.

The documents are read by `functools.partial(web.read_documents, extract="interleaved")`. What the papers take from
elsewhere is given by the caller: a classifier for unsafe images, ban lists of addresses, a fastText model for
languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from bloomery.corpus.bloom_dedup import bloom_dedup
from bloomery.corpus.filters import Language
from bloomery.corpus.interleaved.corpus_dedup import (
    ImageSetDedup,
    UrlDedup,
    image_address_dedup,
    line_dedup,
    phrase_dedup,
)
from bloomery.corpus.interleaved.document_rules import MINT_BANS, DocumentRules, ImageAddressBan, ImageCount
from bloomery.corpus.interleaved.final_processing import FinalProcessing
from bloomery.corpus.interleaved.image_dedup import image_dedup
from bloomery.corpus.interleaved.image_filters import PAPERS, Classifier, ImageShape, SafeImages
from bloomery.corpus.interleaved.image_hash import HashImages
from bloomery.corpus.interleaved.images import FetchImages, ImageSource, LoadImages
from bloomery.corpus.interleaved.paragraph_rules import ParagraphRules
from bloomery.corpus.interleaved.text_rules import DOCUMENT, PARAGRAPH
from bloomery.corpus.interleaved.word_lists import WordLists
from bloomery.corpus.pii import ReplacePII
from bloomery.corpus.refinedweb.language import FastTextLanguage
from bloomery.corpus.refinedweb.pages import (
    AlphabeticWords,
    BulletLines,
    EllipsisLines,
    MassiveRepetition,
    PageLength,
    StopWords,
    SymbolRatio,
    WordLength,
)
from bloomery.corpus.refinedweb.presets import bans
from bloomery.corpus.steps import DROP, Barrier, Step, drop_reasons

ANY = 1 << 30


@dataclass(frozen=True)
class PagesOnly(Step):
    """A step that only drops documents, for pages of the web alone: PDF files and LaTeX sources pass."""

    step: Step

    @property
    def name(self) -> str:
        """That of the step."""
        return self.step.name

    @property
    def reads(self) -> tuple[str, ...]:
        """What the step reads, and the meta that tells a page from a paper."""
        return (*self.step.reads, "meta")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch, with the pages marked that the step drops."""
        metas = batch.column("meta").to_pylist()
        pages = np.array([dict(meta or ()).get("content_type") not in PAPERS for meta in metas], dtype=bool)
        judged = self.step(batch.filter(pa.array(pages)))
        if DROP not in judged.schema.names:
            return batch
        reasons = np.full(batch.num_rows, None, dtype=object)
        reasons[pages] = judged.column(DROP).to_pylist()
        return drop_reasons(batch, pa.array(reasons, pa.string()))


def mint1t(
    images: ImageSource | None = None,
    *,
    classifier: Classifier | None = None,
    language_model: Path | str | None = None,
    banned_domains: Path | str | None = None,
    banned_words: Sequence[Path | str] = (),
    distance: int | None = 4,
    shards: int = 1,
    banned: Literal["document", "image"] = "document",
) -> list[Step | Barrier]:
    """MINT-1T (arXiv 2406.11271, §3): rules for pages and texts, images, duplicates of images, duplicates of text.

    Pages without an image, with more than 30, or with an image whose address holds logo, avatar, porn or xxx go; then
    those of another language, and those that break the rules of RefinedWeb and Gopher for whole documents. Images are
    loaded and judged by shape; those that cannot be had, the too frequent and the repeated lose their place. Last come
    duplicates of text (13-grams in a Bloom filter), so that no document is missed for the sake of one that had no image
    left, and phrases that are frequent all over the corpus; in what stays, e-mail and IP addresses are replaced. Not
    the paper's: the order of the last two, near duplicates of images (`distance=None` leaves them out), the bounds of a
    frequent phrase, and OBELICS' last step, which joins neighbouring texts and asks for a text and an image.

    Args:
        images: where images come from, such as `web.image_fetch.WebImages`; None = those that documents carry already.
        classifier: of unsafe images, see `SafeImages`; None = no such step.
        language_model: a fastText model such as lid.176.bin; None = py3langid decides.
        banned_domains: file of banned hosts.
        banned_words: files of words banned in addresses of pages, see `refinedweb.presets`.
        distance: bits in which the hashes of nearly equal images differ at most; None = only equal images.
        shards: parts that are deduplicated alone for text.
        banned: what goes when an image's address holds a banned word: the document, as in the paper, or the image alone
            (in many a page only the header has a logo).
    """
    language: Step = Language(keep="en", threshold=0.65)
    if language_model:
        language = FastTextLanguage(Path(language_model))
    return [
        PagesOnly(ImageCount(1, 30)),
        *([PagesOnly(ImageAddressBan())] if banned == "document" else []),
        *bans(banned_domains, banned_words),
        language,
        PageLength(),
        WordLength(),
        SymbolRatio(),
        BulletLines(),
        EllipsisLines(),
        AlphabeticWords(),
        StopWords(),
        MassiveRepetition(),
        *_load(images),
        ImageShape(banned=MINT_BANS if banned == "image" else ()),
        *([HashImages()] if distance is not None else []),
        *([SafeImages(classifier)] if classifier else []),
        *image_dedup(distance=distance),
        ImageCount(1, ANY),
        *bloom_dedup(min_ngram=13, max_ngram=13, threshold=0.8, rate=0.01, shards=shards),
        *phrase_dedup(),
        FinalProcessing(),
        ReplacePII(),
    ]


def _load(images: ImageSource | None) -> list[Step | Barrier]:
    return [*([FetchImages(images)] if images is not None else []), LoadImages(images)]


def obelics(
    images: ImageSource | None = None,
    *,
    classifier: Classifier | None = None,
    lists: WordLists | None = None,
    language_model: Path | str | None = None,
) -> list[Step | Barrier]:
    """OBELICS (arXiv 2306.16527, §3.2 and 3.3), for pages of the web: its rules, then what occurs too often.

    Left out: the bound on perplexity, and lists of opted-out images.

    Args:
        images: where images come from; None = those that documents carry already.
        classifier: of unsafe images, see `SafeImages`; None = no such step.
        lists: words and characters to look up; the bound on common words holds where there is a list of them.
        language_model: a fastText model such as lid.176.bin; None = py3langid decides.
    """
    lists = lists or WordLists()
    model = Path(language_model) if language_model else None
    paragraph, document = (
        replace(rules, lists=lists, language_model=model, min_common_words=bound if lists.common_words else None)
        for rules, bound in ((PARAGRAPH, 0.8), (DOCUMENT, 0.9))
    )
    return [
        *_load(images),
        ImageShape(),
        ParagraphRules(paragraph),
        ImageCount(1, 30),
        DocumentRules(document),
        *image_address_dedup(),
        *([SafeImages(classifier)] if classifier else []),
        UrlDedup(),
        ImageCount(1, 30),
        *line_dedup(),
        ImageSetDedup(),
        FinalProcessing(lists=lists),
    ]
