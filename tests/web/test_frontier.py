from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.web.frontier import Link, PoliteFrontier
from bloomery.web.urls import host_of


def drain(frontier: PoliteFrontier, now: float = 0.0) -> list[Link]:
    popped = []
    while (link := frontier.pop(now)) is not None:
        popped.append(link)
        frontier.release(link, now)
    return popped


def test_breadth_first_by_default_and_best_first_by_priority() -> None:
    frontier = PoliteFrontier()
    for depth in (2, 0, 1):
        frontier.push(Link(f"http://a.example/{depth}", depth))
    assert [link.depth for link in drain(frontier)] == [0, 1, 2]
    for priority in (0.1, 0.9, 0.5):
        frontier.push(Link(f"http://a.example/{priority}", 1, priority=priority))
    assert [link.priority for link in drain(frontier)] == [0.9, 0.5, 0.1]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 9)), unique=True), st.randoms())
def test_order_does_not_depend_on_the_order_of_pushes(items: list[tuple[int, int, int]], rand: random.Random) -> None:
    links = [Link(f"http://h{host}.example/{n}/{depth}", depth, priority=n % 2) for host, depth, n in items]
    first, second = PoliteFrontier(), PoliteFrontier()
    for link in links:
        first.push(link)
    rand.shuffle(links)
    for link in links:
        second.push(link)
    assert [link.url for link in drain(first)] == [link.url for link in drain(second)]
    assert len(first) == len(second) == 0


def test_delay_and_concurrency_per_host() -> None:
    frontier = PoliteFrontier(per_host_delay=2.0, per_host_concurrency=2)
    for n in range(3):
        frontier.push(Link(f"http://a.example/{n}"))
    frontier.push(Link("http://b.example/0"))
    hosts = {host_of(link.url) for link in (frontier.pop(10.0), frontier.pop(10.0)) if link}
    assert hosts == {"a.example", "b.example"}
    assert frontier.pop(11.9) is None
    assert frontier.ready_at() == 12.0
    second = frontier.pop(12.0)
    assert second is not None
    assert frontier.pop(14.0) is None  # two of a.example are running
    assert frontier.ready_at() is None
    frontier.release(second, 14.0)
    assert frontier.pop(14.0) is not None


def test_hold_and_retry_times() -> None:
    frontier = PoliteFrontier()
    frontier.push(Link("http://a.example/0"))
    frontier.hold("a.example", 5.0, delay=3.0)
    assert frontier.pop(4.0) is None
    link = frontier.pop(5.0)
    assert link is not None
    frontier.release(link, 5.0)
    frontier.push(link, not_before=6.0)
    assert frontier.pop(6.0) is None  # the delay asked for by hold: 5 + 3
    assert frontier.pop(8.0) is link


def test_level_by_level_waits_for_the_running_level() -> None:
    frontier = PoliteFrontier(per_host_concurrency=9, level_by_level=True)
    frontier.push(Link("http://a.example/0", 0))
    frontier.push(Link("http://a.example/1", 1))
    root = frontier.pop(0.0)
    assert root is not None
    assert frontier.pop(0.0) is None
    frontier.push(root, not_before=3.0)  # a retry still belongs to its level
    frontier.release(root, 0.0)
    assert frontier.pop(1.0) is None
    assert frontier.pop(3.0) is root
    frontier.release(root, 3.0)
    child = frontier.pop(3.0)
    assert child is not None
    assert child.depth == 1


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_never_too_fast_never_too_many_and_nothing_lost(data: st.DataObject) -> None:
    delay, concurrency = data.draw(st.sampled_from([0.0, 1.0])), data.draw(st.integers(1, 3))
    frontier = PoliteFrontier(delay, concurrency)
    urls = {f"http://h{n % 3}.example/{n}" for n in range(data.draw(st.integers(1, 25)))}
    for url in urls:
        frontier.push(Link(url, priority=data.draw(st.integers(0, 3))))
    running: list[Link] = []
    started: dict[str, float] = {}
    got, now = [], 0.0
    for _ in range(500):
        link = frontier.pop(now)
        if link is not None:
            host = host_of(link.url)
            assert now - started.get(host, -9.0) >= delay
            assert sum(host_of(r.url) == host for r in running) < concurrency
            started[host] = now
            running.append(link)
            got.append(link.url)
        elif running and data.draw(st.booleans()):
            frontier.release(running.pop(), now)
        else:
            now += 0.5
            if running and frontier.ready_at() is None:
                frontier.release(running.pop(0), now)
        if len(got) == len(urls):
            break
    assert sorted(got) == sorted(urls)
