"""Pages, papers and images with planted faults for the tests of `--recipe mint1t`; what should stay is known."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bloomery.web import WarcWriter
from bloomery.worlds.pdf_pages import Sheet, write_pdf

WORDS = {
    "noun": "river mountain village teacher engine garden winter harvest bridge library market station island forest "
    "painter letter window kitchen journey castle doctor farmer sailor morning evening machine picture history museum",
    "verb": "found carried painted watched repaired visited described measured followed opened crossed remembered",
    "adjective": "old quiet narrow bright distant wooden heavy pleasant early famous broken gentle enormous green",
    "determiner": "the the the a this every his her our that",
    "preposition": "of to with in from near behind before over after",
    "link": "and while because when so that but and then",
}
GERMAN = "der Wald und die Berge sind nicht weit von dem Dorf in dem wir wohnten als Kinder mit den Eltern"
CLAUSE = "determiner adjective noun verb preposition determiner noun preposition determiner adjective noun"
SITE = "https://site{}.example"


def picture(seed: int, size: tuple[int, int] = (220, 180), kind: str = "PNG", **options: object) -> bytes:
    """Blobs and boxes that no other seed has."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(base).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y = rng.integers(0, size[0] - 30), rng.integers(0, size[1] - 30)
        draw.rectangle(
            [x, y, x + rng.integers(20, 90), y + rng.integers(20, 90)], fill=tuple(map(int, rng.integers(0, 256, 3)))
        )
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def words(rng: np.random.Generator, kinds: str) -> str:
    def pick(some: list[str]) -> str:
        return some[rng.integers(len(some))]

    return " ".join(pick(WORDS[kind].split()) for kind in kinds.split())


def paragraph(rng: np.random.Generator, sentences: int = 5) -> str:
    return " ".join(
        f"{words(rng, CLAUSE)} {words(rng, 'link')} {words(rng, CLAUSE)}, {rng.integers(9999)} times.".capitalize()
        for _ in range(sentences)
    )


@dataclass
class World:
    folder: Path
    images: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)  # url -> addresses of the images that stay
    fate: dict[str, str] = field(default_factory=dict)  # url -> reason

    @property
    def inputs(self) -> list[Path]:
        return sorted(self.folder.iterdir())


def make(folder: Path, files: int = 3, pages: int = 8, seed: int = 0) -> World:
    rng, world = np.random.default_rng(seed), World(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    shared = paragraph(rng)
    for file in range(files):
        writer = WarcWriter(folder, f"pages-{file}", "test")

        def page(path: str, images: list[str], texts: list[str] | None = None, file=file, writer=writer) -> str:
            url = f"{SITE.format(file)}/{path}"
            texts = texts or [paragraph(rng) for _ in range(len(images) + 1)]
            body = "".join(
                f"<p>{text}</p>" + (f'<figure><img src="{images[i]}"></figure>' if i < len(images) else "")
                for i, text in enumerate(texts)
            )
            html = f"<html lang=en><body><nav>Home</nav><article>{body}</article></body></html>"
            writer.write_page(url, 200, "OK", [("Content-Type", "text/html; charset=utf-8")], html.encode(), {})
            return url

        def image(name: str, data: bytes | None, file=file) -> str:
            url = f"{SITE.format(file)}/img/{name}"
            if data is not None:
                world.images[url] = data
            return url

        for n in range(pages):
            number += 1
            good = [image(f"{number}-{k}.png", picture(1000 * number + k)) for k in range(2)]
            banner = image(
                f"banner{number}.jpg", picture(7, kind="JPEG", quality=70 + number)
            )  # nearly the same, 24 times
            bad = {
                "icon": image(f"icon{number}.png", picture(number, (60, 60))),
                "wide": image(f"wide{number}.png", picture(number, (900, 200))),
                "gone": image(f"gone{number}.png", None),
                "html": image(f"html{number}.png", b"<html>not found</html>"),
            }
            fault = list(bad.values())[n % 4]
            url = page(f"good{n}", [good[0], banner, fault, good[1], good[0]])
            world.kept[url] = good
        button = picture(9)
        for n in range(5):  # the same bytes 15 times in the corpus, under different addresses
            url = page(f"button{n}", [image(f"button{n}.png", button)])
            world.fate[url] = "too few images"
        one = image("one.png", picture(5_000 + file))
        world.fate[page("none", [])] = "too few images"
        world.fate[page("many", [one] * 31)] = "too many images"
        world.fate[page("banned", [image("site-LOGO.png", picture(1))])] = "banned image address"
        german = " ".join(rng.choice(GERMAN.split(), 150).tolist())
        world.fate[page("german", [one], [german, german])] = "language"
        world.fate[page("short", [one], ["Only a few words.", "And more."])] = "too few words"
        url = page("copy", [one], [shared, paragraph(rng)])
        world.kept[url] = [one]
        if file:
            copy = page("whole-copy", [image("whole.png", picture(6_000 + file))], [shared])
            world.fate[copy] = "duplicate text"
        writer.close()
    sheets = [Sheet(), Sheet()]
    for sheet in sheets:
        for line in range(22):
            sheet.line(60, 60 + 14 * line, paragraph(rng, 1)[:80])
        sheet.picture(60, 420, 300, 110, 0)
    pixels = np.asarray(Image.open(io.BytesIO(picture(8_000, (500, 184)))))
    (folder / "paper.pdf").write_bytes(write_pdf(sheets, [pixels]))
    source = folder / "source"
    source.mkdir()
    (source / "logo-figure.png").write_bytes(picture(8_001, (400, 300)))
    text = "\n\n".join(paragraph(rng) for _ in range(3))
    figure = f"{text}\n\n\\includegraphics{{logo-figure.png}}\n\n{paragraph(rng)}"
    (source / "main.tex").write_text(f"\\documentclass{{article}}\\begin{{document}}{figure}\\end{{document}}")
    return world
