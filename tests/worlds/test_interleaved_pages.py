"""The illustrated web and the LaTeX papers are what their truth says, and hold what a rule is meant to find."""

from __future__ import annotations

import hashlib
import html
import io
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.web.interleave.latex import read_latex
from bloomery.web.interleave.latex_source import Tree
from bloomery.worlds.interleaved_pages import PAGES_PER_HOST, SHAPES, illustrated_web
from bloomery.worlds.latex_papers import known_papers


@settings(max_examples=6)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_the_pages_hold_their_truth_in_order(count: int, seed: int) -> None:
    web = illustrated_web(count, seed)
    assert web == illustrated_web(count, seed)
    assert len({page.url for page in web.pages}) == len(web.pages) == count
    for page in web.pages:
        place, source = 0, html.unescape(page.html)
        host = "https://" + page.url.split("/")[2]
        for kind, value in page.order:
            place = source.index(value.removeprefix(host) if kind == "image" else value, place)
        assert all(line in source for line in page.boilerplate)
        assert all(address in web.bad and address.removeprefix(host) in source for address in page.bad_images)
        assert page.is_banned == any("avatar" in address for address in page.bad_images)
        for (kind, value), (_, after) in zip(page.order, page.order[1:], strict=False):
            assert kind == "text" or after.startswith(web.shapes[value])
        if page.copy_of >= 0:
            source_page = web.pages[page.copy_of]
            assert (page.order, page.html, source_page.copy_of) == (source_page.order, source_page.html, -1)
    assert set(web.images) == {*web.shapes, *web.bad}
    assert not {*web.shapes} & {*web.bad}


def test_what_is_planted_can_be_found() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra `interleave`")
    web = illustrated_web(120, 3)
    assert 3 <= sum(page.copy_of >= 0 for page in web.pages) <= 25
    assert 1 <= sum(page.is_banned for page in web.pages) <= 16
    assert set(web.shapes.values()) == set(SHAPES)
    equal = Counter(hashlib.sha256(web.images[address]).hexdigest() for address in web.shapes)
    assert max(equal.values()) == 1  # no good image looks repeated
    sizes = {address: image.open(io.BytesIO(data)).size for address, data in web.images.items()}
    assert all(min(sizes[a]) >= 150 and max(sizes[a]) <= 2 * min(sizes[a]) for a in web.shapes)
    for address, why in web.bad.items():
        if why in ("icon", "banner"):
            assert min(sizes[address]) < 150 or max(sizes[address]) > 2 * min(sizes[address])
    headers = Counter(a for page in web.pages for a in page.bad_images if web.bad[a] == "repeated")
    assert min(headers.values()) >= PAGES_PER_HOST * 0.6


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_papers_are_read_as_they_are_meant(seed: int) -> None:
    (paper,) = known_papers(1, seed)
    assert [paper] == known_papers(1, seed)
    parts = read_latex(Tree(list(paper.files), files=paper.files))
    found = [("image", part.ref) if part.is_image else ("text", "".join((part.text or "").split())) for part in parts]
    assert found == [(kind, value if kind == "image" else "".join(value.split())) for kind, value in paper.order]
    assert [part.image for part in parts if part.is_image] == [paper.files[v] for k, v in paper.order if k == "image"]
