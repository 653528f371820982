"""The reading order of a PDF page: recursive XY-cut, and lines to paragraphs.

A page is a set of boxes: segments of text and pictures. A region that a vertical gutter divides is read column by
column; one without is cut into *bands*: runs of rows that share the same gutters, so that a title, an abstract or a
figure across the page ends the columns above it and starts new ones below (and gaps that happen to stand side by side
in two columns do not). In a column a picture follows the last line whose middle is above the picture's top edge.

This is the rule that the project's sheet states for MINT-1T (arXiv 2406.11271, §3.1.2 describes clustering by boxes;
its code was not released), with two changes. Bands are decided by shared gutters instead of by gaps of 1.5 lines. A
gutter is 1.2 % of the page's width instead of 2 %: LaTeX's own two columns stand 10 points apart.

Tables are not recognised and are read as columns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

GUTTER = 0.012  # of the page's width
NARROW = 0.1  # of the page's width; what is narrower (line numbers, bullets) is no column
DEPTH = 8  # columns within bands within columns …; deeper regions are read in rows
SHRINK = 0.2  # of a line's height above and below that may overlap its neighbours
COVERED = 0.1  # of a picture's area that text may cover before it counts as a background
MARGIN = 0.12  # of the page's height, at its top and bottom, where headers and footers are looked for
SCAN = 0.95  # of the page's area

_DIGITS = re.compile(r"\d+|\b[ivxlc]+\b")
_ENDS = re.compile(r"[.!?:;。！？؟][\"'”’)\]]*$")


@dataclass(frozen=True)
class Item:
    """A segment or line of text (`size` is its height in points), or a picture (`picture` is its number)."""

    x0: float
    y0: float
    x1: float
    y1: float
    text: str = ""
    size: float = 0.0
    picture: int = -1

    @property
    def middle(self) -> float:
        """Of its height."""
        return (self.y0 + self.y1) / 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, or a picture (`picture` ≥ 0), in reading order."""

    text: str = ""
    picture: int = -1


def reading_order(items: Sequence[Item], width: float, height: float) -> list[list[Item]]:
    """Runs of lines (segments of a row are joined) and pictures: one run for every stretch of a column."""
    text = [item for item in items if item.picture < 0]
    pictures = [item for item in items if item.picture >= 0]
    if text:
        pictures = [p for p in pictures if _area(p) <= SCAN * width * height]  # a scan lies under its own text
    placed = [p for p in pictures if _covered(p, text) <= COVERED * max(_area(p), 1e-9)]
    runs = [_rows(region) for region in _regions([*text, *placed], width, 0)]
    for picture in (p for p in pictures if p not in placed):
        _insert(runs, picture)
    return [run for run in runs if run]


def without_margins(pages: Sequence[Sequence[Item]], heights: Sequence[float]) -> list[list[Item]]:
    """The pages without headers, footers and page numbers: lines near an edge that stand there on other pages too.

    Numbers are not compared. A line goes when it is repeated on at least two pages and three tenths of all.
    """
    seen = Counter[tuple[str, bool]]()
    keys = [[_margin_key(item, height) for item in page] for page, height in zip(pages, heights, strict=True)]
    for page_keys in keys:
        seen.update({key for key in page_keys if key})
    enough = max(2.0, 0.3 * len(pages))
    return [
        [item for item, key in zip(page, page_keys, strict=True) if key is None or seen[key] < enough]
        for page, page_keys in zip(pages, keys, strict=True)
    ]


def paragraphs(runs: Iterable[Sequence[Item]]) -> list[Paragraph]:
    """Lines to paragraphs: a wider gap, another size, an indented line or a short last line starts a new one.

    A word divided at the end of a line becomes one word. A paragraph that goes on in the next column or page is joined.
    """
    found: list[Paragraph] = []
    for run in runs:
        joinable = bool(found) and found[-1].picture < 0 and not _ENDS.search(found[-1].text)
        for paragraph in _paragraphs_of(run):
            if joinable and paragraph.text[:1].islower():
                found[-1] = Paragraph(_joined(found[-1].text, paragraph.text))
            else:
                found.append(paragraph)
            joinable = False
    return found


