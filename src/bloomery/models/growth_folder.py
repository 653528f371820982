"""Growing a Hugging Face folder without loading it: tensors are copied under new layer numbers, file by file.

With alpha 1 the result is byte for byte what a passthrough merge of the same slices writes. A full disk or a kill
leaves nothing behind.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bloomery.core.errors import CheckpointError, ConfigError
from bloomery.core.files import atomic_folder, read_json
from bloomery.core.progress import Progress
from bloomery.core.weight_files import COMPANIONS, OURS, SHARD_BYTES, write_weights
from bloomery.models.decoder import Decoder
from bloomery.models.growth import GrowthPlan, branch_ends
from bloomery.models.keys import Keys
from bloomery.models.pretrained import _read_config, _Stored, _write_json

RECORD = "growth.json"  # in a grown folder: the plan it was grown by


def grow_pretrained(
    source: Path | str,
    target: Path | str,
    plan: GrowthPlan,
    shard_bytes: int = SHARD_BYTES,
    notes: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> int:
    """Grow the folder `source` into the folder `target`, which appears whole or not at all; parameters written.

    Names and shapes are checked as in `load_pretrained`, then one output file's worth of tensors is in memory at a
    time. `config.json` keeps every field but the number of layers (and lists with one entry per layer, whose entries
    follow their layers); the tokenizer travels; optimiser state does not. `growth.json` records the plan and `notes`.
    """
    source, target = Path(source), Path(target)
    if target.exists() and target.samefile(source):
        raise ConfigError("is the base itself", where=target, fix="name a new folder")
    family, config = _read_config(source)
    plan.require_fit(config)
    keys, stored = family.KEYS, _Stored(source, family.KEYS)
    stored.require_size(config)
    wanted = replace(config, n_layers=plan.n_layers)
    with torch.device("meta"):
        base, grown = Decoder(config), Decoder(wanted)
    stored.compare(keys.tensors(base), tied=config.tie_embeddings)
    stored.check_tied(None, config)
    places = keys.tensors(grown)
    origins = _origins(places, keys, plan)
    if config.tie_embeddings and keys.head_weight in stored.shapes:  # some exporters store a tied head as well
        origins[keys.head_weight] = keys.head_weight
    scaled = _scaled_names(places, grown, plan)
    sizes = {name: _nbytes(stored, old) for name, old in origins.items()}
    fields = grown_config(read_json(source / "config.json"), plan, source / "config.json")

    def read(name: str) -> Tensor:
        progress.advance(sizes[name] / 1e6)
        tensor = stored.tensor(origins[name])
        if name in scaled:
            return tensor * plan.alpha
        return tensor if name == origins[name] else tensor.clone()  # a layer and its copy come from the same pages

    with (
        Progress("grow", sum(sizes.values()) / 1e6, "MB", quiet=quiet) as progress,
        atomic_folder(target, (*OURS, RECORD)) as folder,
    ):
        _write_json(folder / "config.json", fields)
        if _read_config(folder)[1] != wanted:
            raise CheckpointError("a field besides the depth depends on it", where=source / "config.json")
        _write_json(folder / RECORD, plan.to_dict() | dict(notes or {}))
        for file in COMPANIONS:
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
        write_weights(folder, sizes, read, shard_bytes)
    return grown.num_parameters()


def grown_config(fields: Mapping[str, Any], plan: GrowthPlan, where: Path) -> dict[str, Any]:
    """The `config.json` of the grown model: everything as it was, but for the depth and lists that speak of layers."""
    if "decoder" in fields:  # our own format
        return {**fields, "decoder": fields["decoder"] | {"n_layers": plan.n_layers}}
    changed: dict[str, Any] = {"num_hidden_layers": plan.n_layers}
    for name, value in fields.items():
        if "layer" not in name or not isinstance(value, list) or not value:
            continue
        if len(value) != plan.base_layers:
            raise CheckpointError(
                f"{name} has {len(value)} entries for {plan.base_layers} layers, so it is unclear what layers it means",
                where=where,
                fix="one entry per layer, or remove the field",
            )
        changed[name] = [value[i] for i in plan.sources]
    return {**fields, **changed}


def _origins(places: Mapping[str, Tensor], keys: Keys, plan: GrowthPlan) -> dict[str, str]:
    """Name in the grown folder → name in the base, in the order in which they are written."""
    before, after = keys.layer.split("{}")
    layer = re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")
    origins = {}
    for name in places:
        found = layer.match(name)
        prefix = keys.layer.format(plan.sources[int(found[1])]) if found else ""
        origins[name] = prefix + name[found.end() if found else 0 :]
    return origins


def _scaled_names(places: Mapping[str, Tensor], grown: Decoder, plan: GrowthPlan) -> set[str]:
    """The published names whose places in memory are the branch ends of copies."""
    if plan.alpha == 1:
        return set()
    ends = {p.untyped_storage()._cdata for i in plan.copies for p in branch_ends(grown.blocks[i])}
    return {name for name, place in places.items() if place.untyped_storage()._cdata in ends}


def _nbytes(stored: _Stored, name: str) -> int:
    return torch.Size(stored.shapes[name]).numel() * stored.dtype(name).itemsize
