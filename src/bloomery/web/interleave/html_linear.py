"""A page's tree to a list of texts and images in reading order.

The texts between two images become one. What separates two texts in it is the strongest of: the tags that are left and
entered between them (blank line for paragraphs, headings and lists, line end for other blocks), and the white space
that the texts themselves have there. So the paragraphs of a text are what stands between blank lines.

`linear` is our default: the method of OBELICS (arXiv 2306.16527, appendix A.1.2) as one walk over the tree as it was
parsed, in which figures, pictures, list items, tables and preformatted text keep what they hold. `reference_linear`
walks over a simplified tree (`html_dom.simplify`) and gives the reference's nodes exactly.

Neither uses recursion, so the depth of a page does not matter.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT, Part
from bloomery.web.interleave.html_dom import BREAK, INLINE, MEDIA, is_special
from bloomery.web.interleave.html_media import image_info, join, reference_info

# Strength of a separator: nothing, a space, a line end, a blank line.
SEPARATORS = ("", " ", "\n", "\n\n")
SPACE, LINE, BLANK = 1, 2, 3

# The reference's tags; others that it keeps ("body", "caption", "h", "html", "title", "blink") do not separate.
STRENGTH = {
    **dict.fromkeys(("blockquote", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "ul"), BLANK),
    **dict.fromkeys(("address", "article", "aside", "center", "dd", "dt", "div", "figcaption", "hgroup"), LINE),
    **dict.fromkeys(("legend", "main", "marquee", "section", "summary"), LINE),
}
# Ours: what the reference keeps, and what it loses with its content.
BLOCKS = {
    **STRENGTH,
    **dict.fromkeys(("html", "body", "blink", "h", "title", "picture", "tbody", "thead", "tfoot"), 0),
    **dict.fromkeys(("td", "th"), SPACE),
    **dict.fromkeys(("caption", "details", "figure", "li", "tr"), LINE),
    **dict.fromkeys(("pre", "table"), BLANK),
}
_INLINE = frozenset(INLINE)

_WHITE = re.compile(r"[ \t\n\r\f]+")
_AROUND_BREAK = re.compile(r" ?\n ?")
_BREAKS = re.compile(r"\n{3,}")
_SPACES = re.compile(r" {2,}")


class Joiner:
    """Collects texts, separators and images; `parts` is the result after `finish`."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._pieces: list[str] = []  # the current text
        self._path: list[int] = []  # strength of every open tag, the root first
        self._common = 0  # how many of them were open at the last text and have been since
        self._left = 0  # the strongest of those that were open at the last text and are not any more

    def open(self, strength: int) -> None:
        """A tag begins."""
        self._path.append(strength)

    def close(self) -> None:
        """The last tag that began ends."""
        strength = self._path.pop()
        if len(self._path) < self._common:
            self._common = len(self._path)
            self._left = max(self._left, strength)

    def text(self, text: str) -> None:
        """A formatted text; its outer white space takes part in the separator."""
        if self._pieces:
            before = self._pieces.pop()
            while len(before) < 4 and self._pieces:  # enough of the text to see the white space at its end
                before = self._pieces.pop() + before
            strength = max([self._left, *self._path[self._common :]])
            for level in (BLANK, LINE, SPACE):
                mark = SEPARATORS[level]
                if before.endswith(mark):
                    strength, before = max(strength, level), before[: -len(mark)]
                if text.startswith(mark):
                    strength, text = max(strength, level), text[len(mark) :]
            self._pieces.append(before + SEPARATORS[strength])
        self._pieces.append(text)
        self._common, self._left = len(self._path), 0

    def image(self, ref: str, meta: dict[str, Any]) -> None:
        """An image, which ends the current text."""
        self.finish()
        self.parts.append(Part(ref=ref, meta=meta))

    def finish(self) -> None:
        """End the current text."""
        text = "".join(self._pieces).strip()
        if text:
            self.parts.append(Part(text))
        self._pieces = []


