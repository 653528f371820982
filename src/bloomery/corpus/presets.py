"""Whole curation pipelines by name, for `bloomery curate --recipe NAME` and for a first try in Python."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bloomery.core.errors import ConfigError, nearest
from bloomery.corpus.steps import Barrier, Step

PRESETS = ("refinedweb", "dclm", "gopher", "c4", "fineweb")


def preset(name: str, **options: Any) -> list[Step | Barrier]:
    """The steps of a named pipeline; `options` go to the function of that name (see `refinedweb.presets`).

    Raises:
        ConfigError: no such pipeline, or an option that it does not have.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown recipe {name!r}", where="recipe", fix=nearest(name, PRESETS))
    make: Callable[..., list[Step | Barrier]] = getattr(
        importlib.import_module("bloomery.corpus.refinedweb.presets"), name
    )
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(str(error), where=f"recipe {name}") from error
