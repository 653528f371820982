"""The doors in and out: Hugging Face folders (`config.json` + safetensors, whole or sharded) and presets by name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bloomery.core.devices import pick_dtype
from bloomery.core.errors import CheckpointError, ConfigError, DataError, nearest
from bloomery.core.files import atomic_folder, read_json
from bloomery.core.weight_files import COMPANIONS, OURS, SHARD_BYTES, weight_files, write_weights
from bloomery.models import deepseek_v2, grok1, ling, llama, mixtral, native, nemotron, qwen2, qwen3
from bloomery.models.config import DecoderConfig, MoEConfig
from bloomery.models.decoder import Decoder
from bloomery.models.hf_config import Fields
from bloomery.models.keys import Keys
from bloomery.nn import NTKScaling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
TRAINING = "bloomery_training"  # our field in config.json: what the format has no place for and only training uses
MOE_TRAINING: dict[str, Any] = {
    name: MoEConfig.__dataclass_fields__[name].default
    for name in ("capacity", "balance", "device_balance", "communication_balance", "z_loss", "balance_scope")
}
_LISTED = 5  # keys of one kind that an error message spells out
_DERIVED = re.compile(r"\.rotary_emb\.inv_freq$")  # stored by old exporters, computed from the configuration by us


class Family(Protocol):
    """What a family's module offers."""

    MODEL_TYPE: str
    PRESETS: dict[str, DecoderConfig]
    KEYS: Keys

    def read(self, fields: Fields) -> DecoderConfig: ...  # noqa: D102
    def write(self, config: DecoderConfig) -> dict[str, Any]: ...  # noqa: D102


# In this order a decoder to be saved is offered to them: the first that can express it takes it, the last one always.
FAMILIES: tuple[Family, ...] = (llama, qwen2, qwen3, mixtral, deepseek_v2, nemotron, grok1, ling, native)


def presets() -> list[str]:
    """The names `preset` knows."""
    return [name for family in FAMILIES for name in family.PRESETS]


def preset(name: str, **overrides: Any) -> DecoderConfig:
    """The configuration published under `name`, with some fields changed: `preset("llama-tiny", vocab_size=4096)`."""
    for family in FAMILIES:
        if name in family.PRESETS:
            return DecoderConfig.from_dict(family.PRESETS[name].to_dict() | overrides, where=f"preset {name}")
    raise ConfigError(f"unknown model preset {name!r}", fix=nearest(name, presets()))


def load_config(folder: Path | str) -> DecoderConfig:
    """Read `config.json`, in the spelling of transformers 4.x or 5.x."""
    return _read_config(Path(folder))[1]


