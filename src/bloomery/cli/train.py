"""`bloomery train`: a decoder, packed data and a schedule from one YAML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json
from bloomery.core.config import decode, load_yaml, save_yaml
from bloomery.core.devices import pick_device
from bloomery.core.errors import ConfigError, DataError
from bloomery.core.seeds import generator
from bloomery.corpus import tokenizer
from bloomery.corpus.mixture import Mixture
from bloomery.corpus.packing import PackedTokens
from bloomery.lab.tracking import Metrics
from bloomery.models import Decoder, DecoderConfig, load_pretrained, preset, save_pretrained
from bloomery.train import Phase, TrainConfig, TrainResult, held_out, next_token, train
from bloomery.train.dclm_scales import scale

ABOUT = """Pretrain a decoder from a YAML file. The same command continues a run that was stopped.

Example:
  bloomery train pretrain.yaml --out runs/mine --train.seed 1
  torchrun --nproc-per-node 8 -m bloomery train pretrain.yaml

pretrain.yaml:
  model: llama-tiny                # a preset, or {preset: llama-tiny, n_layers: 6}, or a model folder
  data: packed/train               # a folder of packed tokens; {web: packed/web, code: packed/code} for several
  weights: {web: 0.7, code: 0.3}   # only with several
  validation: packed/validation    # optional
  tokenizer: tokenizer             # optional: exported with the model
  out: runs/mine
  train:
    seq_len: 512
    batch_size: 32
    phases: [{tokens: 10000000, lr: 0.001, warmup_tokens: 200000}]

`scale: dclm-400m-1x` (…, dclm-7b-2x) in place of model and train is one of DCLM's fixed scales; fields of `model` and
`train` that are given win over it.
"""


@dataclass(kw_only=True)
class TrainJob:
    """What a training file says."""

    model: str | dict[str, Any] = "llama-tiny"
    """Preset name, decoder fields, or a model folder to continue from."""
    data: str | dict[str, str]
    """Packed folder, or several by name."""
    out: Path = Path("runs/train")
    """Folder for checkpoints, metrics.jsonl and the exported model."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source when `data` names several."""
    validation: Path | None = None
    """Packed folder for the held-out loss."""
    tokenizer: Path | None = None
    """Tokenizer folder: checked against the data and exported with the model."""
    device: str = "auto"
    """cpu, cuda or auto; under torchrun each rank takes its own GPU."""
    train: TrainConfig
    """The schedule."""

    def __post_init__(self) -> None:
        if isinstance(self.data, dict) and set(self.data) != set(self.weights):
            raise ConfigError("data and weights name different sources", where="weights", fix="one weight per source")
        if isinstance(self.data, str) and self.weights:
            raise ConfigError("weights are given, but data is one folder", where="weights", fix="leave weights away")

    def sources(self) -> dict[str, str]:
        """Packed folders by name."""
        return self.data if isinstance(self.data, dict) else {"data": self.data}


@dataclass
class Options:
    """The training file, and what the command line changes of it."""

    config: Annotated[Path, Positional]
    """YAML file."""
    out: Path = Path("runs/train")
    """Folder for checkpoints, metrics and the exported model."""
    device: str = "auto"
    """cpu, cuda or auto."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(phases=[Phase(tokens=10_000_000, lr=1e-3)]))


def main(argv: Sequence[str]) -> int:
    """Train from a YAML file."""
    file = next((Path(argument) for argument in argv[:1] if not argument.startswith("-")), None)
    default = None
    if file is not None:
        job = decode(TrainJob, _scaled(load_yaml(file)), where=str(file))
        default = Options(file, job.out, job.device, train=job.train)
    if file is None and not {"-h", "--help"} & set(argv):
        raise ConfigError("the training file comes first", fix="bloomery train CONFIG.yaml …")
    options = parse(Options, argv, prog="bloomery train", default=default, about=ABOUT)
    job = replace(job, out=options.out, device=options.device, train=options.train)
    result = run(job, quiet=options.quiet)
    if int(os.environ.get("RANK", "0")) == 0:
        summary: dict[str, Any] = {
            "steps": result.steps,
            "tokens": result.tokens,
            "loss": result.loss,
            **result.evaluation,
        }
        summary["model"] = str(job.out / "model")
        if options.json:
            print_json(summary)
        else:
            print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    return 0


def _scaled(values: dict[str, Any]) -> dict[str, Any]:
    """The file's values on top of those of the scale that it names."""
    name = values.pop("scale", None)
    if name is None:
        return values
    fixed = scale(str(name)).job()
    for key in fixed:
        if not isinstance(values.get(key, {}), dict):
            raise ConfigError(f"{key} is {values[key]!r} beside scale {name}", fix="give a mapping of what differs")
        fixed[key] |= values.pop(key, {})
    return fixed | values


