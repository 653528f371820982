"""Checkpoints of the training loop: a folder that is complete or does not exist, safetensors and JSON, no pickle.

    step-00000400/
        model.safetensors       parameters and buffers by name; tied tensors once
        optimizer.safetensors   optimiser state as <parameter>/<key>
        state.json              whatever the loop wants back, and which names are tied
        manifest.json           size and digest of the three files above

`save` writes aside and renames, so a kill leaves the previous checkpoint; `latest` skips what the manifest does not
vouch for (a copy cut short, a flipped bit) and says so.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bloomery.core.errors import CheckpointError
from bloomery.core.files import atomic_folder, safetensors_errors
from bloomery.core.hashing import file_digest
from bloomery.core.log import logger

FORMAT = 1
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"

log = logger("train")


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lives under `folder`."""
    return folder / f"step-{step:08d}"


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Write model, optimiser and `state` (JSON values) as the folder `path`; a full disk is a `StorageError`."""
    tensors, tied = _untie(model.state_dict())
    with atomic_folder(path, ours=("*",)) as folder:
        _write_tensors(folder / MODEL, tensors)
        _write_tensors(folder / OPTIMIZER, _optimizer_tensors(model, optimizer))
        (folder / STATE).write_text(json.dumps({"state": dict(state), "tied": tied}, indent=2), encoding="utf-8")
        files = {
            name: {"bytes": (folder / name).stat().st_size, "digest": file_digest(folder / name)}
            for name in (MODEL, OPTIMIZER, STATE)
        }
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=2), encoding="utf-8")


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill `model` (and `optimizer`) in place from the checkpoint `path` and return its state.

    A damaged checkpoint, or one of another model, is a `CheckpointError` that lists every difference; nothing has
    been changed then.
    """
    verify(path)
    record = _read_record(path)
    saved, wanted = load_file(path / MODEL), model.state_dict()
    saved |= {name: saved[kept] for name, kept in record["tied"].items()}
    differences = _differences(saved, wanted) + _tie_differences(record["tied"], _untie(wanted)[1])
    optimizer_saved: dict[str, torch.Tensor] = {}
    if optimizer is not None:
        optimizer_saved = load_file(path / OPTIMIZER)
        differences += _optimizer_differences(optimizer_saved, model, optimizer)
    if differences:
        shown = "; ".join(differences[:12]) + (f"; and {len(differences) - 12} more" if len(differences) > 12 else "")
        raise CheckpointError(f"this checkpoint is of another model: {shown}", where=path)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(saved[name])
    if optimizer is not None:
        _load_optimizer(optimizer_saved, model, optimizer)
    return dict(record["state"])


def read_state(path: Path) -> dict[str, Any]:
    """The `state` that `save` was given, without touching a model, of a checkpoint that is known to verify."""
    return dict(_read_record(path)["state"])


def verify(path: Path) -> None:
    """Check every file of a checkpoint against its manifest, or raise a `CheckpointError` naming the damaged one."""
    fix = "delete this folder to resume from the checkpoint before it"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError as error:
        raise CheckpointError("not a complete checkpoint: it has no manifest.json", where=path, fix=fix) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError("damaged checkpoint: manifest.json is not readable", where=path, fix=fix) from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint format {version}; this version reads format {FORMAT}", where=path)
    for name in (MODEL, OPTIMIZER, STATE):
        file, expected = path / name, files.get(name)
        if not file.is_file() or not isinstance(expected, dict):
            raise CheckpointError(f"damaged checkpoint: {name} is missing", where=path, fix=fix)
        if (size := file.stat().st_size) != expected.get("bytes"):
            raise CheckpointError(f"damaged checkpoint: {name} has {size} bytes", where=path, fix=fix)
        if file_digest(file) != expected.get("digest"):
            raise CheckpointError(f"damaged checkpoint: {name} does not match its checksum", where=path, fix=fix)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders under `folder`, oldest first, whether valid or not."""
    found = folder.glob("step-*") if folder.is_dir() else ()
    return sorted((p for p in found if re.fullmatch(r"step-\d{8,}", p.name)), key=lambda p: int(p.name[5:]))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint under `folder` that verifies, or None; damaged ones are skipped with a warning."""
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            log.warning("skipped: %s", error)
        else:
            return path
    return None


def prune(folder: Path, keep_last: int, newest: Path) -> None:
    """Delete all but the last `keep_last` checkpoints up to `newest`, which has just been written.

    Those after `newest` are damaged, else the run would have gone on from them: counted, they would crowd out good
    ones. What interrupted writes and deletions have left behind goes too.
    """
    found = checkpoints(folder)
    end = found.index(newest) + 1
    for path in found[: max(end - keep_last, 0)] + found[end:]:
        path.rename(path.with_name(f".{path.name}.tmp"))  # out of sight at once: a kill cannot leave half a checkpoint
    for leftover in [*folder.glob(".step-*.tmp"), *folder.glob("step-*.old")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _read_record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return record


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with safetensors_errors():
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _untie(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Split a state dict into tensors with memory of their own and {name: the name it shares memory with}."""
    kept: dict[tuple[object, ...], str] = {}
    unique, tied = {}, {}
    for name, tensor in tensors.items():
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and memory in kept:
            tied[name] = kept[memory]
        else:
            kept[memory] = name
            unique[name] = tensor
    return unique, tied


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _load_optimizer(saved: Mapping[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put tensors back under the positions that PyTorch's optimiser state dict counts parameters by."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for full, tensor in saved.items():
        name, _, key = full.rpartition("/")
        by_name.setdefault(name, {})[key] = tensor
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {i: by_name[names[id(p)]] for i, p in enumerate(ordered) if names[id(p)] in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _differences(saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    found = [f"missing {name}" for name in wanted if name not in saved]
    found += [f"extra {name}" for name in saved if name not in wanted]
    for name, tensor in wanted.items():
        if name in saved and saved[name].shape != tensor.shape:
            found.append(f"{name} is {_size(saved[name].shape)} in the checkpoint, {_size(tensor.shape)} in the model")
        elif name in saved and saved[name].dtype != tensor.dtype:
            found.append(f"{name} is {saved[name].dtype} in the checkpoint, {tensor.dtype} in the model")
    return found


def _tie_differences(saved: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Names that share memory on one side only: filling them would let one tensor silently win."""
    found = [f"{name} is tied to {other} in the model only" for name, other in wanted.items() if name not in saved]
    return found + [
        f"{name} is tied to {kept} in the checkpoint only" for name, kept in saved.items() if name not in wanted
    ]


def _optimizer_differences(
    saved: Mapping[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[str]:
    handled = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    known = {name for name, parameter in model.named_parameters() if id(parameter) in handled}
    return [f"optimizer state of unknown {name}" for name in sorted({n.rpartition("/")[0] for n in saved} - known)]


def _size(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
