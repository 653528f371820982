"""The source code of the running Python's standard library: real text that every machine has."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from bloomery.core.errors import EmptyError
from bloomery.core.seeds import rng

SKIPPED = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"})
LARGEST = 200_000  # bytes; longer files are tables


@dataclass(frozen=True)
class SourceFile:
    """One file: its path below the library's folder, and what it says."""

    path: str
    text: str

    @property
    def module(self) -> str:
        """The top-level module or package it belongs to."""
        return self.path.partition("/")[0].removesuffix(".py")


@dataclass(frozen=True)
class SourceText:
    """The library split by top-level module: no module has files on both sides."""

    train: list[SourceFile]
    held_out: list[SourceFile]


def source_files(root: Path | None = None) -> list[SourceFile]:
    """The Python files below `root` (default: the standard library) in order of path, without tests and data tables."""
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED.isdisjoint(parts) and 0 < path.stat().st_size <= LARGEST:
            found.append(SourceFile("/".join(parts), path.read_text(encoding="utf-8", errors="replace")))
    if not found:
        raise EmptyError("no Python source here", where=root, fix="this Python has no library in source form")
    return found


def sources(seed: int = 0, held_out: float = 0.1, root: Path | None = None) -> SourceText:
    """The library's files in a seeded order; whole modules, about the share `held_out` of the bytes, are held out."""
    files = source_files(root)
    modules = sorted({file.module for file in files})
    rng(seed, "stdlib modules").shuffle(modules)
    budget = held_out * sum(len(file.text) for file in files)
    chosen: set[str] = set()
    for module in modules:
        size = sum(len(file.text) for file in files if file.module == module)
        if size <= budget:  # a large package never takes the whole share
            chosen.add(module)
            budget -= size
    order = rng(seed, "stdlib files").permutation(len(files))
    shuffled = [files[i] for i in order]
    return SourceText(
        [file for file in shuffled if file.module not in chosen], [file for file in shuffled if file.module in chosen]
    )
