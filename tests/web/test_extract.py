from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.web import Page, full_text, iterate_pages, links, main_text, resolve, title
from bloomery.web.encoding import decode
from bloomery.web.extract import MAX_CHARS, MAX_DEPTH, MAX_TAG, _long_pieces, extract

DATA = Path(os.environ.get("BLOOMERY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "web_pages"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no pages under {DATA}")
ARTICLE = "<p>" + "A sentence of the article that is long enough to be content, with commas, and an end. " * 6
HTML = (
    '<html lang="de-AT"><head><title> A \n title </title><script>var x = "<a href=/no>";</script></head><body>'
    '<nav><ul><li><a href="/home">Home</a></li><li><a href="/about">About</a></li></ul></nav>'
    f"<main><h1>Heading</h1>{ARTICLE}</main><footer>Imprint</footer></body></html>"
)


# --- text ---


def test_main_text_leaves_navigation_out_and_full_text_keeps_it() -> None:
    main, full = main_text(HTML), full_text(HTML)
    assert "sentence of the article" in main
    assert "About" not in main
    assert all(word in full for word in ("Home", "About", "Heading", "sentence", "Imprint"))
    assert "var x" not in full
    assert title(HTML) == "A title"
    assert extract(HTML).language == "de-at"


@pytest.mark.parametrize("html", ["", " ", "plain", "<", "<html>", "<!--", "<p>\x00</p>", "\ud800", "<title>"])
def test_any_page_has_some_text(html: str) -> None:
    assert isinstance(main_text(html), str)
    assert isinstance(full_text(html), str)
    assert links(html, "http://a.example/") == []


def test_unknown_extractor_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="main, full or trafilatura"):
        extract(HTML, "best")  # type: ignore[arg-type]


def test_trafilatura_is_an_option() -> None:
    pytest.importorskip("trafilatura")
    assert "sentence of the article" in extract(HTML, "trafilatura").text


@pytest.mark.parametrize("tag", ["div", "b", "table><tr><td", "ul><li"])
def test_deep_nesting_keeps_its_text_and_returns_soon(tag: str) -> None:
    started = time.process_time()
    assert "deep down" in main_text(f"<{tag}>" * 50_000 + "deep down")
    assert time.process_time() - started < 20  # without the guard: minutes


def test_hostile_and_huge_pages_are_data_errors() -> None:
    with pytest.raises(DataError, match="attributes"):
        main_text("<p " + " ".join(f"a{n}=1" for n in range(50_000)) + ">x")
    with pytest.raises(DataError, match="characters"):
        main_text("x" * (MAX_CHARS + 1))
    assert main_text("<p>" + "a long text without any tag " * 5000)


# --- links ---


def test_links_are_canonical_unique_and_have_anchor_text() -> None:
    html = (
        '<a href="b?x=1&amp;y=2#frag">  the <b>bold</b>\n &amp; link </a><A HREF=/c>C</A>'
        "<a href='b?x=1&y=2'>again</a><a name=x>none</a><a href='mailto:a@b.c'>m</a><area href='/d'>"
        "<!-- <a href='/no'> --><script>'<a href=\"/no\">'</script><a data-href='/no' href='/e'>e</a>"
        '<a title="a > b" href="/f">f</a>'
    )
    assert links(html, "http://a.example/x/y") == [
        ("http://a.example/x/b?x=1&y=2", "the bold & link"),
        ("http://a.example/c", "C"),
        ("http://a.example/d", ""),
        ("http://a.example/e", "e"),
        ("http://a.example/f", "f"),
    ]


def test_base_and_nofollow() -> None:
    assert links('<base href="/z/"><base href="/y/"><a href="q">', "http://a.example/x") == [
        ("http://a.example/z/q", "")
    ]
    assert links('<meta name=robots content="noindex, NoFollow"><a href="q">', "http://a.example/x") == []
    assert links('<meta name=description content="none"><a href="q">', "http://a.example/x") != []


@pytest.mark.parametrize(
    "piece", ["<a ", '<a "', "<a href=", "<!--", "<script ", "<a 'x", '<a href="', "<meta name=", "<a href='/x'>y"]
)
def test_link_scan_is_linear_in_hostile_pages(piece: str) -> None:
    started = time.process_time()
    links(piece * (2_000_000 // len(piece)), "http://a.example/")
    assert time.process_time() - started < 20  # quadratic would be hours


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="<a href='\"/>=!-&;x \n", max_size=200))
def test_any_source_has_links_or_none(html: str) -> None:
    for url, text in links(html, "http://a.example/"):
        assert resolve(url, url) == url
        assert len(text) <= 200


@needs_data
def test_links_agree_with_the_parsed_tree_on_real_pages() -> None:
    from resiliparse.parse.html import HTMLTree

    pages = same = missed = 0
    for path in sorted(DATA.glob("*.warc.gz")):
        for page in iterate_pages(path):
            if page.content_type != "text/html" or not page.url.startswith("http"):
                continue
            tree = HTMLTree.parse(page.html)
            base = tree.document.query_selector("base[href]")
            root = (resolve(page.url, base.getattr("href")) if base is not None else None) or page.url
            anchors = tree.document.query_selector_all("a[href], area[href]").values()
            expected = {resolve(root, anchor.getattr("href")) for anchor in anchors} - {None}
            found = {url for url, _ in links(page.html, page.url)}
            pages += 1
            same += found == expected
            missed += len(expected - found)
    assert pages > 100
    assert same >= 0.98 * pages
    assert missed == 0


# --- character sets ---


