"""Best-first in rounds: the same web gives the same pages, whatever the timing and however often it is killed."""

from __future__ import annotations

import heapq
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.web import Link, Page, crawl, iterate_pages
from bloomery.web.frontier import RoundFrontier

PAGES = 300
ROUNDS = {"order": "best", "reproducible": True, "round_pages": 12, "max_pages": 90, "quiet": True}
FAST = {"allow_private": True, "per_host_delay": 0.0, "per_host_concurrency": 6}
CHILD = """
import sys
sys.path.insert(0, sys.argv[3])
from test_rounds import FAST, ROUNDS, value
from bloomery.web import crawl
crawl([sys.argv[1]], sys.argv[2], scorer=value, segment_bytes=20_000, **FAST, **ROUNDS)
"""


def value(page: Page) -> float:
    """What the page says it is worth."""
    return float(page.body.split(b"value ")[1].split(b" ")[0])


def web(site: Any, reply: Any, shake: int) -> None:
    """A web with worth on its pages, redirects among its links, and answers that take as long as `shake` decides."""
    slow = random.Random(shake)

    def route(path: str) -> Any:
        if path.startswith("/to"):
            return reply(b"", 302, {"Location": f"/p{path[3:]}"}, delay=slow.random() * 0.01)
        if not path.startswith("/p"):
            return reply(b"", 404)
        number = int(path[2:] or 0)
        rand = random.Random(number)
        targets = [2 * number + 1, 2 * number + 2, *(rand.randrange(PAGES) for _ in range(5))]
        links = "".join(f'<a href="/{rand.choice(["p", "p", "to"])}{n}">{n}</a> ' for n in targets if n < PAGES)
        body = f"<title>{number}</title>value {rand.randrange(9)} {links}<p>{rand.randbytes(300).hex()}"
        return reply(body.encode(), delay=slow.random() * 0.01)

    site.fallback = route


def stored(out: Path) -> set[str]:
    pages = [page.url for path in sorted(out.glob("pages-*.warc.gz")) for page in iterate_pages(path)]
    assert len(pages) == len(set(pages))
    return set(pages)


def test_the_same_pages_whatever_the_timing(site: Any, reply: Any, tmp_path: Path) -> None:
    found = []
    for shake in range(3):
        web(site, reply, shake)
        out = tmp_path / str(shake)
        report = crawl([site.url("/p0")], out, scorer=value, **FAST, **ROUNDS)
        found.append((stored(out), report.visited, report.rounds, report.redirects))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == report.pages == 90
    assert report.visited == report.pages + report.redirects
    assert report.rounds >= 90 / 12


def test_killed_crawls_end_with_the_same_pages(site: Any, reply: Any, tmp_path: Path) -> None:
    web(site, reply, 0)
    crawl([site.url("/p0")], tmp_path / "whole", scorer=value, **FAST, **ROUNDS)
    out, rand, kills = tmp_path / "killed", random.Random(3), 0
    for _ in range(3):
        asked = len(site.log)
        child = subprocess.Popen([sys.executable, "-c", CHILD, site.url("/p0"), str(out), str(Path(__file__).parent)])
        while len(site.log) < asked + 15 and child.poll() is None:
            time.sleep(0.005)
        time.sleep(rand.uniform(0.0, 0.05))
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kills >= 2
    crawl([site.url("/p0")], out, scorer=value, segment_bytes=20_000, **FAST, **ROUNDS)
    assert stored(out) == stored(tmp_path / "whole")


def test_the_crawl_is_worth_more_than_breadth_first(site: Any, reply: Any, tmp_path: Path) -> None:
    """Pages here inherit their parent's worth, as good hosts link to good pages."""

    def route(path: str) -> Any:
        name = path.removeprefix("/")
        links = "".join(f'<a href="/{name}{i}">x</a>' for i in range(4)) if len(name) < 5 else ""
        return reply(f"<p>value {int(name[:1] == '2') * 5 + name.count('1')} {links}".encode())

    site.fallback = route
    crawl([site.url()], tmp_path / "best", scorer=value, **FAST, **{**ROUNDS, "round_pages": 5, "max_pages": 60})
    crawl([site.url()], tmp_path / "breadth", quiet=True, reproducible=True, max_pages=60, **FAST)
    worth = {}
    for name in ("best", "breadth"):
        pages = [page for path in (tmp_path / name).glob("*.warc.gz") for page in iterate_pages(path)]
        worth[name] = sum(map(value, pages)) / len(pages)
    assert worth["best"] > 2 * worth["breadth"]


offers = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3), st.integers(0, 4)), max_size=40)


@given(offers, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_rounds_do_not_depend_on_the_order_of_pushes(links: list[Any], count: int, rand: random.Random) -> None:
    made = [Link(f"http://h{n % 3}.example/{n}", depth, priority=float(score)) for n, depth, score in links]
    rounds = []
    for _ in range(2):
        rand.shuffle(made)
        frontier = RoundFrontier(per_host_concurrency=99, host_diversity=0.5)
        for link in made:
            frontier.push(link)
        assert len(frontier) == len({link.url for link in made})
        chosen = []
        while some := frontier.begin(count):
            chosen.append([link.url for link in some])
        assert not frontier.begin(1)
        assert len(frontier) == sum(map(len, chosen))  # all popped into rounds, none fetched yet
        rounds.append(chosen)
    assert rounds[0] == rounds[1]


def test_without_diversity_rounds_are_the_best_links_in_order() -> None:
    rand, frontier, heap = random.Random(0), RoundFrontier(), []
    for n in range(200):
        priority = rand.random()
        frontier.push(Link(f"http://h{n % 7}.example/{n}", priority=priority))
        heapq.heappush(heap, (-priority, f"http://h{n % 7}.example/{n}"))
    for _ in range(10):
        assert [link.url for link in frontier.begin(20)] == [heapq.heappop(heap)[1] for _ in range(20)]


def test_diversity_spreads_a_round_over_hosts() -> None:
    for weight, hosts in ((0.0, 1), (1.0, 4)):
        frontier = RoundFrontier(host_diversity=weight)
        for host in range(4):
            for n in range(50):
                frontier.push(Link(f"http://h{host}.example/{n}", priority=1.0 - 0.1 * host + n * 1e-5))
        assert len({link.url.split("/")[2] for link in frontier.begin(40)}) == hosts


def test_rounds_are_part_of_what_a_crawl_is(site: Any, reply: Any, tmp_path: Path) -> None:
    web(site, reply, 0)
    crawl([site.url("/p0")], tmp_path, scorer=value, **FAST, **{**ROUNDS, "max_pages": 5})
    with pytest.raises(ConfigError, match="round_pages is 12 there and 13 here"):
        crawl([site.url("/p0")], tmp_path, scorer=value, **FAST, **{**ROUNDS, "round_pages": 13})
