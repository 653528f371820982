from __future__ import annotations

import contextlib
import ipaddress
import string
from urllib.parse import urljoin

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bloomery.core.errors import WebError
from bloomery.web.urls import canonical, host_of, hostname_and_port, origin_of, resolve

CASES = {
    "HTTP://Example.COM": "http://example.com/",
    "http://example.com:80/a": "http://example.com/a",
    "https://example.com:443": "https://example.com/",
    "https://example.com:0444/": "https://example.com:444/",
    "http://example.com./a": "http://example.com/a",
    "http://bücher.example/ü?q=ß#top": "http://xn--bcher-kva.example/%C3%BC?q=%C3%9F",
    "http://a.example/b/../c/./d//e/..": "http://a.example/c/d//",
    "http://a.example/%7euser/%2e%2e/%41%2fb": "http://a.example/A%2Fb",
    "http://a.example/a b%zz": "http://a.example/a%20b%25zz",
    "  http://a.example/a\n b\t ": "http://a.example/a%20b",
    "http:\\\\a.example\\b?c\\d": "http://a.example/b?c%5Cd",
    "http://a.example/?utm_source=x&id=3&gclid=1": "http://a.example/?id=3",
    "http://a.example/?b=2&a=1&b=1": "http://a.example/?b=2&a=1&b=1",
    "http://a.example/?": "http://a.example/",
    "http://a.example/p;jsessionid=AB12?x=1": "http://a.example/p?x=1",
    "http://2130706433/": "http://127.0.0.1/",
    "http://0x7f.1/": "http://127.0.0.1/",
    "http://0177.0.0.01/": "http://127.0.0.1/",
    "http://%31%32%37.0.0.1/": "http://127.0.0.1/",
    "http://①②⑦.0.0.1/": "http://127.0.0.1/",
    "http://[::FFFF:7F00:1]:8080/": "http://[::ffff:127.0.0.1]:8080/"
    if ipaddress.IPv6Address("::ffff:7f00:1").compressed.endswith("127.0.0.1")
    else "http://[::ffff:7f00:1]:8080/",
}  # fmt: skip


@pytest.mark.parametrize(("given_url", "expected"), CASES.items())
def test_canonical_spelling(given_url: str, expected: str) -> None:
    assert canonical(given_url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "/a", "ftp://a.example/", "javascript:alert(1)", "http://", "http://a b/", "http://a..b/",
        "http://user:secret@a.example/", "http://a.example:99999/", "http://a.example:x/", "http://256.1.1.1/",
        "http://1.2.3.4.5/", "http://[::1", "http://[fe80::1%25eth0]/", "http://a.example/" + "x" * 3000,
    ],
)  # fmt: skip
def test_refused_with_a_reason(url: str) -> None:
    with pytest.raises(WebError):
        canonical(url)


def test_parts_of_a_canonical_url() -> None:
    assert host_of("http://a.example:8080/x") == "a.example:8080"
    assert origin_of("https://a.example/x?y") == "https://a.example"
    assert hostname_and_port("https://a.example/") == ("a.example", 443)
    assert hostname_and_port("http://[::1]:81/") == ("::1", 81)
    assert hostname_and_port("http://[::1]/") == ("::1", 80)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("b", "http://a.example/x/b"), ("/b", "http://a.example/b"), ("//c.example", "http://c.example/"),
        ("?q=2", "http://a.example/x/y?q=2"), ("#top", None), ("", None), ("mailto:a@b.c", None),
        ("javascript:void(0)", None), ("../../..", "http://a.example/"), ("https:/odd", None),
        ("HTTPS://C.Example/", "https://c.example/"), ("http://[bad", None),
    ],
)  # fmt: skip
def test_resolve(link: str, expected: str | None) -> None:
    assert resolve("http://a.example/x/y?q=1", link) == expected


_label = st.text(string.ascii_letters + string.digits + "äßé", min_size=1, max_size=8)
_path = st.text(string.printable + "äß漢%", max_size=40)


@settings(deadline=None, max_examples=200)
@given(st.lists(_label, min_size=1, max_size=3), _path, _path)
def test_canonical_is_idempotent(labels: list[str], path: str, query: str) -> None:
    try:
        once = canonical(f"http://{'.'.join(labels)}.example/{path}?{query}")
    except WebError:
        assume(False)
    assert canonical(once) == once
    assert once.isascii()
    assert "#" not in once


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_web_error(text: str) -> None:
    with contextlib.suppress(WebError):
        assert canonical(text) == canonical(canonical(text))
    link = resolve("http://a.example/b/c", text)
    assert link is None or canonical(link) == link


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["a", "b.html", "..", ".", "c"]), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_resolve_agrees_with_the_standard_library(segments: list[str], rooted: bool, slash: bool) -> None:
    link = ("/" if rooted else "") + "/".join(segments) + ("/" if slash else "")
    base = "http://a.example/d/e/f"
    assert resolve(base, link) == canonical(urljoin(base, link))
