"""Folders of PyTorch's distributed checkpoint (DCP): read into our format, and written from it.

A DCP folder has a pickle, `.metadata`, which is read here without running it (`core.unpickle`), and data files in which
every item is a `torch.save` archive. Tensors are read with `weights_only=True`, one item at a time.

    {"model": get_model_state_dict(...)}            <->  a module "model"
    {"optim": get_optimizer_state_dict(...)}        <->  an optimiser "optim"; flattened dictionaries are read too
    anything else                                   <->  plain values and tensors

Not read: data files in DCP's safetensors format (see `huggingface`), compressed items, objects that only pickle stores.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.layout import dtype_name, dtype_named
from bloomery.checkpoint.manifest import Manifest, TensorMeta
from bloomery.checkpoint.offline import Place, Reader, local_folder, pieces_of, write
from bloomery.checkpoint.state import Flat
from bloomery.checkpoint.tree import decode, encode
from bloomery.core.errors import CheckpointError
from bloomery.core.files import atomic_folder
from bloomery.core.progress import Progress
from bloomery.core.unpickle import Made, notes

METADATA, SUFFIX = ".metadata", ".distcp"
ITEM_BYTES = 256 << 20  # of a tensor in one item of a folder that we write
FILE_BYTES = 2 << 30
MOST_ITEMS = 1 << 20  # of a list in the state
_META, _FILE = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_DTYPES = {f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
ALLOWED = {
    *(f"{_META}.{name}" for name in ("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties")),
    *(f"{_META}.{name}" for name in ("ChunkStorageMetadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    f"{_FILE}._StorageInfo", "torch.Size", "torch.serialization._get_layout", "collections.OrderedDict",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath", *_DTYPES,
}  # fmt: skip


@dataclass(frozen=True)
class _Item:
    """Bytes of a data file: a box of a tensor, or an object."""

    key: str
    file: str
    offset: int
    length: int
    box: Box | None


@dataclass
class _Folder:
    """What `.metadata` says."""

    tensors: dict[str, TensorMeta]
    objects: list[str]
    items: list[_Item]
    paths: dict[str, tuple[str | int, ...]]  # where a key belongs in the nested state; none in old folders


def import_dcp(
    folder: Path | str, out: Place, *, key: str = "model", optimizer: str | None = None, skip: Sequence[str] = (),
    overwrite: bool = False, quiet: bool = True,
) -> Manifest:  # fmt: skip
    """Write the DCP checkpoint in `folder`, of any layout and number of ranks, as `out` in our format.

    A state dictionary that was saved bare becomes the module `key`. DCP does not record the class of an optimiser: it
    is found from the options of its groups, or given as `optimizer`. `skip` are patterns of keys to leave out.

    Raises:
        CheckpointError: not a DCP folder, a pickle that asks for anything else, a damaged item, objects that only
            pickle could restore (name them in `skip`).
    """
    folder = Path(folder)
    told = _read_metadata(folder)
    told.items = [item for item in told.items if not _matches(item.key, skip)]
    told.tensors = {name: meta for name, meta in told.tensors.items() if not _matches(name, skip)}
    objects = {item.key: _load(folder, item) for item in told.items if item.box is None}
    marks = {
        name: torch.empty(meta.shape, dtype=dtype_named(meta.dtype), device="meta")
        for name, meta in told.tensors.items()
    }
    try:
        flat = _named(_nested({**marks, **objects}, told.paths, key), optimizer, folder)
        ours = {id(mark): name for name, mark in flat.tensors.items()}
        names = {theirs: ours[id(mark)] for theirs, mark in marks.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"its items do not make one state: {error!r:.120}", where=folder / METADATA) from error
    tensors = [TensorMeta(names[name], meta.dtype, meta.shape) for name, meta in told.tensors.items()]
    ordered = sorted((item for item in told.items if item.box is not None), key=lambda item: (item.file, item.offset))
    files = {name: i for i, name in enumerate(dict.fromkeys(item.file for item in ordered))}

    def parts() -> Iterator[tuple[int, str, Box, torch.Tensor]]:
        for item in ordered:
            assert item.box is not None
            data = _tensor(folder, item, told.tensors[item.key])
            shown.advance(data.nbytes)
            if item.box.volume:
                yield files[item.file], names[item.key], item.box, data

    with Progress("import", sum(meta.nbytes for meta in tensors), "bytes", quiet=quiet) as shown:
        return write(out, tensors, parts(), flat.values, {}, world=max(1, len(files)), overwrite=overwrite)


def export_dcp(path: Place, out: Path | str, *, quiet: bool = True) -> list[str]:
    """Write the checkpoint `path` as the DCP folder `out`, which appears whole or not at all; what was left out.

    `torch.distributed.checkpoint.load` reads it with the keys that the state was saved under. Tied tensors are stored
    once and found under all of their names. Left out are values of one rank alone (`PerRank`, `Rows`), which DCP
    cannot cut anew, and quantised subclasses.
    """
    from torch.distributed.checkpoint import metadata as torch_meta
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    reader = Reader(path)
    state, ours, left_out = _state(reader.manifest)
    flat, planner_data = flatten_state_dict(state)
    described: dict[str, Any] = {}
    stored: dict[Any, Any] = {}
    once: dict[str, tuple[Any, list[Any]]] = {}  # our name -> its description, and where its boxes are
    with (
        atomic_folder(local_folder(out, "a DCP folder"), (METADATA, f"*{SUFFIX}")) as folder,
        Progress("export", reader.manifest.nbytes, "bytes", quiet=quiet) as shown,
        _Files(folder) as files,
    ):
        for name, value in flat.items():
            if not isinstance(value, torch.Tensor):
                described[name] = torch_meta.BytesStorageMetadata()
                stored[torch_meta.MetadataIndex(name)] = files.add(value)
                continue
            meta = reader.meta(ours[id(value)])
            if meta.name not in once:
                boxes, places = [], []
                for _, box, data in reader.stream(pieces_of(meta, ITEM_BYTES) if meta.nbytes else ()):
                    boxes.append(torch_meta.ChunkStorageMetadata(torch.Size(box.start), torch.Size(box.size)))
                    places.append((box.start, files.add(data)))
                    shown.advance(data.nbytes)
                if not meta.nbytes:
                    boxes.append(torch_meta.ChunkStorageMetadata(torch.Size([0] * value.ndim), value.shape))
                    places.append(((0,) * value.ndim, files.add(torch.empty(meta.shape, dtype=value.dtype))))
                properties = torch_meta.TensorProperties(dtype=value.dtype)
                once[meta.name] = torch_meta.TensorStorageMetadata(properties, value.shape, boxes), places
            described[name], places = once[meta.name]
            stored |= {torch_meta.MetadataIndex(name, start): place for start, place in places}
        told = torch_meta.Metadata(described, planner_data, stored, torch_meta.StorageMeta(), "1.0.0")
        (folder / METADATA).write_bytes(pickle.dumps(told, 4))
    return left_out


# ------------------------------------------------------------------------------------------------------------ reading


def _read_metadata(folder: Path) -> _Folder:
    where = folder / METADATA
    if not where.is_file():
        raise CheckpointError("not a DCP checkpoint: it has no .metadata", where=folder)
    try:
        return _parsed(notes(where, ALLOWED))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not the metadata of a DCP checkpoint: {error!r:.120}", where=where) from error


def _parsed(root: Any) -> _Folder:
    _expect(root, "Metadata")
    found = _Folder({}, [], [], {})
    chunks: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
    for name, made in _items(root.state["state_dict_metadata"]):
        if made.callee == f"{_META}.BytesStorageMetadata":
            found.objects.append(name)
            continue
        _expect(made, "TensorStorageMetadata")
        dtype = made.state["properties"].state[0]
        found.tensors[name] = TensorMeta(name, dtype.name.removeprefix("torch."), _size(made.state["size"]))
        chunks[name] = {_size(c.state["offsets"]): _size(c.state["sizes"]) for c in made.state["chunks"]}
    for index, info in _items(root.state["storage_data"]):
        _expect(index, "MetadataIndex")
        name, place = index.state["fqn"], info.state
        if info.callee != f"{_FILE}._StorageInfo" or place.get("transform_descriptors"):
            raise ValueError(f"{name} is stored in a way of its own")
        if Path(place["relative_path"]).name != place["relative_path"] or "\0" in place["relative_path"]:
            raise ValueError(f"{name} lies outside the folder")
        begin, length = _size((place["offset"], place["length"]))
        box = None
        if name in found.tensors:
            offset = _size(index.state.get("offset") or (0,) * len(found.tensors[name].shape))
            box = Box(offset, chunks[name][offset])
        found.items.append(_Item(name, place["relative_path"], begin, length, box))
    found.paths = {name: tuple(path) for name, path in _items(root.state.get("planner_data") or {})}
    return found


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter((value.state or {}).items() if isinstance(value, Made) else value.items())


def _expect(made: Any, name: str) -> None:
    if not isinstance(made, Made) or made.callee != f"{_META}.{name}":
        raise ValueError(f"no {name}")


def _size(value: Any) -> tuple[int, ...]:
    size = value.args[0] if isinstance(value, Made) and value.args else () if isinstance(value, Made) else value
    if not all(type(n) is int and n >= 0 for n in size):
        raise ValueError("a size that is none")
    return tuple(size)


def _load(folder: Path, item: _Item) -> Any:
    try:
        with (folder / item.file).open("rb") as file:
            file.seek(item.offset)
            content = file.read(item.length)
    except FileNotFoundError:
        raise CheckpointError(f"{item.file} is missing", where=folder, fix="fetch it again") from None
    if len(content) < item.length:
        raise CheckpointError(f"{item.file} is cut off within {item.key}", where=folder, fix="fetch it again")
    try:
        _check_archive(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = f"{item.key} is an object that only pickle could restore: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(what, where=folder, fix=f"leave it out: skip {item.key!r}") from error
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{item.key} in {item.file} is damaged: {error!r:.160}", where=folder) from error


def _check_archive(content: bytes) -> None:
    """Compare the archive's own CRC-32s, which `torch.load` does not look at."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} does not match its checksum")


