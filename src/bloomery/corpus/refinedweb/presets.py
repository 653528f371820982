"""Whole pipelines: RefinedWeb's filters, DCLM-Baseline, the rules of Gopher, C4 and FineWeb, as steps for `corpus.run`.

The order of the first two is that of DCLM-Baseline (arXiv 2406.11794, §4): addresses, language, page heuristics,
repetition, line edits, then Bloom-filter deduplication, then the quality classifier. Ban lists are files of yours: none
ships with bloomery.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bloomery.core.errors import ConfigError
from bloomery.corpus.bloom_dedup import bloom_dedup
from bloomery.corpus.c4 import C4Quality
from bloomery.corpus.dedup import NearDedup
from bloomery.corpus.filters import Language, Length, Repetition, Symbols
from bloomery.corpus.fineweb import FineWebQuality, GopherQuality, GopherRepetition, Tokenizer
from bloomery.corpus.quality import Score, Scorer
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
from bloomery.corpus.selection import Select
from bloomery.corpus.steps import Barrier, Step
from bloomery.corpus.substring_dedup import substring_dedup


def refinedweb(
    *,
    language_model: Path | str | None = None,
    banned_domains: Path | str | None = None,
    banned_words: Sequence[Path | str] = (),
    strict_reference: bool = False,
) -> list[Step | Barrier]:
    """DCLM's reproduction of RefinedWeb's filters, nineteen steps.

    Args:
        language_model: a fastText language model such as lid.176.bin; without one, py3langid decides.
        banned_domains: file of banned hosts.
        banned_words: up to three files of words banned in addresses: as substrings, as whole words, and soft ones of
            which two must occur.
        strict_reference: reproduce the reference's quirks (see each step).
    """
    strict = strict_reference

    def without(text: str, location: Literal["any", "prefix", "suffix"]) -> LineSubstring:
        return LineSubstring(text, location, max_length=10, remove_substring_only=True, strict_reference=strict)

    return [
        *bans(banned_domains, banned_words, strict),
        UrlRemoval(strict_reference=strict),
        CollapseNewlines(),
        _language(language_model, strict),
        PageLength(),
        WordLength(),
        SymbolRatio(),
        BulletLines(),
        EllipsisLines(),
        AlphabeticWords(),
        StopWords(),
        MassiveRepetition(),
        WordCount(),
        UppercaseLines(),
        NumericLines(),
        CounterLines(),
        LineLength(),
        without("items in cart", "any"),
        without("Read more...", "suffix"),
        without("Sign-in", "prefix"),
        RemovalRatio(),
    ]


def _language(model: Path | str | None, strict: bool) -> Step:
    if model:
        return FastTextLanguage(Path(model), strict_reference=strict)
    return Language(keep="en", threshold=0.65)


def bans(domains: Path | str | None, words: Sequence[Path | str], strict: bool = False) -> list[Step | Barrier]:
    """The steps that drop pages by their address, with ban lists as in `refinedweb`; none for lists not given."""
    steps: list[Step | Barrier] = []
    if domains:
        ignored = ("www",) if strict else ()
        steps.append(UrlBan(Path(domains), match="domain", ignore_chars=ignored, strict_reference=strict))
    substrings, whole, soft = [*map(Path, words), None, None, None][:3]
    if substrings:
        steps.append(UrlBan(substrings, ignore_chars=("-", "."), strict_reference=strict))
    if whole:
        steps.append(UrlBan(whole, match="word", strict_reference=strict))
    if soft:
        steps.append(UrlBan(soft, match="word", num_banned_substrs=2, strict_reference=strict))
    return steps


def dclm(
    scorer: Scorer | None = None,
    *,
    keep: float = 0.1,
    shards: int = 1,
    dedup: Literal["bloom", "minhash"] = "bloom",
    language_model: Path | str | None = None,
    banned_domains: Path | str | None = None,
    banned_words: Sequence[Path | str] = (),
    strict_reference: bool = False,
) -> list[Step | Barrier]:
    """DCLM-Baseline: RefinedWeb's filters, Bloom-filter deduplication, the best `keep` of the rest by quality.

    Args:
        scorer: the quality classifier (`FastTextScorer.load` of the published one, or `LinearScorer.train` on positives
            of yours); without one, all that is left after deduplication is kept.
        keep: share of the documents that the score keeps, of the whole corpus. The published threshold, 0.018112, is
            the top tenth of DCLM's own pool and means nothing for another.
        shards: parts that are deduplicated alone; the reference uses 100 for its 240 trillion tokens.
        dedup: "bloom", or what the paper compares it with (§4.3): near duplicates by MinHash (93 bands of 15 rows) and
            then repeated substrings, as RefinedWeb did it; `shards` has no meaning there.
        language_model: see `refinedweb`, like all that follow.
        banned_domains: file of banned hosts.
        banned_words: files of words banned in addresses.
        strict_reference: reproduce the reference's quirks.
    """
    steps = refinedweb(
        language_model=language_model,
        banned_domains=banned_domains,
        banned_words=banned_words,
        strict_reference=strict_reference,
    )
    if dedup == "minhash":
        steps += [NearDedup(threshold=0.8, ngram=5, hashes=1395, bands=93), *substring_dedup()]
    elif dedup == "bloom":
        steps += bloom_dedup(min_ngram=13, max_ngram=13, threshold=0.8, rate=0.01, shards=shards)
    else:
        raise ConfigError(f"dedup={dedup!r}", where="dclm", fix="bloom or minhash")
    if scorer is not None:
        steps += [Score(scorer), Select(f"score_{scorer.name}", fraction=keep)]
    return steps


def gopher(
    *,
    language_model: Path | str | None = None,
    tokenizer: Tokenizer = "whitespace",
    strict_reference: bool = False,
) -> list[Step | Barrier]:
    """Gopher's rules (arXiv:2112.11446, Table A1), after the language.

    Args:
        language_model: see `refinedweb`.
        tokenizer: what a word is for datatrove's rules (see `corpus.fineweb`); "spacy" is what it takes by default.
        strict_reference: datatrove's GopherRepetition and GopherQuality, decision by decision; without it, the rules as
            the paper has them, in `corpus.filters` (curly braces are ours, for code).
    """
    if tokenizer != "whitespace" and not strict_reference:
        raise ConfigError(
            f"tokenizer={tokenizer!r}", where="gopher", fix="only datatrove's rules, the strict ones, use it"
        )
    return [_language(language_model, strict_reference), *_gopher(tokenizer, strict_reference)]


def _gopher(tokenizer: Tokenizer, strict: bool) -> list[Step | Barrier]:
    if strict:
        return [GopherRepetition(tokenizer=tokenizer), GopherQuality(tokenizer=tokenizer)]
    return [Length(), Symbols(), Repetition()]


def c4(
    *,
    language_model: Path | str | None = None,
    tokenizer: Tokenizer = "whitespace",
    strict_reference: bool = False,
) -> list[Step | Barrier]:
    """C4's rules (arXiv:1910.10683, §2.2): language, lines of prose, pages of five sentences.

    Without its list of bad words and its removal of repeated spans. The arguments are those of `gopher`.
    """
    return [
        _language(language_model, strict_reference),
        C4Quality(tokenizer=tokenizer, strict_reference=strict_reference),
    ]


def fineweb(
    *,
    language_model: Path | str | None = None,
    tokenizer: Tokenizer = "whitespace",
    strict_reference: bool = False,
) -> list[Step | Barrier]:
    """FineWeb's filters (arXiv:2406.17557, §3): Gopher's, C4's without the rule on punctuation, then its own.

    Its filter of addresses and its deduplication are `UrlBan` and `NearDedup`; they are not part of it. The arguments
    are those of `gopher`.
    """
    strict = strict_reference
    return [
        _language(language_model, strict),
        *_gopher(tokenizer, strict),
        C4Quality(terminal_punctuation=False, tokenizer=tokenizer, strict_reference=strict),
        FineWebQuality(tokenizer=tokenizer, strict_reference=strict),
    ]
