"""The page of a checkpoint: boxes that tile their drawing, timings as shades, nothing that could run or be fetched."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from bloomery import checkpoint
from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.inspection import Inspection, inspect, size
from bloomery.checkpoint.manifest import TensorMeta
from bloomery.checkpoint.offline import write


@pytest.fixture
def found(tmp_path: Path) -> Inspection:
    """A matrix cut in quarters by four ranks, two alike, a vector, a scalar and a name that wants to be markup."""
    metas = [TensorMeta(name, "float32", (4, 8)) for name in ("m/a", "m/b")]
    metas += [TensorMeta("m/<script>alert(1)</script>", "int64", (6,)), TensorMeta("m/s", "float32", ())]
    metas += [TensorMeta("m/empty", "float32", (0, 3))]
    parts = [
        (rank, meta.name, Box((2 * (rank // 2), 4 * (rank % 2)), (2, 4)), torch.randn(2, 4))
        for rank in range(4)
        for meta in metas[:2]
    ]
    parts += [(4, metas[2].name, Box((0,), (6,)), torch.arange(6)), (4, "m/s", Box((), ()), torch.tensor(1.0))]
    write(tmp_path / "a", metas, parts, {"m": {"kind": "module"}}, {"m/tied": "m/a"}, world=5)
    return inspect(tmp_path / "a")


def svgs(page: str) -> list[ET.Element]:
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_boxes_tile_their_drawing(found: Inspection) -> None:
    drawings = svgs(found.html())
    assert [svg.get("aria-label") for svg in drawings] == ["4×8", "6"]  # a and b are cut alike: drawn once
    for svg in drawings:
        areas = [float(r.get("width", 0)) * float(r.get("height", 0)) for r in svg.iter("rect")]
        assert sum(areas) == pytest.approx(float(svg.get("width", 0)) * float(svg.get("height", 0)), rel=0.01)
    quarters = {(float(r.get("x", 0)), float(r.get("y", 0))): r for r in drawings[0].iter("rect")}
    told = {place: rect.findtext("title") for place, rect in quarters.items()}
    assert told[0.0, 0.0] == "rank 0: [0:2, 0:4]"
    assert told[max(told)] == "rank 3: [2:4, 4:8]"
    assert len({rect.get("fill") for rect in quarters.values()}) == 4


def test_the_page_is_closed(found: Inspection) -> None:
    page = found.html()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)
    assert "m/a, m/b" in page
    assert "m/tied" in page
    assert page.count("<tr><td>data/") == 5


def test_timings_are_shades(found: Inspection) -> None:
    found.manifest.ranks = [{"plan": 0.5, "write": 1.0, "bytes": 10}, {"plan": 0.25, "write": 4.0, "bytes": 20}]
    heat = re.search(r'<table class="heat">.*?</table>', found.html(), re.DOTALL)
    assert heat is not None
    shades = [float(a) for a in re.findall(r"rgba\(194, 80, 29, ([\d.]+)\)", heat[0])]
    assert shades == pytest.approx([0.75, 0.19, 0.38, 0.38, 0.75, 0.75], abs=0.006)
    assert "4.000" in heat[0]
    assert "20 B" in heat[0]


def test_what_is_counted(found: Inspection) -> None:
    told = found.to_dict()
    assert told["bytes"] == 2 * 128 + 48 + 4 == told["keys"][0]["bytes"]
    assert told["keys"][0]["elements"] == 64 + 6 + 1
    assert [(t["chunks"], t["ranks"]) for t in told["tensors"]] == [(4, [0, 1, 2, 3])] * 2 + [(1, [4])] * 2 + [(0, [])]
    assert [size(n) for n in (7, 1500, 2_500_000, 10**10)] == ["7 B", "1.50 kB", "2.50 MB", "10.00 GB"]


def test_a_saved_state(tmp_path: Path) -> None:
    model = torch.nn.Linear(300, 200)
    checkpoint.save(tmp_path / "a", {"model": model, "step": 3}, asynchronous=True).wait()
    page = inspect(tmp_path / "a").html()
    assert "200×300" in page
    assert "stage, s" in page