def run(job: TrainJob, quiet: bool = False) -> TrainResult:
    """Train, evaluate, and export to `out/model`; continues from the newest checkpoint under `out`."""
    first = int(os.environ.get("RANK", "0")) == 0
    words = tokenizer.load(job.tokenizer) if job.tokenizer else None
    packs = {name: PackedTokens(folder, words) for name, folder in job.sources().items()}
    validation = PackedTokens(job.validation, words) if job.validation else None
    every = [*packs.values(), *([validation] if validation else [])]
    _require_one_tokenizer(every)
    vocab_size = max(pack.vocab_size for pack in every)
    model = build_model(job.model, job.train.seed, vocab_size)
    if model.config.vocab_size < vocab_size:
        raise ConfigError(
            f"the model knows {model.config.vocab_size} tokens, the data has {vocab_size}",
            where="model.vocab_size" if isinstance(job.model, dict) else job.model,
            fix="leave vocab_size away" if isinstance(job.model, dict) else "pack the data with the model's tokenizer",
        )
    model.to(_device(job.device))
    metrics = None
    if first:
        job.out.mkdir(parents=True, exist_ok=True)
        metrics = Metrics(job.out / "metrics.jsonl")
    logged: list[int] = []

    def evaluate(model: Any, step: int) -> dict[str, float]:
        assert validation is not None
        return held_out(model, validation, seq_len=job.train.seq_len, precision=job.train.precision).values()

    def log(step: int, **values: float) -> None:
        assert metrics is not None  # only the first rank logs
        if not logged:
            save_yaml(job.out / "config.yaml", job)  # not before: a folder of another run would have been refused
            metrics.keep(lambda line: line["step"] < step)  # a killed attempt may have come further; this repeats it
            logged.append(step)
        metrics.append(step, None, values)

    try:
        result = train(
            model,
            next_token,
            Mixture(packs, job.weights) if job.weights else packs["data"],
            job.train,
            out=job.out,
            evaluate=evaluate if validation else None,
            log=log,
            quiet=quiet,
        )
    finally:
        if metrics is not None:
            metrics.close()
    if first:
        save_pretrained(model, job.out / "model", words)
    return result


def build_model(spec: str | dict[str, Any], seed: int = 0, vocab_size: int | None = None) -> Decoder:
    """A decoder from a preset's name, from fields (with or without `preset`), or from a model folder.

    `vocab_size` counts where the spec does not name one itself; a folder keeps its own.
    """
    if isinstance(spec, str) and (Path(spec) / "config.json").exists():
        return load_pretrained(spec, dtype="float32")
    fields: dict[str, Any] = {"preset": spec} if isinstance(spec, str) else dict(spec)
    name = fields.pop("preset", None)
    if vocab_size is not None:
        fields.setdefault("vocab_size", vocab_size)
    config = DecoderConfig.from_dict(fields, where="model") if name is None else preset(name, **fields)
    return Decoder(config, generator(seed, "init"))


def _require_one_tokenizer(packs: Sequence[PackedTokens]) -> None:
    """The same number must mean the same token in every pack, or the losses mean nothing."""
    first, *others = packs
    for other in others:
        if other.tokenizer_digest != first.tokenizer_digest:
            raise DataError(
                f"this pack was made with another tokenizer than {first.folder}",
                where=other.folder,
                fix="pack both with one tokenizer",
            )


def _device(name: str) -> Any:
    """The wanted device; under torchrun the GPU of this rank."""
    device = pick_device(name)
    rank = os.environ.get("LOCAL_RANK")
    return pick_device(f"cuda:{rank}") if device.type == "cuda" and device.index is None and rank else device
