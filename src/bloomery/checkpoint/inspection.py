"""What is in a checkpoint, without reading its tensors: keys, shapes, which rank's file holds which box, timings.

`inspect(path)` reads the manifest and the table of chunks; `Inspection` shows them as tables for a terminal or as one
HTML page without anything from outside. Tensors that are cut alike are drawn once.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from bloomery.checkpoint.loading import read_manifest
from bloomery.checkpoint.manifest import Manifest
from bloomery.checkpoint.offline import Place
from bloomery.checkpoint.storage import storage

if TYPE_CHECKING:
    from rich.console import Group

LAYOUTS = 60  # drawings on a page
BOXES = 2000  # in a drawing
TENSORS = 5000  # rows of a page
WIDTH, HEIGHT = 220, 140  # most of a drawing, in pixels
TINTS = 12  # colours of ranks before they repeat

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Checkpoint: {{ path }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1f2226; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #dcdfe4; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7rem; background: #c2501d; }
.layouts { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; max-width: 16rem; font-size: 13px; }
figcaption { overflow-wrap: anywhere; }
svg rect { stroke: #fff; stroke-width: .6; }
.key span { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 .9rem; }
</style></head><body>
<h1>{{ "{:,}".format(tensors|length) }} tensors, {{ size(nbytes) }}</h1>
<p>{{ path }}: written {{ about.time }} by {{ about.world }} rank{{ "" if about.world == 1 else "s" }} with
bloomery {{ about.bloomery }}, PyTorch {{ about.torch }}; {{ "{:,}".format(chunks) }} chunks, {{ files|length }} files.
</p>
<h2>Keys</h2>
<table><tr><th>key<th>kind<th class="n">tensors<th class="n">elements<th class="n">bytes<th>share</tr>
{% for row in keys %}<tr><td>{{ row.key }}<td>{{ row.kind }}<td class="n">{{ "{:,}".format(row.tensors) }}
<td class="n">{{ "{:,}".format(row.elements) }}<td class="n">{{ size(row.bytes) }}
<td><span class="bar" style="width: {{ "%.1f"|format(8 * row.bytes / (nbytes or 1)) }}rem"></span></tr>
{% endfor %}</table>
<h2>Ranks</h2>
<table class="heat"><tr><th>rank{% for name in columns %}<th class="n">{{ name }}{% endfor %}</tr>
{% for row in heat %}<tr><td>{{ loop.index0 }}{% for cell in row %}
<td class="n"{% if cell.share is not none %} style="background: rgba(194, 80, 29, {{ "%.2f"|format(cell.share) }})"
{% endif %}>{{ cell.text }}{% endfor %}</tr>{% endfor %}</table>
<p>The darker, the more of its column's largest: seconds of the save by stage, and what each rank wrote.</p>
<h2>Layouts</h2>
<p class="key">Which rank's files hold which box:{% for rank in drawn_ranks %}
<span style="background: {{ tint(rank) }}"></span>{{ rank }}{% endfor %}</p>
<div class="layouts">{% for layout in layouts %}<figure>
<svg width="{{ layout.width }}" height="{{ layout.height }}" role="img" aria-label="{{ layout.label }}">
{% for x, y, w, h, rank, box in layout.boxes %}<rect x="{{ x }}" y="{{ y }}" width="{{ w }}" height="{{ h }}"
 fill="{{ tint(rank) }}"><title>rank {{ rank }}: {{ box }}</title></rect>{% endfor %}</svg>
<figcaption>{{ layout.label }}: {{ layout.names }}</figcaption></figure>{% endfor %}</div>
{% if more_layouts %}<p>And {{ more_layouts }} more.</p>{% endif %}
<h2>Tensors</h2>
<table><tr><th>name<th>dtype<th>shape<th class="n">bytes<th class="n">chunks<th>ranks</tr>
{% for row in tensors[:most] %}<tr><td>{{ row.name }}<td>{{ row.dtype }}<td>{{ row.shape|join("×") or "scalar" }}
<td class="n">{{ size(row.bytes) }}<td class="n">{{ row.chunks }}<td>{{ row.ranks|join(", ") }}</tr>
{% endfor %}</table>
{% if tensors|length > most %}<p>And {{ "{:,}".format(tensors|length - most) }} more.</p>{% endif %}
{% if aliases %}<h2>Tied tensors</h2>
<table>{% for name, kept in aliases.items() %}<tr><td>{{ name }}<td>{{ kept }}</tr>{% endfor %}</table>{% endif %}
<h2>Files</h2>
<table>{% for name, bytes in files %}<tr><td>{{ name }}<td class="n">{{ size(bytes) }}</tr>{% endfor %}</table>
</body></html>
"""