def _tensor(folder: Path, item: _Item, meta: TensorMeta) -> torch.Tensor:
    assert item.box is not None
    data = _load(folder, item)
    if not isinstance(data, torch.Tensor) or (dtype_name(data.dtype), tuple(data.shape)) != (meta.dtype, item.box.size):
        raise CheckpointError(
            f"{item.key} {item.box} in {item.file} is not the {meta.dtype} it should be", where=folder
        )
    return data.detach()


# ------------------------------------------------------------------------------------------------------------- naming


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _nested(values: Mapping[str, Any], paths: Mapping[str, tuple[str | int, ...]], key: str) -> dict[str, Any]:
    """The state as it was handed to DCP; one that was bare, or wrapped once more, under the keys we use."""
    where = {name: paths.get(name, (name,)) for name in values}
    if all(len(path) == 1 for path in where.values()) and any("." in name for name in values):
        return {key: dict(values)}
    root: dict[str, Any] = {}
    for name, path in where.items():
        at: Any = root
        for step, following in pairwise(path):
            at = _child(at, step, [] if isinstance(following, int) else {})
        _child(at, path[-1], values[name])
    inner = next(iter(root.values())) if len(root) == 1 else None  # {"app": AppState()}
    if isinstance(inner, dict) and not _as_optimizer(inner):
        return inner if any(_as_module(part) or _as_optimizer(part) for part in inner.values()) else root
    return root


