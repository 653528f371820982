"""A crawl whose hosts are shared out among actors is the crawl of one process, page by page."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from bloomery.core.errors import BloomeryError, ConfigError, DataError
from bloomery.web.scheduling import Crawl, HeapFrontier, Length, Pages, ParentScore, RandomScore, SeenInLinks
from bloomery.web.scheduling.ray_crawl import ShardedCrawl

ray = pytest.importorskip("ray", reason='needs pip install "bloomery[ray]"')


def host(page: Any) -> str:
    return str(page).split("/")[0]


def make_web() -> Pages:
    """300 pages of 20 hosts with many equal lengths; some pages cannot be had."""
    rand = np.random.default_rng(0)
    names = [f"host{int(rand.integers(20))}/{n}" for n in range(300)]
    text = {name: "x" * int(rand.integers(1, 12)) if rand.random() > 0.05 else None for name in names}
    out = {name: [names[i] for i in rand.integers(0, 300, int(rand.integers(0, 8)))] for name in names}
    return Pages(text, out)


@pytest.fixture(scope="module")
def cluster() -> Any:
    ray.init(
        address="local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    yield
    ray.shutdown()


def test_shards_crawl_what_one_process_crawls(cluster: Any) -> None:
    web = make_web()
    raters = {"desc": [Length()], "asc": [RandomScore(), SeenInLinks()]}
    for order, some in raters.items():
        make = partial(Crawl, web, web, some, per_iteration=9, budget=150, order=order)
        sharded, single = ShardedCrawl(make, 2, host), make()  # the actors get copies of the raters as they are now
        assert {sharded.shard_of(page) for page in web.text} == {0, 1}
        for crawl in (single, sharded):
            crawl.seed([page for page in web.text if page.endswith("1")])
        assert list(sharded.run()) == list(single.run())
        assert (sharded.status, sharded.visited) == (single.status, len(single.visited))
        assert sharded.crawled == single.crawled
        sharded.close()
    assert ray.is_initialized()


def test_a_sharded_crawl_runs_dry_like_a_single_one(cluster: Any) -> None:
    web = make_web()
    make = partial(Crawl, web, web, [ParentScore(Length(), web.text)], per_iteration=9, budget=10_000)
    sharded, single = ShardedCrawl(make, 2, host), make()
    for crawl in (single, sharded):
        crawl.seed([page for page in web.text if page.endswith("1")])
    assert [i.pages for i in sharded.run()] == [i.pages for i in single.run()]
    assert sharded.status == single.status == "exhausted"
    sharded.close()


def test_what_is_refused(cluster: Any) -> None:
    web = make_web()
    make = partial(Crawl, web, web, [Length()], per_iteration=9, budget=20)
    with pytest.raises(ConfigError, match="shards=0"):
        ShardedCrawl(make, 0, host)
    with pytest.raises(ConfigError, match="frontiers of their own"):
        ShardedCrawl(partial(make, frontier=HeapFrontier()), 1, host)
    sharded = ShardedCrawl(make, 1, host)
    with pytest.raises(DataError, match="2 seeds, but 9"):
        sharded.seed(["host1/1", "host2/2"])
    ray.kill(sharded._shards[0])
    with pytest.raises(BloomeryError, match="a shard of the crawl has died"):
        sharded.seed(list(web.text))
