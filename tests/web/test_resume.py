"""Kill a crawl with SIGKILL at random moments; what it stored must be stored once, fetched once, and complete."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bloomery.web import crawl, iterate_pages

CHILD = """
import sys
from bloomery.web import crawl
crawl([sys.argv[1]], sys.argv[2], quiet=True, allow_private=True, per_host_delay=0.0, per_host_concurrency=6,
      segment_bytes=30_000)
"""
PAGES = 400


def graph(site: Any, reply: Any) -> None:
    """Pages of incompressible text, each linking to a few others; every page takes a moment."""

    def page(path: str) -> Any:
        number = int(path[2:] or 0)
        rand = random.Random(number)
        targets = [2 * number + 1, 2 * number + 2, *(rand.randrange(PAGES) for _ in range(4))]
        links = "".join(f'<a href="/{rand.choice(["p", "p", "to"])}{n}">{n}</a> ' for n in targets if n < PAGES)
        words = rand.randbytes(rand.randrange(200, 1500)).hex()
        return reply(f"<title>{number}</title>{links}<p>{words}".encode(), delay=0.012)

    def route(path: str) -> Any:
        if path.startswith("/p"):
            return page(path)
        if path.startswith("/to"):
            return reply(b"", 302, {"Location": f"/p{path[3:]}"})
        return reply(b"", 404)

    site.fallback = route


def stored(out: Path) -> list[str]:
    return [page.url for path in sorted(out.glob("pages-*.warc.gz")) for page in iterate_pages(path)]


def test_killed_and_resumed_equals_uninterrupted(site: Any, reply: Any, tmp_path: Path) -> None:
    graph(site, reply)
    out = tmp_path / "killed"
    rand = random.Random(17)
    kills = 0
    archived: dict[str, int] = {}  # URL -> how often it had been asked for when it was first seen in the archive
    for _ in range(6):
        asked = len(site.log)
        child = subprocess.Popen([sys.executable, "-c", CHILD, site.url("/p0"), str(out)])
        while len(site.log) < asked + 3 and child.poll() is None:  # it is under way
            time.sleep(0.01)
        time.sleep(rand.uniform(0.0, 0.25))
        alive = child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += alive
        for url in stored(out):
            archived.setdefault(url, site.counts["/" + url.split("/", 3)[3]])
    assert kills >= 4
    settings = {"allow_private": True, "per_host_delay": 0.0, "per_host_concurrency": 6}
    report = crawl([site.url("/p0")], out, quiet=True, segment_bytes=30_000, **settings)
    pages = stored(out)
    assert len(pages) == len(set(pages)) == report.pages == PAGES
    assert len(archived) > 20
    for url, times in archived.items():  # nothing that was in the archive was asked for again
        assert site.counts["/" + url.split("/", 3)[3]] == times
    # Lost at a kill: six running requests, and the few answers that had not reached the file yet.
    assert sum(site.counts[f"/p{n}"] - 1 for n in range(PAGES)) <= 6 * 18
    assert len(report.segments) > 3
    whole = crawl([site.url("/p0")], tmp_path / "whole", quiet=True, **settings)
    assert sorted(stored(tmp_path / "whole")) == sorted(pages)
    assert whole.bytes == report.bytes