def load_pretrained(
    path: Path | str, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Decoder:
    """The decoder stored in a Hugging Face folder, or in the original Grok-1 checkpoint (see `grok1_checkpoint`).

    `dtype` defaults to the one stored, `device` to the CPU. Weights are copied one tensor at a time into place, so
    memory stays at the model plus one tensor. Names and shapes are checked before anything is copied, and everything
    wrong with them is reported in one CheckpointError.
    """
    from bloomery.models.grok1_checkpoint import is_original, load_grok1

    folder = Path(path)
    if is_original(folder):
        return load_grok1(folder, dtype, device)
    family, config = _read_config(folder)
    _check_vocabulary(folder, config)
    keys, stored = family.KEYS, _Stored(folder, family.KEYS)
    stored.require_size(config)
    with torch.device("meta"):
        model = Decoder(config)
    stored.compare(keys.tensors(model), tied=config.tie_embeddings)
    model.to(stored.dtype(keys.embedding) if dtype is None else pick_dtype(dtype))
    model.to_empty(device=device or "cpu")
    for name, place in keys.tensors(model).items():
        place.copy_(stored.tensor(name))
    stored.check_tied(model.embed.weight, config)
    return model


def save_pretrained(
    model: Decoder, path: Path | str, tokenizer: Tokenizer | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a folder that transformers, vLLM and `load_pretrained` read. It appears whole or not at all.

    A decoder that no published format can express is written in our own (`model_type` "bloomery").
    Weights keep the model's dtype and go into files of at most `shard_bytes`. A `tokenizer` is stored beside them.
    """
    config = model.config
    family, written = _published_form(config)
    written |= {"torch_dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    if tokenizer is not None:
        _require_vocabulary(tokenizer, config, path)
    with atomic_folder(path, OURS) as folder:
        if tokenizer is not None:
            written |= _write_tokenizer(tokenizer, folder)
        _write_json(folder / "config.json", written)
        tensors = family.KEYS.tensors(model)
        write_weights(folder, {name: t.nbytes for name, t in tensors.items()}, tensors.__getitem__, shard_bytes)


def convert_pretrained(
    source: Path | str, target: Path | str, dtype: torch.dtype | str | None = None, shard_bytes: int = SHARD_BYTES
) -> int:
    """Rewrite a folder with its weights in another dtype (None: as they are) or in files of another size.

    Names, shapes and the tokenizer are checked as in `load_pretrained`, but only one file's worth of tensors is in
    memory at a time. `config.json` keeps every field but the dtype, the other files (`COMPANIONS`) travel unchanged.
    Returns the number of parameters.
    """
    from bloomery.models.grok1_checkpoint import convert_grok1, is_original

    source = Path(source)
    if is_original(source):
        return convert_grok1(source, target, dtype, shard_bytes)
    family, config = _read_config(source)
    _check_vocabulary(source, config)
    keys, stored = family.KEYS, _Stored(source, family.KEYS)
    stored.require_size(config)
    with torch.device("meta"):
        places = keys.tensors(Decoder(config))
    stored.compare(places, tied=config.tie_embeddings)
    stored.check_tied(None, config)
    wanted = {name: stored.dtype(name) if dtype is None else pick_dtype(dtype) for name in places}
    sizes = {name: place.numel() * wanted[name].itemsize for name, place in places.items()}
    fields = read_json(source / "config.json")
    key = "dtype" if "dtype" in fields else "torch_dtype"  # transformers 5 and 4
    with atomic_folder(target, OURS) as folder:
        _write_json(folder / "config.json", fields | {key: str(wanted[keys.embedding]).removeprefix("torch.")})
        for file in COMPANIONS:
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
        write_weights(folder, sizes, lambda name: stored.tensor(name).to(wanted[name]), shard_bytes)
    return sum(place.numel() for place in places.values())


class _Stored:
    """The tensors of a folder's safetensors files: names, shapes and types at once, contents one at a time."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder, self.keys = folder, keys
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Any, str]] = {}
        self._types: dict[str, str] = {}
        for path in weight_files(folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"not a whole safetensors file: {error}", where=path) from error
            for spelled in file.keys():  # noqa: SIM118 (not a mapping)
                header, name = file.get_slice(spelled), keys.current(spelled)
                if name in self.shapes:
                    raise CheckpointError(f"{name} is stored twice, once as {spelled}", where=path, fix="keep one")
                self.shapes[name], self._types[name] = tuple(header.get_shape()), header.get_dtype()
                self._places[name] = (file, spelled)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        file, spelled = self._places[name]
        tensor: Tensor = file.get_tensor(spelled)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """The dtype a tensor is stored in (`compare` has seen that it is one we know)."""
        return _TYPES[self._types[name]]

    def require_size(self, config: DecoderConfig) -> None:
        """Refuse a number of layers or experts that the files cannot fill, before building it takes time and memory."""
        experts = 0 if config.moe is None else config.moe.n_experts
        if max(config.n_layers, config.moe_layers * experts) > len(self.shapes):
            with_experts = f" of {experts} experts" if experts else ""
            raise CheckpointError(
                f"config.json speaks of {config.n_layers} layers{with_experts}, the files hold {len(self.shapes)} "
                "tensors",
                where=self.folder,
                fix="is this the right config.json, and are all shards there?",
            )

    def compare(self, places: dict[str, Tensor], tied: bool) -> None:
        """Raise one error with everything that is missing, unexpected, misshapen or not in a floating-point format."""
        missing = sorted(places.keys() - self.shapes.keys())
        extra = {name for name in self.shapes.keys() - places.keys() if not _DERIVED.search(name)}
        unexpected = sorted(extra - {self.keys.head_weight} if tied else extra)
        shapes = [
            f"{name} is {list(self.shapes[name])} instead of {list(place.shape)}"
            for name, place in places.items()
            if name in self.shapes and self.shapes[name] != tuple(place.shape)
        ]
        types = [f"{name} is {t}" for name, t in self._types.items() if name in places and t not in _TYPES]
        kinds = {"missing": missing, "unexpected": unexpected, "of the wrong shape": shapes, "of another type": types}
        wrong = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]
        if wrong:
            raise CheckpointError(
                "the weights do not fit config.json: " + "; ".join(wrong),
                where=self.folder,
                fix="is this the right config.json, and are all shards there?",
            )

    def check_tied(self, embedding: Tensor | None, config: DecoderConfig) -> None:
        """Raise if a stored head is not the embedding it is said to be (None: the stored embedding)."""
        if not config.tie_embeddings or self.keys.head_weight not in self.shapes:
            return
        head = self.tensor(self.keys.head_weight)
        embedding = self.tensor(self.keys.embedding) if embedding is None else embedding
        if head.shape != embedding.shape or not torch.equal(head.to(embedding), embedding):
            raise CheckpointError(
                f"config.json ties the head to the embedding, but {self.keys.head_weight} differs from it",
                where=self.folder,
                fix="set tie_word_embeddings to false in config.json",
            )


