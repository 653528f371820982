"""A repository as one document: its files joined such that what a file imports comes before it.

Code is trained on by repository, so that a model sees the definitions that a file uses (DeepSeek-Coder,
arXiv:2401.14196 §2.2 and Algorithm 1; the corpus of arXiv:2406.11931 continues it). A repository is a mapping from
path to text. Three functions, each usable alone:

    depends = dependencies(files)      which files of the repository each file imports or includes
    paths = order(depends)             dependencies first, cycles broken the same way every time
    text = join(files)                 that order, every file under a comment that names it

Python is parsed; a file that does not parse, and C, C++, JavaScript, TypeScript, Java and Go, are searched with
regular expressions whose repeats are bounded, so that time is linear in the text. References that lead out of the
repository, and names that many files could mean, are ignored. `read_repositories` is a reader for `corpus.run`:

    run([CodeShape(), CodeFormat()], "files", "clean")
    run([NearDedup()], "clean", "repositories", read=read_repositories)    # near duplicates of whole repositories
"""

from __future__ import annotations

import ast
import heapq
import posixpath
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.corpus.code_filters import paths as document_paths
from bloomery.corpus.documents import SCHEMA, content_id, from_texts, texts
from bloomery.corpus.readers import BATCH_BYTES, BATCH_DOCUMENTS, read_documents
from bloomery.corpus.steps import DROP, ERROR, drop_reasons, kept

Files = Mapping[str, str]  # path -> text
Graph = Mapping[str, Collection[str]]  # path -> paths it depends on

MAX_PARSED = 2_000_000  # characters; a longer Python file is searched instead of parsed
MAX_DEPTH = 16  # folders of a path by which a file can be named
MAX_MEANT = 64  # files; a name that more files could mean is nobody's
MAX_REPOSITORY = 1 << 30  # bytes of a joined repository

# ------------------------------------------------------------------------------------------------------- joining


def join(files: Files) -> str:
    """All files, dependencies first, each under a comment with its path."""
    return "\n".join(f"{path_comment(path)}\n{files[path].rstrip()}\n" for path in order(dependencies(files)))


def order(depends: Graph) -> list[str]:
    """Every file once, its dependencies before it where there is no cycle.

    Files that are connected by dependencies stay together; such groups follow each other by their first path. Within
    a group the file with the fewest dependencies that have not come yet is next, of several the first path: without a
    cycle that file lacks none, in a cycle this breaks it. The order of the input does not matter.
    """
    needed: dict[str, set[str]] = defaultdict(set)  # file -> files that depend on it
    missing: dict[str, int] = {}
    for path, others in depends.items():
        mine = {other for other in others if other in depends and other != path}
        missing[path] = len(mine)
        for other in mine:
            needed[other].add(path)
    group = _groups(depends)
    queue = [(group[path], count, path) for path, count in missing.items()]
    heapq.heapify(queue)
    done: list[str] = []
    while queue:
        rank, count, path = heapq.heappop(queue)
        if missing.get(path) != count:  # done already, or queued again with fewer since
            continue
        del missing[path]
        done.append(path)
        for other in needed[path]:
            if other not in missing:  # it came before, to break a cycle
                continue
            missing[other] -= 1
            heapq.heappush(queue, (rank, missing[other], other))
    return done


def _groups(depends: Graph) -> dict[str, str]:
    """The first path of the group of connected files that each file belongs to."""
    linked: dict[str, set[str]] = {path: set() for path in depends}
    for path, others in depends.items():
        for other in others:
            if other in linked:
                linked[path].add(other)
                linked[other].add(path)
    first: dict[str, str] = {}
    for start in sorted(linked):
        reached = [] if start in first else [start]
        while reached:
            path = reached.pop()
            if path not in first:
                first[path] = start
                reached.extend(other for other in linked[path] if other not in first)
    return first


def dependencies(files: Files) -> dict[str, set[str]]:
    """The files of the repository that each file refers to."""
    index = _Index(files)
    found: dict[str, set[str]] = {}
    for path, text in files.items():
        refers = _LANGUAGES.get(_suffix(path))
        found[path] = set(refers(path, text, index)) - {path} if refers else set()
    return found


_COMMENTS = {  # what opens a comment in files of these suffixes
    "//": "c h cc cpp cxx hh hpp cu java js jsx mjs cjs ts tsx go rs swift kt scala cs php dart",
    "--": "sql lua hs elm ada vhd vhdl",
    ";": "lisp el clj scm asm ini",
    "%": "tex erl",
    "<!--": "html htm xml xsl xslt svg vue md",
    "/*": "css",
}
_OPENING = {suffix: opening for opening, suffixes in _COMMENTS.items() for suffix in suffixes.split()}
_CLOSING = {"<!--": " -->", "/*": " */"}


def path_comment(path: str) -> str:
    """The line that names a file, as a comment of its language (`#` where that is unknown)."""
    opening = _OPENING.get(_suffix(path), "#")
    name = " ".join(path.split()).replace("-->", "-- >").replace("*/", "* /")
    return f"{opening} {name}{_CLOSING.get(opening, '')}"


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1][1:].lower()


