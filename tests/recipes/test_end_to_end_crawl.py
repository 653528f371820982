"""The main job's crawl by quality: in rounds, so that the same web gives the same pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.core.errors import ConfigError
from bloomery.recipes._inputs import Inputs, texts_of
from bloomery.recipes.end_to_end import EndToEnd
from bloomery.web import iterate_pages


def crawled(folder: Path, **settings: object) -> set[str]:
    """The paths of the pages that the crawl stage stores."""
    job = EndToEnd(packages=["json", "email", "http"], pages=120, **settings)
    report = job.crawl(folder, folder / "pages", quiet=True)
    files = sorted((folder / "pages").glob("*.warc.gz"))
    pages = {page.url.split("/", 3)[3] for file in files for page in iterate_pages(file)}
    assert len(pages) == report["pages"] == 120
    assert (report["rounds"] > 0) == (settings.get("crawl_order") == "quality")
    return pages


def test_a_crawl_by_quality_is_reproducible_and_reads_other_pages(tmp_path: Path) -> None:
    first, again = (crawled(tmp_path / name, crawl_order="quality") for name in "ab")
    assert first == again
    assert first != crawled(tmp_path / "c")


def test_it_needs_the_embedded_web() -> None:
    with pytest.raises(ConfigError, match="learns from the embedded web"):
        EndToEnd(seeds=["http://a.example/"], crawl_order="quality")


def test_curation_as_dclm_does_it(tmp_path: Path) -> None:
    job = EndToEnd(packages=["json", "email"], pages=150, curation="dclm", keep=0.5)
    job.crawl(tmp_path, tmp_path / "pages", quiet=True)
    inputs = Inputs(tmp_path, sorted((tmp_path / "pages").glob("*.warc.gz")), embedded=True)
    report = job.curate(inputs, tmp_path / "curated", tmp_path / "scorer", quiet=True)
    steps = {step["name"]: step for step in report["steps"]}
    assert {"MassiveRepetition", "RemovalRatio", "BloomDedup", "CutParagraphs", "Score", "Select"} <= set(steps)
    assert "NearDedup" not in steps
    assert 0 < report["documents_out"] < report["documents_in"] == 150
    assert steps["Select"]["kept"] == pytest.approx(0.5 * steps["Score"]["kept"], abs=1)
    assert all(text.strip() for text in texts_of(tmp_path / "curated", "train"))