# ------------------------------------------------------------------------------------------------------------ XY-cut


def _regions(items: list[Item], width: float, depth: int) -> list[list[Item]]:
    """Sets of items without columns, in reading order."""
    if len(items) < 2 or depth >= DEPTH:
        return [items]
    columns = _columns(items, width)
    parts = columns if len(columns) > 1 else _bands(items, width)
    if len(parts) == 1:
        return parts
    return [region for part in parts for region in _regions(part, width, depth + 1)]


def _columns(items: list[Item], width: float) -> list[list[Item]]:
    """Items divided at the vertical gutters that none of them crosses, from left to right."""
    starts = _column_starts(_union((item.x0, item.x1) for item in items), width)
    columns: list[list[Item]] = [[] for _ in starts]
    for item in items:
        columns[max(0, sum(item.x0 >= start for start in starts) - 1)].append(item)
    return columns


def _bands(items: list[Item], width: float) -> list[list[Item]]:
    """Rows from top to bottom, joined while they share gutters, or while none of them has one."""
    bands: list[list[list[Item]]] = []  # each a list of slabs
    covered: list[tuple[float, float]] = []
    for slab in _slabs(items):
        own = _union((item.x0, item.x1) for item in slab)
        both = _union([*covered, *own])
        split, own_split = len(_column_starts(both, width)) > 1, len(_column_starts(own, width)) > 1
        band_split = len(_column_starts(covered, width)) > 1
        if bands and ((split and band_split) or not (band_split or own_split)):
            bands[-1].append(slab)
            covered = both
            continue
        begin: list[list[Item]] = []
        if own_split and bands:  # the right column may begin higher than the left one: those rows belong to it
            edge = _column_starts(own, width)[1]
            while len(bands[-1]) > 1 and min(item.x0 for item in bands[-1][-1]) >= edge - GUTTER * width:
                begin.insert(0, bands[-1].pop())
        bands.append([*begin, slab])
        covered = _union((item.x0, item.x1) for part in bands[-1] for item in part)
    return [[item for slab in band for item in slab] for band in bands]


