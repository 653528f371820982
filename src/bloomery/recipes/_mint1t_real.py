"""Real files beside `mint1t`: how far two independent readings of the same document agree. Tables, no claims.

    latex/<paper>/         a source tree, with `rendered.html.gz` (LaTeXML's page) or a PDF named as its main file
    pdf/*.pdf              our reading order beside the order in which the file draws its text: TeX draws as one reads
    web_pages/X.warc.gz    pages, with `X_sources.jsonl.gz` ({url, rst}: what they were built from) or
                           `X_gold.jsonl.gz` ({url, text}: the article)

What of these is not there is left out. Paragraphs are found in the other reading by their word 4-grams that stand there
once; images have no names in common, so the n-th of one is taken for the n-th of the other where the numbers agree.
"""

from __future__ import annotations

import gzip
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from bloomery.core.errors import DataError
from bloomery.corpus.interleaved import Part, parts_of
from bloomery.metrics.order import kendall_tau
from bloomery.web import read_documents
from bloomery.web.interleave.html import html_parts
from bloomery.web.interleave.latex import read_latex
from bloomery.web.interleave.latex_source import open_folder
from bloomery.web.interleave.pdf import PdfReader
from bloomery.web.interleave.pdf_layout import Item

GRAM, MIN_GRAMS, MIN_SHARE = 4, 3, 0.3  # words; of a paragraph's 4-grams, so many must stand in the other reading
MIN_PARAGRAPHS = 10  # of a PDF that are found; fewer say little about an order
_WORD = re.compile(r"[^\W\d_]+")
_FORMULA = re.compile(r"\$[^$]*\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", re.DOTALL)
_ROLE = re.compile(r":[\w:]+:`~?([^`<]*)[^`]*`|`([^`<]+?)\s*<[^`]*>`_")
_INCLUDE = re.compile(rb"\\(?:input|include)\b\s*(?:\{[^}]*\}|\S+)")
_IMAGE = re.compile(r"^\s*\.\. (?:\|\w+\| )?(?:image|figure):: (\S+)", re.MULTILINE)

Piece = list[str] | str  # the words of a paragraph, or the name of an image


class Agreement(NamedTuple):
    """Of one reading with another."""

    paragraphs: int  # that are long enough to be looked for
    found: int  # of them, in the other reading
    images: int
    tau: float | None  # Kendall's, of the paragraphs that were found and the images that have a partner


def agreement(ours: Sequence[Piece], other: Sequence[Piece], by_name: bool = False) -> Agreement:
    """Look for every piece of `ours` in `other` and compare the order; `by_name`: images have the same names there."""
    places: dict[tuple[str, ...], int] = {}
    words = [word for piece in other if isinstance(piece, list) for word in piece]
    for at in range(len(words) - GRAM + 1):
        gram = tuple(words[at : at + GRAM])
        places[gram] = -1 if gram in places else at
    seen, images = 0, list[tuple[str, float]]()
    for piece in other:
        if isinstance(piece, str):
            images.append((piece, seen - 0.5 + 1e-6 * len(images)))  # between two words, images side by side in order
        else:
            seen += len(piece)
    names = [piece for piece in ours if isinstance(piece, str)]
    partners = {name if by_name else str(n): place for n, (name, place) in enumerate(images)}
    if not by_name and len(names) != len(images):
        partners = {}
    ranks, paragraphs, found, number = list[float](), 0, 0, 0
    for piece in ours:
        if isinstance(piece, str):
            place = partners.get(piece if by_name else str(number))
            number += 1
            if place is not None:
                ranks.append(place)
            continue
        grams = [tuple(piece[i : i + GRAM]) for i in range(len(piece) - GRAM + 1)]
        if len(grams) < MIN_GRAMS:
            continue
        paragraphs += 1
        there = [places[gram] for gram in grams if places.get(gram, -1) >= 0]
        if len(there) >= max(MIN_GRAMS, MIN_SHARE * len(grams)):
            found += 1
            ranks.append(median(there))
    return Agreement(paragraphs, found, len(names), kendall_tau(ranks) if len(ranks) > 1 else None)


def pieces(parts: Sequence[Part], formulas: bool = True) -> list[Piece]:
    """The paragraphs and images of a document; LaTeX formulas are left out unless `formulas`."""
    found: list[Piece] = []
    for part in parts:
        if part.text is None:
            found.append(_stem(urlsplit(part.ref or "").path))
            continue
        for text in part.text.split("\n\n"):
            found.append(words_of(text if formulas else _FORMULA.sub(" ", text)))
    return found


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def words_of(text: str) -> list[str]:
    """Runs of letters, in lower case."""
    return _WORD.findall(text.lower())


# ------------------------------------------------------------------------------------------------------------- readings


def papers(folder: Path, reader: PdfReader) -> Iterator[list[Any]]:
    """Of every LaTeX source: name, what it is compared with, the agreement, images of the other reading."""
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            yield from _paper(path, reader)
        except DataError as error:
            yield [path.name, f"refused: {error.what}", "-", "-", "-"]