# ------------------------------------------------------------------------------------------------ finding a file


class _Index:
    """The files and folders of a repository by every ending of their paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = set(paths)
        self.members: dict[str, list[str]] = defaultdict(list)  # folder -> files in it
        for path in sorted(self.paths):
            self.members[posixpath.dirname(path)].append(path)
        self._files, self._folders = _by_ending(self.paths), _by_ending(self.members)

    def first(self, candidates: Iterable[str]) -> list[str]:
        """The first candidate that is a file, as a list of one, or none."""
        return next(([path] for path in candidates if path in self.paths), [])

    def nearest(self, ending: str, source: str, roots: Callable[[str], bool] = lambda root: True) -> list[str]:
        """The file whose path ends so that shares most folders with `source`, then the one least deep.

        `roots` accepts or refuses the folder below which the ending begins.
        """
        meant = self._files.get(ending, [])
        if len(meant) > MAX_MEANT:
            return []
        meant = [path for path in meant if roots(path[: -len(ending)].rstrip("/"))]
        near = source.split("/")[:-1]
        return sorted(meant, key=lambda path: (-_shared(path.split("/"), near), path.count("/"), path))[:1]

    def inside(self, ending: str) -> list[str]:
        """The files of all folders whose paths end so."""
        return [path for folder in self._folders.get(ending, ())[:MAX_MEANT] for path in self.members[folder]]


def _by_ending(paths: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        parts = path.split("/")
        for begin in range(max(len(parts) - MAX_DEPTH, 0), len(parts)):
            found["/".join(parts[begin:])].append(path)
    return found


def _shared(one: list[str], other: list[str]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _beside(source: str, name: str) -> str:
    """The path of `name` as seen from the folder of `source`; one outside the repository begins with ".."."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), name))


# ------------------------------------------------------------------------------------------------------- Python


class PythonImport(NamedTuple):
    """`from ..module import names` (level 2), or `import module` (level 0, no names)."""

    level: int
    module: str
    names: tuple[str, ...]


_PYTHON = re.compile(
    r"^[ \t]{0,200}(?:from[ \t]{1,20}(\.{0,20})([\w.]{0,300})[ \t]{1,20}import[ \t]{1,20}\(?([\w, \t]{0,1000})"
    r"|import[ \t]{1,20}([\w., \t]{1,1000}))",
    re.M,
)


