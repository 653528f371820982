"""LaTeX sources to interleaved parts, as MINT-1T makes them of arXiv papers (arXiv 2406.11271, §3.1.3).

The source is read once, token by token, the way TeX reads it: files are opened where they are included, macros of the
paper are replaced where they are used. Preamble, bibliography, tables, citations, labels and references are left out;
headings, captions and footnotes become paragraphs; formulas stay LaTeX; an included graphic becomes an image part at
its place, with its caption where the source has it. PNG and JPEG files are taken as they are, PDF figures are drawn as
PNG; a file of another kind (EPS) or a missing one leaves an image part without bytes, whose metadata say why.

MINT-1T uses TexSoup. Left out here too: macros of packages (`.sty` files are not read), conditionals on anything but
the paper's own \\newif (the first branch is taken), environments defined by the paper (their body is read).

Time is linear in what is read: macro expansion, nesting of files and their sizes are bounded, and a source beyond the
bounds, one whose files include each other, or one with a path out of its tree raises `DataError`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable
from typing import Any

from bloomery.core.errors import DataError
from bloomery.corpus.interleaved import Part
from bloomery.web.interleave.latex_commands import (
    ACCENTS,
    ARGUMENTS,
    ENVIRONMENT_ARGUMENTS,
    HEADINGS,
    LEFT_OUT,
    MATH,
    SYMBOLS,
    VERBATIM,
    accented,
)
from bloomery.web.interleave.latex_source import Tree
from bloomery.web.interleave.latex_tokens import DEFINITIONS, END, PAR, TokenReader
from bloomery.web.interleave.pdf import PdfReader

MAX_PICTURES = 500
GRAPHICS = ("", ".pdf", ".png", ".jpg", ".jpeg", ".eps", ".ps", ".svg", ".gif")

_QUOTES = (("``", "“"), ("''", "”"), ("---", "—"), ("--", "–"), ("`", "‘"), ("'", "’"))
_LENGTH = re.compile(r"-?[\d.]+(?:pt|em|ex|cm|mm|in|bp|sp|pc|truecm)?")
_FILE = re.compile(r"(?:file|figure)\s*=\s*([^,]+)")


def read_latex(tree: Tree, pdf: PdfReader | None = None, main: str | None = None) -> list[Part]:
    """The parts of a paper. `pdf` draws figures that are PDF files; without it they have no bytes.

    `main` names the file to begin with, where it is known.

    Raises:
        DataError: no main file, includes that never end or leave the tree, or a source beyond the bounds.
    """
    reader = _Reader(tree, pdf)
    name = main or tree.main()
    try:
        reader.tokens.open(name)
        reader.run()
    except DataError as error:
        where = error.where or " < ".join(reversed(reader.tokens.files))
        raise DataError(error.what, where=where, fix=error.fix) from error
    if not any(part.text for part in reader.parts):
        raise DataError("no text", where=name)
    return reader.parts


class _Reader:
    def __init__(self, tree: Tree, pdf: PdfReader | None) -> None:
        self.tokens, self.pdf = TokenReader(tree, _RESERVED), pdf
        self.parts: list[Part] = []
        self.groups: list[Callable[[], None] | None] = []  # what to do at the end of each open {
        self.at_end: Callable[[], None] | None = None  # for the { that comes next
        self.words: list[str] = []  # of the paragraph
        self.notes: list[list[str]] = []  # footnotes that wait for the end of the paragraph
        self.folders: tuple[str, ...] = ("",)
        self.title: list[str] = []
        self.body = self.done = False
        self.pictures = 0

    def flush(self) -> None:
        """End the paragraph; its footnotes follow it."""
        for words in (self.words, *self.notes):
            lines = (" ".join(line.split()) for line in "".join(words).split("\n"))
            text = "\n".join(line for line in lines if line)
            if text and self.body:
                self.parts.append(Part(text))
        self.words, self.notes = [], []

    def run(self) -> None:
        while not self.done and (token := self.tokens.next()) is not None:
            if token[:1] == "\\":
                self.command(token)
            elif token == PAR:
                self.flush()
            elif token == "{":
                self.groups.append(self.at_end)
                self.at_end = None
            elif token == "}":
                action = self.groups.pop() if self.groups else None
                if action is not None:
                    action()
            elif token in ("$", "$$"):
                self.words.append(token + self.formula(token) + token)
            elif token in "~&":
                self.words.append(" ")
            elif token not in ("#", "^", "_"):
                for mark, character in _QUOTES:
                    token = token.replace(mark, character)
                self.words.append(token)
        while self.groups:  # braces that never close
            if (action := self.groups.pop()) is not None:
                action()
        self.flush()

    def formula(self, end: str) -> str:
        """The source up to a token; labels are left out. A paragraph's end ends it as well."""
        found: list[str] = []
        while (token := self.tokens.next()) is not None and token not in (PAR, end):
            if token in ("\\label", "\\nonumber", "\\notag"):
                if token == "\\label":
                    self.tokens.argument()
                continue
            if found and token[:1].isalpha() and re.fullmatch(r"\\[A-Za-z]+", found[-1]):
                found.append(" ")
            found.append(token)
        return "".join(found).strip()

    def command(self, token: str) -> None:
        name = token[1:].rstrip("*") if len(token) > 2 else token[1:]
        method = _METHODS.get(name)
        if method is not None:
            method(self)
        elif name in DEFINITIONS:
            DEFINITIONS[name](self.tokens)
        elif name.startswith("verb") and not name.isalpha():
            self.words.append(token.removeprefix("\\verb").removeprefix("*")[1:-1])
        elif len(name) > 1 and name.endswith("}"):  # \\url{…}; the text of \\href{…} follows in braces
            if not name.startswith("href"):
                self.words.append(name[name.index("{") + 1 : -1])
        elif name in SYMBOLS:
            self.words.append(SYMBOLS[name])
        elif name in ACCENTS:
            letter = "".join(SYMBOLS.get(t[1:], "") if t[0] == "\\" else t for t in self.tokens.argument())
            self.words.append(accented(letter, name))
        elif name in HEADINGS:
            self.heading(name)
        elif name in ARGUMENTS:
            for kind in ARGUMENTS[name]:
                while self.tokens.option() is not None:
                    pass
                if kind == "k":  # the text follows, in its braces
                    if ARGUMENTS[name].endswith("kd"):
                        self.at_end = self.tokens.drop
                    break
                self.tokens.drop()
        elif name.startswith("if") and name not in ("iff", "ifmmode"):
            self.tokens.conditional(name)
        elif name in ("(", "["):
            end = {"(": "\\)", "[": "\\]"}[name]
            self.words.append(token + self.formula(end) + end)
        elif name.isalpha():
            self.tokens.option()

    def heading(self, name: str) -> None:
        """A paragraph of its own; a title in the preamble waits for \\maketitle."""
        if name == "captionof":
            self.tokens.argument()
        self.tokens.option()
        if not self.body and name != "title":
            return
        self.flush()
        before = self.body

        def done() -> None:
            if before:
                self.flush()
            else:
                self.title, self.words = self.words, []

        self.at_end = done

    def footnote(self) -> None:
        self.tokens.option()
        outer, self.words = self.words, []

        def done() -> None:
            self.notes.append(self.words)
            self.words = outer

        self.at_end = done

    def begin(self) -> None:
        name = self.tokens.name()
        if name == "document":
            self.parts, self.words, self.notes, self.groups, self.body = [], [], [], [], True
            return
        if not self.body:
            return
        if name in LEFT_OUT:
            self.tokens.skip(name)
        elif name in MATH:
            content = self.environment(name)
            self.words.append(f"\\begin{{{name}}}{content}\\end{{{name}}}")
        elif name in VERBATIM:
            self.flush()
            self.words.append(self.environment(name).replace(PAR, "\n"))
            self.flush()
        else:
            self.flush()
            self.tokens.option()
            for _ in ENVIRONMENT_ARGUMENTS.get(name, ""):
                self.tokens.argument()
            if name == "overpic":
                self.graphics()

    def end(self) -> None:
        if self.tokens.name() == "document":
            self.done = True
        else:
            self.flush()

    def environment(self, name: str) -> str:
        """The source up to the end of an environment."""
        found = []
        while (token := self.tokens.next()) is not None:
            if token == "\\end":
                inner = self.tokens.argument()
                if "".join(inner).strip() == name:
                    break
                found += [token, "{", *inner, "}"]
            elif token == "\\label":
                self.tokens.argument()
            else:
                if found and token[:1].isalpha() and re.fullmatch(r"\\[A-Za-z]+", found[-1]):
                    found.append(" ")
                found.append(token)
        return "".join(found)

    def item(self) -> None:
        self.flush()
        label = self.tokens.option()
        self.words.append("- ")
        if label:
            self.tokens.push([" ", *reversed(label)])

    def include(self) -> None:
        """\\input, \\include, \\subfile; TeX's own form has no braces."""
        self.tokens.blank()
        if self.tokens.stack and self.tokens.stack[-1] != "{":
            tokens = []
            while (
                self.tokens.stack and self.tokens.stack[-1] not in (" ", PAR, END) and self.tokens.stack[-1][:1] != "\\"
            ):
                tokens.append(self.tokens.stack.pop())
            path = "".join(tokens)
        else:
            path = self.tokens.name()
        self.open_included(path)

    def import_(self) -> None:
        folder = self.tokens.name()
        self.open_included(posixpath.join(folder, self.tokens.name()))

    def open_included(self, path: str) -> None:
        found = self.tokens.tree.find(path.strip('"'), (".tex", "", ".ltx")) if path.strip() else None
        if found is not None and not found.endswith((".bbl", ".sty", ".cls")):
            self.tokens.open(found)

    def graphics(self) -> None:
        while self.tokens.option() is not None:
            pass
        self.picture(self.tokens.name())

    def keyed_graphics(self) -> None:
        if match := _FILE.search(self.tokens.name()):
            self.picture(match[1])

    def picture(self, path: str) -> None:
        """An image part at this place."""
        if not self.body or not path:
            return
        if self.pictures >= MAX_PICTURES:
            raise DataError(f"more than {MAX_PICTURES} graphics")
        self.pictures += 1
        self.flush()
        name = self.tokens.tree.find(path.strip().strip('"'), GRAPHICS, self.folders)
        self.parts.append(self.load(name, path.strip()))

    def load(self, name: str | None, path: str) -> Part:
        if name is None:
            return Part(ref=path, meta={"missing": "no such file"})
        ending = posixpath.splitext(name)[1].lower()
        meta: dict[str, Any] = {"filename": posixpath.basename(name)}
        try:
            data = self.tokens.tree.read(name)
            if ending == ".pdf":
                if self.pdf is None:
                    return Part(ref=name, meta=meta | {"missing": "PDF figures are not drawn"})
                data, kind = self.pdf.picture(data, name), "png"
            else:
                kind = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}.get(data[:4], "") or (
                    "jpeg" if data[:2] == b"\xff\xd8" else ""
                )
        except DataError as error:
            return Part(ref=name, meta=meta | {"missing": error.what})
        if not kind:
            return Part(ref=name, meta=meta | {"missing": f"{ending or 'unknown'} files are not read"})
        return Part(None, data, name, meta | {"format": kind, "sha256": hashlib.sha256(data).hexdigest()})

    def graphics_path(self) -> None:
        inside = "".join(self.tokens.argument())
        folders = [folder for folder in re.split(r"[{}]+", inside) if folder.strip()]
        self.folders = ("", *(f for f in folders[:20] if not posixpath.normpath(f).startswith(("/", ".."))))

    def space_after(self) -> None:
        """\\xspace: a space unless a mark of punctuation follows."""
        if self.tokens.stack and self.tokens.stack[-1][:1].isalnum():
            self.words.append(" ")

    def skip_length(self) -> None:
        """What TeX's own commands for space take: 2pt, without braces."""
        self.tokens.blank()
        if self.tokens.stack and _LENGTH.match(self.tokens.stack[-1]):
            self.tokens.stack[-1] = _LENGTH.sub("", self.tokens.stack[-1])

    def make_title(self) -> None:
        self.flush()
        self.words, self.title = self.title, []
        self.flush()


_METHODS: dict[str, Callable[[_Reader], None]] = {
    "begin": _Reader.begin, "end": _Reader.end, "item": _Reader.item, "par": _Reader.flush,
    "xspace": _Reader.space_after,
    "footnote": _Reader.footnote, "footnotetext": _Reader.footnote, "maketitle": _Reader.make_title,
    "input": _Reader.include, "include": _Reader.include, "subfile": _Reader.include,
    "import": _Reader.import_, "subimport": _Reader.import_,
    "includegraphics": _Reader.graphics, "epsfbox": _Reader.graphics, "plotone": _Reader.graphics,
    "includesvg": _Reader.graphics, "epsfig": _Reader.keyed_graphics, "psfig": _Reader.keyed_graphics,
    "graphicspath": _Reader.graphics_path,
    "vskip": _Reader.skip_length, "hskip": _Reader.skip_length, "kern": _Reader.skip_length,
}  # fmt: skip
_RESERVED = {*_METHODS, *DEFINITIONS, *HEADINGS, *ARGUMENTS, *SYMBOLS}
