"""Documents of text and images in their original order: parts, rules and duplicates, layouts, a page to read them.

Steps and sources of images are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from bloomery.corpus.interleaved.parts import Part, aligned, from_aligned, from_parts, parts_of, token_text

_HOME = {
    "images": ("FetchImages", "FolderImages", "GivenImages", "LoadImages", "Missing"),
    "image_filters": ("ImageShape", "SafeImages"),
    "image_hash": ("HashImages",),
    "image_dedup": ("CutImages", "ImageDedup", "image_dedup"),
    "image_tokens": ("ImageTokens",),
    "word_lists": ("WordLists", "common_words"),
    "text_rules": ("TextRules",),
    "paragraph_rules": ("ParagraphRules",),
    "document_rules": ("DocumentRules", "ImageAddressBan", "ImageCount"),
    "corpus_dedup": ("CutFrequentImages", "CutFrequentLines", "ImageAddressDedup", "ImageSetDedup", "LineDedup",
                     "PhraseDedup", "UrlDedup", "image_address_dedup", "line_dedup", "phrase_dedup"),
    "final_processing": ("FinalProcessing",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["Part", "aligned", "from_aligned", "from_parts", "parts_of", "token_text", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
