"""The web made of the library: which pages there are, what each shows, which pages it links to."""

from __future__ import annotations

import platform
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bloomery.core.errors import DataError, nearest
from bloomery.worlds.installed_docs import library, questions, render
from bloomery.worlds.installed_docs.paths import item_path, module_path, page_links, source_path
from bloomery.worlds.installed_docs.scan import Item, Module

INDEX_PAGE = 300  # names on one page of the alphabetical index
SEARCH_RESULTS = 50


@dataclass(slots=True)
class Page:
    """One page. `module` is the dotted module it belongs to ("" for home, index and search pages)."""

    path: str
    title: str
    kind: str  # "home" | "module" | "class" | "function" | "source" | "index" | "search"
    module: str
    html: str


@dataclass(slots=True)
class Entry:
    """What a path stands for. `name` is the public dotted name, `source` the file that holds the definition."""

    path: str
    kind: str
    name: str
    key: str  # Page.module
    source: Module | None = None
    item: Item | None = None
    parent: str = ""  # public module under which it is listed; "" at the top


@dataclass(slots=True)
class Statistics:
    """Size of a site: pages by kind, bytes of docstrings and of published source code, documented names."""

    pages: dict[str, int]
    docs_bytes: int
    code_bytes: int
    names: int
    documented: int
    skipped: int


