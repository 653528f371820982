from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bloomery.core.files import write_json
from bloomery.lab import Claim, Recipe, Report, Run, figures, run

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\"'&amp;</pre></style>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.loads, self.handlers, self.text = [], [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self._attributes(tag, attrs)

    def _attributes(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name.startswith("on"):
                self.handlers.append((tag, name))
            elif name in ("href", "src", "xlink:href", "srcset", "data", "action"):
                (self.links if tag == "a" else self.loads).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def report(tmp_path):
    """Write a report with something hostile in every place that takes text."""
    with Run(tmp_path / "run", Recipe(), "cpu", quiet=True) as current:
        with current.stage("work") as stage:
            (stage.folder / "model.bin").write_bytes(b"1234")
            stage.result = None
        figure, axes = figures.new()
        axes.plot([1, 2], [3, 4], label=HOSTILE)
        axes.set_title(HOSTILE)
        current.figure("one", figure, HOSTILE)
        current.figure("two", figures.bars({"a": {0: 1.0, 1: 2.0}, "b": {0: 3.0}}, y="loss"), "bars")
        current.figure("three", figures.survival([("read", 10), ("kept", 4)]))
        current.table("facts", [HOSTILE, "n"], [[HOSTILE, 1], ["x", None]], HOSTILE)
        current.text("said", HOSTILE, HOSTILE)
        current.samples("chat", [(HOSTILE, HOSTILE)], HOSTILE)
        current.artefact(stage.folder / "model.bin", HOSTILE)
        current.finish()
    claims = [
        Claim(HOSTILE, HOSTILE, {0: 1.0, 1: 1.1}, {0: 2.0, 1: 2.2}, "lower", 0.5, HOSTILE, (HOSTILE, "raw"), HOSTILE),
        Claim("No gain.", "arXiv:2406.11794 §4", {0: 1.0}, {0: 1.0}, "higher", 0.1),
    ]
    summary = {"recipe": HOSTILE, "summary": HOSTILE, "paper": "our own", "stage": "data", "preset": "cpu",
               "finished": "2026-01-01 00:00:00", "seconds": 61.0, "claims": [c.to_dict() for c in claims]}  # fmt: skip
    write_json(current.folder / "claims.json", summary)
    return Report.write(current.folder)


def test_it_is_whole_well_formed_and_loads_nothing(report):
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads
    assert all(value.startswith(("#", "data:")) for value in page.loads)
    assert set(page.links) == {"https://arxiv.org/abs/2406.11794", "work/model.bin"}
    assert "@import" not in text
    assert all(inside.startswith("#") for inside in re.findall(r"url\((.*?)\)", text))
    assert len(page.ids) == len(set(page.ids))  # three inlined figures do not share one id


def test_hostile_text_is_text(report):
    page = Page(report.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.handlers == []
    assert page.text.count("alert('x')") >= 12  # every place still shows it


def test_it_says_what_came_out(report):
    text = report.read_text(encoding="utf-8")
    for expected in ("✗ 1 of 2 claims hold", "✓ holds", "✗ does not hold", "+1.05", "spread unknown", "1 min 01 s"):
        assert expected in text
    assert 'lang="en"' in text
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text


def test_smoke_runs_say_that_they_prove_nothing(recipe_file):
    smoke = run(recipe_file, preset="smoke", quiet=True, scale=0.1)
    assert "too small to judge" in (smoke.folder / "report.html").read_text()
    assert not smoke.passed


def test_a_report_can_be_written_again_from_its_folder(recipe_file):
    folder = run(recipe_file, preset="smoke", quiet=True).folder
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert Report.write(folder).read_bytes() == before
