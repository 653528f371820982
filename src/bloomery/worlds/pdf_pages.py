"""PDF files with a known reading order: one to three columns, papers, figures, footnotes, headers; a minimal writer.

Text is set in Courier, whose letters are all 0.6 of the size wide, so that lines break as planned. Lines are written
to the file from the top of the page down, across columns, as many programs do: the file's own order is no help.
"""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bloomery.core.seeds import rng

WIDTH, HEIGHT, MARGIN = 612.0, 792.0, 54.0
GUTTER = 12.0
LETTER = 0.6  # of the font size
BODY, LEADING = 9.0, 11.0
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "ze")
DISTINCT = 15  # letters of a line that occurs once
HEADER = "Journal of Invented Results"


@dataclass
class Sheet:
    """What is drawn on one page; y counts down from the top. `order` is lines and pictures as they are read."""

    lines: list[tuple[float, float, float, str]] = field(default_factory=list)  # x, y of the baseline, size, text
    pictures: list[tuple[float, float, float, float, int]] = field(default_factory=list)  # x, y, width, height, number
    order: list[str | int] = field(default_factory=list)

    def line(self, x: float, y: float, text: str, size: float = BODY, read: bool = True) -> None:
        """A line of text; `read=False` for what is no part of the document (headers, page numbers)."""
        self.lines.append((x, y, size, text))
        if read:
            self.order.append(text)

    def picture(self, x: float, y: float, width: float, height: float, number: int) -> None:
        """A picture with its top left corner at (x, y)."""
        self.pictures.append((x, y, width, height, number))
        self.order.append(number)


@dataclass(frozen=True)
class KnownPdf:
    """A file and its lines and pictures (by number) in reading order."""

    name: str
    data: bytes
    order: list[str | int]

    def ranks(self, found: Sequence[str | int]) -> list[float]:
        """Where each line and picture of `order` stands in what an extractor found; what is lost counts as last.

        `found` has texts and numbers of pictures. Lines of a few letters, which may stand anywhere, are left out.
        """
        text = "".join(f"\x00{item}\x00" if isinstance(item, int) else "".join(item.split()) for item in found)
        ranks = []
        for item in self.order:
            key = f"\x00{item}\x00" if isinstance(item, int) else "".join(item.split())
            if isinstance(item, int) or len(key) >= DISTINCT:
                place = text.find(key)
                ranks.append(float(place if place >= 0 else len(text)))
        return ranks


def known_pdfs(pictures: Sequence[np.ndarray], seed: int = 0) -> list[KnownPdf]:
    """One file of each layout. `pictures` are uint8 (height, width, 3), at least four."""
    made = []
    for name, draw in LAYOUTS.items():
        sheets = draw(rng(seed, "pdf pages", name))
        order = [item for sheet in sheets for item in sheet.order]
        made.append(KnownPdf(name, write_pdf(sheets, pictures), order))
    return made


# ---------------------------------------------------------------------------------------------------------- layouts


def _columns(random: np.random.Generator, count: int, pages: int = 1, top: float = MARGIN) -> list[Sheet]:
    sheets = []
    for _ in range(pages):
        sheet = Sheet()
        for x, width in _places(count):
            _flow(sheet, random, x, width, top, HEIGHT - MARGIN)
        sheets.append(sheet)
    return sheets


def _paper(random: np.random.Generator) -> list[Sheet]:
    """Title, authors and abstract across the page, two columns below with headings."""
    sheet = Sheet()
    y = _head(sheet, random)
    for x, width in _places(2):
        sheet.line(x, y, _sentence(random, 3)[:30].rstrip(".").title(), 12)
        _flow(sheet, random, x, width, y + 20, HEIGHT - MARGIN)
    return [sheet]


def _figures(random: np.random.Generator) -> list[Sheet]:
    """Two columns with a figure in each, and one across the page that ends the columns above it."""
    sheet = Sheet()
    for number, (x, width) in enumerate(_places(2)):
        y = _flow(sheet, random, x, width, MARGIN, 150 + 40 * number)
        y = _figure(sheet, random, x, y, width, 100, number)
        _flow(sheet, random, x, width, y, 400)
    y = _figure(sheet, random, MARGIN, 420, WIDTH - 2 * MARGIN, 120, 2)
    for x, width in _places(2):
        _flow(sheet, random, x, width, y, HEIGHT - MARGIN)
    return [sheet]


def _notes(random: np.random.Generator) -> list[Sheet]:
    """Three pages of two columns, each column with a footnote; a header and the page's number are no part of it."""
    sheets = []
    for number in range(3):
        sheet = Sheet()
        sheet.line(MARGIN, 30, HEADER, 8, read=False)
        sheet.line(WIDTH - MARGIN - 10, 30, str(number + 1), 8, read=False)
        for x, width in _places(2):
            _flow(sheet, random, x, width, MARGIN + 10, HEIGHT - 120)
            _flow(sheet, random, x, width, HEIGHT - 100, HEIGHT - 75, size=7)
        sheet.line(WIDTH / 2 - 20, HEIGHT - 30, f"page {number + 1} of 3", 8, read=False)
        sheets.append(sheet)
    return sheets


