"""The reference's own configuration files (`baselines_configs/*.yaml`), read unchanged into our steps.

    steps = load("dclm_baseline_refinedweb.yaml", language_model="lid.176.bin")

A file is a list of sources, each with `steps`; every step names a function (`func`) and its arguments. Paths of ban
lists are looked up as they are, then beside the YAML file. What is not read here (other functions, arguments without a
counterpart) is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bloomery.core.errors import ConfigError, nearest
from bloomery.corpus.fasttext_bin import FastTextScorer
from bloomery.corpus.quality import Score
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

# Functions whose arguments are the fields of our step, under the same names.
DIRECT: dict[str, type[Step]] = {
    "newline_removal_modifier": CollapseNewlines,
    "word_length_filter": WordLength,
    "symbol_ratio_filter": SymbolRatio,
    "bullet_count_filter": BulletLines,
    "ellipsis_count_filter": EllipsisLines,
    "alphabetic_word_ratio_filter": AlphabeticWords,
    "stop_word_filter": StopWords,
    "massive_web_repetition_filters": MassiveRepetition,
    "word_counter_enricher": WordCount,
    "uppercase_ratio_line_modifier": UppercaseLines,
    "numeric_ratio_line_modifier": NumericLines,
    "counter_line_modifier": CounterLines,
    "line_length_modifier": LineLength,
}


def is_upstream(values: Any) -> bool:
    """Whether parsed YAML is a configuration of the reference: a list of sources whose steps name functions."""
    return isinstance(values, list) and all(isinstance(source, dict) and "steps" in source for source in values)


def load(
    path: Path | str, *, language_model: Path | str | None = None, strict_reference: bool = True
) -> list[Step | Barrier]:
    """The steps of a configuration file.

    Args:
        path: the YAML file.
        language_model: the fastText model for `detect_lang_whole_page_enricher`, which the file does not name.
        strict_reference: reproduce the reference's quirks (see each step).
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {' '.join(str(error).split())}", where=path) from error
    if not is_upstream(values):
        raise ConfigError("not a list of sources with steps", where=path, fix="see the reference's baselines_configs")
    if len(values) != 1:
        raise ConfigError(f"{len(values)} sources in one file", where=path, fix="one file for each source")
    made: list[Step | Barrier] = []
    for position, item in enumerate(values[0]["steps"]):
        where = f"{path}: step {position + 1}"
        if not isinstance(item, dict) or "func" not in item:
            raise ConfigError(f"expected `func: name` and its arguments, got {item!r}", where=where)
        arguments = {key: value for key, value in item.items() if key != "func"}
        step = make_step(
            item["func"],
            arguments,
            language_model=language_model,
            strict_reference=strict_reference,
            folder=path.parent,
            where=where,
        )
        if step is not None:
            made.append(step)
    return made


def make_step(
    func: str,
    arguments: Mapping[str, Any],
    *,
    language_model: Path | str | None = None,
    strict_reference: bool = True,
    folder: Path = Path(),
    where: str = "",
) -> Step | Barrier | None:
    """The step that does what the reference's function `func` does; None where nothing is left to do.

    `move_url_modifier` is nothing (our documents have a `url`), and so is the language's enricher: its filter detects
    the language itself.
    """
    given = dict(arguments)
    try:
        if func in DIRECT:
            return DIRECT[func](**given)
        if func not in SPECIAL:
            known = [*DIRECT, *SPECIAL]
            raise ConfigError(f"unknown function {func!r}", where=where or None, fix=nearest(func, known))
        step = SPECIAL[func](given, strict_reference, folder, language_model)
        if given:
            raise ConfigError(f"{func} takes no {', '.join(given)} here", where=where or None)
        return step
    except TypeError as error:  # an argument that the step does not have
        raise ConfigError(f"{func}: {error}", where=where or None) from error


def _nothing(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> None:
    given.clear()


def _url_ban(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> UrlBan:
    file = given.pop("banlist_from_fname", None)
    banlist = given.pop("banlist", ())
    exact, substrings = given.pop("exact_domain_match", False), given.pop("match_substrings", True)
    return UrlBan(
        banlist=_found(file, folder) if file else (banlist,) if isinstance(banlist, str) else tuple(banlist),
        match="domain" if exact else "substring" if substrings else "word",
        num_banned_substrs=given.pop("num_banned_substrs", 1),
        ignore_chars=tuple(given.pop("ignore_chars", None) or ()),
        case_sensitive=given.pop("case_sensitive", False),
        strict_reference=strict,
    )


def _url_removal(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> UrlRemoval:
    file = given.pop("tlds_filepath", None)
    return UrlRemoval(tlds=_found(file, folder) if file else None, strict_reference=strict)


def _language(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> FastTextLanguage:
    if language_model is None:
        raise ConfigError("language_filter needs a fastText model", fix="give language_model=, e.g. lid.176.bin")
    given.pop("key", None)
    keep = given.pop("keep_languages")
    return FastTextLanguage(
        model=Path(language_model),
        keep_languages=tuple(keep),
        threshold=given.pop("threshold", 0.0),
        strict_reference=strict,
    )


def _page_length(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> PageLength:
    kind, punctuation = given.pop("length_type"), given.pop("ignore_punctuation", False)
    if kind != "word" or not punctuation:
        raise ConfigError("page_length_filter counts words without punctuation", fix="length_type: word")
    return PageLength(min_length=given.pop("min_length", 1), max_length=given.pop("max_length", 1 << 62))


def _substring(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> LineSubstring:
    if given.pop("case_sensitive", False):
        raise ConfigError("substring_line_modifier ignores case here", fix="leave case_sensitive out")
    banlist = given.pop("banlist")
    return LineSubstring(
        banlist=banlist if isinstance(banlist, str) else tuple(banlist),
        location=given.pop("location", "any"),
        max_length=given.pop("max_length", None),
        remove_substring_only=given.pop("remove_substring_only", False),
        strict_reference=strict,
    )


def _removal_ratio(
    given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None
) -> RemovalRatio:
    return RemovalRatio(key=given.pop("prev_word_count_key"), max_removed_ratio=given.pop("max_removed_ratio", 0.05))


def _quality_score(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> Score:
    name = str(given.pop("key", "fasttext_hq_prob"))
    return Score(FastTextScorer.load(_found(given.pop("model_filename"), folder), name=name))


def _quality_filter(given: dict[str, Any], strict: bool, folder: Path, language_model: Path | str | None) -> Select:
    key, lower = given.pop("key", "fasttext_hq_prob"), given.pop("lower_better", False)
    return Select(column=f"score_{key}", threshold=given.pop("threshold", 0.0), order="low" if lower else "high")


SPECIAL: dict[str, Callable[..., Step | Barrier | None]] = {
    "move_url_modifier": _nothing,
    "detect_lang_whole_page_enricher": _nothing,
    "language_filter": _language,
    "url_substring_filter": _url_ban,
    "url_removal_modifier": _url_removal,
    "page_length_filter": _page_length,
    "substring_line_modifier": _substring,
    "word_removal_ratio_filter": _removal_ratio,
    "classify_fasttext_hq_prob_enricher": _quality_score,
    "quality_filter": _quality_filter,
}


def _found(name: str, folder: Path) -> Path:
    for place in (Path(name), folder / name, folder / Path(name).name):
        if place.exists():
            return place
    raise ConfigError(f"no such file: {name}", where=folder, fix="put it beside the YAML file")
