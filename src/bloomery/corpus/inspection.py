"""What a curation run dropped, why, and what its duplicates look like: from the folder it left.

`inspect(folder)` reads the report and a sample of the dropped documents; `Inspection` shows it as tables for a terminal
or as one HTML page without anything from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.core.errors import DataError
from bloomery.corpus.documents import texts
from bloomery.corpus.readers import DROPPED
from bloomery.corpus.remote import Source, files_in, local_copy, source_of
from bloomery.corpus.report import Report

if TYPE_CHECKING:
    from rich.console import Group

SNIPPET = 300  # characters of a document that are shown
SAMPLE = 3  # documents for each step and reason
SOURCES = 20

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Curation: {{ folder }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1f2226; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dcdfe4; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7rem; background: #c2501d; }
pre { white-space: pre-wrap; margin: 0; font: 13px/1.4 ui-monospace, monospace; max-height: 12rem; overflow: auto; }
details { margin: .4rem 0; }
</style></head><body>
<h1>{{ "{:,}".format(report.documents_out) }} of {{ "{:,}".format(report.documents_in) }} documents kept
({{ "%.1f"|format(100 * report.survival) }} %)</h1>
<p>{{ folder }}: {{ report.files }} files, {{ "%.1f"|format(report.text_bytes_in / 1e6) }} MB of text in,
{{ "%.1f"|format(report.text_bytes_out / 1e6) }} MB out.</p>
<h2>Steps</h2>
<table><tr><th>step<th class="n">in<th class="n">kept<th>survival<th class="n">errors<th>notes</tr>
{% for step in steps %}<tr><td>{{ step.name }}<td class="n">{{ "{:,}".format(step.documents_in) }}
<td class="n">{{ "{:,}".format(step.kept) }}
<td><span class="bar" style="width: {{ "%.1f"|format(8 * step.share) }}rem"></span>
{{ "%.1f"|format(100 * step.share) }} %
<td class="n">{{ "{:,}".format(step.error_count) }}<td>{{ step.notes }}</tr>{% endfor %}</table>
<h2>Why documents were dropped</h2>
{% for group in groups %}<details{% if loop.index <= 3 %} open{% endif %}>
<summary><b>{{ group.step }}: {{ group.reason }}</b>, {{ "{:,}".format(group.documents) }} documents</summary>
<table>{% for example in group.examples %}<tr><td>{{ example.url or example.id }}<td><pre>{{ example.text }}</pre></tr>
{% endfor %}</table></details>{% endfor %}
{% if cluster %}<p>The largest cluster of duplicates has {{ "{:,}".format(cluster) }} documents.</p>{% endif %}
<h2>Sources</h2>
<table><tr><th>source<th class="n">in<th class="n">kept<th>survival</tr>
{% for name, documents, kept in sources %}<tr><td>{{ name }}<td class="n">{{ "{:,}".format(documents) }}
<td class="n">{{ "{:,}".format(kept) }}<td>{{ "%.1f"|format(100 * kept / documents if documents else 0) }} %</tr>
{% endfor %}</table></body></html>
"""


@dataclass
class Dropped:
    """Documents that one step dropped for one reason: how many, and some of them."""

    step: str
    reason: str
    documents: int
    examples: list[dict[str, str]]


@dataclass
class Inspection:
    """What there is to see of a run; `dropped` has the most frequent reason first."""

    folder: Source
    report: Report
    dropped: list[Dropped]
    largest_cluster: int  # documents in it; 0 where nothing looked for near duplicates

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "report": self.report.to_dict(),
            "dropped": [asdict(group) for group in self.dropped],
            "largest_cluster": self.largest_cluster,
        }

    def table(self, groups: int = 12) -> Group:
        """The survival table, the commonest reasons with an example each, the largest sources."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        why = Table(title="why documents were dropped", show_lines=True)
        for column in ("step", "reason", "documents", "for example"):
            why.add_column(column, justify="right" if column == "documents" else "left")
        for group in self.dropped[:groups]:
            example = group.examples[0] if group.examples else {"url": "", "id": "", "text": ""}
            text = " ".join(example["text"].split())
            shown = f"{example['url'] or example['id']}\n{text[:160]}"
            why.add_row(escape(group.step), escape(group.reason), f"{group.documents:,}", escape(shown))
        return Group(self.report.table(), why)

    def html(self) -> str:
        """One page; everything from documents is escaped."""
        steps = []
        for step in self.report.steps:
            total = step.documents_in + step.split
            share = step.kept / total if total else 0.0
            told = {**step.notes, **{f"parts removed, {reason}:": count for reason, count in step.removed.items()}}
            notes = ", ".join(f"{key} {value}" for key, value in told.items() if not isinstance(value, (list, dict)))
            steps.append({**vars(step), "share": share, "error_count": sum(step.errors.values()), "notes": notes})
        sources = sorted(self.report.sources.items(), key=lambda item: (-item[1][0], item[0]))[:SOURCES]
        page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
        return page.render(
            folder=str(self.folder), report=self.report, steps=steps, groups=self.dropped,
            cluster=self.largest_cluster, sources=[(name, *counts) for name, counts in sources],
        )  # fmt: skip


def inspect(folder: Path | str) -> Inspection:
    """Look at what a run of `corpus.run` left in `folder`, a path or an address; no more files than it takes.

    Raises:
        DataError: there is no report.
    """
    source = source_of(folder)
    report = load_report(folder)
    counts = {
        (step.name, reason): documents
        for step in report.steps
        for reason, documents in (*step.dropped.items(), *step.errors.items())
    }
    examples: dict[tuple[str, str], list[dict[str, str]]] = {}
    for file in files_in(source, DROPPED, ".parquet"):
        if all(len(examples.get(pair, [])) >= min(SAMPLE, documents) for pair, documents in counts.items()):
            break
        with local_copy(file) as path:
            _collect(path, examples)
    groups = [
        Dropped(step, reason, documents, examples.get((step, reason), []))
        for (step, reason), documents in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    clusters = [s.notes.get("largest_cluster") for s in report.steps if s.name in ("ExactDedup", "NearDedup")]
    size = max((int(c) for c in clusters if isinstance(c, (int, float))), default=0)
    return Inspection(source, report, groups, size)


def load_report(folder: Path | str) -> Report:
    """The report of a run from its output folder, a path or an address.

    Raises:
        DataError: there is none.
    """
    source = source_of(folder)
    found = files_in(source, "", "report.json")
    if not found:
        raise DataError("no report.json", where=source, fix="give the output folder of a finished curation run")
    with local_copy(found[0]) as path:
        return Report.load(path)


def _collect(path: Path, examples: dict[tuple[str, str], list[dict[str, str]]]) -> None:
    """Add documents of a file of dropped ones, until every reason has some."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=500):
            pairs = zip(batch.column("step").to_pylist(), batch.column("reason").to_pylist(), strict=True)
            rows: dict[tuple[str, str], list[int]] = {}
            for row, pair in enumerate(pairs):
                rows.setdefault(pair, []).append(row)
            for pair, found in rows.items():
                shown = examples.setdefault(pair, [])
                shown += _shown(batch.take(pa.array(found[: max(0, SAMPLE - len(shown))], pa.int64())))


def _shown(batch: pa.RecordBatch) -> list[dict[str, str]]:
    columns: Sequence[list[Any]] = (
        batch.column("id").to_pylist(), batch.column("url").to_pylist(), texts(batch).to_pylist(),
    )  # fmt: skip
    return [{"id": i or "", "url": u or "", "text": (t or "")[:SNIPPET]} for i, u, t in zip(*columns, strict=True)]
