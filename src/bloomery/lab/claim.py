"""A claim: what a paper says, our numbers, the baseline's numbers, and a verdict that is computed, never set."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bloomery.core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Claim:
    """One comparison of a method with its baseline, seed by seed.

    The seeds are paired: seed 3 of `ours` and seed 3 of `baseline` share data order and initialisation, so each seed
    gives one *gain*, signed such that positive means that ours is better.

    A claim passes when the mean gain reaches `margin` **and** no seed contradicts it: every gain is above zero. (For
    a negative margin, "not worse by more than", every gain must reach the margin.) With one seed this is only the
    margin; the report says how many seeds stand behind a verdict.
    """

    statement: str
    """What is claimed, in one sentence."""
    paper: str
    """Where it is claimed, e.g. `arXiv:2406.11794`, or a plain reason when it is our own."""
    ours: dict[int, float]
    """Value of the method by seed."""
    baseline: dict[int, float]
    """Value of the baseline by seed; the same seeds."""
    better: Literal["lower", "higher"]
    """Which direction is good."""
    margin: float
    """Smallest mean gain that counts, in `unit`."""
    unit: str = ""
    """Unit of the values, e.g. `nats/byte`."""
    names: tuple[str, str] = ("ours", "baseline")
    """What the two sides are called in tables and figures."""
    note: str = ""
    """What a reader should know beside the number: budget, caveats, what did not hold."""

    def __post_init__(self) -> None:
        where = f"claim {self.statement!r}"
        for side in ("ours", "baseline"):  # NumPy's and torch's scalars become plain numbers
            plain = {int(seed): float(value) for seed, value in getattr(self, side).items()}
            object.__setattr__(self, side, plain)
        if self.better not in ("lower", "higher"):
            raise ConfigError(f"better={self.better!r}", where=where, fix="use 'lower' or 'higher'")
        if not self.ours:
            raise ConfigError("no values", where=where, fix="give at least one seed for ours and baseline")
        if self.ours.keys() != self.baseline.keys():
            odd = sorted(self.ours.keys() ^ self.baseline.keys())
            raise ConfigError(f"ours and baseline differ in seeds {odd}", where=where, fix="run both on every seed")
        for side, values in (("ours", self.ours), ("baseline", self.baseline)):
            for seed, value in values.items():
                if not math.isfinite(value):
                    raise ConfigError(
                        f"{side} of seed {seed} is {value}", where=where, fix="every value must be finite"
                    )
        if not math.isfinite(self.margin):
            raise ConfigError(f"margin={self.margin}", where=where, fix="the margin must be finite")

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return sorted(self.ours)

    @property
    def gains(self) -> dict[int, float]:
        """Paired difference by seed; positive means ours is better."""
        sign = 1.0 if self.better == "higher" else -1.0
        return {seed: sign * (self.ours[seed] - self.baseline[seed]) for seed in self.seeds}

    @property
    def gain(self) -> float:
        """Mean of the paired differences."""
        return statistics.fmean(self.gains.values())

    @property
    def spread(self) -> float:
        """Sample standard deviation of the gains over seeds; 0 for a single seed."""
        gains = list(self.gains.values())
        return statistics.stdev(gains) if len(gains) > 1 else 0.0

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest gain."""
        return min(self.gains.values()), max(self.gains.values())

    @property
    def passes(self) -> bool:
        """Whether the mean gain reaches the margin and no seed contradicts it."""
        worst = min(self.gains.values())
        return self.gain >= self.margin and (worst > 0 if self.margin >= 0 else worst >= self.margin)

    def to_dict(self) -> dict[str, Any]:
        """A JSON value: the given fields and, for readers, the computed ones."""
        return {
            "statement": self.statement,
            "paper": self.paper,
            "ours": {str(s): self.ours[s] for s in self.seeds},
            "baseline": {str(s): self.baseline[s] for s in self.seeds},
            "better": self.better,
            "margin": self.margin,
            "unit": self.unit,
            "names": list(self.names),
            "note": self.note,
            "gain": self.gain,
            "spread": self.spread,
            "gains": {str(s): g for s, g in self.gains.items()},
            "passes": self.passes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Claim:
        """The claim of `to_dict`; the computed fields are computed again, not believed."""
        try:
            return cls(
                statement=data["statement"],
                paper=data["paper"],
                ours={int(s): float(v) for s, v in data["ours"].items()},
                baseline={int(s): float(v) for s, v in data["baseline"].items()},
                better=data["better"],
                margin=float(data["margin"]),
                unit=data.get("unit", ""),
                names=tuple(data.get("names", ("ours", "baseline"))),
                note=data.get("note", ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not a claim: {error!r}", fix="expected the JSON of Claim.to_dict") from error
