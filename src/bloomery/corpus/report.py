"""What happened to the documents: per step, per reason, per source; merged from the records of each finished file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bloomery.core.files import read_json, write_json

if TYPE_CHECKING:
    from rich.console import Group

EXAMPLES = 3  # dropped documents shown for each step and reason
MAX_REASONS = 200  # distinct reasons counted for a step and file, and
MAX_SOURCES = 10_000  # distinct sources for a file; what is beyond is counted together as:
OTHER = "(other)"


@dataclass
class StepStats:
    """One step's account. `documents_in + split == kept + all dropped + all errors`.

    `removed` counts parts (paragraphs, images) taken out of documents, by reason. `seconds` is the time spent inside
    the step, summed over worker processes."""

    name: str
    documents_in: int = 0
    kept: int = 0
    split: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def documents_per_second(self) -> float:
        """Documents per second of one process."""
        return self.documents_in / self.seconds if self.seconds else 0.0

    def add(self, other: StepStats) -> None:
        """Add the counts of another file."""
        self.documents_in += other.documents_in
        self.kept += other.kept
        self.split += other.split
        self.seconds += other.seconds
        for mine, theirs in (
            (self.dropped, other.dropped), (self.errors, other.errors), (self.removed, other.removed),
        ):  # fmt: skip
            for reason, count in theirs.items():
                add_capped(mine, reason, count, MAX_REASONS)


@dataclass
class Report:
    """The outcome of `corpus.run`, also written as `report.json`.

    `sources` maps each source (the host of the url, or the input file's name) to [documents in, documents kept].
    Times are sums over all files, including those finished by earlier, interrupted runs.
    """

    steps: list[StepStats] = field(default_factory=list)
    sources: dict[str, list[int]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    documents_in: int = 0
    documents_out: int = 0
    text_bytes_in: int = 0
    text_bytes_out: int = 0

    @property
    def survival(self) -> float:
        """Fraction of the documents that was kept."""
        return self.documents_out / self.documents_in if self.documents_in else 0.0

    @property
    def seconds(self) -> float:
        """Time spent in all steps, summed over worker processes."""
        return sum(step.seconds for step in self.steps)

    def top_reasons(self, count: int = 5) -> list[tuple[str, int]]:
        """The most frequent reasons ("step: reason", documents), errors included."""
        reasons = Counter[str]()
        for step in self.steps:
            for reason, documents in (*step.dropped.items(), *step.errors.items()):
                reasons[f"{step.name}: {reason}"] += documents
        return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:count]

    def add(self, other: Report, at: int = 0) -> None:
        """Add the record of one file, whose steps are those of this report from position `at`."""
        for mine, theirs in zip(self.steps[at : at + len(other.steps)], other.steps, strict=True):
            mine.add(theirs)
        for source, (documents, kept) in other.sources.items():
            known = source if source in self.sources or len(self.sources) < MAX_SOURCES else OTHER
            entry = self.sources.setdefault(known, [0, 0])
            entry[0] += documents
            entry[1] += kept
        shown = Counter((example["step"], example["reason"]) for example in self.examples)
        for example in other.examples:
            key = (example["step"], example["reason"])
            if shown[key] < EXAMPLES:
                shown[key] += 1
                self.examples.append(example)
        for name in ("documents_in", "documents_out", "text_bytes_in", "text_bytes_out"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_dict(self, timings: bool = True) -> dict[str, Any]:
        """Plain values. Without `timings` the result depends on the documents and the steps alone."""
        steps = [asdict(step) for step in self.steps]
        for step, stats in zip(steps, self.steps, strict=True):
            step["dropped"], step["errors"] = _by_count(stats.dropped), _by_count(stats.errors)
            step["removed"] = _by_count(stats.removed)
            if timings:
                step["documents_per_second"] = stats.documents_per_second
            else:
                del step["seconds"]
        return {
            "files": self.files,
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "text_bytes_in": self.text_bytes_in,
            "text_bytes_out": self.text_bytes_out,
            "steps": steps,
            "sources": dict(self._by_size()),
            "examples": self.examples,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        values = {**data, "steps": [_step(step) for step in data["steps"]]}
        return cls(**values)

    def save(self, path: Path | str) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote."""
        return cls.from_dict(read_json(path))

    def table(self, sources: int = 10) -> Group:
        """The survival table, and one of the `sources` largest sources, for `rich.print`."""
        from rich.console import Group
        from rich.table import Table

        steps = Table(title=f"{self.documents_out:,} of {self.documents_in:,} documents kept ({self.survival:.1%})")
        for column in ("step", "in", "kept", "survival", "errors", "docs/s/core", "why dropped"):
            steps.add_column(column, justify="left" if column in ("step", "why dropped") else "right")
        for step in self.steps:
            why = _commonest(step.dropped)
            if step.removed:
                why = "; ".join(filter(None, [why, f"parts: {_commonest(step.removed)}"]))
            total = step.documents_in + step.split
            steps.add_row(
                step.name,
                f"{step.documents_in:,}",
                f"{step.kept:,}",
                f"{step.kept / total:.1%}" if total else "-",
                f"{sum(step.errors.values()):,}",
                f"{step.documents_per_second:,.0f}" if step.seconds else "-",
                why,
            )
        largest = Table(title="largest sources")
        for column in ("source", "in", "kept", "survival"):
            largest.add_column(column, justify="left" if column == "source" else "right")
        for source, (documents, kept) in sorted(self.sources.items(), key=lambda item: (-item[1][0], item[0]))[
            :sources
        ]:
            survival = f"{kept / documents:.1%}" if documents else "-"
            largest.add_row(source, f"{documents:,}", f"{kept:,}", survival)
        return Group(steps, largest)

    def _by_size(self) -> list[tuple[str, list[int]]]:
        return sorted(self.sources.items(), key=lambda item: (-item[1][0], item[0]))


def add_capped(counts: dict[str, int], key: str, count: int, limit: int) -> None:
    """Count `key`, or `OTHER` once there are `limit` different keys."""
    known = key if key in counts or len(counts) < limit else OTHER
    counts[known] = counts.get(known, 0) + count


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _commonest(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in list(_by_count(counts).items())[:3])


def _step(data: Mapping[str, Any]) -> StepStats:
    return StepStats(**{key: value for key, value in data.items() if key != "documents_per_second"})
