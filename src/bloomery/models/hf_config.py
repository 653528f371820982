"""Reading and writing the `config.json` of a Hugging Face folder, in the spellings of transformers 4.x and 5.x."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from bloomery.core.errors import ConfigError, nearest
from bloomery.nn import LinearScaling, Llama3Scaling, RopeScaling

T = TypeVar("T")


class Fields:
    """The mapping of one `config.json`, read strictly: wrong types, missing fields and likely typos are ConfigErrors.

    Published files are full of fields that do not concern the computation, so an unknown one is accepted, unless it
    looks like a misspelling of a field that was asked for and is absent (`finish` checks that).
    """

    def __init__(self, data: Mapping[str, Any], where: object) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"expected a mapping of fields, got {type(data).__name__}", where=where)
        self.data, self.where = data, where
        self._absent: set[str] = set()

    def need(self, name: str, kind: type[T]) -> T:
        """The value of a field that must be there."""
        if self.data.get(name) is None:
            raise ConfigError(f"the field {name!r} is missing", where=self.where, fix=nearest(name, self.data))
        return self._typed(name, kind)

    def get(self, name: str, default: T) -> T:
        """The value of a field, or `default` (whose type it must have) when it is absent or null."""
        if self.data.get(name) is None:
            self._absent.add(name)
            return default
        return self._typed(name, type(default))

    def require(self, name: str, accepted: Any, why: str) -> None:
        """Raise unless the field is absent, null or `accepted`."""
        if self.data.get(name) not in (None, accepted):
            raise ConfigError(f"{name}={self.data[name]!r} is not supported: {why}", where=self.where)

    def finish(self) -> None:
        """Raise if a field nobody asked for is nearly the name of one that was asked for and is absent."""
        for name in self.data:
            if close := difflib.get_close_matches(name, self._absent - self.data.keys(), n=1, cutoff=0.9):
                raise ConfigError(f"unknown field {name!r}", where=self.where, fix=f"did you mean {close[0]!r}?")

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.data[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ConfigError(f"{name}={value!r} is not of type {kind.__name__}", where=self.where)
        return value


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base and scaling: `rope_theta` + `rope_scaling` (4.x) or `rope_parameters` (5.x)."""
    old, new = fields.data.get("rope_scaling"), fields.data.get("rope_parameters")
    if old and new and old != new:
        raise ConfigError(f"rope_scaling={old} and rope_parameters={new} contradict each other", where=fields.where)
    rope = Fields(new or old or {}, f"{fields.where}: {'rope_parameters' if new else 'rope_scaling'}")
    theta = fields.get("rope_theta", 10_000.0)
    if rope.get("rope_theta", theta) != theta and "rope_theta" in fields.data:
        raise ConfigError(f"rope_theta is {theta} here and {rope.data['rope_theta']} there", where=rope.where)
    theta = rope.get("rope_theta", theta)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=rope.need("factor", float))
    if kind == "llama3":
        return theta, Llama3Scaling(
            factor=rope.need("factor", float),
            low_freq_factor=rope.need("low_freq_factor", float),
            high_freq_factor=rope.need("high_freq_factor", float),
            original_max_positions=rope.need("original_max_position_embeddings", int),
        )
    raise ConfigError(f"rope type {kind!r} is not supported", where=rope.where, fix="known: default, linear, llama3")


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The 4.x spelling, which every reader since understands."""
    written: dict[str, Any] | None = None
    if isinstance(scaling, LinearScaling):
        written = {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        written = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return {"rope_theta": theta, "rope_scaling": written}
