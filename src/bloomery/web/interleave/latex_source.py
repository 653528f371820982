"""Source trees of papers: a folder, one file, or the archives that arXiv serves (`.tar.gz`, or one file as `.gz`).

Nothing outside the tree is read, whatever a path says; links in archives are ignored. An archive is unpacked in memory
and bounded before it is.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
import zlib
from pathlib import Path

from bloomery.core.errors import DataError

MAX_TREE = 200 << 20  # bytes of all files of an archive
MAX_FILES = 5_000
MAX_FILE = 50 << 20
MAX_SOURCE = 20 << 20  # bytes of one TeX file
SUFFIXES = (".tex", ".ltx")

_CLASS = re.compile(rb"^[^%\n]*?\\document(?:class|style)\b", re.MULTILINE)
_BEGIN = re.compile(rb"^[^%\n]*?\\begin\s*\{document\}", re.MULTILINE)
_USUAL = ("main", "ms", "paper", "article", "manuscript", "root")


class Tree:
    """The files of one paper by their name, with `/`."""

    def __init__(self, names: list[str], *, folder: Path | None = None, files: dict[str, bytes] | None = None) -> None:
        self.names, self._folder, self._files = sorted(names), folder, files or {}
        self._lower = {name.lower(): name for name in reversed(self.names)}

    def find(self, path: str, endings: tuple[str, ...] = ("",), folders: tuple[str, ...] = ("",)) -> str | None:
        """The name of a file that a TeX file calls `path`, with one of the endings, in one of the folders.

        Raises:
            DataError: the path leaves the tree.
        """
        for folder in folders:
            name = posixpath.normpath(posixpath.join(folder, path.strip().replace("\\", "/")))
            if name.startswith(("/", "..")) or ":" in name.split("/")[0] or "\x00" in name:
                raise DataError(f"the path {path!r:.100} leaves the source tree", fix="the file is left out")
            for ending in endings:
                if found := self._lower.get((name + ending).lower()):
                    return found
        return None

    def read(self, name: str, limit: int = MAX_FILE) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: it is too large or cannot be read.
        """
        if self._folder is None:
            data = self._files[name]
        else:
            try:
                with (self._folder / name).open("rb") as file:
                    data = file.read(limit + 1)
            except OSError as error:
                raise DataError(f"cannot be read: {error.strerror}", where=name) from error
        if len(data) > limit:
            raise DataError(f"more than {limit:,} bytes", where=name)
        return data

    def main(self) -> str:
        """The file that a TeX program would be given: it has a \\documentclass, best also \\begin{document}.

        Raises:
            DataError: there is none.
        """
        found = []
        for name in self.names:
            if name.lower().endswith(SUFFIXES) or "." not in posixpath.basename(name):
                source = self.read(name, MAX_SOURCE)
                if _CLASS.search(source):
                    usual = posixpath.splitext(posixpath.basename(name))[0].lower() in _USUAL
                    rank = (_BEGIN.search(source) is None, name.count("/"), not usual, -len(source), name)
                    found.append((rank, name))
        if not found:
            raise DataError("no file with a \\documentclass", fix="plain TeX and papers sent as PDF are not LaTeX")
        return min(found)[1]


def open_folder(folder: Path) -> Tree:
    """A tree on disk. Symbolic links that lead out of it are no part of it."""
    root = folder.resolve()
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.resolve().is_relative_to(root):
            names.append(path.relative_to(folder).as_posix())
            if len(names) > MAX_FILES:
                raise DataError(f"more than {MAX_FILES:,} files", where=folder)
    return Tree(names, folder=folder)


def open_archive(data: bytes) -> Tree:
    """A tree from a tar file or one TeX file, plain or compressed with gzip.

    Raises:
        DataError: damaged, too large, or something else.
    """
    if data.startswith(b"\x1f\x8b"):
        data = _gunzip(data)
    if data[257:262] == b"ustar" or (len(data) >= 1024 and len(data) % 512 == 0 and b"\x00" * 100 in data[:512]):
        return _untar(data)
    if data.startswith(b"%PDF"):
        raise DataError("a PDF, not LaTeX", fix="give the file to the PDF reader")
    return Tree(["main.tex"], files={"main.tex": data})


def _gunzip(data: bytes) -> bytes:
    stream, found = zlib.decompressobj(31), io.BytesIO()
    try:
        found.write(stream.decompress(data, MAX_TREE + 1))
    except zlib.error as error:
        raise DataError(f"damaged archive: {error}") from error
    if found.tell() > MAX_TREE:
        raise DataError(f"unpacks to more than {MAX_TREE >> 20} MB")
    if not stream.eof:
        raise DataError("damaged archive: it ends too early")
    return found.getvalue()


def _untar(data: bytes) -> Tree:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if not member.isreg() or name.startswith(("/", "..")):
                    continue
                if len(files) >= MAX_FILES:
                    raise DataError(f"more than {MAX_FILES:,} files in the archive")
                content = archive.extractfile(member)
                files[name] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"damaged archive: {error}") from error
    if not files:
        raise DataError("an archive without files")
    return Tree(list(files), files=files)
