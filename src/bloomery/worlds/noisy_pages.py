"""A web of documentation and junk with known truth: what every page is, and which paragraphs stand on it for how often.

Good pages carry docstrings of the running Python's standard library. The rest are what a crawl is full of: listings of
source code, lists of links, product pages from a template, word salad, copies of good pages with a few words changed,
and pages that repeat paragraphs of others. All are wrapped in HTML with navigation and a footer.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomery.core.seeds import rng

KINDS = ("good", "copy", "source", "links", "product", "salad")
SHARES = (0.2, 0.1, 0.1, 0.2, 0.2, 0.2)
EDITS = 0.05  # share of the words of a copy that are changed
QUOTED = 0.3  # share of the good pages that carry a paragraph of an earlier one
SECTIONS = ("Home", "News", "About", "Contact", "Help", "Shop", "Blog", "Archive", "Login", "Search")
THINGS = ("lamp", "chair", "kettle", "phone", "watch", "bag", "mouse", "camera", "tent", "bottle")
QUALITIES = ("new", "cheap", "premium", "classic", "modern", "small", "large", "light", "smart", "best")


@dataclass(frozen=True)
class NoisyPage:
    """One page: its address, its HTML, what it is, and the paragraphs of its main text."""

    url: str
    html: str
    kind: str
    paragraphs: tuple[str, ...]


def noisy_pages(good: Sequence[str], source: Sequence[str], count: int, seed: int = 0) -> list[NoisyPage]:
    """`count` pages in random order, of texts `good` and listings `source` (both are used up to what is needed)."""
    random = rng(seed, "noisy pages")
    kinds = random.choice(KINDS, count, p=SHARES)
    texts, listings = iter(_cycle(good, random)), iter(_cycle(source, random))
    vocabulary = sorted({word for text in good[:200] for word in text.split() if word.isalpha()})
    made: list[list[str]] = []
    pages = []
    for number, kind in enumerate(kinds):
        if kind == "copy" and not made:
            kind = "good"
        paragraphs = _paragraphs(str(kind), made, texts, listings, vocabulary, random)
        if kind == "good":
            if made and random.random() < QUOTED:
                other = made[random.integers(len(made))]
                paragraphs = [*paragraphs, other[random.integers(len(other))]]
            made.append(paragraphs)
        host = f"{kind}{random.integers(40)}.example"
        url = f"https://{host}/{number}"
        pages.append(NoisyPage(url, _html(host, paragraphs, random), str(kind), tuple(paragraphs)))
    return pages


def _paragraphs(
    kind: str,
    made: list[list[str]],
    texts: Iterator[str],
    listings: Iterator[str],
    vocabulary: list[str],
    random: np.random.Generator,
) -> list[str]:
    if kind == "good":
        return [p for p in (" ".join(part.split()) for part in next(texts).split("\n\n")) if p]
    if kind == "copy":
        return [_edited(p, vocabulary, random) for p in made[random.integers(len(made))]]
    if kind == "source":
        return [next(listings)]
    if kind == "links":
        return [f"{_pick(SECTIONS, random)} {_pick(THINGS, random)} {n}" for n in random.integers(1_000, size=40)]
    if kind == "product":
        thing, price = _pick(THINGS, random), random.integers(5, 500)
        count = int(random.integers(6, 20))
        lines = [f"{_pick(QUALITIES, random)} {thing} only {price} dollars buy now" for _ in range(count)]
        return [*lines, "Sign-in", f"{random.integers(1, 900)} likes"]
    return [" ".join(random.choice(vocabulary, 80)) for _ in range(3)]


def _edited(paragraph: str, vocabulary: list[str], random: np.random.Generator) -> str:
    words = paragraph.split()
    changed = random.random(len(words)) < EDITS
    return " ".join(_pick(vocabulary, random) if c else word for word, c in zip(words, changed, strict=True))


def _html(host: str, paragraphs: Sequence[str], random: np.random.Generator) -> str:
    links = "".join(f'<li><a href="/{name.lower()}">{name}</a></li>' for name in SECTIONS)
    body = "\n".join(f"<pre>{html.escape(p)}</pre>" if "\n" in p else f"<p>{html.escape(p)}</p>" for p in paragraphs)
    return (
        f"<!doctype html><html lang=en><head><title>{host} {random.integers(10_000)}</title></head><body>"
        f"<nav><ul>{links}</ul></nav><main><article>{body}</article></main>"
        f"<footer>Copyright {host}. All rights reserved.</footer></body></html>"
    )


def _cycle(texts: Sequence[str], random: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (texts[i] for i in random.permutation(len(texts)))


def _pick(choices: Sequence[str], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]
