"""The frontier on disk: the order of the one in memory, whatever spills and whatever kills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError, StorageError
from bloomery.core.hashing import hash64
from bloomery.web.scheduling import Crawl, DiskFrontier, DiskSet, HeapFrontier, Length, Pages
from bloomery.web.scheduling.disk_set import merge

actions = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 60), st.integers(-3, 3)),
        st.tuples(st.just("pop"), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("save"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@given(actions, st.sampled_from(["desc", "asc"]), st.sampled_from([1, 4, 1000]))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_frontier_in_memory(tmp_path_factory: Any, todo: list[Any], order: str, memory: int) -> None:
    """Pages pushed again get a new score; with a memory of one page every push is a file, and files are merged."""
    folder = tmp_path_factory.mktemp("frontier")
    ours, plain, done = DiskFrontier(folder, order, memory), HeapFrontier(order), set()
    for action, number, score in [*todo, ("pop", 1000, 0)]:
        if action == "push" and number not in done:
            ours.push(number, score / 2)
            plain.push(number, score / 2)
        elif action == "pop":
            best = plain.pop_best(number)
            assert ours.pop_best(number) == best
            done.update(best)
        elif action == "save":
            ours.save()
            ours = DiskFrontier(folder, order, memory)
        assert sorted(ours) == sorted(plain)
        assert len(ours) == len(plain)
    assert len(ours) == 0


def test_batches_of_many_with_rounds_of_pops(tmp_path: Path) -> None:
    rand = np.random.default_rng(0)
    ours, plain = DiskFrontier(tmp_path, memory=3_000), HeapFrontier()
    for _ in range(40):
        pages = rand.integers(0, 1 << 64, 1_500, dtype=np.uint64)
        scores = np.round(rand.normal(size=len(pages)), 2)
        ours.push_many(pages, scores)
        for page, score in zip(pages.tolist(), scores.tolist(), strict=True):
            plain.push(page, score)
        assert ours.pop_best(400) == plain.pop_best(400)
    assert len(ours) == len(plain) == 40 * 1_100
    assert len(list(tmp_path.glob("run-*"))) <= 17
    assert ours.pop_best(10**6) == plain.pop_best(10**6)


def test_what_was_handed_out_is_done(tmp_path: Path) -> None:
    frontier = DiskFrontier(tmp_path)
    frontier.push(7, 1.0)
    assert frontier.pop_best(3) == [7]
    frontier.push(7, 2.0)
    assert (frontier.pop_best(3), len(frontier)) == ([], 0)


CHILD = """
import os, sys
import numpy as np
from bloomery.web.scheduling import DiskFrontier
frontier = DiskFrontier(sys.argv[1], memory=500)
rand = np.random.default_rng(int(sys.argv[2]))
frontier.push_many(rand.integers(0, 1 << 64, 4000, dtype=np.uint64), rand.random(4000))
frontier.save()
frontier.pop_best(1000)
frontier.push_many(rand.integers(0, 1 << 64, 4000, dtype=np.uint64), rand.random(4000) + 1)
print("under way", flush=True)
while True:
    frontier.push_many(rand.integers(0, 1 << 64, 900, dtype=np.uint64), rand.random(900) + 1)
"""


def test_a_killed_frontier_is_as_it_was_saved(tmp_path: Path) -> None:
    plain = HeapFrontier()
    for seed in range(3):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(seed)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"under way\n"
        child.send_signal(signal.SIGKILL)
        child.communicate()
        rand = np.random.default_rng(seed)
        pages = rand.integers(0, 1 << 64, 4000, dtype=np.uint64)
        for page, score in zip(pages.tolist(), rand.random(4000).tolist(), strict=True):
            plain.push(page, score)
    before = sum(path.stat().st_size for path in tmp_path.iterdir())
    frontier = DiskFrontier(tmp_path, memory=500)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= before
    assert len(frontier) == len(plain) == 12_000
    assert frontier.pop_best(12_000) == plain.pop_best(12_000)


def test_a_crawl_with_it_is_the_same_crawl(tmp_path: Path) -> None:
    rand = np.random.default_rng(1)
    text = {n: "x" * int(rand.integers(1, 50)) for n in range(400)}
    out = {n: rand.integers(0, 400, 6).tolist() for n in range(400)}
    crawled = []
    for frontier in (None, DiskFrontier(tmp_path, memory=20)):
        crawl = Crawl(Pages(text, out), Pages(text, out), [Length()], per_iteration=7, budget=300, frontier=frontier)
        crawl.seed(range(20))
        crawled.append([iteration.pages for iteration in crawl.run()])
    assert crawled[0] == crawled[1]


@given(st.lists(st.lists(st.integers(0, 1 << 12), max_size=50), max_size=8), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_a_set_on_disk(tmp_path_factory: Any, batches: list[list[int]], memory: int) -> None:
    ours, plain = DiskSet(tmp_path_factory.mktemp("set"), "seen", memory), set()
    for batch in batches:
        numbers = np.unique(np.array([hash64(str(n)) for n in batch], np.uint64))
        known = ours.contains(numbers)
        assert known.tolist() == [n in plain for n in numbers.tolist()]
        ours.add(numbers[~known])
        plain.update(numbers.tolist())
        assert len(ours) == len(plain)
    lengths = list(ours.files.values())
    assert all(longer >= 2 * shorter for longer, shorter in pairwise(lengths))


def test_few_numbers_are_looked_up_in_large_files(tmp_path: Path) -> None:
    ours = DiskSet(tmp_path, "seen", memory=1)
    ours.add(np.arange(0, 1 << 18, 2, dtype=np.uint64))
    assert ours.contains(np.array([3, 8, 1 << 17, 1 << 40], np.uint64)).tolist() == [False, True, True, False]


def test_merging_with_equal_numbers_at_the_ends_of_blocks() -> None:
    blocks = [[np.array([1, 5]), np.array([5, 9])], [np.array([5]), np.array([5, 5, 7])], [np.array([9, 9])]]
    merged = np.concatenate(list(merge([iter(source) for source in blocks])))
    assert merged.tolist() == [1, 5, 5, 5, 5, 5, 7, 9, 9, 9]


def test_what_is_refused(tmp_path: Path) -> None:
    frontier = DiskFrontier(tmp_path)
    for page, score, said in ((1, float("nan"), "not a number"), ("a", 1.0, "no number"), (-1, 1.0, "no number")):
        with pytest.raises(DataError, match=said):
            frontier.push(page, score)
    with pytest.raises(DataError, match="page 6"):
        frontier.push_many(np.array([5, 6], np.uint64), np.array([1.0, np.nan]))
    with pytest.raises(ConfigError, match="desc or asc"):
        DiskFrontier(tmp_path, "up")
    frontier.push(1, 1.0)
    frontier.save()
    with pytest.raises(ConfigError, match="order there desc, now asc"):
        DiskFrontier(tmp_path, "asc")
    (run,) = tmp_path.glob("run-*")
    os.truncate(run, 3)
    with pytest.raises(StorageError, match="not the 16 bytes"):
        DiskFrontier(tmp_path)
