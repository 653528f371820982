"""Typed configuration: dataclasses in, plain JSON/YAML values out, and back without a silent default.

`decode` is strict: an unknown key, a missing field or a wrong type is a `ConfigError` that names the path to the
field, the value given and the nearest valid name. `encode(decode(cls, x)) == x` for every value it accepts.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from bloomery.core.errors import BloomeryError, ConfigError, nearest
from bloomery.core.files import atomic_file

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A dataclass (nested as it may be) as plain dictionaries, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def decode(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain values; `where` names the source in errors."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"expected a mapping of fields, got {data!r}", where=where or None)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(
                f"unknown field {key!r} of {cls.__name__}", where=where or None, fix=nearest(str(key), fields)
            )
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, f"{where}.{key}" if where else key) for key, value in data.items()}
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}", where=where or None)
    try:
        return cls(**values)
    except BloomeryError as error:
        raise type(error)(error.what, where=where or error.where, fix=error.fix) from error


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping (safe subset only)."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}", where=path) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"expected a mapping of fields, got {type(data).__name__}", where=path)
    return data


def save_yaml(path: Path | str, value: Any) -> None:
    """Write a dataclass or plain value as YAML, atomically, in field order."""
    with atomic_file(path, "w") as file:
        yaml.safe_dump(encode(value), file, sort_keys=False, allow_unicode=True)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ConfigError naming `where`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        return _convert(args[0], value, where)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args:
            known = [str(a) for a in args]
            raise ConfigError(f"{value!r} is not one of {', '.join(known)}", where=where)
        return value
    if origin in (list, tuple):
        return _convert_sequence(origin, args, value, where)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a mapping, got {value!r}", where=where)
        return {str(k): _convert(args[1] if args else Any, v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else decode(hint, value, where)  # type: ignore[arg-type]
    return _convert_scalar(hint, value, where)


def _convert_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for option in args:
        if option is not type(None):
            try:
                return _convert(option, value, where)
            except ConfigError as error:
                errors.append(error)
    raise (
        errors[-1]
        if len(errors) == 1
        else ConfigError(f"{value!r} fits none of {', '.join(map(str, args))}", where=where)
    )


def _convert_sequence(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise ConfigError(f"expected a list, got {value!r}", where=where)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ConfigError(f"expected {len(args)} values, got {len(value)}", where=where)
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    item = args[0] if args else Any
    return origin(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 (no dot) as a string
        try:
            return float(value)
        except ValueError:
            pass
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint in (str, bool, bytes) and isinstance(value, hint):
        return value
    if hint is type(None) and value is None:
        return None
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"expected {name}, got {value!r}", where=where)