def _mixed(random: np.random.Generator) -> list[Sheet]:
    """A paper whose second page has three columns, with a figure at the top of the last."""
    (first,) = _paper(random)
    second = Sheet()
    for number, (x, width) in enumerate(_places(3)):
        y = _figure(second, random, x, MARGIN, width, 90, 3) if number == 2 else MARGIN
        _flow(second, random, x, width, y, HEIGHT - MARGIN)
    return [first, second]


LAYOUTS: dict[str, Callable[[np.random.Generator], list[Sheet]]] = {
    "one column": lambda random: _columns(random, 1),
    "two columns": lambda random: _columns(random, 2, pages=2),
    "three columns": lambda random: _columns(random, 3),
    "paper": _paper,
    "figures": _figures,
    "notes": _notes,
    "mixed": _mixed,
}


def _places(count: int) -> list[tuple[float, float]]:
    """(left edge, width) of the columns of a page."""
    width = (WIDTH - 2 * MARGIN - GUTTER * (count - 1)) / count
    return [(MARGIN + i * (width + GUTTER), width) for i in range(count)]


def _head(sheet: Sheet, random: np.random.Generator) -> float:
    for y, size, text in ((80.0, 18.0, _sentence(random, 4)[:32]), (104.0, 10.0, _sentence(random, 3))):
        sheet.line((WIDTH - LETTER * size * len(text)) / 2, y, text, size)
    return _flow(sheet, random, MARGIN + 30, WIDTH - 2 * MARGIN - 60, 124, 190) + 14


def _figure(
    sheet: Sheet, random: np.random.Generator, x: float, y: float, width: float, height: float, number: int
) -> float:
    """A picture with its caption below; returns where text may go on."""
    side = min(width, height * 1.4)
    sheet.picture(x + (width - side) / 2, y, side, height, number)
    caption = f"Figure {number + 1}: " + _sentence(random, 12)
    for line in textwrap.wrap(caption, int(width / (LETTER * 8))):
        sheet.line(x, y + height + 12, line, 8)
        y += 10
    return y + height + 24


def _flow(
    sheet: Sheet, random: np.random.Generator, x: float, width: float, top: float, bottom: float, size: float = BODY
) -> float:
    """Paragraphs from `top` to at most `bottom`, the first line of each indented; returns where text may go on."""
    y = top + size
    while y < bottom:
        text = "\x00\x00" + " ".join(_sentence(random, int(random.integers(5, 14))) for _ in range(4))
        for line in textwrap.wrap(text, int(width / (LETTER * size))):
            if y >= bottom:
                return y
            indent = 2 * LETTER * size if line.startswith("\x00") else 0.0
            sheet.line(x + indent, y, line.lstrip("\x00"), size)
            y += LEADING * size / BODY
    return y


def _sentence(random: np.random.Generator, words: int) -> str:
    made = ["".join(random.choice(SYLLABLES, int(n))) for n in random.integers(2, 5, words)]
    return " ".join(made).capitalize() + "."


# ----------------------------------------------------------------------------------------------------------- writer


def write_pdf(sheets: Sequence[Sheet], pictures: Sequence[np.ndarray] = (), *, extra: str = "") -> bytes:
    """The sheets as a PDF file; `extra` goes into the dictionary of every page (`/Rotate 90`)."""
    used = sorted({number for sheet in sheets for *_, number in sheet.pictures})
    names = {number: 4 + 2 * len(sheets) + i for i, number in enumerate(used)}
    pages = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(sheets)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(sheets)} /Kids [{pages}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>",
    ]
    resources = " ".join(f"/I{number} {name} 0 R" for number, name in names.items())
    for i, sheet in enumerate(sheets):
        page = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH:g} {HEIGHT:g}] /Contents {5 + 2 * i} 0 R "
            f"/Resources << /Font << /F 3 0 R >> /XObject << {resources} >> >> {extra} >>"
        )
        objects += [page.encode(), _stream("", _content(sheet))]
    for number in used:
        height, width, _ = pictures[number].shape
        kind = f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /BitsPerComponent 8"
        objects.append(_stream(f"{kind} /ColorSpace /DeviceRGB", pictures[number].tobytes()))
    return assemble(objects)


def assemble(objects: Sequence[bytes]) -> bytes:
    """A file of numbered objects, the first of which is the catalogue."""
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(body))
    return body + head + table + end


def _content(sheet: Sheet) -> bytes:
    draw = [f"q {w:.2f} 0 0 {h:.2f} {x:.2f} {HEIGHT - y - h:.2f} cm /I{n} Do Q" for x, y, w, h, n in sheet.pictures]
    for x, y, size, text in sorted(sheet.lines, key=lambda line: (line[1], line[0])):
        escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        draw.append(f"BT /F {size:g} Tf 1 0 0 1 {x:.2f} {HEIGHT - y:.2f} Tm ({escaped}) Tj ET")
    return "\n".join(draw).encode("cp1252", "replace")


def _stream(entries: str, data: bytes) -> bytes:
    packed = zlib.compress(data, 6)
    return b"<< %s /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (entries.encode(), len(packed), packed)
