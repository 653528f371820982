from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from bloomery.corpus import inspection

TEXTS = ["the first of the documents that stay here for a while", "<script>alert(1)</script> & more", "short", "short"]


@pytest.fixture
def run(ok):
    Path("in").mkdir()
    lines = [json.dumps({"text": text, "url": f"http://e{i}.org/{i}"}) for i, text in enumerate(TEXTS)]
    Path("in/a.jsonl").write_text("\n".join(lines) + "\n")
    Path("steps.yaml").write_text("steps:\n  - ExactDedup\n  - Length: {min_words: 3, min_mean_length: 1.0}\n")
    ok("curate", "in", "out", "--steps", "steps.yaml", "--engine", "inline", "--quiet")
    return "out"


def test_reasons_with_examples(run, ok, bloomery):
    found = ok("inspect", run)
    reasons = {(group["step"], group["reason"]): group for group in found["dropped"]}
    assert reasons["ExactDedup", "exact duplicate"]["documents"] == 1
    assert reasons["Length", "too few words"]["examples"][0]["text"] == "short"
    assert found["largest_cluster"] == 2
    _, out, _ = bloomery("inspect", run)
    assert "why documents were dropped" in out
    assert "too few words" in out


def test_a_page_that_nothing_can_escape_from(run, bloomery):
    code, out, _ = bloomery("inspect", run, "--html", "page.html")
    assert code == 0
    assert "page.html" in out
    page = Path("page.html").read_text()
    assert "2 of 4 documents kept" in page
    assert "too few words" in page
    assert "<script" not in page
    assert "http://e3.org/3" in page


def test_a_folder_without_a_run(refused):
    Path("empty").mkdir()
    assert "no report.json" in refused("inspect", "empty")


def test_documents_to_read_from_every_layout(run, bloomery, refused):
    for layout in ("parquet", "obelics.parquet", "tar"):
        command = ["curate", "in", layout, "--use", "ExactDedup", "--engine", "inline", "--quiet", "--format", layout]
        assert bloomery(*command)[0] == 0
        code, out, _ = bloomery("inspect", layout, "--read", "read.html", "--documents", "2")
        assert (code, out) == (0, "written: read.html\n")
        page = Path("read.html").read_text()
        assert "<script" not in page
        assert f"<p>{TEXTS[0]}</p>" in page
        assert page.count("<article") == 2
    assert "no such file" in refused("inspect", "nowhere", "--read", "x.html")
    assert "1 or more" in refused("inspect", run, "--read", "x.html", "--documents", "0")


def test_a_run_at_an_address(run, ok, refused):
    fs = fsspec.filesystem("memory")
    fs.put(run, "memory://looked/at", recursive=True)
    try:
        there, here = ok("inspect", "memory://looked/at"), ok("inspect", run)
        assert there == here
        assert "no report.json" in refused("inspect", "memory://looked")
        assert "no report.json" in refused("inspect", "memory://nowhere")
    finally:
        fs.rm("memory://looked", recursive=True)


def test_no_more_files_are_read_than_it_takes(run, monkeypatch):
    read = []
    collect = inspection._collect
    monkeypatch.setattr(inspection, "_collect", lambda path, found: (read.append(path.name), collect(path, found)))
    whole = inspection.inspect(run).dropped
    assert read == ["00000-a.1.parquet"]  # which has an example of every reason
    Path(run, "dropped", read[0]).rename(Path(run, "dropped", "z.parquet"))
    assert inspection.inspect(run).dropped == whole
    assert read[1:] == ["00000-a.parquet", "z.parquet"]