@pytest.mark.parametrize(
    ("body", "content_type", "text", "name"),
    [
        ("grüß".encode(), "", "grüß", "utf-8"),
        ("grüß".encode("latin-1"), "text/html; charset=ISO-8859-1", "grüß", "cp1252"),
        (b"\xef\xbb\xbfhi", "text/html; charset=latin-1", "hi", "utf-8"),
        ("hi ß".encode("utf-16"), "", "hi ß", "utf-16-le"),
        ('<meta charset="windows-1251">привет'.encode("cp1251"), "", '<meta charset="windows-1251">привет', "cp1251"),
        ("<meta http-equiv=x content='a; charset=shift_jis'>日本".encode("cp932"), "", None, "cp932"),
        (b"<meta charset=utf-16>x", "", "<meta charset=utf-16>x", "utf-8"),
        ("日本".encode("gb18030"), 'text/html; charset="GBK"', "日本", "gb18030"),
        (b"<meta charset=nonsense>x", "", "<meta charset=nonsense>x", "utf-8"),
        (b"bad \xff utf-8", "text/html; charset=utf-8", "bad � utf-8", "utf-8"),
    ],
)
def test_character_sets(body: bytes, content_type: str, text: str | None, name: str) -> None:
    found, encoding = decode(body, content_type)
    assert encoding == name
    assert text is None or found == text


PROSE = "<p>A paragraph that says what the thing is for and why anybody would want to have it, at some length.</p>"


def test_main_text_keeps_code_definitions_and_tables() -> None:
    code = "def f(x):\n    if x:\n\n        return   1\n"
    definitions = "<dl><dt>name</dt><dd>What it is called.</dd></dl>"
    table = "<table><tr><td><a href=/w><code>wrap</code></a></td><td>Wrap one paragraph.</td></tr></table>"
    text = main_text(f"<div><main>{PROSE}<pre><code>{code}</code></pre>{definitions}{table}</main></div>")
    assert code.strip() in text
    assert "name\nWhat it is called." in text
    assert re.search(r"wrap\s+Wrap one paragraph\.", text)


@pytest.mark.parametrize("depth", range(5))
def test_main_text_keeps_a_list_that_continues_a_paragraph_at_any_depth(depth: int) -> None:
    bullets = "<ul><li>It is small.</li><li>It is quick.</li></ul>"
    menu = "<ul><li><a href=/a>Home</a></li><li><a href=/b>About us</a></li></ul>"
    text = main_text("<div>" * depth + menu + PROSE + bullets + PROSE + "</div>" * depth)
    assert "• It is small.\n  • It is quick." in text
    assert "About us" not in text


@settings(deadline=None, max_examples=100)
@given(
    st.binary(max_size=300), st.sampled_from(["", "text/html; charset=utf-8", "a; charset=utf-7", "x; charset=\x00"])
)
def test_decoding_never_fails(body: bytes, content_type: str) -> None:
    page = Page("http://a.example/", 200, "text/html", body, headers=[("content-type", content_type)])
    assert page.html == decode(body, content_type)[0]


# --- real pages with known text ---


def _gold(name: str) -> list[dict]:
    with gzip.open(DATA / f"{name}_gold.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _shingles(text: str) -> Counter:
    words = re.findall(r"\w+", text)
    return Counter(zip(*(words[n:] for n in range(4)), strict=False))


@needs_data
def test_articles_f1() -> None:
    pages = {page.url: page for page in iterate_pages(DATA / "articles.warc.gz")}
    scores: dict[str, list[float]] = {"main": [], "full": []}
    for entry in _gold("articles"):
        gold = _shingles(entry["text"])
        for mode, values in scores.items():
            found = _shingles(extract(pages[entry["url"]].html, mode).text)  # type: ignore[arg-type]
            values.append(2 * (gold & found).total() / max(gold.total() + found.total(), 1))
    means = {mode: sum(values) / len(values) for mode, values in scores.items()}
    assert means["main"] > 0.9
    assert means["main"] > means["full"] + 0.2


@needs_data
def test_multilingual_strings() -> None:
    pages = {page.url: page for page in iterate_pages(DATA / "multilingual.warc.gz")}
    counts: Counter[str] = Counter()
    for entry in _gold("multilingual"):
        page = pages[entry["url"]]
        main, full = (" ".join(extract(page.html, mode).text.split()) for mode in ("main", "full"))  # type: ignore[arg-type]
        for kind in ("must_contain", "must_not_contain"):
            for wanted in entry[kind]:
                wanted = " ".join(wanted.split())
                counts[kind] += 1
                counts[f"main {kind}"] += wanted in main
                counts[f"full {kind}"] += wanted in full
    assert counts["main must_contain"] > 0.85 * counts["must_contain"]
    assert counts["full must_contain"] > 0.95 * counts["must_contain"]
    assert counts["main must_not_contain"] < 0.3 * counts["must_not_contain"]


@given(
    lengths=st.lists(st.sampled_from([0, 1, 50, MAX_TAG - 1, MAX_TAG, MAX_TAG + 1, 70_000])),
    closed=st.booleans(),
)
def test_long_pieces_are_those_of_a_split(lengths, closed):
    html = ">".join("x" * length for length in lengths) + ">" * closed
    assert list(_long_pieces(html)) == [piece for piece in html.split(">") if len(piece) > MAX_TAG]


def test_a_tree_is_too_deep_wherever_its_deepest_element_stands():
    for depth, deep in ((MAX_DEPTH - 3, False), (MAX_DEPTH - 2, True), (MAX_DEPTH + 50, True)):
        nested = "<i>text</i>" * 2 + "<div>" * depth + "words " * 30 + "</div>" * depth
        page = f"<html><body><nav>menu</nav>{nested}<p>end</p></body></html>"
        assert ("menu" in main_text(page)) == deep  # all the text instead of a search for the main part
