"""Modules compiled into the interpreter have no source to parse; their docstrings come from the live objects.

Only modules of the standard library named here are imported: no foreign code runs.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator

from bloomery.worlds.installed_docs.scan import Item, Module, clean, split_signature

PUBLIC = (
    "array", "atexit", "binascii", "builtins", "cmath", "errno", "faulthandler", "fcntl", "gc", "grp", "itertools",
    "marshal", "math", "mmap", "pwd", "resource", "select", "sys", "time", "unicodedata", "zlib",
)  # fmt: skip
PRIVATE = (
    "_collections", "_contextvars", "_csv", "_functools", "_io", "_operator", "_random", "_signal", "_socket",
    "_sqlite3", "_struct", "_thread", "_tracemalloc", "_warnings", "_weakref", "posix",
)  # fmt: skip


def modules(names: tuple[str, ...]) -> Iterator[Module]:
    """The named modules that exist on this platform and are indeed compiled."""
    for name in names:
        try:
            live = importlib.import_module(name)
        except ImportError:
            continue
        if getattr(live, "__file__", None) is None or not str(live.__file__).endswith(".py"):
            yield _module(name, live)


def _module(name: str, live: types.ModuleType) -> Module:
    module = Module(name, None, doc=clean(live.__doc__ or ""))
    for attribute in sorted(vars(live)):
        if attribute.startswith("_"):
            continue
        value = vars(live).get(
            f"__{attribute}__", vars(live)[attribute]
        )  # of `sys.excepthook` and the like: the original
        if isinstance(value, type):
            module.items[attribute] = _class(attribute, value)
        elif isinstance(value, types.BuiltinFunctionType):
            module.items[attribute] = _function(attribute, value)
    module.exports, module.exports_known = frozenset(module.items), True
    return module


def _class(name: str, live: type) -> Item:
    members = []
    for attribute in sorted(vars(live)):
        value = vars(live)[attribute]
        if attribute.startswith("_"):
            continue
        if isinstance(value, types.MethodDescriptorType | types.BuiltinFunctionType | classmethod | staticmethod):
            members.append(_function(attribute, value))
        elif isinstance(value, types.ClassMethodDescriptorType):
            members.append(_function(attribute, value, "classmethod"))
        elif isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType) and value.__doc__:
            members.append(Item("function", attribute, 0, clean(value.__doc__), label="property"))
    bases = tuple(base.__name__ for base in live.__bases__ if base is not object)
    signature, doc = _texts(name, live)
    return Item("class", name, 0, doc, signature, bases, members=members)


def _function(name: str, live: object, label: str = "") -> Item:
    signature, doc = _texts(name, live)
    return Item("function", name, 0, doc, signature, label=label)


def _texts(name: str, live: object) -> tuple[str, str]:
    """(signature, docstring); the signature without the leading `$self` or `$module`."""
    text = getattr(live, "__doc__", None)
    signature, doc = split_signature(name, clean(text if isinstance(text, str) else ""))
    declared = getattr(live, "__text_signature__", None)
    if isinstance(declared, str):
        inner = declared.strip("()").split(", ")
        if inner[0].startswith("$"):
            inner = inner[1:]
            if inner[:1] == ["/"]:
                inner = inner[1:]
        signature = f"({', '.join(part for part in inner if part)})"
    return signature, doc
