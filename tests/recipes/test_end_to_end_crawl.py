"""The main job's crawl by quality: in rounds, so that the same web gives the same pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.core.errors import ConfigError
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