def _paper(path: Path, reader: PdfReader) -> Iterator[list[Any]]:
    tree = open_folder(path)
    ours = pieces(read_latex(tree, reader), formulas=False)
    rendered, compiled = path / "rendered.html.gz", (path / tree.main()).with_suffix(".pdf")
    if rendered.is_file():
        page = gzip.decompress(rendered.read_bytes()).decode("utf-8", "replace")
        yield _row(
            path.name, "its HTML by LaTeXML", ours, pieces(html_parts(page, f"https://example.org/{path.name}/"))
        )
    if compiled.is_file():
        data = compiled.read_bytes()
        yield _row(path.name, "its PDF, our reading", ours, pieces(reader.read(data, compiled.name)))
        yield _row(
            path.name, "its PDF from the top down", ours, pieces(reader.read(data, compiled.name, order=top_down))
        )


def pdfs(folder: Path, reader: PdfReader) -> Iterator[list[Any]]:
    """Of every PDF with ten different paragraphs: our reading, and top down, beside the order in which it is drawn."""
    for path in sorted(folder.glob("*.pdf")):
        data = path.read_bytes()
        try:
            drawn = pieces(reader.read(data, path.name, order=as_drawn))
            ours = pieces(reader.read(data, path.name))
            if agreement(ours, drawn).found >= MIN_PARAGRAPHS:
                yield _row(f"{path.stem}, our reading", "as it is drawn", ours, drawn)
                other = pieces(reader.read(data, path.name, order=top_down))
                yield _row(f"{path.stem}, top down", "as it is drawn", other, drawn)
        except DataError:
            continue  # scans have no text


def pages(folder: Path) -> Iterator[list[Any]]:
    """Of every archive of pages with a truth: sums over its pages, with our reading and with the reference's."""
    for truth in sorted([*folder.glob("*_sources.jsonl.gz"), *folder.glob("*_gold.jsonl.gz")]):
        name, kind = truth.name.removesuffix(".jsonl.gz").rsplit("_", 1)
        archive = folder / f"{name}.warc.gz"
        known: dict[str, list[Piece]] = {}
        for line in gzip.decompress(truth.read_bytes()).decode().splitlines():
            row = json.loads(line)
            if found := row.get("rst") if kind == "sources" else row.get("text"):
                known[row["url"]] = rst_pieces(found) if kind == "sources" else [words_of(p) for p in found.split("\n")]
        if not known or not archive.is_file():
            continue
        for mode in ("interleaved", "obelics"):
            yield _sum(name, known, archive, mode)


def _sum(
    name: str, known: Mapping[str, list[Piece]], archive: Path, mode: Literal["interleaved", "obelics"]
) -> list[Any]:
    """Paragraphs and images of the truth that a reading has, and their order, over all pages of an archive."""
    seen = Agreement(0, 0, 0, None)
    taus, images, pages = list[float](), 0, 0
    for batch in read_documents(archive, mode):
        for url, parts in zip(batch.column("url").to_pylist(), parts_of(batch), strict=True):
            if url not in known:
                continue
            page = pieces(parts)
            names = {piece for piece in page if isinstance(piece, str)}
            one = agreement(known[url], page, by_name=True)
            images += sum(piece in names for piece in known[url] if isinstance(piece, str))
            seen = Agreement(seen.paragraphs + one.paragraphs, seen.found + one.found, seen.images + one.images, None)
            taus += [one.tau] if one.tau is not None else []
            pages += 1
    seen = seen._replace(tau=sum(taus) / len(taus) if taus else None)
    who = {"interleaved": "our reading", "obelics": "the reference's"}[mode]
    return _cells(f"{pages} pages of {name}: the truth", who, seen, images)


def rst_pieces(source: str) -> list[Piece]:
    """Plain paragraphs and images of reStructuredText; directives, literal blocks and headings are no paragraphs."""
    found: list[Piece] = []
    for block in re.split(r"\n\s*\n", source):
        if image := _IMAGE.search(block):
            found.append(_stem(image[1]))
        elif block[:1].isalpha() and not re.search(r"^([=\-~^\"*#+.])\1{2,}$", block, re.MULTILINE):
            found.append(words_of(_ROLE.sub(lambda role: role[1] or role[2] or "", block)))
    return found


def top_down(items: Sequence[Item], width: float, height: float) -> list[list[Item]]:
    """The baseline: from the top of the page to its bottom, across columns."""
    return [sorted(items, key=lambda item: (round(item.y0), item.x0))]


def as_drawn(items: Sequence[Item], width: float, height: float) -> list[list[Item]]:
    """The order of the file."""
    return [list(items)]


def _row(name: str, beside: str, ours: Sequence[Piece], other: Sequence[Piece]) -> list[Any]:
    return _cells(name, beside, agreement(ours, other), sum(isinstance(piece, str) for piece in other))


def _cells(name: str, beside: str, found: Agreement, images: int) -> list[Any]:
    tau = "-" if found.tau is None else f"{found.tau:.3f}"
    return [name, beside, f"{found.found} of {found.paragraphs}", f"{images} of {found.images}", tau]


def one_file(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The baseline for LaTeX: a paper's other sources one after the other by name, where its main file includes one."""
    others = b"\n\n".join(text for name, text in sorted(files.items()) if name.endswith(".tex") and name != "main.tex")
    head, _, tail = files["main.tex"].partition(b"\\maketitle")
    sources = head + b"\\maketitle\n" + _INCLUDE.sub(b"", others) + _INCLUDE.sub(b"", tail)
    return {name: data for name, data in files.items() if not name.endswith(".tex")} | {"main.tex": sources}
