"""Docstring markup becomes HTML that says the same; no text is lost and nothing is executed by a browser."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.worlds.installed_docs.prose import inline, plain, render, summary


def known(name: str, sure: bool) -> str | None:
    return f"/{name}" if name in ("a.b", "json.dump") or (sure and name == "len") else None


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("see `a.b` now", 'see <a href="/a.b"><code>a.b</code></a> now'),
        ("see :func:`~a.b`", 'see <a href="/a.b"><code>b</code></a>'),
        ("see :py:meth:`text <a.b>`", 'see <a href="/a.b"><code>text</code></a>'),
        ("``json.dump()``", '<a href="/json.dump"><code>json.dump()</code></a>'),
        ("`len` and :func:`len`", '<code>len</code> and <a href="/len"><code>len</code></a>'),
        ("x < 1 & **bold** *it*", "x &lt; 1 &amp; <strong>bold</strong> <em>it</em>"),
        ("2*3*4 and a * b", "2*3*4 and a * b"),
        ("``<script>``", "<code>&lt;script&gt;</code>"),
    ],
)
def test_inline(text: str, html: str) -> None:
    assert inline(text, known) == html


@pytest.mark.parametrize("text", ["http://example.org/x", "`title <http://example.org/x>`_"])
def test_urls_are_shown_without_leaving_the_site(text: str) -> None:
    html = inline(text, known)
    assert "http://example.org/x" in html
    assert "<a" not in html


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("One\nline.\n\nTwo.", "<p>One line.</p>\n<p>Two.</p>"),
        ("Code::\n\n    x = 1\n\n      y\n\nEnd.", "<p>Code:</p>\n<pre><code>x = 1\n\n  y</code></pre>\n<p>End.</p>"),
        ("Text:\n>>> 1 < 2\nTrue", "<p>Text:</p>\n<pre><code>&gt;&gt;&gt; 1 &lt; 2\nTrue</code></pre>"),
        ("- one\n- two\n  more", "<ul>\n<li>one</li>\n<li>two more</li>\n</ul>"),
        ("1. one\n2. two", "<ol>\n<li>one</li>\n<li>two</li>\n</ol>"),
        (
            "Parameters\n----------\nx, y : int, optional\n    The point.\nz\n    Height.",
            "<h2>Parameters</h2>\n<dl>\n<dt><code>x, y</code> : <em>int, optional</em></dt><dd><p>The point.</p></dd>\n"
            "<dt>z</dt><dd><p>Height.</p></dd>\n</dl>",
        ),
        (
            "Args:\n    x (int): The point\n        there.\n    y: Other.\n\nReturns:\n    Nothing.",
            "<h2>Args</h2>\n<dl>\n<dt><code>x</code> <em>(int)</em></dt><dd><p>The point there.</p></dd>\n"
            "<dt><code>y</code></dt><dd><p>Other.</p></dd>\n</dl>\n<h2>Returns</h2>\n<p>Nothing.</p>",
        ),
        (
            ":param x: the point\n:returns: it",
            "<dl>\n<dt>param <code>x</code></dt><dd><p>the point</p></dd>\n<dt>returns</dt><dd><p>it</p></dd>\n</dl>",
        ),
        (
            ".. note::\n   Beware.\n\nEnd.",
            '<div class="admonition note"><p class="title">Note</p>\n<p>Beware.</p>\n</div>\n<p>End.</p>',
        ),
        (".. code-block:: python\n   :linenos:\n\n   x = 1", "<pre><code>x = 1</code></pre>"),
        ("```python\nx = 1\n```\nEnd.", "<pre><code>x = 1</code></pre>\n<p>End.</p>"),
        ("=====\nTitle\n=====\n\nText.", "<h2>Title</h2>\n<p>Text.</p>"),
        ("=== ===\na   b\n=== ===", "<pre><code>=== ===\na   b\n=== ===</code></pre>"),
    ],
)
def test_blocks(doc: str, expected: str) -> None:
    assert render(doc, known) == expected


LINES = st.sampled_from(
    """
|word word|  indented|    deep|- item|* x|1. one|>>> f(1)|Title|-----|=====|Args:|    x (int): the x|x : int|Code::
|.. note::|.. code:: python|```|:param x: y|`a.b` <b>&
""".replace("\n", "").split("|")
)


@settings(deadline=None, max_examples=200)
@given(st.lists(LINES, max_size=14))
def test_no_word_is_lost_and_tags_balance(lines: list[str]) -> None:
    doc = "\n".join(lines)
    html = render(doc, known)
    stack: list[str] = []
    for closing, tag in re.findall(r"<(/?)([a-z]+\d?)[^>]*>", html):
        if closing:
            assert stack.pop() == tag
        elif tag != "hr":
            stack.append(tag)
    assert not stack
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    for word in ("word", "indented", "deep", "Title", "item"):
        assert text.count(word) == doc.count(word)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=200))
def test_any_text_renders(text: str) -> None:
    html = render(text, known)
    assert "<script" not in html
    summary(text)


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Join paths. Then more.", "Join paths."),
        ("Join\npaths, e.g. a file. More.", "Join paths, e.g. a file."),
        ("Title\n=====\n\nThe first. Second.", "The first."),
        ("A heading without end\n\nBody.", "A heading without end"),
        (">>> 1\n\nAfter code.", "After code."),
        ("Version 3.11 is new. Yes.", "Version 3.11 is new."),
        (":param x: only fields", ""),
        ("Args:\n    x: only", ""),
        ("", ""),
    ],
)
def test_summary(doc: str, sentence: str) -> None:
    assert summary(doc) == sentence


def test_summary_is_cut_at_a_word() -> None:
    cut = summary("word " * 100, limit=50)
    assert len(cut) <= 50
    assert cut.endswith("word …")


def test_plain() -> None:
    assert plain("Like :func:`~os.walk` and ``x``.") == "Like `os.walk` and `x`."