def _child(container: Any, step: str | int, new: Any) -> Any:
    if isinstance(container, list):
        if not isinstance(step, int) or not 0 <= step < MOST_ITEMS:
            raise CheckpointError(f"an item at place {step!r} of a list")
        container.extend([None] * (step + 1 - len(container)))
        container[step] = new if container[step] is None else container[step]
    else:
        container.setdefault(step, new)
    return container[step]


def _named(state: Mapping[str, Any], optimizer: str | None, where: Path) -> Flat:
    """Our names for a nested state: modules, optimisers and values told by their shape."""
    flat = Flat()
    optimised = {
        parameter
        for value in state.values()
        for group in (_as_optimizer(value) or ({}, []))[1]
        for parameter in group["params"]
    }
    for key, value in state.items():
        if "/" in key or key.startswith("$"):
            raise CheckpointError(f"{key!r} cannot be a key of a checkpoint", where=where, fix=f"skip '{key}*'")
        groups = _as_optimizer(value)
        if groups is not None:
            _name_optimizer(flat, key, *groups, optimizer or _class_of(groups[1]))
        elif _as_module(value, optimised):
            flat.values[key] = {"kind": "module"}
            for name, item in value.items():
                if isinstance(item, torch.Tensor):
                    flat.tensors[f"{key}/{name}"] = item
                else:
                    _add(flat, f"{key}/{name}", item, "extra")
        else:
            _add(flat, key, value, "value")
    return flat


