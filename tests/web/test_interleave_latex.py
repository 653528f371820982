"""LaTeX to parts: what stays, what goes, figures, real papers beside their rendering, and sources made to do harm."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import tarfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from bloomery.core.errors import DataError
from bloomery.corpus.interleaved import Part
from bloomery.web.extract import full_text
from bloomery.web.interleave.latex import read_latex
from bloomery.web.interleave.latex_source import Tree, open_archive, open_folder
from bloomery.web.interleave.latex_tokens import tokens_of
from bloomery.web.interleave.pdf import PdfReader
from bloomery.worlds.pdf_pages import Sheet, write_pdf

PNG = b"\x89PNG\r\n\x1a\n and the rest"
HEAD = "\\documentclass{article}\n"
DOUBLING = "".join(f"\\def\\x{a}{{\\x{b}\\x{b}}}" for a, b in pairwise("abcdefghijklmnopqrstuvwx"))
EACH = 400_000  # repetitions in hostile sources


def tree(main: str, **files: str | bytes) -> Tree:
    every = {"main.tex": main, **files}
    stored = {name: text.encode() if isinstance(text, str) else text for name, text in every.items()}
    return Tree(list(stored), files=stored)


def body(text: str, preamble: str = "", **files: str | bytes) -> list[Part]:
    return read_latex(tree(f"{HEAD}{preamble}\\begin{{document}}\n{text}\n\\end{{document}}\nafter", **files))


def texts(text: str, preamble: str = "", **files: str | bytes) -> list[str | None]:
    return [part.text for part in body(text, preamble, **files)]


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("One paragraph\nof two lines.\n\nAnother.", ["One paragraph of two lines.", "Another."]),
        ("Kept % a comment \\cite{x}\nand on.", ["Kept and on."]),
        ("100\\% of \\$5 \\& a\\_b \\#1 \\{x\\}", ["100% of $5 & a_b #1 {x}"]),
        ("``Quoted'' pages 1--2 --- it's~so", ["“Quoted” pages 1–2 — it’s so"]),
        ("Fr\\'{e}d\\'eric, Fran\\c{c}ois, \\\"Uber, na\\\"{\\i}ve, \\o re, Erd\\H{o}s",
         ["Frédéric, François, Über, naïve, øre, Erdős"]),
        ("\\textbf{bold} and {\\em emphasis} and \\emph{both \\textit{nested}}", ["bold and emphasis and both nested"]),
        ("As shown \\cite[p.~2]{a,b} in Fig.~\\ref{f}\\label{x}.", ["As shown in Fig. ."]),
        ("Inline $a_{1}+\\alpha x$ and $$E=mc^2$$ and \\(x\\) and \\[y\\]",
         ["Inline $a_{1}+\\alpha x$ and $$E=mc^2$$ and \\(x\\) and \\[y\\]"]),
        ("Then\n\\begin{align}\\label{e} a &= b' \\\\ c &= d\\end{align}\nholds.",
         ["Then \\begin{align} a &= b' \\\\ c &= d\\end{align} holds."]),
        ("\\section{First \\textbf{part}}Text.\\subsection*{Second}More.", ["First part", "Text.", "Second", "More."]),
        ("\\begin{itemize}\\item one\\item[Two] second\\end{itemize}", ["- one", "- Two second"]),
        ("Before\\footnote{A note.} after.", ["Before after.", "A note."]),
        ("\\begin{abstract}Short.\\end{abstract}Long.", ["Short.", "Long."]),
        ("Text\\begin{table}\\caption{No}\\begin{tabular}{ll}1&2\\end{tabular}\\end{table} on", ["Text on"]),
        ("Text\n\\begin{thebibliography}{9}\\bibitem{a} A.\\end{thebibliography}", ["Text"]),
        ("\\href{http://x.example/%7E}{link} \\textcolor{red}{red} \\url{http://y.example}", ["link red http://y.example"]),
        ("Run \\verb|a % \\b{| now", ["Run a % \\b{ now"]),
        ("\\begin{verbatim}\nx = {1}\n\\end{verbatim}", ["x = {1}"]),
        ("A\\iffalse hidden \\if x y\\fi \\fi B", ["AB"]),
        ("\\vspace{2cm}\\noindent Text\\hskip 2pt on\\\\next", ["Text on\nnext"]),
        ("\\section{About \\texorpdfstring{$k$}{k}}", ["About $k$"]),
        ("Never {closed \\textbf{ text\\footnote{note", ["Never closed text", "note"]),
    ],
)  # fmt: skip
def test_what_stays_and_what_goes(source: str, expected: list[str]) -> None:
    assert texts(source) == expected


@pytest.mark.parametrize(
    ("preamble", "source", "expected"),
    [
        ("\\newcommand{\\name}{Bloom}", "\\name{} and \\name s", "Bloom and Blooms"),
        ("\\newcommand\\pair[2]{(#1, #2)}", "\\pair{a}{b} \\pair xy", "(a, b) (x, y)"),
        ("\\newcommand{\\opt}[2][d]{#1-#2}", "\\opt{x} \\opt[y]{z}", "d-x y-z"),
        ("\\def\\twice#1{#1 #1}", "\\twice{go}", "go go"),
        ("\\newcommand{\\R}{\\mathbb{R}}", "in $\\R^n$", "in $\\mathbb{R}^n$"),
        ("\\DeclareMathOperator{\\Tr}{Tr}", "$\\Tr x$", "$\\operatorname{Tr}x$"),
        (
            "\\let\\old=\\textbf\\newcommand{\\inner}{in}\\newcommand{\\outer}{\\inner ner}",
            "\\old{b} \\outer",
            "b inner",
        ),
        ("\\newif\\iflong\\longtrue", "\\iflong yes\\else no\\fi", "yes"),
        ("\\newif\\iflong", "\\iflong yes\\else no\\fi", "no"),
        ("\\newcommand{\\qm}{quantum\\xspace}", "\\qm theory, \\qm.", "quantum theory, quantum."),
        ("\\newtheorem{thm}{Theorem}[section]\\title{Hidden}", "\\begin{thm}[Name] So.\\end{thm}", "So."),
        ("\\title{A \\emph{title}}", "\\maketitle", "A title"),
    ],
)
def test_macros_of_the_paper(preamble: str, source: str, expected: str) -> None:
    assert texts(source, preamble) == [expected]


def test_files_are_read_where_they_are_included() -> None:
    files = {"sec/one.tex": "One.\\par\\input sec/two\n", "sec/two.tex": "Two.", "macros.tex": "\\newcommand{\\m}{M}"}
    assert texts("\\input{sec/one}\\include{missing}\\m", "\\input{macros.tex}", **files) == ["One.", "Two. M"]
    assert texts("\\input{a}\\input{a}", **{"a.tex": "again "}) == ["again again"]  # twice is no loop
    latin = {"a.tex": "caf\xe9".encode("latin-1")}
    assert texts("\\input{a}", **latin) == ["café"]


def test_the_main_file() -> None:
    files = {"a.tex": "% \\documentclass{no}\nx", "appendix.tex": HEAD + "no body", "paper.tex": "\\begin{document}"}
    stored = {name: text.encode() for name, text in files.items()}
    stored["paper.tex"] = (HEAD + "\\begin{document}Yes.\\end{document}").encode()
    assert Tree(list(stored), files=stored).main() == "paper.tex"
    with pytest.raises(DataError, match="no file with a"):
        Tree(["a.tex"], files=stored).main()


# ---------------------------------------------------------------------------------------------------------- figures


def test_figures_become_images_with_their_captions() -> None:
    figure = (
        "\\begin{figure}[t]\\centering\\includegraphics[width=\\linewidth]{one}\\caption{The \\emph{one}.}\\end{figure}"
    )
    files = {"figs/one.png": PNG, "two.jpg": b"\xff\xd8\xff\xe0 and the rest", "three.eps": b"%!PS"}
    parts = body(
        f"Before.{figure}After \\epsfig{{file=two.jpg,width=3cm}} \\includegraphics{{three}}\\includegraphics{{four}}",
        "\\graphicspath{{figs/}{/etc/}}", **files,
    )  # fmt: skip
    assert [part.text or part.ref for part in parts] == [
        "Before.", "figs/one.png", "The one.", "After", "two.jpg", "three.eps", "four",
    ]  # fmt: skip
    pictures = [part for part in parts if part.is_image]
    assert [part.image for part in pictures] == [PNG, files["two.jpg"], None, None]
    assert [part.meta.get("format") for part in pictures] == ["png", "jpeg", None, None]
    assert [part.meta.get("missing") for part in pictures[2:]] == [".eps files are not read", "no such file"]


def test_pdf_figures_are_drawn() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the extra `interleave`")
    pytest.importorskip("pypdfium2", reason="needs the extra `interleave`")
    sheet = Sheet()
    sheet.line(100, 100, "a label", 60)
    source = HEAD + "\\begin{document}Text\\includegraphics{plot}\\includegraphics{bad}\\end{document}"
    files = {"main.tex": source.encode(), "plot.pdf": write_pdf([sheet]), "bad.pdf": b"no"}
    paper = Tree(list(files), files=files)
    with PdfReader() as pdf:
        _, plot, bad = read_latex(paper, pdf)
    drawn = image.open(io.BytesIO(plot.image or b""))
    assert max(drawn.size) == 1200
    assert drawn.convert("L").getextrema() == (0, 255)
    assert (bad.image, bad.meta["missing"]) == (None, "PDF is damaged, or is none")
    assert "not drawn" in read_latex(paper)[1].meta["missing"]


# -------------------------------------------------------------------------------------------------------- real papers


def test_real_papers_hold_the_words_of_their_rendering(data_root: Path) -> None:
    papers = sorted(path.parent for path in (data_root / "latex").glob("*/main.tex"))
    assert papers
    for paper in papers:
        parts = read_latex(open_folder(paper))
        ours = _words(" ".join(part.text or "" for part in parts))
        rendered = full_text(gzip.decompress((paper / "rendered.html.gz").read_bytes()).decode())
        whole, article = _words(rendered), _words(rendered[: rendered.rfind("References")])
        assert (ours & whole).total() / ours.total() > 0.98, paper
        assert (ours & article).total() / article.total() > 0.88, paper  # their text of formulas counts as words
        assert all(part.image or part.meta["missing"] for part in parts if part.is_image)
        source = (paper / "main.tex").read_text()
        graphics = re.sub(r"(?<!\\)%.*", "", source).count("\\includegraphics")
        assert sum(part.is_image for part in parts) == graphics


def _words(text: str) -> Counter[str]:
    formulas = r"\$[^$]*\$|\\begin\{(equation|align|gather)\*?\}.*?\\end\{\1\*?\}"
    return Counter(re.findall(r"[a-zà-ÿ]{4,}", re.sub(formulas, "", text, flags=re.DOTALL).lower()))


# ----------------------------------------------------------------------------------------------------------- archives


def packed(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def test_archives_as_they_are_served() -> None:
    paper = (HEAD + "\\begin{document}Text.\\end{document}").encode()
    archive = packed({"./paper.tex": paper, "../out.tex": paper, "/abs.tex": paper}, {"link.tex": "/etc/passwd"})
    for data in (archive, gzip.decompress(archive), gzip.compress(paper), paper):
        found = open_archive(data)
        assert len(found.names) == 1
        assert [part.text for part in read_latex(found)] == ["Text."]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packed({"a.tex": b"x"})[:-20], "ends too early"),
        (b"\x1f\x8b" + b"\x00" * 40, "damaged archive"),
        (gzip.compress(b"%PDF-1.4"), "a PDF, not LaTeX"),
        (gzip.compress(b"\x00" * (201 << 20)), "unpacks to more than 200 MB"),
        (packed({}), "without files"),
        (packed({f"{n}.tex": b"" for n in range(5_001)}), "more than 5,000 files"),
    ],
    ids=["truncated", "garbage", "pdf", "bomb", "empty", "many"],
)
def test_bad_archives(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_archive(data)


def test_links_out_of_a_folder_are_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret.tex").write_text("secret")
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "main.tex").write_text(HEAD + "\\begin{document}Text.\\input{link}\\end{document}")
    (paper / "link.tex").symlink_to(tmp_path / "secret.tex")
    assert open_folder(paper).names == ["main.tex"]
    assert [part.text for part in read_latex(open_folder(paper))] == ["Text."]


# -------------------------------------------------------------------------------------------------------- made to harm


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("\\input{main}", "include each other: main.tex → main.tex"),
        ("\\input{b}", "include each other: main.tex → b.tex → main.tex"),
        ("\\input{../../etc/passwd}", "leaves the source tree"),
        ("\\includegraphics{/etc/passwd}", "leaves the source tree"),
        ("\\input{d0}", "more than 20 deep"),
        ("\\def\\a{\\b}\\def\\b{\\a}\\a", "calls itself"),
        (DOUBLING + "\\xa", "calls itself"),
        ("\\newcommand{\\e}[1]{#1#1#1#1#1#1#1#1#1}" + "\\e{" * 30 + "x" + "}" * 30, "calls itself"),
        ("\\begin{" * EACH, "never closes"),
        ("% nothing", "no text"),
    ],
)  # fmt: skip
def test_the_reason_is_named(source: str, reason: str) -> None:
    deep = {f"d{n}.tex": f"\\input{{d{n + 1}}}" for n in range(30)}
    with pytest.raises(DataError, match=reason):
        texts(source, **{"b.tex": "\\input{main}", **deep})


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    ["\\textbf{", "\\cite{", "\\section{", "\\footnote{", "$", "$x ", "\\begin{table}", "\\item[", " \n", "\\verb|",
     "\\a" + " " * 20, "{", "}", "\\", "%", "\\iffalse", "\\foo[", "\\let", "\\def", "\\newcommand", "a"],
)  # fmt: skip
def test_time_is_linear_in_repetitions(piece: str) -> None:
    def seconds(times: int) -> float:
        begin = time.process_time()
        with contextlib.suppress(DataError):
            body("text " + piece * times)
        return time.process_time() - begin

    assert seconds(EACH) < 20 * seconds(EACH // 8) + 0.5


def test_tokens_keep_every_word() -> None:
    assert tokens_of("a \\b  c%x\n  d\n\n\ne\\\\f\x00g") == ["a", " ", "\\b", "c", "d", "\n\n", "e", "\\\\", "fg"]
