"""HTML to text and links.

Text comes from Resiliparse's parser: `main_text` keeps the body of the article and leaves navigation out, `full_text`
keeps everything a reader would see. Links come from one scan of the source instead of a parse, because a crawler needs
them from every page at once: it is several times faster than building the tree, its time is linear in the page's size
whatever the page does, and it finds the same links (a test compares the two on real pages).
"""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bloomery.core.errors import ConfigError, DataError, require
from bloomery.web.urls import resolve

Mode = Literal["main", "full", "trafilatura"]
MAX_CHARS = 20_000_000  # a larger page is data, and a parser's worst cases are no longer bounded usefully
MAX_DEPTH = 300  # elements within elements; Resiliparse's search for the main content is quadratic in this
MAX_TAG = 30_000  # characters in one tag before its attributes are counted
MAX_ATTRIBUTES = 3_000  # a parser's duplicate check is quadratic in this
ANCHOR_CHARS = 200

_TAG = re.compile(
    r"""<(?:
          !--(?:.*?-->|.*)                                                  # a comment, to the end if never closed
        | (?:script|style|textarea|title|xmp|iframe)\b(?:.*?</(?:script|style|textarea|title|xmp|iframe)|.*)
        | (a|area|base|meta)[\s/]                                           # 1: name
          ((?:[^<>"']++ | "[^"]{0,4096}+" | '[^']{0,4096}+' | ["']){0,200}+)>  # 2: attributes
    )""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_ATTRIBUTE = r"(?:^|[\s\"'/]){}\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'<>]+))"
_HREF = re.compile(_ATTRIBUTE.format("href"), re.IGNORECASE)
_NAME = re.compile(_ATTRIBUTE.format("name"), re.IGNORECASE)
_CONTENT = re.compile(_ATTRIBUTE.format("content"), re.IGNORECASE)
_NOFOLLOW = re.compile(r"\b(?:nofollow|none)\b", re.IGNORECASE)
_ANCHOR_END = re.compile(r"</?a\b", re.IGNORECASE)
_ANY_TAG = re.compile(r"<[^<>]*>")
_WHITE = re.compile(r"\s+")
_LANGUAGE = re.compile(r"<html\s[^<>]*?\blang\s*=\s*[\"']?([A-Za-z][A-Za-z0-9-]{1,20})", re.IGNORECASE)
_HIGH_LISTS = ("body > p + ul", "body > * > p + ul", "body > * > * > p + ul")
_TOO_DEEP = " > ".join([*["*"] * (MAX_DEPTH - 1), ":first-child"])  # where an element is, its parent's first child is
_ODD = ", ".join((*_HIGH_LISTS, _TOO_DEEP))  # one walk through the tree, which costs more than the comparisons


class Anchor(NamedTuple):
    """A link on a page: where it leads (canonical) and its text."""

    url: str
    text: str


@dataclass(frozen=True)
class Extracted:
    """What a corpus wants of a page. `language` is what the page declares ("" when it does not)."""

    text: str
    title: str
    language: str


def main_text(html: str) -> str:
    """The main content as plain text, paragraphs on lines of their own."""
    return extract(html, "main").text


def full_text(html: str) -> str:
    """All visible text, navigation and footers included."""
    return extract(html, "full").text


def title(html: str) -> str:
    """The page's title, white space collapsed."""
    return extract(html, "full").title


def extract(html: str, mode: Mode = "main") -> Extracted:
    """Text, title and declared language of a page.

    Raises:
        DataError: the page is too large or built to stall a parser; the caller counts it as one bad record.
    """
    if mode not in ("main", "full", "trafilatura"):
        raise ConfigError(f"unknown extractor {mode!r}", fix="use main, full or trafilatura")
    html = without_surrogates(html)
    refuse_hostile(html)
    tree = require("resiliparse.parse.html", "web").HTMLTree.parse(html)
    declared = _LANGUAGE.search(html[:20_000])
    return Extracted(
        text=_text(html, tree, mode).strip(),
        title=_WHITE.sub(" ", tree.title or "").strip(),
        language=declared[1].lower() if declared else "",
    )


def links(html: str, url: str) -> list[Anchor]:
    """The web links of the page at canonical `url`, each address once, in order of appearance.

    Honours `<base href>`; a page whose robots meta tag says nofollow has none.
    """
    base = url
    found: dict[str, str] = {}
    for match in _TAG.finditer(html):
        name = match[1]
        if name is None:
            continue
        name = name.lower()
        if name == "meta":
            if _value(_NAME, match[2]).lower() == "robots" and re.search(
                r"nofollow|none", _value(_CONTENT, match[2]), re.I
            ):
                return []
            continue
        target = resolve(base, _value(_HREF, match[2]))
        if target is None:
            continue
        if name == "base":
            base = target if base is url else base  # only the first one counts
        elif target not in found:
            found[target] = _anchor_text(html, match.end()) if name == "a" else ""
    return [Anchor(target, text) for target, text in found.items()]


def _value(attribute: re.Pattern[str], source: str) -> str:
    match = attribute.search(source)
    if match is None:
        return ""
    value = match[1] or match[2] or match[3] or ""
    return entities.unescape(value) if "&" in value else value


def _anchor_text(html: str, start: int) -> str:
    end = _ANCHOR_END.search(html, start, start + 2000)
    text = html[start : end.start()] if end else ""
    if "<" in text:
        text = _ANY_TAG.sub(" ", text)
    if "&" in text:
        text = entities.unescape(text)
    return " ".join(text.split())[:ANCHOR_CHARS]


def _text(html: str, tree: Any, mode: Mode) -> str:
    if mode == "trafilatura":
        return require("trafilatura", "extract").extract(html, include_comments=False) or ""
    if tree.body is None:
        return ""
    plain = require("resiliparse.extract.html2text", "web").extract_plain_text
    if mode == "full":
        return str(plain(tree, main_content=False, noscript=True))
    lists = []
    for element in tree.document.query_selector_all(_ODD):
        if not _is_high(element):
            return str(plain(tree, main_content=False, noscript=True))
        lists.append(element)
    _lower(lists, tree)
    return str(plain(tree, main_content=True, alt_texts=False, comments=False))


def _is_high(element: Any) -> bool:
    """Whether the body is at most three elements above."""
    for _ in range(3):
        element = element.parent
        if element.tag == "body":
            return True
    return False


def _lower(lists: list[Any], tree: Any) -> None:
    """Wrap the lists that follow a paragraph close to the body in elements without meaning.

    Resiliparse takes every bullet list less than three elements below the body for the site's navigation. On pages of
    simple markup that is where the text is, and a list that continues a paragraph is text.
    """
    for bullets in lists:
        outer = inner = tree.create_element("div")
        for _ in range(2):
            inner = inner.append_child(tree.create_element("div"))
        bullets.parent.insert_before(outer, bullets)
        inner.append_child(bullets)


def without_surrogates(html: str) -> str:
    """The text with U+FFFD for what UTF-8 cannot hold."""
    try:
        html.encode()  # ten times faster than looking for them
    except UnicodeEncodeError:
        return html.encode("utf-8", "replace").decode()
    return html


def _long_pieces(html: str) -> Iterator[str]:
    """What stands between two ">" where it is longer than MAX_TAG characters."""
    start = 0
    while start + MAX_TAG < len(html):
        end = html.rfind(">", start, start + MAX_TAG + 1)
        if end < 0:
            end = html.find(">", start + MAX_TAG + 1)
            end = len(html) if end < 0 else end
            yield html[start:end]
        start = end + 1


def refuse_hostile(html: str) -> None:
    """Raise `DataError` for a page that is too large or has tags that a parser takes quadratic time for."""
    if len(html) > MAX_CHARS:
        raise DataError(f"a page of {len(html):,} characters", fix=f"at most {MAX_CHARS:,} are extracted")
    for piece in _long_pieces(html):
        opening = re.search(r"<[A-Za-z]", piece)
        if opening and len(piece[opening.start() :].split(None, MAX_ATTRIBUTES)) > MAX_ATTRIBUTES:
            raise DataError(f"a tag with more than {MAX_ATTRIBUTES:,} attributes")
