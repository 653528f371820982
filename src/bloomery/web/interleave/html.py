"""HTML to interleaved parts, as OBELICS and MINT-1T make them (arXiv 2306.16527, §3.1; arXiv 2406.11271, §3.1.1).

    tame: what would stall the parser is cut or refused
    html_dom.simplify + html_linear.reference_linear      with `compat=True`: the reference's nodes
    html_linear.linear                                    by default

By default figures, pictures, list items, tables and preformatted text stay, which the reference loses with their images
and captions, and relative addresses are resolved as browsers do. Both take time linear in the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloomery.core.config import decode, load_yaml
from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved import Part
from bloomery.web.extract import refuse_hostile, without_surrogates
from bloomery.web.interleave.html_dom import Simplification, parse, simplify
from bloomery.web.interleave.html_linear import linear, reference_linear

SMALL = 1500  # tags; a page of fewer cannot stall the parser
MAX_DEPTH = 512  # blocks within blocks that are kept, as in browsers; for every one the parser looks at all around it
MAX_COPIES = 2_000_000  # formatting elements that an unclosed one may be opened again in

_FORMATS = frozenset({"b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"})
_NEVER_OPEN = frozenset(  # without content, or closed by the next one
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
    | {"a", "caption", "colgroup", "dd", "dt", "li", "optgroup", "option", "p", "rp", "rt"}
    | {"tbody", "td", "tfoot", "th", "thead", "tr"}
)
_TAG = re.compile(
    r"""<(?: !--(?:.*?-->|.*)
        | (?:script|style|textarea|title|xmp|iframe)\b(?:.*?</(?:script|style|textarea|title|xmp|iframe)|.*)
        | (/?)([a-z][a-z0-9]*)[^>]*>?)""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True)
class Extraction:
    """The published configuration of the extraction, `config_extract_web_documents.yaml`, unchanged."""

    dom_tree_simplificator: Simplification = field(default_factory=Simplification)
    pre_extraction_simplificator: dict[str, bool] = field(default_factory=dict)
    web_document_extractor: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = {"only_text_image_nodes": True, "format_texts": True, "merge_consecutive_text_nodes": True}
        for name, value in self.pre_extraction_simplificator.items():
            if steps.get(name) is not value:
                raise ConfigError(
                    f"{name}: {value}", where="pre_extraction_simplificator", fix=f"these are always on: {list(steps)}"
                )
        if self.web_document_extractor.get("resize_mode", False) not in (False, "no"):
            raise ConfigError(
                f"resize_mode: {self.web_document_extractor['resize_mode']}", where="web_document_extractor",
                fix='images are kept as they are: resize_mode "no"',
            )  # fmt: skip


def load_extraction(path: Path) -> Extraction:
    """Read the published configuration, or one like it."""
    return decode(Extraction, load_yaml(path), where=str(path))


def html_parts(html: str, url: str, *, compat: bool = False, steps: Simplification | None = None) -> list[Part]:
    """The texts and images of a page in reading order; images have an address and no bytes.

    Args:
        html: the page's source.
        url: its address, canonical (`web.canonical`); relative addresses are resolved against it.
        compat: the reference's nodes and metadata, with its losses.
        steps: which of the reference's steps run, with `compat`.

    Raises:
        DataError: the page is too large or built to stall a parser; the caller counts it as one bad record.
    """
    if steps and not compat:
        raise ConfigError("steps are the reference's", fix="compat=True")
    html = without_surrogates(html)
    refuse_hostile(html)
    html = tame(html)
    return reference_linear(simplify(html, steps), url) if compat else linear(parse(html), url)


def tame(html: str) -> str:
    """The page without the tags that would stall the parser, which almost every page has none of.

    For every block the parser looks at all the blocks around it; and formatting that is never closed is opened again
    in every block that follows. So blocks deeper than `MAX_DEPTH` lose their tags (and keep what they hold), and so
    does formatting when so much of it is open that the copies could be more than `MAX_COPIES`.
    """
    tags = html.count("<")
    if tags <= SMALL:
        return html
    blocks, formats = _Open(MAX_DEPTH), _Open(max(1, MAX_COPIES // tags))
    kept, done = [], 0
    for found in _TAG.finditer(html):
        name = (found[2] or "").lower()
        if not name or name in _NEVER_OPEN:
            continue
        if (formats if name in _FORMATS else blocks).is_too_deep(opens=not found[1]):
            kept.append(html[done : found.start()])
            done = found.end()
    return "".join([*kept, html[done:]]) if done else html


@dataclass
class _Open:
    """How many tags are open, of at most `most`; those beyond are to be cut, and their ends with them."""

    most: int
    inside: int = 0
    beyond: int = 0

    def is_too_deep(self, opens: bool) -> bool:
        """Count a tag that begins or ends."""
        if opens:
            deep = self.inside >= self.most
            self.inside, self.beyond = self.inside + (not deep), self.beyond + deep
        else:
            deep = self.beyond > 0
            self.inside, self.beyond = max(0, self.inside - (not deep)), self.beyond - deep
        return deep
