"""A web of illustrated articles with known truth: the order of paragraphs and images, what is boilerplate, what is bad.

Every article alternates paragraphs with pictures of shapes; the paragraph after a picture begins with the name of its
shape. Around it stands what crawled pages have: navigation, a footer, and lines that repeat on every page of a host.
Bad images are planted: a header on all pages of a host, icons, banners. One page in twenty shows an avatar, for which
MINT-1T drops the page (arXiv 2406.11271, §3.1.1); one in ten is a copy of another at a new address.
"""

from __future__ import annotations

import html
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bloomery.core.seeds import rng

COLOURS = {"red": (200, 40, 40), "green": (40, 150, 60), "blue": (40, 80, 200), "black": (30, 30, 30)}
COPIES = 0.1  # share of pages that repeat another one
AVATARS = 0.05  # share of pages with an image whose address is banned
PAGES_PER_HOST = 25  # or a few more; all, where there are fewer
DETERMINERS = ("the", "the", "the", "a", "this", "every", "another", "her", "his", "our")
ADJECTIVES = ("old", "young", "quiet", "tall", "wooden", "empty", "distant", "broken", "famous", "narrow", "heavy",
              "wet", "painted", "hidden", "rich", "foreign", "gentle", "small", "silver", "patient")  # fmt: skip
NOUNS = ("river", "miller", "bridge", "painter", "market", "house", "hill", "letter", "church", "map", "lake", "garden",
         "railway", "boat", "teacher", "captain", "gate", "baker", "window", "student", "harbour", "forest", "clock",
         "doctor", "village", "tower", "road", "kitchen", "island", "guest", "field", "lamp")  # fmt: skip
VERBS = ("found", "watched", "described", "followed", "remembered", "painted", "carried", "forgot", "visited",
         "repaired", "measured", "admired", "crossed", "opened", "feared", "bought")  # fmt: skip
PREPOSITIONS = ("near", "with", "behind", "after", "before", "under", "beside", "without", "of", "from")
LINKS = ("and", "but", "while", "because", "so that", "until", "and then", "although")

_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # of a shape that reaches from -1 to 1
    "circle": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.9,
    "triangle": lambda u, v: (v < 0.8) & (v > 2 * abs(u) - 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.35),
    "bars": lambda u, v: (abs(u) < 1) & (abs(v) < 1) & ((v * 2.5).astype(int) % 2 == 0),
}
SHAPES = tuple(_INSIDE)

Item = tuple[Literal["text", "image"], str]


@dataclass(frozen=True)
class ArticlePage:
    """One page: its HTML, and the paragraphs and addresses of images that are the article, in order."""

    url: str
    html: str
    order: tuple[Item, ...]
    boilerplate: tuple[str, ...]
    bad_images: tuple[str, ...]
    is_banned: bool = False  # it shows an avatar
    copy_of: int = -1  # number of the page that it repeats


@dataclass
class IllustratedWeb:
    """Pages, the bytes of every image by address, the shape of every good one, and why the others are bad."""

    pages: list[ArticlePage] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