class InstalledDocs:
    """The documentation of the running Python as a web of HTML pages.

    `packages` are names such as "stdlib", "numpy" or a distribution's, or paths of folders that hold modules; None
    means the standard library and everything installed. Sources are parsed, never imported; a file that Python cannot
    parse is left out, and `skipped` says why. The site depends on the files alone, and its order on their names.

    `Page.module` is the unit for train/validation splits: a page quotes sentences of its own module only and shows
    names of others. Bundled copies of libraries are modules of their own, with the same text as the original.
    """

    def __init__(self, packages: Sequence[str] | None = None) -> None:
        built = library.build(packages)
        self.library = built
        self.skipped = built.skipped
        self.version = f"Python {platform.python_version()}"
        self.entries: dict[str, Entry] = {}
        self.names: dict[str, str] = {}  # public dotted name -> path, with anchor for methods
        self.children: dict[str, list[str]] = {"": []}  # public module -> public submodules
        self.members: dict[str, list[Entry]] = {}  # public module -> its classes, then its functions
        self.reexports: dict[str, list[str]] = {}  # public module -> full public names it hands on
        self.redirects: dict[str, str] = {}
        self._lay_out()
        self.paths: list[str] = sorted(self.entries)
        self._links: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def page(self, path: str) -> Page:
        """The page at `path`. Raises DataError for a path that is not in `paths`."""
        entry = self.entries.get(path)
        if entry is None:
            raise DataError("no such page on this site", where=path, fix=nearest(path, self._neighbours(path)))
        title, html = render.page(self, entry)
        return Page(path, title, entry.kind, entry.key, html)

    def module_of(self, path: str) -> str:
        """The dotted module that a page belongs to, "" for pages about all of them."""
        return self.entries[path].key

    def links(self) -> tuple[np.ndarray, np.ndarray]:
        """The link graph: int32 (sources, targets), indices into `paths`, sorted, no loops. Renders every page."""
        if self._links is None:
            index = {path: i for i, path in enumerate(self.paths)}
            sources: list[np.ndarray] = []
            targets: list[np.ndarray] = []
            for i, path in enumerate(self.paths):
                found = {index[href] for href in page_links(self.page(path).html) if href in index} - {i}
                targets.append(np.array(sorted(found), dtype=np.int32))
                sources.append(np.full(len(found), i, dtype=np.int32))
            self._links = np.concatenate(sources), np.concatenate(targets)
        return self._links

    def questions(self) -> Iterator[questions.Question]:
        """Questions that the docstrings answer, in the order of `docstrings`."""
        return questions.questions(self)

    def docstrings(self) -> Iterator[tuple[str, str, str]]:
        """(public name, module, docstring) of every documented module, class, function and method, sorted by name."""
        for name, entry in sorted((entry.name, entry) for entry in self.entries.values() if entry.kind == "module"):
            if entry.source is not None and entry.source.doc:
                yield name, entry.key, entry.source.doc
            for member in self.members.get(name, ()):
                assert member.item is not None
                yield from _docstrings(member.name, member.key, member.item)

    def statistics(self) -> Statistics:
        """Counts and sizes, without rendering."""
        pages: dict[str, int] = {}
        code = names = 0
        for entry in self.entries.values():
            pages[entry.kind] = pages.get(entry.kind, 0) + 1
            if entry.kind == "source" and entry.source is not None:
                code += entry.source.size
            elif entry.item is not None:
                names += _count(entry.item)
            elif entry.kind == "module":
                names += 1
        texts = [text for _, _, text in self.docstrings()]
        docs = sum(len(text.encode()) for text in texts)
        return Statistics(dict(sorted(pages.items())), docs, code, names, len(texts), len(self.skipped))

    def resolve(self, name: str, context: Entry, sure: bool = True) -> str | None:
        """Path of a name as it is written inside `context`: as a member, in its module, imported there, or in full.

        `sure` marks what is certainly a name; single words in plain quotes are often parameters, so only then may they
        mean a built-in.
        """
        name = name.strip().lstrip("~!.")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
            return None
        scopes = [context.name, context.parent]
        while scopes[-1]:
            scopes.append(scopes[-1].rpartition(".")[0])
        candidates = [f"{scope}.{name}" if scope else name for scope in scopes if "." in name or scope or sure]
        head, _, rest = name.partition(".")
        if context.source is not None and head in context.source.imports:
            origin, original = context.source.imports[head]
            candidates.append(".".join(part for part in (origin, original, rest) if part))
        if sure:
            candidates.append(f"builtins.{name}")
        return next((path for candidate in candidates if (path := self.find_name(candidate))), None)

    def find_name(self, name: str) -> str | None:
        """Path, with an anchor for a method, of a public dotted name or of an alias (`json.JSONDecoder.decode`)."""
        path = self.names.get(name)
        if path is None and "." in name:
            head, _, last = name.rpartition(".")
            full = self.library.aliases.get(name) or (
                f"{self.library.aliases[head]}.{last}" if head in self.library.aliases else None
            )
            path = self.names.get(full) if full and full != name else None
        return path

    def search(self, query: str) -> list[str]:
        """Public names that contain `query`, best first: whole last part, its beginning, anything else."""
        query = query.strip().lower()
        if not query:
            return []
        found = [name for name in self.names if query in name.lower()]

        def rank(name: str) -> tuple[int, int, str]:
            last = name.rpartition(".")[2].lower()
            return (0 if last == query else 1 if last.startswith(query) else 2, len(name), name)

        return sorted(found, key=rank)[:SEARCH_RESULTS]

    # -- layout ---------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        lib = self.library
        self._add(Entry("/", "home", "", ""))
        self._add(Entry("/search", "search", "", ""))
        for name, module in lib.modules.items():
            parent = name.rpartition(".")[0]
            while parent and parent not in lib.modules:
                parent = parent.rpartition(".")[0]
            self._add(Entry(module_path(name), "module", name, name, module, parent=parent))
            self.children.setdefault(parent, []).append(name)
        for full, (source, item) in lib.claims.items():
            parent = full.rpartition(".")[0]
            entry = Entry(
                item_path(full), item.kind, full, lib.owners.get(source.name, source.name), source, item, parent
            )
            self._add(entry)
            self.members.setdefault(parent, []).append(entry)
            self._add_methods(entry.path, full, item.members)
        for members in self.members.values():
            members.sort(key=lambda entry: (entry.kind, entry.name))
        for source in [*lib.modules.values(), *(m for m in lib.private.values() if m is not None)]:
            if source.file and (source.name in lib.modules or source.name in lib.owners):
                key = lib.owners.get(source.name, source.name)
                self._add(Entry(source_path(source), "source", source.name, key, source, parent=key))
        for alias, target in lib.aliases.items():
            if (path := self.names.get(target)) is not None:
                self.reexports.setdefault(alias.rpartition(".")[0], []).append(target)
                other = module_path(alias) if target in lib.modules else item_path(alias)
                self.redirects.setdefault(other, path)
        self._lay_out_index()

    def _lay_out_index(self) -> None:
        """Alphabetical index: names by their last part, in pages of equal length."""
        self.letters: dict[str, list[str]] = {}
        names = sorted(self.names, key=lambda name: (name.rpartition(".")[2].lower(), name))
        listed = [name for name in names if "#" not in self.names[name]]
        self.index_pages: dict[str, list[str]] = {}
        for name in listed:
            self.letters.setdefault(name.rpartition(".")[2][0].lower(), []).append(name)
        for letter, group in sorted(self.letters.items()):
            for number, start in enumerate(range(0, len(group), INDEX_PAGE), 1):
                path = f"/index/{letter}-{number}.html"
                self.index_pages[path] = group[start : start + INDEX_PAGE]
        self._add(Entry("/index/", "index", "", ""))
        for path in self.index_pages:
            self._add(Entry(path, "index", path[7:-5], ""))

    def _add(self, entry: Entry) -> None:
        self.entries[entry.path] = entry
        if entry.kind in ("module", "class", "function"):
            self.names[entry.name] = entry.path

    def _add_methods(self, path: str, full: str, members: list[Item]) -> None:
        for member in members:
            name = f"{full}.{member.name}"
            self.names.setdefault(name, f"{path}#{name}")
            self._add_methods(path, name, member.members)

    def _neighbours(self, path: str) -> list[str]:
        """Paths that begin alike, to suggest one: a search through all of them would take seconds."""
        at = bisect_left(self.paths, path)
        return self.paths[max(at - 20, 0) : at + 20]


def _docstrings(name: str, key: str, item: Item) -> Iterator[tuple[str, str, str]]:
    if item.doc:
        yield name, key, item.doc
    for member in item.members:
        yield from _docstrings(f"{name}.{member.name}", key, member)


def _count(item: Item) -> int:
    return 1 + sum(_count(member) for member in item.members)
