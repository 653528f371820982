"""A crawl whose only page is unusable ends with one line that names the page and what is wrong with it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from bloomery.core.errors import EmptyError, WebError
from bloomery.web import crawl, read_documents

PACKED = gzip.compress(b"<p>" + b"hello " * 1000)


def run(seed: str, out: Path, **settings: Any) -> Any:
    return crawl([seed], out, quiet=True, allow_private=True, per_host_delay=0.0, retries=0, **settings)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"status": 302, "headers": {"Location": "/"}}, "redirect"),
        ({"body": b"x" * 1000, "length": 50 << 20}, r"byte|large"),
        ({"body": gzip.compress(b"\0" * (50 << 20)), "headers": {"Content-Encoding": "gzip"}}, r"byte|large"),
        ({"body": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9}, "binary"),
        ({"body": PACKED[:20] + b"oops" + PACKED[24:], "headers": {"Content-Encoding": "gzip"}}, "gzip"),
        ({"status": 404}, "404"),
    ],
    ids=["redirect loop", "50 MB", "50 MB packed", "binary as HTML", "broken gzip", "missing"],
)
def test_an_unusable_seed(site: Any, reply: Any, tmp_path: Path, options: dict[str, Any], why: str) -> None:
    site.routes["/"] = reply(**options)
    with pytest.raises((WebError, EmptyError), match=f"no page could be crawled: .*(?i:{why})") as caught:
        run(site.url(), tmp_path)
    assert site.url() in str(caught.value)
    assert "\n" not in str(caught.value)
    assert site.counts["/"] <= 10


def test_fifty_megabytes_are_not_downloaded(site: Any, reply: Any, tmp_path: Path) -> None:
    sent = b"<p>hello</p>" * 5_000_000
    site.routes["/"] = '<a href="/large">large</a><a href="/fine">fine</a>'
    site.routes["/large"], site.routes["/fine"] = reply(sent), "<p>fine"
    report = run(site.url(), tmp_path)  # with the limit that a user gets who says nothing
    assert report.errors == {"too_large": 1}
    assert report.pages == 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 1 << 20


def test_text_that_is_not_utf8_becomes_a_document(site: Any, tmp_path: Path) -> None:
    site.routes["/"] = b"<html><body><p>caf\xe9 \xff\xfe " + b"and more words of it " * 20 + b"</p></body></html>"
    run(site.url(), tmp_path)
    (batch,) = read_documents(next(tmp_path.glob("*.warc.gz")))
    (row,) = batch.to_pylist()
    assert row.get("_drop") is None
    assert row["parts"][0]["text"].startswith("caf")
    row["parts"][0]["text"].encode("utf-8")


def test_a_page_lost_to_every_fault_at_once_costs_that_page_only(site: Any, reply: Any, tmp_path: Path) -> None:
    site.routes["/"] = '<a href="/a">a</a><a href="/b">b</a>'
    site.routes["/a"] = reply(PACKED[:-20], headers={"Content-Encoding": "gzip"}, content_type="text/html; charset=x")
    site.routes["/b"] = "<p>fine"
    report = run(site.url(), tmp_path)
    assert (report.pages, sum(report.errors.values())) == (2, 1)