def reference_linear(tree: Any, url: str) -> list[Part]:
    """The reference's text and image nodes of a simplified tree; images have its metadata."""
    joiner = Joiner()
    joiner.open(0)
    parents: list[Any] = []
    node = tree.root.child
    while node is not None or parents:
        if node is None:
            joiner.close()
            node = parents.pop().next
            continue
        tag = node.tag
        if tag == "-text":
            text = node.text(deep=False)
            if text:
                joiner.text(reference_format(text))
        elif tag == "img":
            info = reference_info(node.attributes, url)
            if info:
                joiner.image(info["src"], info)
        elif tag not in MEDIA and node.child is not None:
            joiner.open(STRENGTH.get(tag, 0))
            parents.append(node)
            node = node.child
            continue
        node = node.next
    joiner.finish()
    return joiner.parts


def reference_format(text: str) -> str:
    """White space as the reference leaves it: spaces collapsed, one at each end at most, breaks as line ends."""
    text = _SPACES.sub(" ", text.replace("\n", " ").replace("\t", " "))
    before, after = text[0] == " ", text[-1] == " " and len(text) > 1
    return " " * before + "\n".join(line.strip() for line in text.split(BREAK)) + " " * after


class _Open(NamedTuple):
    """A tag that the walk is inside of."""

    node: Any
    block: bool
    dated: bool  # its text is a date


def linear(tree: Any, url: str) -> list[Part]:
    """Texts and images of a page as it was parsed, in reading order.

    Left out, with what they hold: navigation, headers, footers, forms and buttons, scripts, embedded pages, sound and
    video, tags that nobody knows; what calls itself footer or site-info, and blocks that call themselves header,
    navigation, nav, navbar or menu; the direct text of blocks that call themselves a date.
    """
    declared = tree.css_first("base[href]")
    base = (join(url, declared.attributes["href"] or "") if declared is not None else url) or url
    dropped = {node.mem_id for node in tree.css("[class~='footer'], [class~='site-info']") if node.tag != "html"}
    ends = {node.mem_id for node in tree.css("[class~='more-link']")}
    joiner, raw = Joiner(), list[str]()  # `raw`: texts with no block between them
    stack: list[_Open] = []
    pre, source = 0, None  # preformatted blocks around the node; attributes of a <source> before the image
    node = tree.root
    while node is not None or stack:
        if node is None:
            left = stack.pop()
            if left.block:
                _flush(joiner, raw, pre)
                joiner.close()
                pre -= left.node.tag == "pre"
            node = left.node.next
            continue
        tag = node.tag
        if tag == "-text":
            if not stack[-1].dated:
                raw.append(node.text(deep=False) if pre else _WHITE.sub(" ", node.text(deep=False)))
        elif tag == "br":
            raw.append("\n")
        elif tag == "img":
            found = image_info(node.attributes, base) or (image_info(source, base) if source else None)
            if found:
                _flush(joiner, raw, pre)
                joiner.image(*found)
        elif tag == "source":
            source = node.attributes
        elif (tag in _INLINE or tag in BLOCKS) and node.mem_id not in dropped:
            block = tag not in _INLINE
            attributes = node.attributes if tag == "div" else {}
            if node.mem_id in ends:
                _flush(joiner, raw, pre)
                joiner.text(f"\n\n{END_OF_DOCUMENT}\n\n")
            elif node.child is not None and not is_special(attributes):
                if block:
                    _flush(joiner, raw, pre)
                    joiner.open(BLOCKS[tag])
                    pre += tag == "pre"
                    source = None
                dated = "date" in (attributes.get("class") or "") if block else stack[-1].dated
                stack.append(_Open(node, block, dated))
                node = node.child
                continue
        node = node.next
    joiner.finish()
    return joiner.parts


def _flush(joiner: Joiner, raw: list[str], pre: int) -> None:
    """Format what has been read since the last block and hand it on."""
    text = "".join(raw)
    raw.clear()
    if not text.strip():
        return
    if pre:
        joiner.text(text.strip("\n"))
    else:
        joiner.text(_BREAKS.sub("\n\n", _AROUND_BREAK.sub("\n", _SPACES.sub(" ", text))))
