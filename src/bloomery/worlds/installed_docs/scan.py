"""From source files to documented items, with `ast` alone: nothing that is scanned is ever imported or executed.

A `Module` holds what a reader may see of one file: its docstring, its public classes and functions, and enough of its
import statements to follow `from ._impl import name` to the definition.
"""

from __future__ import annotations

import ast
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TEST_FOLDER = re.compile(r"^(tests?|testing_.*|test_.*|.*_tests?|conftest)$")
VENDOR = "_vendor"  # bundled copies of other libraries are published, as they are on the real web


@dataclass(slots=True)
class Item:
    """A class or a function. `signature` starts with "("; that of a class is its constructor's."""

    kind: str  # "class" | "function"
    name: str
    line: int  # 1-based; 0 when there is no source
    doc: str = ""  # as `inspect.cleandoc` leaves it
    signature: str = ""
    bases: tuple[str, ...] = ()
    label: str = ""  # "property", "classmethod", "staticmethod", "async" or ""
    members: list[Item] = field(default_factory=list)  # public methods and nested classes, in source order


@dataclass(slots=True)
class Module:
    """One source file, or one compiled module of the interpreter (`file` is then None)."""

    name: str
    file: str | None
    package: bool = False
    doc: str = ""
    size: int = 0  # bytes of source
    items: dict[str, Item] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # local name -> (module, name in it)
    stars: list[str] = field(default_factory=list)  # modules of `from x import *`
    exports: frozenset[str] = frozenset()  # the literal part of __all__
    exports_known: bool = False  # True when __all__ is there and wholly literal
    attached: list[tuple[str, Item]] = field(default_factory=list)  # docstrings that this file gives to other names


def is_private(name: str) -> bool:
    """Whether a dotted module name has a private part; a folder of bundled libraries does not count as one."""
    return any(part.startswith("_") and part != VENDOR for part in name.split("."))


