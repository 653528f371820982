"""Python values as JSON with their tensors taken out: what a `state_dict()` returns, without pickle.

Numbers, strings, None, lists, tuples, dictionaries with any plain keys, bytes, NumPy arrays and scalars, tensors in any
layout. Anything else would need code to come back and is refused by its path. Two wrappers say what becomes of a value
that differs from rank to rank when the number of ranks changes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bloomery.checkpoint.layout import Tensorlike, is_tensor
from bloomery.core.errors import CheckpointError


@dataclass
class PerRank:
    """A value of this rank alone, such as a generator's state: given back to the same rank of an equally large run.

    In a run of another size it is an error, or None where it is not `required`.
    """

    value: Any
    rank: int | None = None  # default: this process among those that save
    world: int | None = None
    required: bool = True


@dataclass
class Rows:
    """This part's share of a list that belongs to all: buffers and positions of a data loader.

    Loaded with another number of parts, the lists are joined in the order of parts and cut anew into contiguous, nearly
    equal shares: no item is lost or repeated. Ranks that read the same data (tensor or pipeline parallel) pass the same
    `part`, the data-parallel rank; by default every rank is a part.
    """

    items: list[Any]
    part: int | None = None
    parts: int | None = None


@dataclass
class Encoded:
    """Values by name, each JSON, and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, Tensorlike]


def encode(name: str, value: Any, rank: int = 0, world: int = 1) -> Encoded:
    """`value` as JSON under `name`, its tensors under `name/…`.

    Raises:
        CheckpointError: something in it can only be pickled.
    """
    out = Encoded({}, {})
    out.values[name] = _encode(value, name, out, rank, world)
    return out


def decode(
    name: str, values: Mapping[str, Any], tensor: Callable[[str], Any], rank: int = 0, world: int = 1, like: Any = None
) -> Any:
    """The value that `encode` took apart; `tensor(name)` supplies tensors.

    `like` is the value to be replaced: its wrappers say which share of the rows this process wants.
    """
    return _decode(values[name], name, values, tensor, rank, world, like)


def share(count: int, part: int, parts: int) -> slice:
    """The `part`-th of `parts` contiguous shares of `count` items; sizes differ by at most one."""
    return slice(count * part // parts, count * (part + 1) // parts)


def _encode(value: Any, path: str, out: Encoded, rank: int, world: int) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value if not isinstance(value, int) or isinstance(value, bool) else int(value)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, path, out)
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else {"$float": repr(float(value))}
    if is_tensor(value):
        out.tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, PerRank):
        at, of = rank if value.rank is None else value.rank, world if value.world is None else value.world
        inner = f"{path}/rank-{at:05d}"
        out.values[inner] = _encode(value.value, inner, out, rank, world)
        return {"$per_rank": of, "required": value.required}
    if isinstance(value, Rows):
        part, parts = (rank, world) if value.part is None or value.parts is None else (value.part, value.parts)
        inner = f"{path}/part-{part:05d}"
        out.values[inner] = [_encode(item, f"{inner}/{i}", out, rank, world) for i, item in enumerate(value.items)]
        return {"$rows": parts}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}/{i}", out, rank, world) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{path}/{_escaped(key)}", out, rank, world) for key, item in value.items()}
        pairs = enumerate(value.items())
        return {
            "$pairs": [
                [_encode(key, f"{path}/key{i}", out, rank, world), _encode(item, f"{path}/{i}", out, rank, world)]
                for i, (key, item) in pairs
            ]
        }
    fix = "give it state_dict() and load_state_dict(), or store plain values and tensors"
    raise CheckpointError(f"{path} is a {type(value).__name__}, which only pickle could store", fix=fix)


def _encode_array(value: np.ndarray | np.generic, path: str, out: Encoded) -> Any:
    if value.dtype.kind not in "biufc":
        raise CheckpointError(f"{path} is a NumPy array of {value.dtype}, which has no defined bytes")
    array = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("="), copy=False)
    out.tensors[path] = torch.from_numpy(array.reshape(-1).view(np.uint8).copy())
    kind = "$scalar" if isinstance(value, np.generic) else "$array"
    return {kind: path, "dtype": array.dtype.str, "shape": list(value.shape)}


def _decode(
    value: Any, path: str, values: Mapping[str, Any], tensor: Callable[[str], Any], rank: int, world: int, like: Any
) -> Any:
    def inner(item: Any, at: str, beside: Any = None) -> Any:
        return _decode(item, at, values, tensor, rank, world, beside)

    if isinstance(value, list):
        known = like if isinstance(like, list) and len(like) == len(value) else [None] * len(value)
        return [inner(item, f"{path}/{i}", beside) for i, (item, beside) in enumerate(zip(value, known, strict=True))]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$"):
        beside: Mapping[str, Any] = like if isinstance(like, Mapping) else {}
        return {key: inner(item, f"{path}/{_escaped(key)}", beside.get(key)) for key, item in value.items()}
    content = value[tag]
    if tag == "$float":
        return float(content)
    if tag == "$tensor":
        return tensor(content)
    if tag in ("$array", "$scalar"):
        array = tensor(content).numpy().view(np.dtype(value["dtype"])).reshape(value["shape"])
        return array if tag == "$array" else array[()]
    if tag == "$bytes":
        return base64.b64decode(content)
    if tag == "$tuple":
        return tuple(inner(item, f"{path}/{i}") for i, item in enumerate(content))
    if tag == "$pairs":
        return {inner(key, f"{path}/key{i}"): inner(item, f"{path}/{i}") for i, (key, item) in enumerate(content)}
    if tag == "$per_rank":
        at, of = (like.rank, like.world) if isinstance(like, PerRank) else (None, None)
        at, of = rank if at is None else at, world if of is None else of
        if of != content and not value["required"]:
            return PerRank(None, at, of, required=False)
        if of != content:
            what = f"{path} was saved by each of {content} ranks, and this run has {of}"
            raise CheckpointError(what, fix="hold it as Rows, or derive it from the seed and the rank (see Rng)")
        found = f"{path}/rank-{at:05d}"
        return PerRank(inner(values[found], found, getattr(like, "value", None)), at, of, value["required"])
    if tag == "$rows":
        everything = [
            (f"{path}/part-{p:05d}", i) for p in range(content) for i in range(len(values[f"{path}/part-{p:05d}"]))
        ]
        part, parts = (like.part, like.parts) if isinstance(like, Rows) else (None, None)
        part, parts = (rank, world) if part is None or parts is None else (part, parts)
        mine = everything[share(len(everything), part, parts)]
        return Rows([inner(values[at][i], f"{at}/{i}") for at, i in mine], part, parts)
    raise CheckpointError(f"{path} holds {tag!r}, which this version does not know", fix="upgrade bloomery")


def _escaped(key: str) -> str:
    return key.replace("%", "%25").replace("/", "%2F")