@dataclass
class Inspection:
    """What there is to see of a checkpoint."""

    path: str
    manifest: Manifest

    def tensors(self, match: str = "*") -> list[dict[str, Any]]:
        """Name, dtype, shape, bytes, number of chunks and ranks that hold them, of names that `match` a pattern."""
        chunks, owner = self.manifest.chunks, self._owner()
        found = []
        for number, meta in enumerate(self.manifest.tensors):
            if fnmatchcase(meta.name, match):
                files = np.unique(chunks.file[chunks.of(number)])
                rows = chunks.of(number)
                found.append(
                    {
                        "name": meta.name, "dtype": meta.dtype, "shape": list(meta.shape), "bytes": meta.nbytes,
                        "chunks": rows.stop - rows.start, "ranks": sorted({owner[file] for file in files.tolist()}),
                    }
                )  # fmt: skip
        return found

    def keys(self) -> list[dict[str, Any]]:
        """What the state was saved under: kind, tensors, elements, bytes."""
        rows: dict[str, dict[str, Any]] = {}
        for name, record in self.manifest.values.items():
            if "/" not in name and record["kind"] != "same":
                rows[name] = {"key": name, "kind": _kind(record), "tensors": 0, "elements": 0, "bytes": 0}
        for meta in self.manifest.tensors:
            row = rows.get(meta.name.partition("/")[0].partition("#")[0])
            if row is not None:
                row["tensors"] += 1
                row["elements"] += int(np.prod(meta.shape, dtype=np.int64))
                row["bytes"] += meta.nbytes
        return sorted(rows.values(), key=lambda row: -row["bytes"])

    def to_dict(self, match: str = "*") -> dict[str, Any]:
        """Plain values."""
        return {
            "path": self.path, "bytes": self.manifest.nbytes, "chunks": len(self.manifest.chunks),
            "about": self.manifest.about, "keys": self.keys(), "ranks": self.manifest.ranks,
            "files": [{"name": name, "bytes": size} for name, size in self.manifest.files],
            "aliases": self.manifest.aliases, "tensors": self.tensors(match),
        }  # fmt: skip

    def table(self, match: str = "") -> Group:
        """Keys and ranks, and the tensors that `match` a pattern, for a terminal."""
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        about, shown = self.manifest.about, []
        tables = Table(title="keys", title_justify="left", box=None, pad_edge=False)
        for column in ("key", "kind", "tensors", "elements", "bytes"):
            tables.add_column(column, justify="left" if column in ("key", "kind") else "right")
        for row in self.keys():
            counts = f"{row['tensors']:,}", f"{row['elements']:,}", size(row["bytes"])
            tables.add_row(escape(row["key"]), row["kind"], *counts)
        shown.append(tables)
        columns, heat = self._heat()
        ranks = Table(title="ranks", title_justify="left", box=None, pad_edge=False)
        for column in ("rank", *columns):
            ranks.add_column(column, justify="right")
        for number, cells in enumerate(heat):
            ranks.add_row(str(number), *(cell["text"] for cell in cells))
        shown.append(ranks)
        if match:
            tensors = Table(title="tensors", title_justify="left", box=None, pad_edge=False)
            for column in ("name", "dtype", "shape", "bytes", "chunks", "ranks"):
                tensors.add_column(
                    column, justify="right" if column in ("bytes", "chunks") else "left", overflow="fold"
                )
            for row in self.tensors(match):
                shape = "×".join(map(str, row["shape"])) or "scalar"
                held = ", ".join(map(str, row["ranks"]))
                tensors.add_row(escape(row["name"]), row["dtype"], shape, size(row["bytes"]), str(row["chunks"]), held)
            shown.append(tensors)
        head = (
            f"{escape(self.path)}: {len(self.manifest.tensors):,} tensors, {size(self.manifest.nbytes)}, "
            f"{len(self.manifest.chunks):,} chunks in {len(self.manifest.files)} files\n"
            f"written {about['time']} by {about['world']} rank(s), bloomery {about['bloomery']}, "
            f"torch {about['torch']}\n"
        )
        return Group(head, *(part for table in shown for part in (table, "")))

    def html(self) -> str:
        """One page; every name is escaped."""
        columns, heat = self._heat()
        layouts = list(self._layouts())
        page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
        return page.render(
            path=self.path, about=self.manifest.about, nbytes=self.manifest.nbytes, chunks=len(self.manifest.chunks),
            keys=self.keys(), columns=columns, heat=heat, layouts=layouts[:LAYOUTS], tint=tint, size=size,
            more_layouts=max(0, len(layouts) - LAYOUTS), tensors=self.tensors(), most=TENSORS,
            drawn_ranks=sorted(set(self._owner()))[: 2 * TINTS], files=self.manifest.files,
            aliases=self.manifest.aliases,
        )  # fmt: skip

    def _owner(self) -> list[int]:
        """The rank that wrote each file."""
        return [int(name.rpartition("/")[2].partition("-")[0]) for name, _ in self.manifest.files]

    def _heat(self) -> tuple[list[str], list[list[dict[str, Any]]]]:
        """Columns, and for each rank their cells: a text, and the share of the column's largest value."""
        names = list(dict.fromkeys(name for rank in self.manifest.ranks for name in rank))
        largest = {name: max(rank.get(name, 0) for rank in self.manifest.ranks) for name in names}
        rows = []
        for rank in self.manifest.ranks:
            cells = []
            for name in names:
                value = rank.get(name)
                text = "–" if value is None else size(int(value)) if name == "bytes" else f"{value:.3f}"
                share = None if value is None or not largest[name] else 0.75 * value / largest[name]
                cells.append({"text": text, "share": share})
            rows.append(cells)
        return [name if name == "bytes" else f"{name}, s" for name in names], rows

    def _layouts(self) -> Iterator[dict[str, Any]]:
        """Drawings of tensors with one or more axes, the largest first; tensors that are cut alike share one."""
        chunks, owner = self.manifest.chunks, np.array(self._owner() or [0])
        alike: dict[Any, list[int]] = defaultdict(list)
        for number, meta in enumerate(self.manifest.tensors):
            rows = chunks.of(number)
            if meta.shape and rows.stop > rows.start:
                parts = chunks.start[rows], chunks.size[rows], owner[chunks.file[rows]]
                alike[meta.shape, *(part.tobytes() for part in parts)].append(number)
        for (shape, *_), numbers in sorted(alike.items(), key=lambda item: -self.manifest.tensors[item[1][0]].nbytes):
            names = [self.manifest.tensors[number].name for number in numbers]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            label = "×".join(map(str, shape))
            yield self._drawing(numbers[0], shape) | {"label": label, "names": ", ".join(names[:3]) + more}

    def _drawing(self, number: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """Boxes as rectangles: rows down, columns to the right; a vector lies along the width, more axes are hidden."""
        rows, chunks, owner = self.manifest.chunks.of(number), self.manifest.chunks, self._owner()
        height, width = (1, shape[0]) if len(shape) == 1 else shape[:2]
        scale = min(WIDTH / width, HEIGHT / height)
        w, h = max(width * scale, 12.0), max(height * scale, 12.0)
        boxes = []
        for row in range(rows.start, min(rows.stop, rows.start + BOXES)):
            box = chunks.box(row, len(shape))
            (top, left), (tall, wide) = ((0, box.start[0]), (1, box.size[0])) if len(shape) == 1 else (
                box.start[:2], box.size[:2])  # fmt: skip
            place = (left / width * w, top / height * h, wide / width * w, tall / height * h)
            boxes.append((*(round(n, 2) for n in place), owner[int(chunks.file[row])], str(box)))
        return {"width": round(w, 1), "height": round(h, 1), "boxes": boxes}


def inspect(path: Place) -> Inspection:
    """Look at a checkpoint.

    Raises:
        CheckpointError: not a checkpoint, or its manifest is damaged.
    """
    to = storage(path) if isinstance(path, str | os.PathLike) else path
    return Inspection(to.path, read_manifest(to))


def size(nbytes: int) -> str:
    """Bytes for a reader: powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes} B"


def tint(rank: int) -> str:
    """The colour of a rank."""
    return f"hsl({(rank % TINTS) * 360 // TINTS + 18}, 55%, {52 if rank // TINTS % 2 == 0 else 72}%)"


def _kind(record: dict[str, Any]) -> str:
    if record["kind"] == "optimizer":
        return str(record["class"])
    tree = record.get("tree")
    return str(tree)[:40] if record["kind"] == "value" and isinstance(tree, int | float | str) else str(record["kind"])
