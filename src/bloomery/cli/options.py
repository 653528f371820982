"""Options from dataclasses (tyro does the parsing) and the two ways to print a result: a table, or JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from bloomery.core.errors import ConfigError, nearest

T = TypeVar("T")
FLAT = tyro.conf.arg(name="")  # Annotated[Group, FLAT]: the fields of a nested dataclass become options of their own


def parse(cls: type[T], argv: Sequence[str], *, prog: str, default: T | None = None, about: str = "") -> T:
    """An instance of the dataclass `cls` from command-line arguments; `about` (or its docstring) heads `--help`.

    A mistake is a `ConfigError` of one line instead of tyro's box of ten.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(
                cls,
                prog=prog,
                args=list(argv),
                default=tyro.MISSING_NONPROP if default is None else default,
                description=about or _docstring(cls),
                config=(
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.PositionalMetavarFromFieldName,
                    tyro.conf.AvoidSubcommands,  # an optional group that is set keeps its fields as options
                ),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_explain(shown.getvalue(), cls), fix=f"see {prog} --help") from None


def print_json(value: Any) -> None:
    """One JSON document on standard output; numbers that JSON lacks become null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """A table on standard output; numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    rows = [["–" if v is None else str(v) for v in row] for row in rows]
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(re.fullmatch(r"[+−-]?[\d.,]+%?|–", row[i]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        table.add_row(*(Text(value) for value in row))
    print_rich(table)


def print_rich(renderable: Any) -> None:
    """Anything rich can show, on standard output; wide where the output is a file or a pipe."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(renderable)


def _docstring(cls: type) -> str:
    return "\n".join(
        line.strip() if not line.startswith("      ") else line[4:] for line in (cls.__doc__ or "").split("\n")
    )


def _explain(box: str, cls: type) -> str:
    """The first sentence of tyro's error box; for an unknown option, the nearest one that exists."""
    lines = [re.sub(r"^[│╭╰╮╯\s]+|[│╭╰╮╯\s]+$", "", line) for line in box.splitlines()]
    parts = [list(part) for rule, part in itertools.groupby(lines, key=lambda line: set(line) <= set("─-")) if not rule]
    first = parts[0][1:] or parts[1]  # without the title; a terminal without box characters has a rule after it
    sentence = " ".join(line for line in first if line)
    text = sentence.replace(" (required)", "").strip() or "bad arguments"
    unknown = re.match(r"Unrecognized options: (\S+?),?(\s|$)", text)
    if unknown is None:
        return text[0].lower() + text[1:].rstrip(".")
    name = unknown[1].partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {name!r}"
    return f"unknown option {name!r}: {nearest(name.replace('_', '-'), _flags(cls))}"


def _flags(cls: Any, prefix: str = "") -> Iterator[str]:
    """Every option of a dataclass, nested ones with their prefix."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if name not in {field.name for field in dataclasses.fields(cls) if field.init}:
            continue
        extras = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if extras else hint
        if dataclasses.is_dataclass(inner):
            yield from _flags(inner, prefix if FLAT in extras else f"{prefix}{name}.")
        elif tyro.conf.Positional not in extras:
            yield f"--{prefix}{name.replace('_', '-')}"
