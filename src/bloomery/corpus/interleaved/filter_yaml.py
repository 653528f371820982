"""The reference's own configuration of filters, `config_filter_web_documents.yaml`, read unchanged into our steps.

    steps = load("config_filter_web_documents.yaml", lists=WordLists.load("lists.json"), language_model="lid.176.bin")

A `cond_check_*` switches a rule, the `*_min_cutoff` and `*_max_cutoff` beside it are its bounds. What the file leaves
out has its published value. Read with a condition: the bounds on original and rendered widths and heights must be the
same, as in the published file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bloomery.core.config import load_yaml
from bloomery.core.errors import ConfigError, nearest
from bloomery.corpus.interleaved.document_rules import DocumentRules, ImageCount
from bloomery.corpus.interleaved.image_filters import ImageShape
from bloomery.corpus.interleaved.paragraph_rules import ParagraphRules
from bloomery.corpus.interleaved.text_rules import DOCUMENT, PARAGRAPH, TextRules
from bloomery.corpus.interleaved.word_lists import WordLists
from bloomery.corpus.quality import Scorer
from bloomery.corpus.steps import Step

# The rule after "cond_check_", and our fields for its keys; {} is "node_level" or "doc_level".
TEXT_KEYS = {
    "number_words_{}": {"min_words": "number_words_{}_min_cutoff", "max_words": "number_words_{}_max_cutoff"},
    "character_repetition_ratio_{}": {
        "max_character_repetition": "character_repetition_{}_max_cutoff",
        "character_ngram": "character_repetition_length_{}",
    },
    "word_repetition_ratio_{}": {
        "max_word_repetition": "word_repetition_{}_max_cutoff",
        "word_ngram": "word_repetition_length_{}",
    },
    "special_character_ratio_{}": {"max_special_characters": "special_character_ratio_{}_max_cutoff"},
    "stopword_ratio_{}": {"min_stop_words": "stopword_ratio_{}_min_cutoff"},
    "flagged_word_ratio_{}": {"max_flagged_words": "flagged_word_ratio_{}_max_cutoff"},
    "punctuation_ratio_{}": {"min_punctuation": "punctuation_ratio_{}_min_cutoff"},
    "common_word_ratio_{}": {"min_common_words": "common_word_ratio_{}_min_cutoff"},
    "lang_id_{}": {"min_language": "lang_id_{}_min_cutoff"},
    "perplexity_score_{}": {"max_perplexity": "perplexity_score_{}_max_cutoff"},
}
SIDES = [f"{kind}_{side}" for kind in ("original", "rendered") for side in ("width", "height")]
OFF = {"min_words": 0, "max_words": 1 << 62}  # of fields that cannot be None
# The published values that are not the defaults of our rules: they need files.
PUBLISHED = {
    "common_word_ratio_node_level_min_cutoff": 0.8,
    "common_word_ratio_doc_level_min_cutoff": 0.9,
    "lang_id_node_level_min_cutoff": 0.8,
    "perplexity_score_node_level_max_cutoff": 1500,
    "perplexity_score_doc_level_max_cutoff": 1500,
}
OFF_BY_DEFAULT = (
    "cond_check_lang_id_node_level",
    "cond_check_perplexity_score_node_level",
    "cond_remove_non_printing_characters",
)


def load(
    path: Path | str,
    *,
    lists: WordLists | None = None,
    language_model: Path | str | None = None,
    perplexity: Scorer | None = None,
    compat: bool = True,
) -> list[Step]:
    """The steps of a configuration file: images, paragraphs, number of images, documents.

    Args:
        path: the YAML file.
        lists: words and characters, which the file does not name.
        language_model: fastText model for `cond_check_lang_id_*`; None = py3langid.
        perplexity: scorer for `cond_check_perplexity_*` (see `TextRules`).
        compat: reproduce the reference's quirks (see each step).

    Raises:
        ConfigError: an unknown key, a value of another type, a rule without the file or list that it needs.
    """
    try:
        return make_steps(
            load_yaml(path), lists=lists, language_model=language_model, perplexity=perplexity, compat=compat
        )
    except ConfigError as error:
        raise ConfigError(error.what, where=error.where or path, fix=error.fix) from error


def make_steps(
    values: Mapping[str, Any],
    *,
    lists: WordLists | None = None,
    language_model: Path | str | None = None,
    perplexity: Scorer | None = None,
    compat: bool = True,
) -> list[Step]:
    """The steps of a configuration that has been read; see `load`."""
    given = _checked(values)
    shape = _shape(given)
    lists = lists or WordLists()
    files = {"lists": lists, "language_model": Path(language_model) if language_model else None}
    paragraph, document = (
        replace(rules, **files, perplexity=perplexity, **_bounds(given, level, rules))  # type: ignore[arg-type]
        for rules, level in ((PARAGRAPH, "node_level"), (DOCUMENT, "doc_level"))
    )
    steps: list[Step] = [
        shape,
        ParagraphRules(
            paragraph,
            plain=given["cond_standardize_whitespace"],
            remove_non_printing=given["cond_remove_non_printing_characters"],
            compat=compat,
        ),
    ]
    if given["cond_check_number_images"]:
        steps.append(ImageCount(given["number_images_min_cutoff"], given["number_images_max_cutoff"]))
    return [*steps, DocumentRules(document, compat=compat)]


def published() -> dict[str, Any]:
    """Every key of the file, with its published value."""
    known: dict[str, Any] = {
        "cond_check_format": True,
        "valid_formats": ["jpg", "jpeg", "png", "webp"],
        "cond_check_size_image": True,
        **{f"{side}_{end}_cutoff": bound for side in SIDES for end, bound in (("min", 150), ("max", 20_000))},
        "aspect_ratio_max_cutoff": 2,
        "cond_remove_non_printing_characters": False,
        "cond_standardize_whitespace": True,
        "min_number_words_to_check_punctuation_ratio_node_level": PARAGRAPH.min_punctuation_tokens,
        "cond_check_number_images": True,
        "number_images_min_cutoff": 1,
        "number_images_max_cutoff": 30,
    }
    for level, rules in (("node_level", PARAGRAPH), ("doc_level", DOCUMENT)):
        for rule, keys in TEXT_KEYS.items():
            known[f"cond_check_{rule.format(level)}"] = True
            known |= {key.format(level): getattr(rules, field) for field, key in keys.items()}
    return known | PUBLISHED | dict.fromkeys(OFF_BY_DEFAULT, False)


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    known = published()
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", fix=nearest(str(key), known))
        if key == "valid_formats":
            fits = isinstance(value, (list, tuple, set)) and all(isinstance(name, str) for name in value)
        elif isinstance(known[key], bool):
            fits = isinstance(value, bool)
        else:
            kinds = int if isinstance(known[key], int) and "words_" in key else (int, float)
            fits = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not fits:
            raise ConfigError(f"{key}: {value!r}", fix=f"a value like {known[key]!r}")
    return {**known, **values}


def _bounds(given: Mapping[str, Any], level: str, rules: TextRules) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rule, keys in TEXT_KEYS.items():
        on = given[f"cond_check_{rule.format(level)}"]
        for field, key in keys.items():
            keeps_its_value = on or field.endswith("ngram")
            found[field] = given[key.format(level)] if keeps_its_value else OFF.get(field)
    if level == "node_level":
        found["min_punctuation_tokens"] = given["min_number_words_to_check_punctuation_ratio_node_level"]
    return found


def _shape(given: Mapping[str, Any]) -> ImageShape:
    lowest, highest = ({given[f"{side}_{end}_cutoff"] for side in SIDES} for end in ("min", "max"))
    if len(lowest) > 1 or len(highest) > 1:
        raise ConfigError(
            f"bounds {sorted(lowest)} and {sorted(highest)} for original and rendered widths and heights",
            fix="the same *_min_cutoff and *_max_cutoff for all four",
        )
    formats = tuple(sorted(given["valid_formats"])) if given["cond_check_format"] else None
    if not given["cond_check_size_image"]:
        return ImageShape(1, 1 << 62, math.inf, math.inf, formats)
    aspect = given["aspect_ratio_max_cutoff"]
    return ImageShape(lowest.pop(), highest.pop(), aspect, aspect, formats)