def _as_module(value: Any, optimised: Collection[str] = ()) -> bool:
    """Flat names, some with dots or of optimised parameters, of which all but extra states are tensors."""
    if not isinstance(value, dict) or not any("." in name or name in optimised for name in value):
        return False
    return all(isinstance(item, torch.Tensor) or name.endswith("_extra_state") for name, item in value.items())


def _as_optimizer(value: Any) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]] | None:
    """(state by parameter, groups) where a value is the state of an optimiser, nested or flattened; else None."""
    if not isinstance(value, dict):
        return None
    groups = value.get("param_groups")
    if isinstance(groups, list) and all(isinstance(group, dict) and "params" in group for group in groups):
        return dict(value.get("state", {})), groups
    options = {name.removeprefix("param_groups."): v for name, v in value.items() if name.startswith("param_groups.")}
    if not options or not all(name.startswith(("param_groups.", "state.")) for name in value):
        return None
    state: dict[str, dict[str, Any]] = {}
    for name, item in value.items():
        if name.startswith("state."):
            parameter, _, field = name.removeprefix("state.").rpartition(".")
            state.setdefault(parameter, {})[field] = item
    by_parameter: dict[str, dict[str, Any]] = {}
    for name, item in options.items():
        parameter, _, option = name.rpartition(".")
        by_parameter.setdefault(parameter, {})[option] = item
    groups = []
    for parameter, its in by_parameter.items():
        known = next((group for group in groups if {**group, "params": 0} == {**its, "params": 0}), None)
        if known is None:
            groups.append({**its, "params": [parameter]})
        else:
            known["params"].append(parameter)
    return state, groups


def _name_optimizer(
    flat: Flat, key: str, state: Mapping[str, Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], kind: str
) -> None:
    _add(flat, key, [{name: v for name, v in group.items() if name != "params"} for group in groups], "optimizer")
    flat.values[key]["class"] = kind
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            if not isinstance(parameter, str):
                fix = f"save it with get_optimizer_state_dict, or skip '{key}.*'"
                raise CheckpointError(f"{key} numbers its parameters, which says nothing of a model", fix=fix)
            flat.values[f"{key}/{parameter}"] = {"kind": "member", "group": number}
    for parameter, fields in state.items():
        for name, item in fields.items():
            if isinstance(item, torch.Tensor):
                flat.tensors[f"{key}/{parameter}/{name}"] = item
            else:
                _add(flat, f"{key}/{parameter}/{name}", item, "option")


def _class_of(groups: Sequence[Mapping[str, Any]]) -> str:
    """The optimiser of torch.optim whose groups have these options."""
    names = {name for group in groups for name in group if name not in ("params", "initial_lr", "param_names")}
    found = []
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer:
            try:
                made = cls([torch.zeros(1)], lr=0.1)  # type: ignore[call-arg]
            except (TypeError, ValueError, RuntimeError):
                continue
            decoupled = made.param_groups[0].get("decoupled_weight_decay")
            if made.param_groups[0].keys() - {"params"} == names and decoupled == groups[0].get(
                "decoupled_weight_decay"
            ):
                found.append(cls.__name__)
    return found[0] if len(found) == 1 else "unknown"


