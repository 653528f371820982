"""Crawl orders: properties of the frontier and the loop, raters, centralities, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.web.scheduling import (
    Crawl,
    Ensemble,
    HeapFrontier,
    InLinks,
    Length,
    MinMax,
    Pages,
    ParentScore,
    Quality,
    RandomScore,
    SeenInLinks,
    Table,
    ZScore,
)
from bloomery.web.scheduling.crawl import sample_seeds
from bloomery.web.scheduling.graph import harmonic, in_degree, pagerank
from bloomery.web.scheduling.raters import Found
from bloomery.web.scheduling.upstream_yaml import load, make_crawl
from bloomery.worlds.web_graph import web_graph

WEB = Pages(
    {"a": "aaaa", "b": "bb", "c": "c" * 9, "d": None, "e": "eeeee"},
    {"a": ["b", "c", "d"], "b": ["c", "e"], "c": ["a", "e"], "e": ["a"]},
    {"a": 2, "b": 1, "c": 2, "d": 1, "e": 2},
)


def crawl(rater: Any, **fields: Any) -> Crawl:
    return Crawl(WEB, WEB, [rater], **{"per_iteration": 1, "budget": 4, **fields})


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=40), st.sampled_from(["desc", "asc"]))
def test_a_frontier_hands_out_the_best_first(pushes: list[tuple[int, int]], order: str) -> None:
    frontier = HeapFrontier(order)
    latest: dict[int, float] = {}
    for page, score in pushes:  # a later push of a waiting page replaces its score
        frontier.push(page, float(score))
        latest[page] = float(score)
    assert len(frontier) == len(latest)
    sign = -1 if order == "desc" else 1
    expected = sorted(latest, key=lambda page: (sign * latest[page], page))
    half = len(expected) // 2
    assert frontier.pop_best(half) + frontier.pop_best(100) == expected
    assert frontier.pop_best(1) == []


def test_a_crawl_follows_the_best_links() -> None:
    run = crawl(Length())
    run.seed(["a"])
    assert [iteration.pages for iteration in run.run()] == [["a"], ["c"], ["e"], ["b"]]
    assert run.status == "budget"
    assert run.visited == {"a", "b", "c", "e"}  # d has no text and never enters


def test_a_crawl_that_runs_dry_says_so() -> None:
    run = crawl(Length(), budget=99)
    run.seed(["e"])
    assert sum(len(iteration.pages) for iteration in run.run()) == 4
    assert run.status == "exhausted"


def test_raters_that_read_nothing_crawl_pages_without_text() -> None:
    run = crawl(InLinks(WEB), budget=99)
    run.seed(["a"])
    assert {page for iteration in run.run() for page in iteration.pages} == {"a", "b", "c", "d", "e"}


def test_seen_links_grow_while_a_page_waits() -> None:
    """Two crawled pages link to z, one each to x and y: z overtakes both."""
    web = Pages({}, {"s": ["x", "z", "a"], "a": ["z", "y"]})
    run = Crawl(web, None, [SeenInLinks()], 1, 99)
    run.seed(["s"])
    assert [p for iteration in run.run() for p in iteration.pages] == ["s", "a", "z", "x", "y"]


def test_the_best_parent_decides_without_look_ahead() -> None:
    web = Pages({}, {"s": ["bad", "good"], "good": ["child", "shared"], "bad": ["shared", "other"]})
    score = Table({"s": 0.5, "good": 0.9, "bad": 0.1, "child": 0.0, "shared": 0.0, "other": 0.0}, "score")
    rater = ParentScore(score)
    ratings = rater.rate(Found(["child", "shared", "other"], [None] * 3, [["good"], ["bad", "good"], ["bad"]]))
    assert ratings == [0.9, 0.9, 0.1]
    run = Crawl(web, None, [ParentScore(score)], 1, 99)
    run.seed(["s"])
    assert run.ratings["s"]["parent_score"] == 0.5
    assert {p for iteration in run.run() for p in iteration.pages} == {"s", "good", "bad", "child", "shared", "other"}


def test_a_saved_crawl_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    web = web_graph(pages=500, hosts=20, seed=3)
    raters = [Table(web.score, "score")]
    whole = Crawl(web, None, raters, 10, 200)
    whole.seed(range(10))
    expected = [iteration.pages for iteration in whole.run()]
    first = Crawl(web, None, raters, 10, 200)
    first.seed(range(10))
    rounds = first.run()
    begun = [next(rounds).pages for _ in range(7)]
    first.save(tmp_path / "state.json")
    second = Crawl(web, None, raters, 10, 200)
    second.load(tmp_path / "state.json")
    assert begun + [iteration.pages for iteration in second.run()] == expected
    other = Crawl(web, None, [RandomScore()], 10, 200)
    with pytest.raises(ConfigError, match="raters there"):
        other.load(tmp_path / "state.json")


def test_random_scores_depend_on_seed_and_page_alone() -> None:
    both = RandomScore(1).rate(Found(["a", "b"], [None] * 2, [[], []]))
    assert RandomScore(1).rate(Found(["b"], [None], [[]])) == both[1:]
    assert RandomScore(2).rate(Found(["a", "b"], [None] * 2, [[], []])) != both
    assert all(0 <= score < 1 for score in both)


def test_normalisers() -> None:
    assert ZScore(2, 4)(10) == 2
    assert MinMax(2, 4)(3) == 0.5


@given(st.integers(0, 10**6))
def test_centralities_equal_networkx(seed: int) -> None:
    networkx = pytest.importorskip("networkx")
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 20))
    out = [sorted(set(random.integers(count, size=random.integers(0, 5)).tolist()) - {i}) for i in range(count)]
    starts = np.concatenate([[0], np.cumsum([len(links) for links in out])])
    targets = np.array([target for links in out for target in links], dtype=np.int64)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((i, target) for i, links in enumerate(out) for target in links)
    theirs = networkx.pagerank(graph, tol=1e-12, max_iter=1000)
    assert pagerank(starts, targets) == pytest.approx([theirs[i] for i in range(count)], abs=1e-6)
    theirs = networkx.harmonic_centrality(graph)
    assert harmonic(starts, targets) == pytest.approx([theirs[i] for i in range(count)])
    assert in_degree(starts, targets).tolist() == [graph.in_degree(i) for i in range(count)]


def test_a_generated_web_is_what_it_says() -> None:
    web = web_graph(pages=5_000, hosts=100, homophily=0.8, seed=1)
    again = web_graph(pages=5_000, hosts=100, homophily=0.8, seed=1)
    assert np.array_equal(web.targets, again.targets)
    rank = np.argsort(np.argsort(web.score))
    popularity = np.argsort(np.argsort(np.bincount(web.targets, minlength=web.pages)))
    assert abs(np.corrcoef(rank, popularity)[0, 1]) < 0.15
    source = np.repeat(np.arange(web.pages), np.diff(web.starts))
    follows = np.corrcoef(web.quality[source], web.quality[web.targets])[0, 1]
    apart = web_graph(pages=5_000, hosts=100, homophily=0.0, seed=1)
    loose = np.corrcoef(apart.quality[np.repeat(np.arange(5_000), np.diff(apart.starts))], apart.quality[apart.targets])
    assert follows > loose[0, 1] + 0.2
    assert web.oracle(0.1).sum() == 500


class NotANumber:
    name = "broken"

    def score(self, texts: list[str]) -> np.ndarray:
        return np.full(len(texts), np.nan)


CONFIG: dict[str, Any] = {
    "selection_method": "length",
    "num_selected_docs_per_iter": 1,
    "max_num_docs": 3,
    "rating_methods": [{"type": "length"}],
}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Crawl(WEB, WEB, [], 1, 1), "without a rater"),
        (lambda: Crawl(WEB, WEB, [Length(), Length()], 1, 1), "two raters"),
        (lambda: crawl(Length(), select_by="lenght"), "length"),
        (lambda: crawl(Length(), order="down"), "order"),
        (lambda: crawl(Length(), budget=0), "budget"),
        (lambda: Crawl(WEB, None, [Length()], 1, 1), "source of texts"),
        (lambda: Crawl(WEB, WEB, [Length(), Ensemble({"lengthy": 1.0})], 1, 1), "length"),
        (lambda: crawl(Length(), per_iteration=3).seed(["a"]), "1 seeds"),
        (lambda: crawl(Quality(NotANumber(), "broken")).seed(["a"]), "page a"),
        (lambda: HeapFrontier().push("a", float("nan")), "page a"),
        (lambda: sample_seeds(["a"], 2), "1 seeds"),
        (lambda: Table({"a": 1.0}, "rank").rate(Found(["b"], [None], [[]])), "rank"),
        (lambda: pagerank(np.array([0, 1]), np.array([5])), "page 5"),
        (lambda: web_graph(pages=2, hosts=5), "hosts"),
        (lambda: make_crawl({**CONFIG, "max_docs": 1}, WEB), "max_num_docs"),
        (lambda: make_crawl({**CONFIG, "rating_methods": [{"type": "fastext_score"}]}, WEB), "fasttext_score"),
        (lambda: make_crawl({**CONFIG, "rating_methods": [{"type": "fasttext_score"}]}, WEB), "model_path"),
        (
            lambda: make_crawl(
                {**CONFIG, "rating_methods": [{"type": "fasttext_score", "model_path": "/nowhere/model.bin"}]}, WEB
            ),
            "model.bin",
        ),
        (
            lambda: make_crawl(
                {**CONFIG, "rating_methods": [{"type": "length", "normalizer": {"type": "zcore"}}]}, WEB
            ),
            "zscore",
        ),
    ],
)
def test_what_cannot_be_done_is_said(call: Any, match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        call()


def test_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "crawl.yaml"
    file.write_text(
        "cw22_root_path: /data\nseed_docs_file: seeds.txt\noutput_dir: out\nnum_selected_docs_per_iter: 2\n"
        "num_workers: 16\nsave_state_every: -1\nmax_num_docs: 3\nselection_method: length\norder: asc\n"
        "wandb: false\nrating_methods:\n  - type: length\n"
    )
    run = load(file, WEB)
    run.seed(["a", "b"])
    assert [iteration.pages for iteration in run.run()] == [["b", "a"], ["e", "c"]]