def python_imports(text: str) -> list[PythonImport]:
    """The imports of a Python file, also of one that does not parse (then those that stand on one line)."""
    if len(text) <= MAX_PARSED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings
                tree = ast.parse(text)
            return _parsed_imports(tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass
    found: list[PythonImport] = []
    for dots, module, names, modules in _PYTHON.findall(text):
        if modules:
            found += [PythonImport(0, name, ()) for name in _listed(modules)]
        else:
            found.append(PythonImport(len(dots), module, _listed(names)))
    return found


def _parsed_imports(tree: ast.AST) -> list[PythonImport]:
    found: list[PythonImport] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [PythonImport(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(PythonImport(node.level, node.module or "", tuple(alias.name for alias in node.names)))
    return found


def _listed(names: str) -> tuple[str, ...]:
    """The names of "a, b as c"."""
    return tuple(name.split()[0] for name in names.split(",") if name.strip())


def _python(source: str, text: str, index: _Index) -> Iterator[str]:
    for level, module, names in python_imports(text):
        parts = module.split(".") if module else []
        if level == 0 and (not parts or parts[0] in sys.stdlib_module_names):
            continue
        for target in ([*parts, name] for name in names) if names else [parts]:
            yield from _module(target, level, source, index) or _module(parts, level, source, index)


def _module(parts: list[str], level: int, source: str, index: _Index) -> list[str]:
    """The file of a module, as a list of one or none."""
    if level:
        package = source.split("/")[:-1]
        if level - 1 > len(package):
            return []
        stem = "/".join([*package[: len(package) - (level - 1)], *parts])
        return index.first((f"{stem}.py", f"{stem}.pyi", f"{stem}/__init__.py".lstrip("/")))

    def outside(root: str) -> bool:  # what lies in a package is not imported by its bare name
        return posixpath.join(root, "__init__.py") not in index.paths

    stem = "/".join(parts)
    return (
        index.nearest(f"{stem}.py", source, outside)
        or index.nearest(f"{stem}/__init__.py", source, outside)
        or index.nearest(f"{stem}.pyi", source, outside)
    )


# ----------------------------------------------------------------------------------------------- other languages

_INCLUDE = re.compile(
    r"^[ \t]{0,50}#[ \t]{0,20}(?:include|include_next|import)[ \t]{0,20}([<\"])([^>\"\n]{1,300})[>\"]", re.M
)
_SCRIPT = re.compile(r"\b(?:from|import|require)\s{0,20}\(?\s{0,20}[\"'](\.\.?(?:/[^\"'\n]{0,300})?)[\"']")
_JAVA = re.compile(
    r"^[ \t]{0,50}import[ \t]{1,20}(?:static[ \t]{1,20})?([\w.]{1,300}?)(\.\*)?[ \t]{0,20};", re.MULTILINE
)
_GO = re.compile(r"^[ \t]{0,50}(?:import[ \t]{1,20})?(?:[\w.]{1,100}[ \t]{1,20})?\"([\w./~-]{1,300})\"", re.M)

SCRIPT_SUFFIXES = ("", ".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".json", ".vue")


def _c(source: str, text: str, index: _Index) -> Iterator[str]:
    for bracket, name in _INCLUDE.findall(text):
        if bracket == '"':
            yield from index.first([_beside(source, name)]) or index.nearest(posixpath.normpath(name), source)
        else:  # the system's, unless it lies where a build would look
            yield from index.nearest(name, source, lambda root: posixpath.basename(root) in ("", "include"))


def _script(source: str, text: str, index: _Index) -> Iterator[str]:
    for name in _SCRIPT.findall(text):
        stem = _beside(source, name)
        stems = [stem, re.sub(r"\.[cm]?js$", "", stem), posixpath.join(stem, "index")]
        yield from index.first(stem + suffix for stem in stems for suffix in SCRIPT_SUFFIXES)


def _java(source: str, text: str, index: _Index) -> Iterator[str]:
    for name, everything in _JAVA.findall(text):
        parts = name.split(".")
        if everything:
            yield from (path for path in index.inside("/".join(parts)) if _suffix(path) == "java")
        for end in (len(parts), len(parts) - 1):  # a class, or something inside one
            if found := index.nearest("/".join(parts[:end]) + ".java", source):
                yield from found
                break


def _go(source: str, text: str, index: _Index) -> Iterator[str]:
    for name in _GO.findall(text):
        parts = name.split("/")
        if "." not in parts[0]:  # the standard library
            continue
        folders = ("/".join(parts[begin:]) for begin in range(1, len(parts)))
        folder = next((folder for folder in folders if folder in index.members), None)
        if folder is not None:
            yield from (path for path in index.members[folder] if _suffix(path) == "go")


_LANGUAGES: dict[str, Callable[[str, str, _Index], Iterator[str]]] = {
    **dict.fromkeys(("py", "pyi"), _python),
    **dict.fromkeys(["c", "h", "cc", "cpp", "cxx", "c++", "hh", "hpp", "hxx", "inl", "cu", "cuh", "m", "mm"], _c),
    **dict.fromkeys(["js", "jsx", "mjs", "cjs", "ts", "tsx", "mts", "cts", "vue"], _script),
    "java": _java,
    "go": _go,
}


# ------------------------------------------------------------------------------------------------------ documents


def read_repositories(path: Path) -> Iterator[pa.RecordBatch]:
    """The repositories of one corpus file, one document each: a reader for `corpus.run`.

    Files are documents whose meta data say `repo` and `path` (or whose URL is the path); all files of a repository
    must lie in the same corpus file, which is held in memory. Of two files with one path the first counts. Documents
    without `repo` stay as they are; unreadable ones are passed on to be counted. The new documents have the meta data
    `repo` and `files`, their number; columns that steps have added are gone.
    """
    repositories: dict[str, dict[str, str]] = defaultdict(dict)
    for batch in read_documents(path):
        if DROP in batch.schema.names:
            yield batch.select([*SCHEMA.names, DROP]).filter(pc.is_valid(batch.column(DROP)))
        good = kept(batch).select(SCHEMA.names)
        owners = [dict(meta or ()).get("repo") for meta in good.column("meta").to_pylist()]
        if None in owners:
            yield good.filter(pa.array([owner is None for owner in owners]))
        for owner, name, text in zip(owners, document_paths(good), texts(good).to_pylist(), strict=True):
            if owner is not None:
                repositories[owner].setdefault(name, text)
    waiting: list[tuple[str, str, int]] = []
    while repositories:
        name = next(iter(repositories))
        files = repositories.pop(name)
        size = sum(len(text.encode()) for text in files.values())
        if size > MAX_REPOSITORY:
            yield drop_reasons(_documents([(name, "", len(files))]), [f"{ERROR} repository of {size} bytes"])
            continue
        waiting.append((name, join(files), len(files)))
        if len(waiting) == BATCH_DOCUMENTS or sum(len(text) for _, text, _ in waiting) >= BATCH_BYTES:
            yield _documents(waiting)
            waiting = []
    if waiting:
        yield _documents(waiting)


def _documents(joined: list[tuple[str, str, int]]) -> pa.RecordBatch:
    """Documents of (repository, text, number of files)."""
    return from_texts(
        [text for _, text, _ in joined],
        ids=[content_id(name, text) for name, text, _ in joined],
        metas=[{"repo": name, "files": count} for name, _, count in joined],
    )