def _add(flat: Flat, name: str, value: Any, kind: str) -> None:
    encoded = encode(name, value)
    flat.tensors |= encoded.tensors
    tree = encoded.values.pop(name)
    flat.values |= {path: {"kind": "part", "tree": part} for path, part in encoded.values.items()}
    flat.values[name] = {"kind": kind, "tree": tree}


# ------------------------------------------------------------------------------------------------------------ writing


def _state(manifest: Manifest) -> tuple[dict[str, Any], dict[int, str], list[str]]:
    """The nested state that DCP is given, with marks for tensors; our name of each mark; what was left out."""
    marks: dict[str, torch.Tensor] = {}

    def mark(name: str) -> torch.Tensor:
        meta = manifest.find(name)
        if meta is None:
            raise CheckpointError(f"damaged checkpoint: {name} is named but not stored")
        return marks.setdefault(name, torch.empty(meta.shape, dtype=dtype_named(meta.dtype), device="meta"))

    plain = {name: record["tree"] for name, record in manifest.values.items() if "tree" in record}
    left_out = [name for name, record in manifest.values.items() if record["kind"] == "subclass"]
    left_out += [name for name, tree in plain.items() if _of_ranks(tree) and manifest.values[name]["kind"] != "part"]
    state: dict[str, Any] = {}
    for name, record in manifest.values.items():
        kind = record["kind"]
        if name in left_out or kind in ("part", "same", "subclass"):
            continue
        key, _, rest = name.partition("/")
        value: Any = decode(name, plain, mark) if "tree" in record else None
        if kind == "module":
            names = [
                n
                for n in (*manifest.index, *manifest.aliases)
                if n.startswith(f"{key}/") and n.count("/") == 1 and "#" not in n
            ]
            state.setdefault(key, {}).update({n.removeprefix(f"{key}/"): mark(n) for n in names})
        elif kind == "extra":
            state.setdefault(key, {})[rest] = value
        elif kind == "optimizer":
            groups = [{**group, "params": []} for group in value]
            state[key] = {"state": state.get(key, {}).get("state", {}), "param_groups": groups}
        elif kind in ("member", "option"):
            continue  # below, once all groups are there
        else:
            state[name] = value
    for name, record in manifest.values.items():
        key, _, rest = name.partition("/")
        if record["kind"] == "member":
            state[key]["param_groups"][record["group"]]["params"].append(rest)
        elif record["kind"] == "option":
            parameter, _, field = rest.partition("/")
            state[key]["state"].setdefault(parameter, {})[field] = decode(name, plain, mark)
    for key in [key for key, record in manifest.values.items() if record["kind"] == "optimizer"]:
        for name in manifest.index:
            if name.startswith(f"{key}/") and name.count("/") == 2 and "#" not in name and name not in marks:
                _, parameter, field = name.split("/")
                state[key]["state"].setdefault(parameter, {})[field] = mark(name)
    return state, {id(tensor): name for name, tensor in marks.items()}, left_out


def _of_ranks(tree: Any) -> bool:
    if isinstance(tree, dict):
        return "$per_rank" in tree or "$rows" in tree or any(map(_of_ranks, tree.values()))
    return isinstance(tree, list) and any(map(_of_ranks, tree))


class _Files:
    """Items one after the other in files of some gigabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.file: Any = None

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, value: Any) -> Any:
        """Append an item; where it is, as DCP tells it."""
        from torch.distributed.checkpoint.filesystem import _StorageInfo

        if self.file is None or self.file.tell() >= FILE_BYTES:
            self.__exit__()
            self.file = (self.folder / f"__0_{self.count}{SUFFIX}").open("wb")
            self.count += 1
        begin = self.file.tell()
        content = io.BytesIO()
        torch.save(value, content)
        self.file.write(content.getbuffer())
        return _StorageInfo(f"__0_{self.count - 1}{SUFFIX}", begin, self.file.tell() - begin)
