"""Bounds for a text, be it a paragraph or a whole document: OBELICS' rules (arXiv 2306.16527), its published values.

KenLM is not here: the bound on perplexity takes any scorer of log-likelihood. Without a fastText model, py3langid
decides about the language.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.hashing import file_digest
from bloomery.corpus.filters import identify_language
from bloomery.corpus.interleaved.text_ratios import normalized, ratios
from bloomery.corpus.interleaved.word_lists import WordLists
from bloomery.corpus.quality import Scorer
from bloomery.corpus.refinedweb.language import FastTextLanguage


@dataclass(frozen=True)
class TextRules:
    """Bounds on the numbers of `text_ratios`; None switches a rule off. The first that a text breaks is its reason.

    The defaults are OBELICS' for a paragraph, `DOCUMENT` has those for a document. Off by default is what needs a file
    of yours: common words (0.8 for a paragraph, 0.9 for a document) and perplexity (1500).

    Args:
        min_words: and `max_words`, inclusive like every bound.
        max_character_repetition: of n-grams of `character_ngram` characters.
        max_word_repetition: of n-grams of `word_ngram` words.
        min_punctuation: looked at from `min_punctuation_tokens` marks and words on.
        min_language: probability that the language is `language`, of the text in lower case.
        max_perplexity: exp(-score) of the normalised text.
        lists: words and characters to look up.
        language_model: a fastText model such as lid.176.bin; None = py3langid.
        perplexity: a scorer whose score is the mean log-likelihood of a token, in nats.
    """

    min_words: int = 4
    max_words: int = 1000
    max_character_repetition: float | None = 0.1
    max_word_repetition: float | None = 0.1
    max_special_characters: float | None = 0.3
    min_stop_words: float | None = 0.3
    max_flagged_words: float | None = 0.01
    min_punctuation: float | None = 0.001
    min_common_words: float | None = None
    min_language: float | None = None
    max_perplexity: float | None = None
    min_punctuation_tokens: int = 12
    character_ngram: int = 10
    word_ngram: int = 5
    language: str = "en"
    lists: WordLists = field(default_factory=WordLists)
    language_model: Path | None = None
    perplexity: Scorer | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise ConfigError(f"min_words={self.min_words}, max_words={self.max_words}", where="TextRules")
        for name in ("character_ngram", "word_ngram"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="TextRules", fix="1 or more")
        if self.min_common_words is not None and self.lists.common_words is None:
            raise ConfigError(
                "min_common_words without a list of common words", where="TextRules",
                fix="make one of a corpus with word_lists.common_words, or leave the rule out",
            )  # fmt: skip
        if self.max_perplexity is not None and self.perplexity is None:
            raise ConfigError(
                "max_perplexity without a scorer", where="TextRules", fix="give perplexity=, or leave the rule out"
            )

    def broken(self, texts: Sequence[str]) -> list[str | None]:
        """The first rule that each text breaks, None for a good text."""
        found = ratios(
            texts, self.lists, character_ngram=self.character_ngram, word_ngram=self.word_ngram,
            min_tokens=self.min_punctuation_tokens,
        )  # fmt: skip
        reasons: list[str | None] = [None] * len(texts)
        for number, name, reason in RULES:
            bound = getattr(self, name)
            if bound is not None:
                broken = found[number] < bound if name.startswith("min") else found[number] > bound
                _mark(reasons, np.flatnonzero(broken), [reason])
        for bound, judge in ((self.min_language, self._languages), (self.max_perplexity, self._perplexities)):
            left = [row for row, reason in enumerate(reasons) if reason is None]
            if bound is not None and left:  # these two cost more than all others together
                _mark(reasons, left, judge([texts[row] for row in left]))
        return reasons

    def _languages(self, texts: list[str]) -> list[str | None]:
        assert self.min_language is not None
        lower = [text.lower() for text in texts]
        if self.language_model is None:
            names, scores = identify_language(pa.array(lower, pa.string()))
        else:
            names, scores = self._language_step.identify(lower)
        return [
            "no language" if name is None
            else f"language {name}" if name != self.language
            else "language uncertain" if score < self.min_language
            else None
            for name, score in zip(names, scores.tolist(), strict=True)
        ]  # fmt: skip

    def _perplexities(self, texts: list[str]) -> list[str | None]:
        assert self.perplexity is not None
        assert self.max_perplexity is not None
        scores = np.asarray(self.perplexity.score([normalized(text) for text in texts]), np.float64)
        if scores.shape != (len(texts),) or np.isnan(scores).any():
            raise DataError(f"the scorer {self.perplexity.name} gave no number for one of {len(texts)} texts")
        return ["perplexity" if score < -np.log(self.max_perplexity) else None for score in scores.tolist()]

    @functools.cached_property
    def _language_step(self) -> FastTextLanguage:
        assert self.language_model is not None
        return FastTextLanguage(self.language_model)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides, lists and models by their content."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["lists"] = self.lists.fingerprint()
        values["language_model"] = file_digest(self.language_model) if self.language_model else None
        values["perplexity"] = self.perplexity.fingerprint() if self.perplexity else None  # type: ignore[attr-defined]
        return values


# The number, its bound, what a text that breaks it is called; in this order.
RULES = (
    ("words", "min_words", "too few words"),
    ("words", "max_words", "too many words"),
    ("character_repetition", "max_character_repetition", "repeated characters"),
    ("word_repetition", "max_word_repetition", "repeated words"),
    ("special_characters", "max_special_characters", "too many special characters"),
    ("stop_words", "min_stop_words", "too few stop words"),
    ("flagged_words", "max_flagged_words", "flagged words"),
    ("punctuation", "min_punctuation", "too little punctuation"),
    ("common_words", "min_common_words", "too few common words"),
)
PARAGRAPH = TextRules()
DOCUMENT = TextRules(
    min_words=10, max_words=2000, max_word_repetition=0.2, max_special_characters=0.275, min_stop_words=0.35,
    min_punctuation=0.03, min_punctuation_tokens=0, min_language=0.8,
)  # fmt: skip


def _mark(reasons: list[str | None], rows: Sequence[int] | np.ndarray, found: Sequence[str | None]) -> None:
    """Put a reason (or, given one, that one) to each of the rows that have none."""
    for place, row in enumerate(rows):
        reasons[row] = reasons[row] or found[place if len(found) > 1 else 0]
