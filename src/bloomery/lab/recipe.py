"""A recipe: a paper's experiment as a typed dataclass whose fields are its knobs.

Values come from four places, later ones win: field defaults, the preset, a YAML file, explicit overrides. All four go
through the same strict decoding, so Python, YAML and command line accept exactly the same names and types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bloomery.core.config import decode, encode
from bloomery.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from bloomery.lab.claim import Claim
    from bloomery.lab.folder import Run

PRESETS = ("smoke", "cpu", "gpu")
DEFAULT_PRESET = "cpu"
RESERVED = ("recipe", "preset", "out", "resume", "config", "track", "quiet", "json")  # names that `run` itself uses

R = TypeVar("R", bound="Recipe")


@dataclass(kw_only=True)
class Recipe:
    """Base of all recipes. Subclass as a dataclass, decorate with `@recipe`, write `run`."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    paper: ClassVar[str] = ""
    stage: ClassVar[str] = ""

    seed: int = 0
    """Everything random in the run derives from this number."""

    def run(self, run: Run) -> Iterator[Claim]:
        """Do the experiment in visible stages and yield its claims."""
        raise NotImplementedError(f"{type(self).__name__}.run")

    @classmethod
    def slug(cls) -> str:
        """The system's name: the name of the file the recipe is written in."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]

    @classmethod
    def configure(cls: type[R], preset: str = DEFAULT_PRESET, *layers: Mapping[str, Any]) -> R:
        """The recipe with a preset laid over the defaults and `layers` (plain mappings) laid over that, in order."""
        if preset not in cls.presets:
            raise ConfigError(f"unknown preset {preset!r} of {cls.slug()}", fix=nearest(preset, cls.presets))
        defaults = cls()
        values = encode(defaults)
        for layer in (cls.presets[preset], *layers):
            values = _overlay(defaults, values, encode(layer), cls.slug())
        return decode(cls, values, where=cls.slug())


def recipe(*, paper: str, stage: str) -> Callable[[type[R]], type[R]]:
    """Class decorator: name the paper and the stage of the chain (web, data, pretrain, …) and check the class.

    The catalogue reads the two arguments from the source text, so both must be literal strings.
    """

    def mark(cls: type[R]) -> type[R]:
        if "__dataclass_fields__" not in cls.__dict__:
            raise ConfigError(
                f"{cls.__name__} is not a dataclass", fix="put @dataclass(kw_only=True) under @recipe(...)"
            )
        cls.paper, cls.stage = paper, stage
        for field in dataclasses.fields(cls):
            if field.name in RESERVED:
                raise ConfigError(f"field {field.name!r} of {cls.__name__} is a name that `run` uses itself")
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"field {field.name!r} of {cls.__name__} needs a default")
        if set(cls.presets) != set(PRESETS):
            raise ConfigError(f"{cls.__name__}.presets needs exactly {', '.join(PRESETS)}, has {sorted(cls.presets)}")
        for name in PRESETS:
            cls.configure(name)
        return cls

    return mark


def _overlay(default: Any, below: dict[str, Any], above: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`above` over `below`; a mapping for a field that holds a dataclass changes only the keys it names."""
    merged = dict(below)
    for key, value in above.items():
        if key not in below:
            raise ConfigError(f"unknown field {key!r}", where=where, fix=nearest(str(key), below))
        inner = getattr(default, key)
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            value = _overlay(inner, below[key], value, f"{where}.{key}")
        merged[key] = value
    return merged
