"""OBELICS' simplification of a page's tree, with the reference's results and in linear time.

Source: "OBELICS: An Open Web-Scale Filtered Dataset of Interleaved Image-Text Documents" (arXiv 2306.16527, §3.1 and
appendix A.1.2), with the constants of huggingface/OBELICS. The reference starts again from the root after every node
that it removes; here children are visited before their parents, which ends in the same tree after one pass.

The order of the steps is that of the configuration's keys. `Simplification` is the block `dom_tree_simplificator` of
the published YAML file, unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bloomery.core.errors import require
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.web.interleave.html_media import Attributes, image_source

BREAK = "#BR_TAG#"
SPECIAL_DIVS = frozenset({"footer", "header", "navigation", "nav", "navbar", "menu"})

INLINE = (
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "dfn", "em", "font", "i", "ins", "kbd",
    "mark", "q", "s", "samp", "shadow", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var",
    "wbr",
)  # fmt: skip
STRUCTURE = frozenset(
    [
        "address",
        "article",
        "aside",
        "blink",
        "blockquote",
        "body",
        "br",
        "caption",
        "center",
        "dd",
        "dl",
        "dt",
        "div",
        "figcaption",
        "h",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hgroup",
        "html",
        "legend",
        "main",
        "marquee",
        "ol",
        "p",
        "section",
        "summary",
        "title",
        "ul",
    ]
)
MEDIA = frozenset(["audio", "embed", "figure", "iframe", "img", "object", "picture", "video", "source"])

_LINES = re.compile(r"\n{2,}")
_SPACES = re.compile(r" {2,}")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_BREAKS = re.compile("<br>|<br/>|<br />|</br>")
_DIGITS = re.compile(r"\d+")


def _css_rules() -> list[str]:
    return ["[class~='footer']", "[class~='site-info']"]


def _css_texts() -> dict[str, str]:
    return {"[class~='more-link']": f"\n\n{END_OF_DOCUMENT}\n\n"}


@dataclass(frozen=True)
class Simplification:
    """Which steps run, and the two lists of CSS rules: nodes to remove, and nodes to replace by a text."""

    strip_multiple_linebreaks: bool = True
    strip_multiple_spaces: bool = True
    remove_html_comments: bool = True
    replace_line_break_tags: bool = True
    unwrap_tags: bool = True
    strip_tags: bool = True
    strip_special_divs: bool = True
    remove_dates: bool = True
    remove_empty_leaves: bool = True
    unnest_nodes: bool = True
    remake_tree: bool = True
    css_rules: list[str] = field(default_factory=_css_rules)
    css_rules_replace_with_text: dict[str, str] = field(default_factory=_css_texts)


def parse(html: str) -> Any:
    """The tree of a page, by the Modest engine of selectolax, which corrects markup as the reference's does."""
    return require("selectolax.parser", "interleave").HTMLParser(html)


def prepare(html: str, steps: Simplification) -> str:
    """The page's source before it is parsed: fewer line ends and spaces, no comments, a mark for line breaks."""
    if steps.strip_multiple_linebreaks:
        html = _LINES.sub("\n", html)
    if steps.strip_multiple_spaces:
        html = _SPACES.sub(" ", html)
    if steps.remove_html_comments and "<!--" in html:
        html = without_comments(html)
    if steps.replace_line_break_tags:
        html = _BREAKS.sub(BREAK, html)
    return html


def without_comments(html: str) -> str:
    """The source without comments; one that never ends stays, and is looked for only once."""
    end = html.rfind("-->")
    return _COMMENT.sub("", html[: end + 3]) + html[end + 3 :] if end >= 0 else html


def simplify(html: str, steps: Simplification | None = None) -> Any:
    """The simplified tree of a page (a selectolax `HTMLParser`; `.html` is its source)."""
    steps = steps or Simplification()
    tree = parse(prepare(html, steps))
    for rule in steps.css_rules:
        for node in reversed(tree.css(rule)):  # inner nodes first: what is gone is not looked at again
            if node.tag != "html":
                node.decompose()
    for rule, text in steps.css_rules_replace_with_text.items():
        for node in tree.css(rule):
            node.replace_with(text)
    if steps.unwrap_tags:
        tree.unwrap_tags(list(INLINE))
        tree.strip_tags(list(INLINE))  # empty ones are left by the line above
    if steps.strip_tags:
        tags = {node.tag for node in tree.root.traverse()}
        tree.strip_tags(sorted(tag for tag in tags if _DIGITS.sub("", tag) not in STRUCTURE | MEDIA))
    if steps.strip_special_divs:
        divs = [node for node in tree.root.traverse() if node.tag == "div"]
        for node in reversed([div for div in divs if is_special(div.attributes)]):
            node.decompose()
    if steps.remove_dates:
        _remove_dates(tree)
    if steps.remove_empty_leaves:
        _remove_empty_leaves(tree)
    if steps.unnest_nodes:
        _unnest(tree)
    return parse(tree.html) if steps.remake_tree else tree


def is_special(attributes: Attributes) -> bool:
    """Whether a block calls itself a part of the page's frame, by exactly such a name."""
    return any(attributes.get(name) in SPECIAL_DIVS for name in ("id", "class", "title"))


def _remove_dates(tree: Any) -> None:
    """Remove the texts that are children of a `div` whose class contains "date" ("update" contains it, too)."""
    dated = [n for n in tree.root.traverse() if n.tag == "div" and "date" in (n.attributes.get("class") or "")]
    for node in [text for div in dated for text in div.iter(include_text=True) if text.tag == "-text"]:
        node.decompose()


def _remove_empty_leaves(tree: Any) -> None:
    """Remove nodes without children and text, and media without an address, and what is empty then."""
    for node in reversed(list(tree.root.traverse())):
        if node.tag in MEDIA:
            if not _has_source(node):
                node.decompose(recursive=False)
        elif node.tag != "html" and not _has_children(node) and not node.text().strip():
            node.decompose(recursive=False)


def _has_source(media: Any) -> bool:
    """Whether the reference finds an address: of an image, or of a video or sound in its own `src`.

    It accepts a `source` inside the latter in its first turn, removes that for having no address itself, and so
    removes the other in the second turn.
    """
    if media.tag == "img":
        return bool(image_source(media.attributes))
    source = media.attributes.get("src") if media.tag in ("video", "audio") else None
    return bool(source and "," not in source and " " not in source)


def _has_children(node: Any) -> bool:
    return any(True for _ in node.iter())


def _unnest(tree: Any) -> None:
    """Replace a node whose only child has the same tag by that child, unless it has a text of its own."""
    for node in reversed(list(tree.root.traverse())):
        children = list(node.iter())
        if len(children) == 1 and children[0].tag == node.tag and not node.text(deep=False).strip():
            for text in [child for child in node.iter(include_text=True) if child.tag == "-text"]:
                text.decompose()
            node.unwrap()
