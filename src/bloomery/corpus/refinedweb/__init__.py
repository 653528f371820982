"""The RefinedWeb-style filters of DCLM-Baseline (arXiv 2406.11794), step by step, with their published constants.

Every step takes `strict_reference=True` where the reference has a quirk; the default fixes it, and the step's docstring
says how. `presets` puts the steps together, `upstream_yaml` reads the reference's own configuration files.
"""

from __future__ import annotations

from bloomery.corpus.refinedweb.language import FastTextLanguage
from bloomery.corpus.refinedweb.lines import (
    CounterLines,
    LineLength,
    LineSubstring,
    NumericLines,
    RemovalRatio,
    UppercaseLines,
    WordCount,
)
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
from bloomery.corpus.refinedweb.urls import CollapseNewlines, UrlBan, UrlRemoval

__all__ = [
    "AlphabeticWords", "BulletLines", "CollapseNewlines", "CounterLines", "EllipsisLines", "FastTextLanguage",
    "LineLength", "LineSubstring", "MassiveRepetition", "NumericLines", "PageLength", "RemovalRatio", "StopWords",
    "SymbolRatio", "UppercaseLines", "UrlBan", "UrlRemoval", "WordCount", "WordLength",
]  # fmt: skip
