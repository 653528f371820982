"""Whole curation pipelines by name, for `bloomery curate --recipe NAME` and for a first try in Python."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bloomery.core.errors import ConfigError, nearest
from bloomery.corpus.steps import Barrier, Step

_HOME = {
    "refinedweb": "refinedweb.presets", "dclm": "refinedweb.presets", "gopher": "refinedweb.presets",
    "c4": "refinedweb.presets", "fineweb": "refinedweb.presets",
    "mint1t": "interleaved.presets", "obelics": "interleaved.presets",
}  # fmt: skip
PRESETS = tuple(_HOME)
INTERLEAVED = ("mint1t", "obelics")  # those for documents of text and images


def preset(name: str, **options: Any) -> list[Step | Barrier]:
    """The steps of a named pipeline; `options` go to the function of that name (see `refinedweb.presets`
    and `interleaved.presets`).

    Raises:
        ConfigError: no such pipeline, or an option that it does not have.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown recipe {name!r}", where="recipe", fix=nearest(name, PRESETS))
    make: Callable[..., list[Step | Barrier]] = getattr(importlib.import_module(f"bloomery.corpus.{_HOME[name]}"), name)
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(str(error), where=f"recipe {name}") from error
