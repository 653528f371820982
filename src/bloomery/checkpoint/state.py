"""What a program hands over, as named tensors and JSON values, and the way back.

    nn.Module       parameters and persistent buffers as <key>/<fully qualified name>; tied ones once
    Optimizer       state as <key>/<name of the parameter>/<key of the state>; options of its groups as values; one
                    that divides its state among ranks (ZeRO) holds FlatShards in `state`
    Named           tensors by name, of which every rank may hold others
    a Stateful      anything with state_dict() and load_state_dict(): schedulers, loaders, scalers
    a tensor, or plain values (see `tree`)

Names come from modules, not from positions: pipeline stages, frozen parameters and reordered groups keep theirs.
Optimiser state that does not exist yet on loading is made in the layout of its parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bloomery.checkpoint.layout import (
    Tensorlike,
    bits,
    check_bytes,
    dtype_name,
    dtype_named,
    global_shape,
    is_tensor,
    local,
)
from bloomery.checkpoint.manifest import Manifest, TensorMeta
from bloomery.checkpoint.tree import decode, encode
from bloomery.core.errors import CheckpointError
from bloomery.core.hashing import hash64

EXTRA = "_extra_state"  # what PyTorch calls the extra state of a module
SMALL = 64 << 10  # bytes of a tensor outside modules that is compared across ranks


@dataclass
class Flat:
    """A state as names."""

    tensors: dict[str, Tensorlike] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class Named(dict[str, Tensorlike]):
    """Tensors by name, as a module holds them: each rank brings its own names (pipeline stages, foreign frameworks)."""


def flatten(state: Mapping[str, Any], rank: int = 0, world: int = 1) -> Flat:
    """Names for all that `state` holds on this rank.

    Raises:
        CheckpointError: a value that only pickle could store, a key with "/" or "$".
    """
    flat = Flat()
    names = parameter_names(state)
    for key, value in state.items():
        if not isinstance(key, str) or not key or "/" in key or key.startswith("$"):
            raise CheckpointError(f"{key!r} cannot be a key of a checkpoint", fix="use a word without '/' and '$'")
        if isinstance(value, nn.Module):
            _flatten_module(key, value, flat, rank, world)
        elif isinstance(value, Named):
            flat.values[key] = {"kind": "module"}
            flat.tensors |= {f"{key}/{name}": tensor for name, tensor in value.items()}
        elif isinstance(value, torch.optim.Optimizer):
            _flatten_optimizer(key, value, names, flat, rank, world)
        else:
            content = value.state_dict() if is_stateful(value) else value
            _add(flat, key, content, "stateful" if is_stateful(value) else "value", rank, world)
    return flat


def is_stateful(value: object) -> bool:
    """Whether `value` speaks PyTorch's protocol."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def parameter_names(state: Mapping[str, Any]) -> dict[int, tuple[str, str]]:
    """The key in `state` of every parameter's module, and its fully qualified name there, by identity."""
    names: dict[int, tuple[str, str]] = {}
    for key, value in state.items():
        if isinstance(value, nn.Module):
            for name, parameter in unwrap(value).named_parameters():
                names.setdefault(id(parameter), (key, name.replace("_orig_mod.", "")))
    return names


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile, whose names are the model's own."""
    while isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(module, "_orig_mod"):
        module = module._orig_mod if hasattr(module, "_orig_mod") else module.module  # type: ignore[assignment]
    return module


# ------------------------------------------------------------------------------------------------------------ saving


