"""What systems are here. Recipes are found by reading their source, so listing thirty of them imports none."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bloomery.core.errors import ConfigError, nearest
from bloomery.lab.recipe import Recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class SystemInfo:
    """One line of the catalogue."""

    slug: str
    stage: str
    paper: str
    summary: str
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self) | {"path": str(self.path)}


def systems(folder: Path = RECIPES) -> list[SystemInfo]:
    """Every recipe in `folder`, ordered by slug, read from the source without importing it."""
    files = sorted(folder.glob("*.py"))
    return [info for file in files if not file.name.startswith("_") and (info := _read(file)) is not None]


def load(system: str | Path) -> type[Recipe]:
    """Import one recipe: a slug of the catalogue, or the path of a `.py` file with a recipe of your own."""
    name = str(system)
    if name.endswith(".py"):
        return _load_file(Path(name))
    known = [info.slug for info in systems()]
    if name not in known:
        raise ConfigError(f"unknown system {name!r}", fix=f"{nearest(name, known)}; `bloomery systems` lists them")
    return _only_recipe(importlib.import_module(f"bloomery.recipes.{name}"), name)


def _read(file: Path) -> SystemInfo | None:
    """The recipe defined in `file`, or None where the file defines none."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid Python: {error}", where=file) from error
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "recipe":
                given = {k.arg: k.value.value for k in mark.keywords if isinstance(k.value, ast.Constant)}
                if not {"paper", "stage"} <= given.keys():
                    raise ConfigError("@recipe needs paper= and stage= as literal strings", where=file)
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                return SystemInfo(file.stem, str(given["stage"]), str(given["paper"]), summary, file)
    return None


def _load_file(file: Path) -> type[Recipe]:
    if not file.is_file():
        raise ConfigError("no such recipe file", where=file)
    module_name = f"bloomery_recipe_file.{file.stem}"  # the last part is the slug
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None  # a .py suffix always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # type hints are resolved through sys.modules
    spec.loader.exec_module(module)
    return _only_recipe(module, file)


def _only_recipe(module: Any, where: object) -> type[Recipe]:
    """The one recipe class that `module` defines itself."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__ and value.stage
    ]
    if len(own) != 1:
        raise ConfigError(f"expected one class with @recipe, found {len(own)}", where=where)
    return own[0]