def illustrated_web(pages: int, seed: int = 0) -> IllustratedWeb:
    """`pages` pages, copies included."""
    random = rng(seed, "illustrated web")
    web, originals, hosts = IllustratedWeb(), list[int](), max(1, pages // PAGES_PER_HOST)
    for number in range(pages):
        if originals and random.random() < COPIES:
            source = int(random.choice(originals))
            host = web.pages[source].url.split("/")[2]
            web.pages.append(replace(web.pages[source], url=f"https://{host}/print/{number}", copy_of=source))
        else:
            originals.append(number)
            web.pages.append(_page(web, f"site{number % hosts}.example", number, random))
    return web


def png(pixels: np.ndarray) -> bytes:
    """An image as PNG; uint8 (height, width, 3)."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 1))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def shape_image(shape: str, colour: str, width: int, height: int, random: np.random.Generator) -> np.ndarray:
    """A shape on light ground, a little moved and scaled, light from one side: uint8 (height, width, 3)."""
    y, x = np.ogrid[0:height, 0:width]
    size = min(width, height) * random.uniform(0.33, 0.42)
    u = (x - width / 2 - random.uniform(-0.05, 0.05) * width) / size
    v = (y - height / 2 - random.uniform(-0.05, 0.05) * height) / size
    inside = _INSIDE[shape](u, v)
    light = np.rint(x * random.uniform(-8, 8) / width + y * random.uniform(-8, 8) / height)  # no two grounds are equal
    pixels = np.where(inside[..., None], np.array(COLOURS[colour]), 240) + light[..., None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _page(web: IllustratedWeb, host: str, number: int, random: np.random.Generator) -> ArticlePage:
    base = f"https://{host}"
    title = f"{pick(ADJECTIVES, random)} {pick(NOUNS, random)} and {pick(NOUNS, random)}, part {number}".capitalize()
    order: list[Item] = [("text", title)]
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in range(int(random.integers(3, 6))):
        opening = paragraph(random)
        order.append(("text", opening))
        body.append(f"<p>{html.escape(opening)}</p>")
        shape, colour = pick(SHAPES, random), pick(tuple(COLOURS), random)
        address = f"{base}/media/{number}-{section}.png"
        size = random.integers(150, 200, 2)
        web.images[address] = png(shape_image(shape, colour, int(size[0]), int(size[1]), random))
        web.shapes[address] = shape
        following = f"{shape} in {colour}: {sentence(random)}"
        order += [("image", address), ("text", following)]
        body.append(_picture(address, base, f"{colour} {shape}", html.escape(following), int(random.integers(5))))
    lines = [f"Read the other stories of {host} in the list of all our articles.",
             f"The editors of {host} are glad to hear from the people who read it."]  # fmt: skip
    bad = [_plant(web, f"{base}/theme/header.png", "repeated", 180, 180, random),
           _plant(web, f"{base}/icons/{number}.png", "icon", 24, 24, random),
           _plant(web, f"{base}/ads/{number}.png", "banner", 728, 160, random)]  # fmt: skip
    place = int(random.integers(2, len(body)))
    body.insert(place, f'<p><img src="{bad[2]}" width="728" height="160"></p>')
    is_banned = bool(random.random() < AVATARS)
    if is_banned:
        bad.append(_plant(web, f"{base}/avatar/{number}.png", "address", 160, 160, random))
    author = f'<img src="/avatar/{number}.png">' if is_banned else ""
    links = "".join(f'<li><a href="/{name}">{name}</a></li>' for name in ("home", "news", "about", "contact"))
    page = (
        f'<!doctype html><html lang="en"><head><title>{html.escape(title)}</title></head><body>'
        f'<div id="header"><ul>{links}</ul></div><div class="page"><img src="/theme/header.png">'
        f"<p>{lines[0]}</p><article>{''.join(body)}</article>"
        f'<p>{author}<img src="/icons/{number}.png" width="24" height="24"></p>'
        f'<p>{lines[1]}</p></div><div class="footer"><p>Copyright {host}. All rights reserved.</p></div></body></html>'
    )
    boilerplate = (*lines, f"Copyright {host}. All rights reserved.")
    return ArticlePage(f"{base}/{number}", page, tuple(order), boilerplate, tuple(bad), is_banned)


def _picture(address: str, base: str, alt: str, following: str, style: int) -> str:
    """An image in one of the ways in which pages have them, with the text that follows it."""
    if style == 0:
        return f'<figure><img src="{address}" alt="{alt}"><figcaption>{following}</figcaption></figure>'
    if style == 1:
        return f'<picture><source srcset="{address}"><img src="{address}" alt="{alt}"></picture><p>{following}</p>'
    if style == 2:
        return f'<ul><li><img data-src="{address.removeprefix(base)}" alt="{alt}"></li><li>{following}</li></ul>'
    if style == 3:
        return f'<a href="{address}"><img src="{address.removeprefix(base)}" alt="{alt}"></a><div>{following}</div>'
    return f'<p><img src="{address}" alt="{alt}"></p><p>{following}</p>'


def _plant(web: IllustratedWeb, address: str, why: str, width: int, height: int, random: np.random.Generator) -> str:
    """Add an image, once for each address."""
    if address not in web.images:
        shape, colour = pick(SHAPES, random), pick(tuple(COLOURS), random)
        web.images[address] = png(shape_image(shape, colour, width, height, random))
        web.bad[address] = why
    return address


def paragraph(random: np.random.Generator) -> str:
    """One or two sentences of about 20 words each."""
    return " ".join(sentence(random).capitalize() for _ in range(int(random.integers(1, 3))))


def sentence(random: np.random.Generator) -> str:
    """Two clauses of nine words or ten, in lower case."""
    return f"{_clause(random)}, {pick(LINKS, random)} {_clause(random)}."


def _clause(random: np.random.Generator) -> str:
    return (
        f"{pick(DETERMINERS, random)} {pick(ADJECTIVES, random)} {pick(NOUNS, random)} {pick(VERBS, random)} "
        f"{pick(DETERMINERS, random)} {pick(NOUNS, random)} "
        f"{pick(PREPOSITIONS, random)} {pick(DETERMINERS, random)} {pick(NOUNS, random)}"
    )


def pick(choices: tuple[str, ...], random: np.random.Generator) -> str:
    """One of them."""
    return choices[int(random.integers(len(choices)))]
