"""Which modules there are, under which public name each thing is documented, and where a name leads.

A definition in a private file (`numpy._core.fromnumeric.sum`) is documented where users meet it (`numpy.sum`), at the
shallowest public module that hands it on; its other names are aliases.
"""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bloomery.core.errors import ConfigError, EmptyError, nearest
from bloomery.worlds.installed_docs import compiled
from bloomery.worlds.installed_docs.scan import TEST_FOLDER, Item, Module, find_modules, is_private, scan

STDLIB = "stdlib"
NOT_DOCUMENTED = {"bloomery", "antigravity", "this"}  # ourselves, and jokes
PATH_MODULE = os.path.__name__  # "posixpath" or "ntpath": users know it as os.path
UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError, MemoryError)
MAX_HOPS = 12  # import statements followed from a public name to its definition


@dataclass(slots=True)
class Library:
    """Every scanned module, and the public names that lead into them."""

    modules: dict[str, Module] = field(default_factory=dict)  # public, by dotted name, sorted
    private: dict[str, Module | None] = field(default_factory=dict)  # parsed when a public module imports from it
    files: dict[str, Path] = field(default_factory=dict)
    attached: dict[str, tuple[Module, Item]] = field(default_factory=dict)  # docstrings of compiled things, by name
    skipped: dict[str, str] = field(default_factory=dict)  # file -> why it could not be parsed
    claims: dict[str, tuple[Module, Item]] = field(default_factory=dict)  # public name -> definition
    aliases: dict[str, str] = field(default_factory=dict)  # other public name -> the one it is documented under
    owners: dict[str, str] = field(default_factory=dict)  # module holding a definition -> public module it belongs to

    def lookup(self, name: str) -> Module | None:
        """A public or private module by name, parsing a private one on first use."""
        name = "os.path" if name == PATH_MODULE and "os.path" in self.modules else name
        if name in self.modules:
            return self.modules[name]
        if name not in self.private:
            self.private[name] = self._scan(name) if name in self.files else None
        return self.private[name]

    def define(self, module: str, name: str, hops: int = 0) -> tuple[Module, Item] | Module | None:
        """Follow imports from `module.name` to the definition: (module, item), a module, or None outside the site."""
        if hops > MAX_HOPS:
            return None
        home = self.lookup(module)
        if home is not None and name in home.items:
            return home, home.items[name]
        if f"{module}.{name}" in self.attached:
            return self.attached[f"{module}.{name}"]
        if home is None:
            return None
        if name in home.imports:
            origin, original = home.imports[name]
            if original is None:
                return self.lookup(origin)
            if (origin, original) == (module, name):  # `from . import sub` inside the package itself
                return self.lookup(f"{module}.{name}")
            return self.define(origin, original, hops + 1) or self.lookup(f"{origin}.{original}")
        for origin in home.stars:
            found = self.define(origin, name, hops + 1) if origin != module else None
            if found is not None:
                return found
        return None

    def star_names(self, module: str, hops: int = 0) -> list[str]:
        """What `from module import *` brings, as far as it is written down."""
        home = self.lookup(module)
        if home is None or hops > MAX_HOPS:
            return []
        if home.exports_known:
            return sorted(home.exports)
        names = {name for name in (*home.items, *home.exports) if not name.startswith("_")}
        for origin in home.stars:
            names.update(self.star_names(origin, hops + 1))
        prefix = f"{module}."
        names.update(name[len(prefix) :] for name in self.attached if name.startswith(prefix))
        return sorted(name for name in names if "." not in name)

    def handed_on(self, module: Module) -> list[str]:
        """Public names that `module` imports in order to offer them itself."""
        names = {name for origin in module.stars for name in self.star_names(origin)}
        for name, (origin, original) in module.imports.items():
            if name in module.exports:
                names.add(name)
            elif not module.exports_known and original is not None and origin:
                same = origin.partition(".")[0] == module.name.partition(".")[0]
                if same and (module.package or is_private(origin)):
                    names.add(name)
        if module.exports_known:
            names &= module.exports
        return sorted(name for name in names if not name.startswith("_") and name not in module.items)

    def _scan(self, name: str) -> Module | None:
        file = self.files[name]
        try:
            module = scan(name, file)
        except UNREADABLE as error:
            self.skipped[str(file)] = f"{type(error).__name__}: {error}".split("\n")[0]
            return None
        return module

    def _claim_all(self) -> None:
        """Give every definition its one public name."""
        canonical: dict[tuple[str, str], str] = {}
        for module in self.modules.values():
            for name, item in module.items.items():
                if not name.startswith("_"):
                    canonical[module.name, name] = f"{module.name}.{name}"
                    self.claims[f"{module.name}.{name}"] = (module, item)
        for target, (source, item) in self.attached.items():  # `add_docstr(torch.abs, ...)` names the public place
            if target not in self.claims and target.rpartition(".")[0] in self.modules:
                self.owners.setdefault(source.name, target.rpartition(".")[0])
                canonical[source.name, f"{item.line}"] = target
                self.claims[target] = (source, item)
        for module in sorted(self.modules.values(), key=lambda m: (m.name.count("."), m.name)):
            for name in self.handed_on(module):
                full, found = f"{module.name}.{name}", self.define(module.name, name)
                if full in self.claims or full in self.modules or found is None:
                    continue
                if isinstance(found, Module):
                    if found.name in self.modules and name in module.exports:
                        self.aliases[full] = found.name
                    continue
                source, item = found
                key = (source.name, item.name if item.name in source.items else f"{item.line}")
                if key in canonical:
                    self.aliases[full] = canonical[key]
                elif source.name not in self.modules:
                    canonical[key] = full
                    self.owners.setdefault(source.name, module.name)
                    self.claims[full] = found


