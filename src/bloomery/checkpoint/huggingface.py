"""Safetensors folders as transformers, vLLM and others read them: written from a checkpoint, and read into one.

Of a checkpoint one module is written, under the names that its parameters have: `from_pretrained` finds what it expects
where the module was a transformers model. (A `bloomery` decoder has other names: `models.save_pretrained` maps them.)
Memory stays at one output file on the way out, at a batch of some tens of megabytes on the way in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bloomery.checkpoint.boxes import Box
from bloomery.checkpoint.layout import dtype_name, dtype_named
from bloomery.checkpoint.manifest import Manifest, TensorMeta
from bloomery.checkpoint.offline import BATCH, Place, Reader, local_folder, pieces_of, write
from bloomery.core.devices import pick_dtype
from bloomery.core.errors import CheckpointError, nearest
from bloomery.core.files import atomic_folder, read_json, write_json
from bloomery.core.progress import Progress
from bloomery.core.weight_files import COMPANIONS, OURS, SHARD_BYTES, weight_files, write_weights

CONFIG = "config.json"
_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64",
}  # fmt: skip


def export_safetensors(
    path: Place, out: Path | str, *, key: str = "model", dtype: torch.dtype | str | None = None,
    shard_bytes: int = SHARD_BYTES, beside: Path | str | None = None, rename: Callable[[str], str] = str,
    quiet: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Write the module `key` of a checkpoint as the folder `out`, whole or not at all; what was written.

    Floating-point tensors are converted to `dtype` (None: as they are); files hold `shard_bytes`, or one tensor.
    Of tied tensors the one that is stored is written, as the format wants it. `config.json` and the tokenizer's files
    are copied from the folder `beside`; `rename` maps the names of tensors.

    Raises:
        CheckpointError: no module of that key, tensors that the format has no place for, two of one name.
    """
    reader, wanted = Reader(path), None if dtype is None else pick_dtype(dtype)
    metas = _module(reader, key)
    names = {rename(meta.name.removeprefix(f"{key}/")): meta for meta in metas}
    if len(names) < len(metas):
        raise CheckpointError("two tensors would get one name", where=reader.to.path)

    def kind(meta: TensorMeta) -> torch.dtype:
        own = dtype_named(meta.dtype)
        return wanted if wanted is not None and own.is_floating_point else own

    def read(name: str) -> torch.Tensor:
        meta = names[name]
        shown.advance(meta.nbytes)
        return reader.read(meta.name).to(kind(meta))

    sizes = {
        name: meta.nbytes // dtype_named(meta.dtype).itemsize * kind(meta).itemsize for name, meta in names.items()
    }
    with (
        atomic_folder(local_folder(out, "a safetensors folder"), OURS) as folder,
        Progress("export", sum(meta.nbytes for meta in metas), "bytes", quiet=quiet) as shown,
    ):
        write_weights(folder, sizes, read, shard_bytes)
        if beside is not None:
            _copy_beside(Path(beside), folder, wanted)
        files = len(list(folder.glob("*.safetensors")))
    return {"tensors": len(names), "bytes": sum(sizes.values()), "files": files}


def import_safetensors(
    folder: Path | str, out: Place, *, key: str = "model", overwrite: bool = False, quiet: bool = True
) -> Manifest:
    """Write the weights of a safetensors folder, whole or in shards, as the module `key` of the checkpoint `out`.

    Names that the files or `config.json` (`tie_word_embeddings`) call one tensor become tied names.

    Raises:
        CheckpointError: files that are missing or not whole, a name stored twice, a format without a dtype here.
    """
    folder = Path(folder)
    opened, places, aliases = [], dict[str, tuple[int, Any]](), dict[str, str]()
    metas: dict[str, TensorMeta] = {}
    for number, path in enumerate(weight_files(folder)):
        try:
            opened.append(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"not a whole safetensors file: {error}", where=path) from error
        for name in opened[-1].offset_keys():
            header = opened[-1].get_slice(name)
            kind = _DTYPES.get(header.get_dtype())
            if kind is None or name in metas:
                what = f"{name} is {header.get_dtype()}" if kind is None else f"{name} is stored twice"
                raise CheckpointError(what, where=path)
            metas[name], places[name] = TensorMeta(f"{key}/{name}", kind, tuple(header.get_shape())), (number, header)
        aliases |= opened[-1].metadata() or {}
    tied = {name: kept for name, kept in aliases.items() if kept in metas and name not in metas}
    tied |= _tied_by_config(folder, metas)

    def parts() -> Iterator[tuple[int, str, Box, torch.Tensor]]:
        for name, meta in metas.items():
            number, header = places[name]
            for _, box in pieces_of(meta, BATCH):
                data = header[box.within(Box((0,) * len(box.start), meta.shape))] if meta.shape else opened[
                    number].get_tensor(name)  # fmt: skip
                shown.advance(data.nbytes)
                yield number, meta.name, box, data

    with Progress("import", sum(meta.nbytes for meta in metas.values()), "bytes", quiet=quiet) as shown:
        names = {f"{key}/{name}": f"{key}/{kept}" for name, kept in tied.items()}
        return write(out, list(metas.values()), parts(), {key: {"kind": "module"}}, names, overwrite=overwrite)


def _module(reader: Reader, key: str) -> list[TensorMeta]:
    modules = [name for name, record in reader.manifest.values.items() if record["kind"] == "module"]
    if key not in modules:
        raise CheckpointError(f"holds no module {key!r}", where=reader.to.path, fix=nearest(key, modules))
    metas = [meta for meta in reader.manifest.tensors if meta.name.startswith(f"{key}/")]
    for meta in metas:
        if "#" in meta.name or meta.dtype not in _DTYPES.values():
            what = "a part of a quantised tensor" if "#" in meta.name else meta.dtype
            raise CheckpointError(f"{meta.name} is {what}, which has no place in safetensors", where=reader.to.path)
    return metas


def _copy_beside(source: Path, folder: Path, dtype: torch.dtype | None) -> None:
    if not (source / CONFIG).is_file():
        raise CheckpointError("there is no config.json", where=source, fix="name the folder that holds it")
    fields = read_json(source / CONFIG)
    if dtype is not None:
        fields["dtype" if "dtype" in fields else "torch_dtype"] = dtype_name(dtype)  # transformers 5 and 4
    write_json(folder / CONFIG, fields)
    for file in COMPANIONS:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)


def _tied_by_config(folder: Path, metas: dict[str, TensorMeta]) -> dict[str, str]:
    """`lm_head.weight` where the configuration ties it and the files leave it out."""
    if not (folder / CONFIG).is_file() or not read_json(folder / CONFIG).get("tie_word_embeddings"):
        return {}
    embeddings = [name for name in metas if name.endswith("embed_tokens.weight")]
    return {"lm_head.weight": embeddings[0]} if len(embeddings) == 1 and "lm_head.weight" not in metas else {}
