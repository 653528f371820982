"""LaTeX sources of papers with known truth: paragraphs, captions, footnotes and figures in the order they are read.

A paper is a tree of files: sections lie in files of their own, which include others, and whose names say nothing about
their order. Figures have one graphic or two and the caption above or below. Macros stand for words of the text;
comments, labels, citations, a table and a bibliography are there to be left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bloomery.core.seeds import rng
from bloomery.worlds.interleaved_pages import COLOURS, SHAPES, Item, paragraph, pick, png, sentence, shape_image

MACROS = {"the river": "\\river{}", "the church": "\\place{church}", "a garden": "\\emph{a garden}"}
PREAMBLE = r"""% \input{nothing}
\documentclass[twocolumn]{article}
\usepackage{graphicx}
\graphicspath{{figures/}}
\newcommand{\river}{the river}
\newcommand{\place}[1]{the #1}
"""
TABLE = r"""\begin{table}[t]\caption{Not a part of the text.}
\begin{tabular}{ll}no & text\\ 1 & 2\end{tabular}\end{table}
"""
END = r"""
\begin{thebibliography}{9}\bibitem{one} Somebody. A book that is left out.\end{thebibliography}
\end{document}
This stands after the end.
"""


@dataclass(frozen=True)
class KnownPaper:
    """The files of a source tree by name, and what they say in order; an image is the name of its file."""

    files: dict[str, bytes]
    order: tuple[Item, ...]


def known_papers(count: int, seed: int = 0) -> list[KnownPaper]:
    """Papers of three to six sections."""
    return [_paper(rng(seed, "latex papers", number)) for number in range(count)]


def _paper(random: np.random.Generator) -> KnownPaper:
    files: dict[str, bytes] = {}
    title = sentence(random).rstrip(".").capitalize()
    order: list[Item] = [("text", title)]
    sections = [str(name) for name in random.permutation([f"{letter}part" for letter in "abcdefgh"])]
    main = [PREAMBLE, f"\\title{{{title}}}\n\\begin{{document}}\n\\maketitle\n"]
    for name in sections[: int(random.integers(3, 7))]:
        main.append(pick((f"\\input{{text/{name}}}\n", f"\\include{{text/{name}.tex}}\n"), random))
        inner = f"text/{name}_more"
        files[f"text/{name}.tex"] = _section(files, order, random, inner).encode()
        files[f"{inner}.tex"] = _section(files, order, random, None).encode()
    files["main.tex"] = ("".join(main) + TABLE + END).encode()
    return KnownPaper(files, tuple(order))


def _section(files: dict[str, bytes], order: list[Item], random: np.random.Generator, inner: str | None) -> str:
    """The source of a section, which ends by including `inner`; what it says is added to `order`."""
    heading = f"Part {len(order)}: {sentence(random)}"[:40].strip()
    order.append(("text", heading))
    source = [f"\\section{{{heading}}}\\label{{sec:{len(order)}}}\n% {sentence(random)}\n"]
    for _ in range(int(random.integers(2, 5))):
        text = paragraph(random)
        order.append(("text", text))
        source.append(_marked(text, order, random) + "\n\n")
        if random.random() < 0.6:
            source.append(_figure(files, order, random))
    return "".join(source) + (f"\\input {inner}\n" if inner else "")


def _marked(text: str, order: list[Item], random: np.random.Generator) -> str:
    """A paragraph as its author wrote it: macros, a citation, sometimes a footnote, a comment inside a line."""
    for words, macro in MACROS.items():
        text = text.replace(words, macro)
    text = text.replace(", ", ", % so it is\n", 1)
    text = f"{text.removesuffix('.')}~\\cite[p.~2]{{one}}."
    if random.random() < 0.3:
        note = f"Note {len(order)}: {sentence(random)}"
        order.append(("text", note))
        text += f"\\footnote{{{note}}}"
    return text


def _figure(files: dict[str, bytes], order: list[Item], random: np.random.Generator) -> str:
    """A figure with one graphic or two and its caption, above or below."""
    caption = f"Figure {len(order)} shows that {sentence(random)}"
    names = []
    for _ in range(int(random.integers(1, 3))):
        name = f"figures/graphic{len(files)}.png"
        files[name] = png(shape_image(pick(SHAPES, random), pick(tuple(COLOURS), random), 160, 160, random))
        names.append(name)
    graphics = "\n".join(f"\\includegraphics[width=3cm]{{{pick((n, n[8:], n[8:-4]), random)}}}" for n in names)
    images: list[Item] = [("image", name) for name in names]
    if random.random() < 0.5:
        order += [*images, ("text", caption)]
        inside = f"\\centering\n{graphics}\n\\caption[short]{{{caption}}}\\label{{fig:{len(order)}}}"
    else:
        order += [("text", caption), *images]
        inside = f"\\caption{{{caption}}}\n{graphics}"
    return f"\\begin{{figure}}[t]\n{inside}\n\\end{{figure}}\n"