def build(packages: Sequence[str] | None) -> Library:
    """Scan the named packages (None: the standard library and everything installed)."""
    library = Library()
    for name, file in sorted(_files(packages)):
        library.files.setdefault(name, file)
    if packages is None or STDLIB in packages:
        library.modules.update((module.name, module) for module in compiled.modules(compiled.PUBLIC))
        library.private.update((module.name, module) for module in compiled.modules(compiled.PRIVATE))
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles; without the collector parsing takes two thirds of the time
    try:
        for name in list(library.files):
            if is_private(name) and "docs" in name.rpartition(".")[2]:
                source = library.lookup(name)
            elif is_private(name):
                continue
            else:
                source = library._scan(name)
                if source is not None:
                    library.modules[name] = source
            if source is not None:
                _attach(library, source)
        if not library.modules:
            raise EmptyError(
                "no readable public module",
                where=", ".join(packages or ()),
                fix="name a package that holds Python source",
            )
        library.modules = dict(sorted(library.modules.items()))
        library._claim_all()
    finally:
        if collecting:
            gc.enable()
    library.claims = dict(sorted(library.claims.items()))
    library.aliases = dict(sorted(library.aliases.items()))
    return library


def _attach(library: Library, source: Module) -> None:
    """File attached docstrings under their names, or as methods of the class that was documented before them."""
    for target, item in source.attached:
        owner = library.attached.get(target.rpartition(".")[0])
        if owner is None:
            library.attached.setdefault(target, (source, item))
        elif all(member.name != item.name for member in owner[1].members):
            owner[1].kind = "class"
            owner[1].members.append(item)


def _files(packages: Sequence[str] | None) -> list[tuple[str, Path]]:
    """(dotted name, file) of every module of the packages, private ones included."""
    found: list[tuple[str, Path]] = []
    for package in [STDLIB, *installed()] if packages is None else packages:
        if package == STDLIB:
            found += _stdlib_files()
            continue
        try:
            roots = _roots(package)
        except UNREADABLE:
            roots = []
        if not roots and packages is not None:
            known = [STDLIB, *installed()]
            raise ConfigError(
                "no such package or folder, or no Python source in it",
                where=f"packages: {package!r}",
                fix=nearest(package, known),
            )
        for name, root in roots:
            found += find_modules(name, root)
    return found


def installed() -> list[str]:
    """Top-level names of every installed distribution, sorted; private and test packages left out."""
    names = importlib.metadata.packages_distributions()
    return sorted(
        name
        for name in names
        if name.isidentifier()
        and not name.startswith("_")
        and not TEST_FOLDER.match(name)
        and name not in NOT_DOCUMENTED
        and name not in sys.stdlib_module_names
    )


def _stdlib_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, Path]] = []
    for name in sorted(sys.stdlib_module_names - NOT_DOCUMENTED):
        if TEST_FOLDER.match(name):
            continue
        for path in (root / name, root / f"{name}.py"):
            if path.exists():
                found += find_modules("os.path" if name == PATH_MODULE else name, path)
    return found


def _roots(package: str) -> list[tuple[str, Path]]:
    """(top-level name, file or folder) of an importable package, a distribution, or a folder of modules."""
    folder = Path(package)
    if folder.is_dir() and (os.sep in package or not package.isidentifier() or _spec(package) is None):
        folder = folder.resolve()
        if (folder / "__init__.py").exists():
            return [(folder.name, folder)]
        stems = {child.name.removesuffix(".py") for child in folder.iterdir() if child.suffix in ("", ".py")}
        pairs = [(stem, path) for stem in sorted(stems) for path in (folder / stem, folder / f"{stem}.py")]
        return [(stem, path) for stem, path in pairs if path.exists() and stem.isidentifier()]
    spec = _spec(package) if package.isidentifier() else None
    if spec is None:
        owned = [name for name, owners in importlib.metadata.packages_distributions().items() if package in owners]
        return [root for name in sorted(owned) if name.isidentifier() and _spec(name) for root in _roots(name)]
    if spec.submodule_search_locations is not None:
        return [(package, Path(location)) for location in sorted(spec.submodule_search_locations)]
    return [(package, Path(spec.origin))] if spec.origin and spec.origin.endswith(".py") else []


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a top-level name lives, by looking at folders only: the module is not imported."""
    return importlib.machinery.PathFinder.find_spec(name)