def module_tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters, buffers and extra state by name, as objects (not detached), tied ones under every name."""
    for name, value in unwrap(module).state_dict(keep_vars=True).items():
        yield name.replace("_orig_mod.", ""), value


def _flatten_module(key: str, module: nn.Module, flat: Flat, rank: int, world: int) -> None:
    flat.values[key] = {"kind": "module"}
    seen: dict[Any, str] = {}
    for name, value in module_tensors(module):
        full = f"{key}/{name}"
        if not isinstance(value, torch.Tensor):
            _add(flat, full, value, "extra", rank, world)
            continue
        for inner, tensor in _inner_tensors(full, value, flat.values):
            known = [memory for memory in _memory(tensor) if memory in seen]
            if known:
                flat.aliases[inner] = seen[known[0]]
                continue
            seen |= dict.fromkeys(_memory(tensor), inner)
            flat.tensors[inner] = tensor


def _memory(tensor: torch.Tensor) -> list[Any]:
    """Keys that two names share when they are one tensor: the object, and the same view of the same memory."""
    data = local(tensor)
    view = (data.untyped_storage().data_ptr(), data.storage_offset(), data.shape, data.stride(), data.dtype)
    return [id(tensor), view] if data.numel() else [id(tensor)]


def _inner_tensors(name: str, tensor: Any, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """A tensor itself; a quantised subclass as the tensors it is made of (PyTorch's `__tensor_flatten__`)."""
    data = tensor.data if isinstance(tensor, nn.Parameter) else tensor
    if hasattr(data, "_local_tensor") or not hasattr(data, "__tensor_flatten__"):
        yield name, tensor
        return
    values[name] = {"kind": "subclass", "class": type(data).__name__}
    for attribute in data.__tensor_flatten__()[0]:
        yield from _inner_tensors(f"{name}#{attribute}", getattr(data, attribute), values)


def _flatten_optimizer(
    key: str, optimizer: torch.optim.Optimizer, names: Mapping[int, tuple[str, str]], flat: Flat, rank: int, world: int
) -> None:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    _add(flat, key, groups, "optimizer", rank, world)
    flat.values[key]["class"] = type(optimizer).__name__
    for number, name, parameter in _optimised(optimizer, names):
        flat.values[f"{key}/{name}"] = {"kind": "member", "group": number}
        for field_, value in optimizer.state.get(parameter, {}).items():
            full = f"{key}/{name}/{field_}"
            if is_tensor(value):
                for inner, tensor in _inner_tensors(full, value, flat.values):
                    flat.tensors[inner] = tensor
            else:
                _add(flat, full, value, "option", rank, world)


def _optimised(
    optimizer: torch.optim.Optimizer, names: Mapping[int, tuple[str, str]]
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """(group, name, parameter). Names begin with the key of the module where an optimiser is for several modules;
    parameters of no module in the state are named by their position."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    several = len({names[id(parameter)][0] for parameter in parameters if id(parameter) in names}) > 1
    for number, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            key, name = names.get(id(parameter), ("", f"{number}.{i}"))
            yield number, f"{key}.{name}" if several and key else name, parameter


def _add(flat: Flat, name: str, value: Any, kind: str, rank: int, world: int) -> None:
    encoded = encode(name, value, rank, world)
    flat.tensors |= encoded.tensors
    tree = encoded.values.pop(name)
    flat.values |= {path: {"kind": "part", "tree": part} for path, part in encoded.values.items()}
    flat.values[name] = {"kind": kind, "tree": tree}
    for path, tensor in encoded.tensors.items():  # what every rank has must be one value: a generator's state is not
        check_bytes(local(tensor), path)
        if type(tensor) is torch.Tensor and tensor.numel() * tensor.element_size() <= SMALL:
            same = hash64(bits(tensor.detach()).cpu().contiguous().numpy().tobytes())
            flat.values[f"{path}#"] = {"kind": "same", "digest": f"{same:016x}"}


# ----------------------------------------------------------------------------------------------------------- loading


@dataclass
class Wanted:
    """What this rank takes from a checkpoint: tensors to fill, then what to do with them, and what does not fit."""

    tensors: dict[str, Tensorlike] = field(default_factory=dict)
    finish: list[Callable[[], None]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # wanted, not in the checkpoint
    wrong: list[str] = field(default_factory=list)  # there, but of another shape, dtype, class: always an error
    ties: list[str] = field(default_factory=list)  # one tensor there, two here
    cast: list[str] = field(default_factory=list)  # of another dtype, to be converted
    claimed: set[str] = field(default_factory=set)  # names of values and tensors that this rank has a use for


def want(state: MutableMapping[str, Any], manifest: Manifest, rank: int, world: int, cast: bool) -> Wanted:
    """Match `state` with a checkpoint; nothing is changed until the tensors are read and `finish` is called."""
    wanted = Wanted()
    names = parameter_names(state)
    for key, value in state.items():
        if isinstance(value, nn.Module):
            _want_module(key, value, manifest, wanted, rank, world, cast)
        elif isinstance(value, Named):
            wanted.claimed.add(key)
            for name, tensor in value.items():
                _want_tensor(f"{key}/{name}", tensor, manifest, wanted, cast)
        elif isinstance(value, torch.optim.Optimizer):
            _want_optimizer(key, value, names, manifest, wanted, rank, world, cast)
        else:
            _want_value(key, value, state, manifest, wanted, rank, world, cast)
    return wanted


def _want_module(
    key: str, module: nn.Module, manifest: Manifest, wanted: Wanted, rank: int, world: int, cast: bool
) -> None:
    if key in manifest.values:
        wanted.claimed.add(key)
    kept: dict[Any, str] = {}  # memory -> the name in the checkpoint that fills it
    used: set[str] = set()
    for name, value in module_tensors(module):
        full = f"{key}/{name}"
        if not isinstance(value, torch.Tensor):
            if record := _record(full, "extra", manifest, wanted):
                tree = _tree(full, record, value, manifest, wanted, rank, world, cast)
                owner = unwrap(module).get_submodule(name.removesuffix(EXTRA).rstrip("."))
                wanted.finish.append(lambda owner=owner, tree=tree: owner.set_extra_state(tree()))  # type: ignore[misc]
            continue
        classes: dict[str, Any] = {}
        for inner, tensor in _inner_tensors(full, value, classes):
            source = manifest.aliases.get(inner, inner)
            others = {kept[memory] for memory in _memory(tensor) if memory in kept}
            if others - {source}:
                other = next(iter(others - {source}))
                if manifest.equal(source, other):  # DCP stores a tied tensor under each of its names
                    wanted.claimed.add(source)
                    continue
                wanted.wrong.append(f"{inner} is tied to {other} in the model only")
            if not others and source in used:
                wanted.ties.append(f"{inner} is tied to {source} in the checkpoint only")
            used.add(source)
            kept |= dict.fromkeys(_memory(tensor), source)
            _want_tensor(inner, tensor, manifest, wanted, cast)
        _check_classes(classes, manifest, wanted)
        if name.endswith(EXTRA):  # its tensor may be made anew at every call
            owner = unwrap(module).get_submodule(name.removesuffix(EXTRA).rstrip("."))
            wanted.finish.append(lambda owner=owner, value=value: owner.set_extra_state(value))  # type: ignore[misc]


def _check_classes(classes: Mapping[str, Any], manifest: Manifest, wanted: Wanted) -> None:
    for name, record in classes.items():
        wanted.claimed.add(name)
        if name in manifest.values and manifest.values[name] != record:
            saved = manifest.values[name].get("class")
            wanted.wrong.append(f"{name} is a {record['class']} here, a {saved} in the checkpoint")


def _want_tensor(name: str, tensor: Tensorlike, manifest: Manifest, wanted: Wanted, cast: bool) -> None:
    meta = manifest.find(name)
    if meta is None:
        wanted.missing.append(name)
        return
    wanted.claimed.add(meta.name)
    data = local(tensor)
    check_bytes(data, name)
    if any(n > 1 and step == 0 for n, step in zip(data.shape, data.stride(), strict=True)):
        raise CheckpointError(f"{name} is an expanded view: its elements share memory", fix="load into a clone() of it")
    shape, dtype = global_shape(tensor), dtype_name(data.dtype)
    if shape != meta.shape:
        wanted.wrong.append(f"{name} is {_size(meta.shape)} in the checkpoint, {_size(shape)} here")
        return
    if dtype != meta.dtype:
        (wanted.cast if cast else wanted.wrong).append(
            f"{name} is {meta.dtype} in the checkpoint, {dtype} here" + ("" if cast else " (cast=True converts)")
        )
    wanted.tensors[name] = tensor


def _want_optimizer(
    key: str, optimizer: torch.optim.Optimizer, names: Mapping[int, tuple[str, str]], manifest: Manifest,
    wanted: Wanted, rank: int, world: int, cast: bool,
) -> None:  # fmt: skip
    record = _record(key, "optimizer", manifest, wanted)
    if record is None:
        return
    if record["class"] != type(optimizer).__name__:
        wanted.wrong.append(f"{key} is a {type(optimizer).__name__} here, a {record['class']} in the checkpoint")
        return
    if len(record["tree"]) != len(optimizer.param_groups):
        ours = len(optimizer.param_groups)
        wanted.wrong.append(f"{key} has {ours} parameter groups here, {len(record['tree'])} in the checkpoint")
        return
    saved = _by_parameter(key, manifest)
    new_state: dict[torch.Tensor, dict[str, Any]] = {}
    pending: list[tuple[dict[str, Any], str, Callable[[], Any]]] = []
    for number, name, parameter in _optimised(optimizer, names):
        full = f"{key}/{name}"
        if full not in manifest.values:
            wanted.missing.append(full)
            continue
        wanted.claimed.add(full)
        if manifest.values[full]["group"] != number:
            group = manifest.values[full]["group"]
            wanted.wrong.append(f"{full} is in parameter group {number} here, in {group} in the checkpoint")
        state = new_state[parameter] = {}
        old = optimizer.state.get(parameter, {})
        for field_, meta in saved.get(full, {}).items():
            inner = f"{full}/{field_}"
            if meta is None:  # a plain value
                option = _record(inner, "option", manifest, wanted)
                if option is not None:
                    value = _tree(inner, option, old.get(field_), manifest, wanted, rank, world, cast)
                    pending.append((state, field_, value))
                continue
            tensor = _state_tensor(old.get(field_), meta, parameter, optimizer.param_groups[number])
            state[field_] = tensor
            classes: dict[str, Any] = {}
            for part, data in _inner_tensors(inner, tensor, classes):
                _want_tensor(part, data, manifest, wanted, cast)
            _check_classes(classes, manifest, wanted)
    options = _tree(key, record, None, manifest, wanted, rank, world, cast)

    def finish() -> None:
        for state, field_, value in pending:
            state[field_] = value()
        for parameter, state in new_state.items():
            optimizer.state[parameter] = state
            if not state:
                del optimizer.state[parameter]  # saved before its first step
        for group, told in zip(optimizer.param_groups, options(), strict=True):
            for option, value in told.items():
                if isinstance(value, torch.Tensor) and isinstance(group.get(option), torch.Tensor):
                    group[option].copy_(value)
                else:
                    group[option] = value

    wanted.finish.append(finish)


def _by_parameter(key: str, manifest: Manifest) -> dict[str, dict[str, TensorMeta | None]]:
    """State of each parameter in the checkpoint: tensors, and None for plain values; subclasses by their own name."""
    found: dict[str, dict[str, TensorMeta | None]] = {}
    members = {full for full, record in manifest.values.items() if record["kind"] == "member"}
    for meta in manifest.tensors:
        full, _, field_ = meta.name.rpartition("/")  # names of parameters may hold any character, those of state do not
        if full in members and full.startswith(f"{key}/"):
            found.setdefault(full, {})[field_.partition("#")[0]] = meta
    for full, record in manifest.values.items():
        if record["kind"] == "option" and full.startswith(f"{key}/"):
            member, _, field_ = full.rpartition("/")
            found.setdefault(member, {})[field_] = None
    return found


def _state_tensor(old: Any, meta: TensorMeta, parameter: torch.Tensor, group: Mapping[str, Any]) -> Tensorlike:
    """Memory for a piece of optimiser state: what is there, else like the parameter, else a tensor of its own."""
    if is_tensor(old) and global_shape(old) == meta.shape:
        return old
    if tuple(parameter.shape) == meta.shape:
        return torch.empty_like(parameter.detach(), dtype=dtype_named(meta.dtype))
    on_device = group.get("capturable") or group.get("fused") or meta.shape != ()
    return torch.empty(meta.shape, dtype=dtype_named(meta.dtype), device=parameter.device if on_device else "cpu")


def _want_value(
    key: str, value: Any, state: MutableMapping[str, Any], manifest: Manifest, wanted: Wanted,
    rank: int, world: int, cast: bool,
) -> None:  # fmt: skip
    stateful = is_stateful(value)
    record = _record(key, "stateful" if stateful else "value", manifest, wanted)
    if record is None:
        return
    like = value.state_dict() if stateful else value
    tree = _tree(key, record, like, manifest, wanted, rank, world, cast)
    if stateful:
        wanted.finish.append(lambda: value.load_state_dict(tree()))
    elif is_tensor(value):
        wanted.finish.append(lambda: None)
    else:

        def replace() -> None:
            state[key] = tree()

        wanted.finish.append(replace)


def _record(name: str, kind: str, manifest: Manifest, wanted: Wanted) -> dict[str, Any] | None:
    record: dict[str, Any] | None = manifest.values.get(name)
    if record is None:
        wanted.missing.append(name)
        return None
    wanted.claimed.add(name)
    if record["kind"] != kind and {record["kind"], kind} != {"stateful", "value"}:  # what state_dict() gives is a value
        wanted.wrong.append(f"{name} is {record['kind']} in the checkpoint, {kind} here")
        return None
    return record


def _tree(
    name: str, record: Mapping[str, Any], like: Any, manifest: Manifest, wanted: Wanted,
    rank: int, world: int, cast: bool,
) -> Callable[[], Any]:  # fmt: skip
    """A function that gives the value of `name` once tensors are read: in the tensors of `like` where they fit."""
    parts = [path for path in manifest.parts if path.startswith(f"{name}/")]
    plain = {path: manifest.values[path]["tree"] for path in parts} | {name: record["tree"]}
    wanted.claimed |= set(parts)
    if parts:
        wanted.claimed |= {meta.name for meta in manifest.tensors if meta.name.startswith(f"{name}/")}
    present = encode(name, like, rank, world).tensors if like is not None else {}
    made: dict[str, Any] = {}
    of_parts = tuple(f"{path}/" for path in parts)

    def tensor(path: str) -> Any:
        if path in made:
            return made[path]
        meta = manifest.find(path)
        if meta is None:
            raise CheckpointError(f"damaged checkpoint: {path} is named but not stored")
        here = present.get(path)
        fits = here is not None and (global_shape(here), dtype_name(local(here).dtype)) == (meta.shape, meta.dtype)
        resizable = record["kind"] != "value" or path.startswith(of_parts)  # a Stateful and rows may take another size
        keep = here is not None and (fits or not resizable)
        made[path] = here if keep else torch.empty(meta.shape, dtype=dtype_named(meta.dtype))
        _want_tensor(path, made[path], manifest, wanted, cast)
        return made[path]

    def build() -> Any:
        return decode(name, plain, tensor, rank, world, like)

    build()  # now, so that its tensors are known before anything is read
    if record["kind"] == "value" and not parts:
        wanted.missing += [path for path in present if path not in made]
    return build


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