def _slabs(items: list[Item]) -> list[list[Item]]:
    """Items divided wherever a horizontal line crosses none, from top to bottom."""
    slabs: list[list[Item]] = []
    end = float("-inf")
    for item in sorted(items, key=lambda i: (i.y0, i.x0)):
        inset = 0.0 if item.picture >= 0 else SHRINK * (item.y1 - item.y0)
        if item.y0 + inset >= end:
            slabs.append([])
        slabs[-1].append(item)
        end = max(end, item.y1 - inset)
    return slabs


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Overlapping intervals merged, in order."""
    merged: list[tuple[float, float]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _column_starts(covered: Sequence[tuple[float, float]], width: float) -> list[float]:
    """Left edges of the columns that gutters leave; a narrow stretch belongs to its neighbour."""
    clusters: list[list[float]] = []
    for low, high in covered:
        if clusters and low - clusters[-1][1] < GUTTER * width:
            clusters[-1][1] = high
        else:
            clusters.append([low, high])
    wide = [low for low, high in clusters if high - low >= NARROW * width]
    return [float("-inf"), *wide[1:]] if wide else [float("-inf")]


def _rows(items: list[Item]) -> list[Item]:
    """The lines of a region from top to bottom, each joined from its segments, with the pictures in their places."""
    rows: list[list[Item]] = []
    for item in sorted((i for i in items if i.picture < 0), key=lambda i: (i.middle, i.x0)):
        low, high = (rows[-1][0].y0, rows[-1][0].y1) if rows else (0.0, 0.0)
        overlap = min(high, item.y1) - max(low, item.y0)
        if rows and overlap > 0.5 * min(high - low, item.y1 - item.y0):
            rows[-1].append(item)
        else:
            rows.append([item])
    run = [_line(row) for row in rows]
    for picture in sorted((i for i in items if i.picture >= 0), key=lambda i: (i.y0, i.x0)):
        place = max((n for n, line in enumerate(run, 1) if _precedes(line, picture)), default=0)
        run.insert(place, picture)
    return run


def _line(row: list[Item]) -> Item:
    row = sorted(row, key=lambda item: item.x0)
    text = " ".join(item.text.strip() for item in row)
    x0, y0 = row[0].x0, min(item.y0 for item in row)
    return Item(x0, y0, max(i.x1 for i in row), max(i.y1 for i in row), text, max(i.size for i in row))


def _precedes(line: Item, picture: Item) -> bool:
    return (line.y0 if line.picture >= 0 else line.middle) <= picture.y0


def _insert(runs: list[list[Item]], picture: Item) -> None:
    """Put a picture that text overlaps after the last line above its top edge in its own column."""
    best: tuple[float, int, int] | None = None
    for r, run in enumerate(runs):
        for n, line in enumerate(run):
            beside = min(line.x1, picture.x1) - max(line.x0, picture.x0) > 0
            if beside and line.middle <= picture.y0 and (best is None or line.middle >= best[0]):
                best = (line.middle, r, n + 1)
    if best is None:
        runs.insert(0, [picture])
    else:
        runs[best[1]].insert(best[2], picture)


def _area(item: Item) -> float:
    return (item.x1 - item.x0) * (item.y1 - item.y0)


def _covered(picture: Item, text: Iterable[Item]) -> float:
    """The area of a picture that lines lie on."""
    total = 0.0
    for line in text:
        across = min(line.x1, picture.x1) - max(line.x0, picture.x0)
        down = min(line.y1, picture.y1) - max(line.y0, picture.y0)
        total += max(across, 0.0) * max(down, 0.0)
    return total


# -------------------------------------------------------------------------------------------------------- paragraphs


def _margin_key(item: Item, height: float) -> tuple[str, bool] | None:
    """What makes two lines at the edge of two pages the same one; None away from the edges."""
    top = item.y1 < MARGIN * height
    if item.picture >= 0 or not (top or item.y0 > (1 - MARGIN) * height):
        return None
    return _DIGITS.sub("#", " ".join(item.text.lower().split())), top


def _paragraphs_of(run: Sequence[Item]) -> list[Paragraph]:
    lines = [item for item in run if item.picture < 0]
    left = min((line.x0 for line in lines), default=0.0)
    right = max((line.x1 for line in lines), default=0.0)
    usual = median([b.y0 - a.y1 for a, b in pairwise(lines)] or [0.0])
    found: list[Paragraph] = []
    before: Item | None = None
    for item in run:
        if item.picture >= 0:
            found.append(Paragraph(picture=item.picture))
            before = None
        elif before is None or _starts(item, before, left, right, usual):
            found.append(Paragraph(item.text))
            before = item
        else:
            found[-1] = replace(found[-1], text=_joined(found[-1].text, item.text))
            before = item
    return found


def _starts(line: Item, before: Item, left: float, right: float, usual: float) -> bool:
    """Whether a line starts a paragraph."""
    size = min(line.size, before.size)
    if abs(line.size - before.size) > 0.15 * size:
        return True
    if line.y0 - before.y1 > usual + 0.35 * size:
        return True
    if line.text[:1].islower() and not _ENDS.search(before.text):
        return False  # the sentence goes on: an item of a list, hanging
    if line.x0 - left > 0.7 * size and before.x0 - left <= 0.7 * size and line.x1 > left + 0.5 * (right - left):
        return True
    return before.x1 < left + 0.75 * (right - left) and bool(_ENDS.search(before.text))


def _joined(above: str, below: str) -> str:
    """Two lines as one; a word divided by a hyphen becomes whole."""
    if above.endswith("-") and len(above) > 1 and above[-2].isalpha() and below[:1].islower():
        return above[:-1] + below
    return f"{above} {below}"
