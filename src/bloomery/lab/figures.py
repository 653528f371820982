"""Figures for reports: matplotlib in, SVG text out that suits light and dark pages and is the same on every run.

Text and axes are drawn in `currentColor`, the background is transparent, labels stay text. Nothing here touches
pyplot or global settings.
"""

from __future__ import annotations

import io
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bloomery.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart with any of the usual colour-vision deficiencies, and on white as well as on near-black.
# Index 0 is ours, index 1 the baseline.
PALETTE = ("#d9600f", "#3d86c6", "#159a7f", "#8b3f86", "#e0bb45", "#a4adb7")
INK = "#010203"  # stands for currentColor while matplotlib draws
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bloomery",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}

Series = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]


def new(width: float = 5.0, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure (inches) with one axes in the report's style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
    return figure, axes


def lines(series: Series, *, x: str, y: str, title: str = "", log_x: bool = False, log_y: bool = False) -> Figure:
    """Curves with their spread: for each name one (xs, ys) pair per seed.

    The line is the mean over seeds where they share their xs, the band spans smallest to largest; seeds with
    different xs are drawn one by one.
    """
    figure, axes = new()
    for (name, seeds), colour in zip(series.items(), _colours(len(series)), strict=True):
        if not seeds:
            raise ConfigError(f"figure series {name!r} has no data")
        xs = [np.asarray(a, float) for a, _ in seeds]
        ys = [np.asarray(b, float) for _, b in seeds]
        if all(a.shape == xs[0].shape and np.array_equal(a, xs[0]) for a in xs):
            stack = np.stack(ys)  # (seed, point)
            axes.plot(xs[0], stack.mean(0), color=colour, label=name)
            if len(seeds) > 1:
                axes.fill_between(xs[0], stack.min(0), stack.max(0), color=colour, alpha=0.18, linewidth=0)
        else:
            for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
                axes.plot(a, b, color=colour, alpha=0.8, label=name if i == 0 else None)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    _legend(axes, len(series))
    return figure


def bars(groups: Mapping[str, Mapping[int, float]], *, y: str, title: str = "", zero: bool = True) -> Figure:
    """One bar per name at the mean over seeds, with a dot for each seed.

    `zero=False` starts the axis near the smallest value instead of at 0 and draws dots and a mean mark only, since a
    cut bar misleads.
    """
    figure, axes = new(min(max(3.4, 1.3 + 1.0 * len(groups)), 7.0), 2.9)
    for i, ((name, values), colour) in enumerate(zip(groups.items(), _colours(len(groups)), strict=True)):
        if not values:
            raise ConfigError(f"figure group {name!r} has no data")
        seeds = sorted(values)
        mean = float(np.mean([values[s] for s in seeds]))
        if zero:
            axes.bar(i, mean, width=0.56, color=colour, alpha=0.35)
        axes.hlines(mean, i - 0.28, i + 0.28, color=colour, linewidth=2.4)
        offsets = np.linspace(-0.14, 0.14, len(seeds)) if len(seeds) > 1 else [0.0]
        axes.scatter(
            [i + o for o in offsets], [values[s] for s in seeds], s=26, color=colour, zorder=3, edgecolors="none"
        )
        axes.annotate(
            f"{mean:.4g}", (i + 0.33, mean), fontsize=9.5, va="center", ha="left", color=INK, annotation_clip=False
        )
    wide = len(groups) > 5 or max(map(len, groups)) > 13  # would touch
    names = [textwrap.fill(name, 10) for name in groups] if wide else list(groups)
    axes.set_xticks(range(len(groups)), names)
    axes.set_xlim(-0.6, len(groups) - 0.25)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel=y, title=title)
    return figure


def survival(steps: Sequence[tuple[str, int]], *, unit: str = "documents", title: str = "") -> Figure:
    """How many of `unit` are left after each step, as a funnel: (name, count after it), the input first."""
    if not steps:
        raise ConfigError("a survival figure needs at least one step")
    figure, axes = new(5.0, 0.5 + 0.36 * len(steps))
    total = max(steps[0][1], 1)
    before = steps[0][1]
    for row, (_, count) in enumerate(steps):
        axes.barh(row, before, height=0.64, color=PALETTE[5], alpha=0.22)  # what this step was given
        axes.barh(row, count, height=0.64, color=PALETTE[0], alpha=0.85)
        label = f"{count:,} {unit}" if row == 0 else f"{count:,}  ({count / total:.1%})"
        label += f"  −{before - count:,}" if before > count else ""
        axes.annotate(
            label, (max(before, count), row), xytext=(6, 0), va="center", textcoords="offset points", fontsize=9.5,
            color=INK, annotation_clip=False,
        )  # fmt: skip
        before = count
    axes.set_yticks(range(len(steps)), [name for name, _ in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, max(count for _, count in steps) * 1.5 or 1)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines["left"].set_visible(False)
    axes.set(title=title)
    return figure


def to_svg(figure: Figure | str, name: str, caption: str = "") -> str:
    """The figure as one `<svg>` element whose ids start with `name`; SVG text is checked and cleaned the same way."""
    text = figure if isinstance(figure, str) else _draw(figure)
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL).strip()
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError(f"figure {name!r} is not well-formed SVG: {error}") from error
    if root.tag.rpartition("}")[2] != "svg":
        raise ConfigError(f"figure {name!r} is not SVG: its root is <{root.tag}>")
    if any(_active(element) for element in root.iter()):
        raise ConfigError(f"figure {name!r} holds a script, an event handler or an outside reference")
    prefix = "figure-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(f"{INK}|#000000", "currentColor", text)
    text = re.sub(r"(font-family:|font:[^;\"]*?[\d.]+px)\s[^;\"]*", rf"\1 {FONT}", text)
    opening = text[: text.index(">")]
    cleaned = re.sub(r'\s(width|height|version|role|aria-label)="[^"]*"', "", opening)
    width = re.search(r'viewBox="\s*[\d.-]+\s+[\d.-]+\s+([\d.]+)', cleaned)
    if width is not None:  # grows to a readable size, not to the width of the page
        cleaned += f' style="max-width:{1.6 * float(width[1]):.0f}px"'
    cleaned += f' role="img" aria-label="{escape(caption or name)}"'
    return cleaned + text[len(opening) :] + "\n"


def _draw(figure: Figure) -> str:
    from matplotlib import rc_context

    _adopt(figure)
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    return buffer.getvalue()


def _adopt(figure: Figure) -> None:
    """Prepare a figure drawn without our style: black text gets a colour that can be replaced, legends no white box."""
    from matplotlib.colors import to_rgba
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if to_rgba(text.get_color()) == to_rgba("black"):
            text.set_color(INK)
    for legend in figure.findobj(Legend):
        legend.get_frame().set_visible(False)


def _active(element: Any) -> bool:
    """Whether an SVG element could run code or load something from outside the file."""
    if element.tag.rpartition("}")[2].lower() in ("script", "foreignobject", "iframe", "animate", "set"):
        return True
    if _reaches_out(element.text or ""):  # style sheets
        return True
    for name, value in element.attrib.items():
        name = name.rpartition("}")[2].lower()
        if name.startswith("on") or (name in ("href", "src") and not value.strip().startswith(("#", "data:image/"))):
            return True
        if _reaches_out(value):
            return True
    return False


def _reaches_out(css: str) -> bool:
    return "@import" in css or any(not inside.startswith("#") for inside in re.findall(r"url\(\s*['\"]?(.)", css))


def _colours(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _legend(axes: Axes, count: int) -> None:
    if count > 1:
        axes.legend(loc="best", fontsize=9.5, frameon=False, labelcolor=INK)
