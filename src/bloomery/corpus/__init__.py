"""Documents as Arrow batches, and the steps that read, filter, deduplicate, score, select, mix and pack them.

Names are imported on first use, so `import bloomery.corpus` loads neither Arrow nor the tokenizers library.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "documents": ("SCHEMA", "content_id", "from_texts", "texts", "with_column", "with_texts"),
    "steps": ("Barrier", "Plan", "Step", "decisions", "drop", "drop_reasons", "kept", "uniform"),
    "readers": ("find_inputs", "read_documents"),
    "engine": ("plan", "run"),
    "report": ("Report",),
    "filters": ("Language", "Length", "Repetition", "Symbols"),
    "c4": ("C4Quality",),
    "fineweb": ("FineWebQuality", "GopherQuality", "GopherRepetition"),
    "code_filters": ("CodeFormat", "CodeShape"),
    "repository": ("read_repositories",),
    "fim": ("FillInTheMiddle", "fim_prompt"),
    "dedup": ("ExactDedup", "NearDedup"),
    "quality": ("LinearScorer", "Score", "Scorer"),
    "fasttext_bin": ("FastTextScorer",),
    "pii": ("ReplacePII",),
    "bloom_dedup": ("BloomDedup", "CutParagraphs"),
    "substring_dedup": ("CutSubstrings", "SubstringDedup"),
    "decontaminate": ("Decontaminate",),
    "balanced": ("BalancedSample",),
    "ngram_lm": ("NGramModel",),
    "presets": ("preset",),
    "selection": ("Select",),
    "mixture": ("Mixture",),
    "split": ("Split", "split_of"),
    "packing": ("PackedTokens", "TokenWindows", "pack"),
    "bytes_stream": ("ByteStream",),
    "examples": ("PackedExamples",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name in {"chat", "tokenizer", *_HOME}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "chat", "tokenizer", *_HOME]