def find_modules(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of a module file or of every module below a package folder, sorted; test folders left out."""
    if root.is_file():
        yield name, root
        return
    try:
        children = sorted(root.iterdir(), key=lambda child: child.name)
    except OSError:
        return
    for child in children:
        stem = child.name.removesuffix(".py")
        if not stem.isidentifier() or TEST_FOLDER.match(stem):
            continue
        if child.suffix == ".py":
            if child.is_file():
                yield (name if stem == "__init__" else f"{name}.{stem}"), child
        elif child.is_dir() and not child.is_symlink() and stem != "__pycache__":
            yield from find_modules(f"{name}.{stem}", child)


def read_source(file: Path | str) -> str:
    """Source text in the encoding that the file declares, with newlines as Python sees them."""
    with Path(file).open("rb") as handle:
        encoding, _ = tokenize.detect_encoding(handle.readline)
        handle.seek(0)
        return handle.read().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def scan(name: str, file: Path) -> Module:
    """Parse one file. Raises what Python does: OSError, SyntaxError, ValueError, RecursionError or MemoryError."""
    text = read_source(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the scanned code are not our user's concern
        tree = ast.parse(text, filename=str(file))
    source = text.encode()
    module = Module(name, str(file), package=file.name == "__init__.py", doc=_doc(tree), size=len(source))
    _Reader(module, source.split(b"\n")).read(tree.body)
    return module


class _Reader:
    """Fills a module from its statements. The first definition of a name wins, except over its own overloads."""

    def __init__(self, module: Module, lines: list[bytes]) -> None:
        self.module, self.lines = module, lines

    def read(self, body: list[ast.stmt]) -> None:
        exports: set[str] = set()
        literal, declared = True, False
        for node in statements(body):
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    if not _is_overload(node):
                        self.module.items.setdefault(node.name, self.item(node, level=0))
                case ast.Import():
                    for alias in node.names:
                        if alias.asname:
                            self.module.imports.setdefault(alias.asname, (alias.name, None))
                        else:
                            top = alias.name.partition(".")[0]
                            self.module.imports.setdefault(top, (top, None))
                case ast.ImportFrom():
                    self.import_from(node)
                case (
                    ast.Assign(targets=[ast.Name("__all__")], value=value)
                    | ast.AnnAssign(target=ast.Name("__all__"), value=ast.expr() as value)
                ):
                    names = _literal_names(value)
                    declared, literal = True, names is not None
                    exports = set(names or ())
                case ast.AugAssign(target=ast.Name("__all__"), value=value) | ast.Expr(
                    ast.Call(func=ast.Attribute(ast.Name("__all__"), "extend"), args=[value])
                ):
                    names = _literal_names(value)
                    literal = literal and names is not None
                    exports |= set(names or ())
                case ast.Expr(ast.Call() as call):
                    self.attach(call, None)
                case ast.Assign(targets=[ast.Name(name)], value=ast.Call() as call):
                    self.attach(call, name)
        self.module.exports = frozenset(exports)
        self.module.exports_known = declared and literal

    def import_from(self, node: ast.ImportFrom) -> None:
        origin = node.module or ""
        if node.level:
            parts = self.module.name.split(".")
            kept = parts[: len(parts) - node.level + (1 if self.module.package else 0)]
            origin = ".".join([*kept, origin] if origin else kept)
        for alias in node.names:
            if alias.name == "*":
                self.module.stars.append(origin)
            else:
                self.module.imports.setdefault(alias.asname or alias.name, (origin, alias.name))

    def attach(self, call: ast.Call, assigned: str | None) -> None:
        """Docstrings given to compiled functions: `add_newdoc(place, name, doc)` and `f = add_docstr(target, doc)`."""
        function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        match function.lstrip("_"), call.args:
            case "add_newdoc", [ast.Constant(str() as place), ast.Constant(str() as name), ast.Tuple() as pair, *_]:
                if (
                    len(pair.elts) == 2
                    and isinstance(member := pair.elts[0], ast.Constant)
                    and isinstance(member.value, str)
                ):
                    self.attach_text(f"{place}.{name}.{member.value}", pair.elts[1], call.lineno)
            case "add_newdoc", [ast.Constant(str() as place), ast.Constant(str() as name), text, *_]:
                self.attach_text(f"{place}.{name}", text, call.lineno)
            case "add_docstr", [target, text, *_]:
                full = f"{self.module.name}.{assigned}" if assigned else ast.unparse(target)
                self.attach_text(full, text, call.lineno)

    def attach_text(self, target: str, text: ast.expr, line: int) -> None:
        doc = clean(_literal_text(text) or "")
        name = target.rpartition(".")[2]
        if doc and not name.startswith("_"):
            signature, doc = split_signature(name, doc)
            self.module.attached.append((target, Item("function", name, line, doc, signature)))

    def item(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, level: int) -> Item:
        if isinstance(node, ast.ClassDef):
            return self.class_item(node, level)
        names = [_last_name(decorator) for decorator in node.decorator_list]
        label = next((label for label in ("classmethod", "staticmethod") if label in names), "")
        if any(name.endswith("property") for name in names):
            label = "property"
        elif isinstance(node, ast.AsyncFunctionDef):
            label = label or "async"
        bound = level > 0 and label != "staticmethod"
        return Item("function", node.name, node.lineno, _doc(node), self.signature(node, bound), label=label)

    def class_item(self, node: ast.ClassDef, level: int) -> Item:
        members: dict[str, Item] = {}
        signature = doc = ""
        for child in statements(node.body):
            if isinstance(child, ast.Assign) and _last_name(child.targets[0]) == "__doc__":
                doc = clean(_literal_text(child.value) or "")
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or _is_overload(child):
                continue
            if child.name == "__init__" and isinstance(child, ast.FunctionDef):
                signature, doc = self.signature(child, bound=True).removesuffix(" -> None"), doc or _doc(child)
            elif not child.name.startswith("_"):
                members.setdefault(child.name, self.item(child, level + 1))
        bases = tuple(self.segment(base) for base in node.bases)
        doc = _doc(node) or doc
        return Item("class", node.name, node.lineno, doc, signature, bases, members=list(members.values()))

    def signature(self, node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
        """ "(a, b=1, *, c) -> int" in the author's own spelling; `bound` leaves out self or cls."""
        a = node.args
        plain = [*a.posonlyargs, *a.args]
        defaults: list[ast.expr | None] = [None] * (len(plain) - len(a.defaults)) + list(a.defaults)
        shown = [self.argument(arg, default) for arg, default in zip(plain, defaults, strict=True)]
        if a.posonlyargs:
            shown.insert(len(a.posonlyargs), "/")
        if bound and shown:
            shown = shown[1:]
            if shown[:1] == ["/"]:
                shown = shown[1:]
        if a.vararg:
            shown.append("*" + self.argument(a.vararg, None))
        elif a.kwonlyargs:
            shown.append("*")
        shown += [self.argument(arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        if a.kwarg:
            shown.append("**" + self.argument(a.kwarg, None))
        returns = f" -> {self.segment(node.returns)}" if node.returns else ""
        return f"({', '.join(shown)}){returns}"

    def argument(self, arg: ast.arg, default: ast.expr | None) -> str:
        text = arg.arg if arg.annotation is None else f"{arg.arg}: {self.segment(arg.annotation)}"
        if default is None:
            return text
        return f"{text}{'=' if arg.annotation is None else ' = '}{self.segment(default)}"

    def segment(self, node: ast.expr) -> str:
        """Source of an expression on one line (slicing is twenty times faster than `ast.unparse`)."""
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        if first == last:
            return self.lines[first][node.col_offset : node.end_col_offset].decode()
        parts = [self.lines[first][node.col_offset :], *self.lines[first + 1 : last]]
        parts.append(self.lines[last][: node.end_col_offset])
        return " ".join(b" ".join(parts).decode().split())


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements in source order, those in the branches of `if`, `try` and `with` included, first branch first."""
    for node in body:
        match node:
            case ast.If():
                yield from statements(node.body)
                yield from statements(node.orelse)
            case ast.Try():
                yield from statements(node.body)
                for handler in node.handlers:
                    yield from statements(handler.body)
                yield from statements(node.orelse)
                yield from statements(node.finalbody)
            case ast.With():
                yield from statements(node.body)
            case _:
                yield node


def clean(text: str) -> str:
    """`inspect.cleandoc` on valid text: common indentation, outer blank lines and lone surrogates removed."""
    lines = text.encode("utf-8", "replace").decode().expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()), default=0)
    lines = [lines[0].lstrip(), *(line[margin:] for line in lines[1:])]
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def split_signature(name: str, doc: str) -> tuple[str, str]:
    """Take the call that opens the docstring of a compiled function, `name(a, b) -> c`, off the text."""
    head, _, rest = doc.partition("\n\n")
    lines = " ".join(head.split())
    if lines.startswith(f"{name}(") and ")" in lines and rest:
        return lines[len(name) :], rest.strip("\n")
    return "", doc


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node, clean=False)
    return clean(text) if text else ""


def _is_overload(node: ast.AST) -> bool:
    return any(_last_name(decorator) == "overload" for decorator in getattr(node, "decorator_list", ()))


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _literal_names(node: ast.expr) -> list[str] | None:
    """The names in a list, tuple or set of strings, or None when they are computed."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        names = [element.value for element in node.elts if isinstance(element, ast.Constant)]
        if len(names) == len(node.elts) and all(isinstance(name, str) for name in names):
            return [str(name) for name in names]
    return None


def _literal_text(node: ast.expr) -> str | None:
    """Text of a string literal, a sum of them, or a template (`{input}` then stands as its own name)."""
    match node:
        case ast.Constant(str() as text):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_literal_text(left) or "") + (_literal_text(right) or "")
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            return re.sub(r"\{\{|\}\}|\{(\w*)\}", lambda m: m[1] or m[0][:1], _literal_text(template) or "")
    return None
