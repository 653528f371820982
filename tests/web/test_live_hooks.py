"""The live crawler by value: rating what is fetched, and what is not from its parent, anchor and URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.core.errors import ConfigError, DataError
from bloomery.web import Link, Page, crawl, iterate_pages
from bloomery.web.scheduling.live import LinkValue, PageQuality, link_words, train_predictor

FAST = {"allow_private": True, "per_host_delay": 0.0, "per_host_concurrency": 6, "quiet": True}


class Gold:
    """The share of words that are gold."""

    name = "gold"

    def score(self, texts: Any) -> np.ndarray:
        return np.array([t.split().count("gold") / max(len(t.split()), 1) for t in texts], np.float32)


def links() -> tuple[list[tuple[str, str]], list[float]]:
    good = [(f"http://a.example/guide/{n}", f"how to build {n}") for n in range(40)]
    bad = [(f"http://a.example/tags/{n}", f"more posts {n}") for n in range(40)]
    return [*good, *bad], [1.0] * 40 + [0.0] * 40


def test_page_quality_reads_the_text() -> None:
    page = Page("http://a.example/", 200, "text/html", b"<html><body><p>gold gold\ngold lead</p></body></html>")
    assert PageQuality(Gold())(page) == 0.75
    assert PageQuality(Gold())(Page("http://a.example/t", 200, "text/plain", b"gold\nlead")) == 0.5


def test_a_predictor_learns_from_the_words_of_links() -> None:
    predictor = train_predictor(*links())
    guide, tag = predictor.score(
        [link_words("http://a.example/guide/99", "how to"), link_words("http://a.example/tags/9", "")]
    )
    assert guide > 0.7 > 0.3 > tag
    value = LinkValue(predictor, parent_share=0.25)
    link = Link("http://a.example/guide/99", anchor="how to", parent_score=0.4)
    assert value(link) == pytest.approx(0.25 * 0.4 + 0.75 * float(guide), abs=1e-6)
    assert LinkValue(predictor, 1.0)(link) == 0.4


def test_words_of_a_link() -> None:
    assert link_words("http://www.a-b.example/x_y/C%C3%A9?q=1", "Read  More!") == "read more www a b example x y cé q 1"


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="parent_share=2"):
        LinkValue(Gold(), 2)
    with pytest.raises(DataError, match="all ratings are equal"):
        train_predictor(links()[0], [1.0] * 80)


def test_a_live_crawl_by_value_finds_the_guides(site: Any, tmp_path: Path) -> None:
    """Every page links to guides and tags alike, so that parents say nothing: the links' words have to."""

    def route(path: str) -> str:
        number = int(path.rsplit("/", 1)[1] or 0)
        anchors = "".join(f'<a href="/{kind}/{2 * number + i}">x</a>' for i in (1, 2) for kind in ("tags", "guide"))
        return f"<html><body><p>{'gold' if 'guide' in path else 'lead'} text</p>{anchors}</body></html>"

    site.fallback = lambda path: route(path) if path != "/robots.txt" else ""
    share = {}
    priority = LinkValue(train_predictor(*links()))
    for name, hooks in (("parent", {}), ("link", {"priority": priority})):
        crawl([site.url("/guide/0")], tmp_path / name, scorer=PageQuality(Gold()), order="best", reproducible=True,
              round_pages=4, max_pages=40, **hooks, **FAST)  # fmt: skip
        urls = [p.url for path in (tmp_path / name).glob("*.warc.gz") for p in iterate_pages(path)]
        share[name] = sum("/guide/" in url for url in urls) / len(urls)
    assert share["link"] > 0.9 > 0.8 > share["parent"]
