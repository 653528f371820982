from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.lab import figures

# Machado, Oliveira, Fernandes 2009: severity 1.0, linear RGB
DEFICIENCIES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def some():
    return [
        figures.lines({"a": [([1, 2, 3], [3, 2, 1]), ([1, 2, 3], [4, 3, 2])], "b": [([1, 3], [5, 4])]}, x="s", y="l"),
        figures.lines({"a": [([1, 2], [3, 2]), ([1, 3], [4, 3])]}, x="s", y="l", log_x=True, log_y=True),
        figures.bars({"ours": {0: 1.0, 1: 1.2}, "raw": {0: 2.0}}, y="loss", zero=False),
        figures.survival([("read", 100), ("language", 90), ("near copies", 0)]),
    ]  # fmt: skip


def test_svg_is_clean_and_the_same_every_time():
    for i, (first, second) in enumerate(zip(some(), some(), strict=True)):
        svg = figures.to_svg(first, f"figure {i}", "A <caption>")
        assert svg == figures.to_svg(second, f"figure {i}", "A <caption>")
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label") == "A <caption>"
        assert "width" not in root.attrib
        assert root.get("viewBox")
        assert figures.INK not in svg
        assert "currentColor" in svg
        assert "http://www.w3.org/2000/svg" in svg
        assert svg.count("http") == 1  # the namespace only: no metadata, no doctype


def test_no_black_and_no_white_survive_in_foreign_figures():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 2], [1, 2], label="x")
    axes.legend()
    axes.set(title="t", xlabel="x", ylabel="y")
    svg = figures.to_svg(figure, "foreign")
    assert "#000000" not in svg
    assert "#ffffff" not in svg.lower()
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        assert "currentColor" in (text.get("style") or "")


def test_two_figures_share_no_id():
    def ids(svg):
        return {element.get("id") for element in ElementTree.fromstring(svg).iter()} - {None}

    one, two = figures.to_svg(some()[2], "one"), figures.to_svg(some()[2], "two")
    assert ids(one)
    assert not ids(one) & ids(two)
    for svg in (one, two):
        for element in ElementTree.fromstring(svg).iter():
            if (target := element.get("href")) is not None:
                assert target[1:] in ids(svg)


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        '<a href="https://example.org"/>',
        '<image href="http://example.org/x.png"/>',
        '<rect onclick="alert(1)"/>',
        '<rect style="fill:url(http://example.org/x)"/>',
        "<foreignObject/>",
        '<set attributeName="href" to="javascript:alert(1)"/>',
        "<style>@import 'http://example.org/x.css';</style>",
    ],
)
def test_active_svg_is_refused(inside):
    with pytest.raises(ConfigError, match="script, an event handler or an outside reference"):
        figures.to_svg(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>', "evil")


def test_own_svg_is_taken_and_broken_svg_is_not():
    assert "<rect" in figures.to_svg('<svg viewBox="0 0 10 10"><rect id="r" width="4"/></svg>', "fine")
    with pytest.raises(ConfigError, match="'x' is not well-formed"):
        figures.to_svg("<svg><rect></svg>", "x")
    with pytest.raises(ConfigError, match="its root is <html>"):
        figures.to_svg("<html/>", "x")


def test_empty_figures_are_refused():
    with pytest.raises(ConfigError, match="'a' has no data"):
        figures.lines({"a": []}, x="x", y="y")
    with pytest.raises(ConfigError, match="'a' has no data"):
        figures.bars({"a": {}}, y="y")
    with pytest.raises(ConfigError, match="at least one step"):
        figures.survival([])


@settings(deadline=None, max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12))
def test_any_name_gives_well_formed_svg(name):
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><g id="a"><use href="#a"/></g></svg>'
    ElementTree.fromstring(figures.to_svg(svg, name, name))


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab_of(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", [None, *DEFICIENCIES])
def test_the_palette_is_told_apart_with_any_colour_vision(deficiency):
    matrix = np.eye(3) if deficiency is None else np.array(DEFICIENCIES[deficiency])
    seen = [lab_of(matrix @ linear(colour)) for colour in figures.PALETTE]
    for i, a in enumerate(seen):
        for j, b in enumerate(seen[:i]):
            needed = 40 if i < 2 else 10  # ours and baseline far apart, the rest distinguishable
            assert np.linalg.norm(a - b) > needed, (figures.PALETTE[i], figures.PALETTE[j])


@pytest.mark.parametrize("page", ["#fcfbf9", "#ffffff", "#141618", "#1b1e21"])
def test_the_palette_is_visible_on_light_and_dark_pages(page):
    def luminance(colour):
        return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))

    for colour in figures.PALETTE[:2]:
        light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 1.4.11, graphical objects