def _published_form(config: DecoderConfig) -> tuple[Family, dict[str, Any]]:
    """The first family whose `config.json` brings this decoder back, and that file's fields.

    What only training uses and the family has no field for goes into one of ours, which others ignore.
    """
    for family in FAMILIES:
        written = family.write(config)
        try:
            read = family.read(Fields(written, family.MODEL_TYPE))
        except ConfigError:
            continue
        if _function(read) == _function(config):
            kept = _training_only(config)
            return family, written if kept == _training_only(read) else written | {TRAINING: kept}
    raise AssertionError("our own format takes every decoder")


def _function(config: DecoderConfig) -> DecoderConfig:
    """The configuration with everything at its default that does not change what the decoder computes."""
    c, moe = config, config.moe
    if moe is not None:
        moe = replace(moe, **{name: MOE_TRAINING[name] for name in MOE_TRAINING}, warmup=0)
    if isinstance(c.rope_scaling, NTKScaling):  # is nothing but a larger base
        theta = c.rope_theta * c.rope_scaling.factor ** (c.rotary_dim / (c.rotary_dim - 2))
        c = replace(c, rope_theta=theta, rope_scaling=None)
    return replace(
        c,
        moe=moe,
        ffn_dim=moe.expert_dim if moe is not None and moe.first_dense == 0 else c.ffn_dim,
        rope_dim=None if c.rope_dim == c.head_dim else c.rope_dim,
        init="normal",
        z_loss=0.0,
    )


def _training_only(config: DecoderConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"init": config.init, "z_loss": config.z_loss}
    if config.moe is not None:
        values["moe"] = {name: getattr(config.moe, name) for name in MOE_TRAINING}
    return values


def _with_training(config: DecoderConfig, kept: Any, where: object) -> DecoderConfig:
    """The configuration with the values that `_training_only` set aside."""
    if not isinstance(kept, dict):
        raise ConfigError(f"{TRAINING}={kept!r} is not a mapping", where=where)
    values = config.to_dict()
    experts = kept.get("moe")
    if isinstance(experts, dict) and values["moe"] is not None:
        kept = kept | {"moe": values["moe"] | experts}
    return DecoderConfig.from_dict(values | kept, where=f"{where}: {TRAINING}")


def _read_config(folder: Path) -> tuple[Family, DecoderConfig]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError("not a Hugging Face model folder: there is no config.json", where=folder)
    try:
        fields = Fields(read_json(path), path)
    except DataError as error:
        raise CheckpointError(error.what, where=path) from error
    name = fields.need("model_type", str)
    for family in FAMILIES:
        if name == family.MODEL_TYPE:
            try:
                config = family.read(fields)
            except ConfigError as error:
                raise ConfigError(error.what, where=error.where or path, fix=error.fix) from error
            fields.finish()
            if TRAINING in fields.data:
                config = _with_training(config, fields.data[TRAINING], path)
            return family, config
    known = [family.MODEL_TYPE for family in FAMILIES]
    hint = nearest(name, known)
    raise ConfigError(
        f"unknown model_type {name!r}", where=path, fix=f"known: {', '.join(known)}" + ("; " + hint) * ("did" in hint)
    )


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """Store the tokenizer and what generation must know of it; return the special ids that belong into config.json."""
    from bloomery.corpus import tokenizer as text

    text.write(tokenizer, folder)
    names = {"bos_token_id": text.BOS, "eos_token_id": text.EOS, "pad_token_id": text.PAD}
    ids = {key: tokenizer.token_to_id(token) for key, token in names.items()}
    known = {key: number for key, number in ids.items() if number is not None}
    turn_end = tokenizer.token_to_id(text.END)
    if turn_end is not None and "eos_token_id" in known:  # a turn's end ends generation too
        _write_json(folder / "generation_config.json", known | {"eos_token_id": [known["eos_token_id"], turn_end]})
    return known


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _check_vocabulary(folder: Path, config: DecoderConfig) -> None:
    """Raise if the tokenizer beside the weights has tokens the embedding has no row for."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"not a tokenizer: {error}", where=path) from error
    _require_vocabulary(tokenizer, config, folder)


def _require_vocabulary(tokenizer: Tokenizer, config: DecoderConfig, where: object) -> None:
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has token ids up to {largest}, the embedding only {config.vocab_size} rows",
            where=where,
            fix="the tokenizer belongs to another model, or vocab_size is too small",
        )


def _listed(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
