"""`bloomery grow`: a model folder made deeper by running some of its layers twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_table
from bloomery.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from bloomery.models import Decoder, DecoderConfig
    from bloomery.models.growth import GrowthPlan, LayerSimilarity

RISE = 0.05  # share by which the loss may rise before the user is warned


@dataclass
class Options:
    """Make a model folder deeper: choose layers that do little, run them twice, write a folder to train on from.

    Without --window or --layout solar the layers are chosen on a text (--report). Optimiser state is not copied.

    Example:
      bloomery grow Yi-6B Yi-grown --report sample.txt --layers 48
    """

    source: Annotated[Path, Positional]
    """Model folder to grow."""
    target: Annotated[Path, Positional]
    """Folder to write; must not exist."""
    layers: int = 0
    """Depth of the grown model; 0: one and a half times the base's."""
    report: Path | None = None
    """Text file to measure the layers' similarity and the loss on."""
    choose: Literal["window", "topk", "loss"] = "window"
    """By the window with the highest mean cosine, the best layers anywhere, or the window with the lowest loss."""
    window: tuple[int, int] | None = None
    """Start and stop (exclusive) of the layers to run twice, instead of choosing them."""
    layout: Literal["block", "interleave", "solar"] = "block"
    """The window twice as a whole, each layer followed by its copy, or SOLAR's two overlapping parts."""
    alpha: float = 1.0
    """Scale of what the copies add: 1 is a plain copy, 0 keeps the base's function exactly."""
    tokens: int = 32_768
    """Tokens of the text to use."""
    seq_len: int = 1024
    """Tokens in a sequence of the text."""
    shard_gb: float = 5.0
    """Largest weight file, in gigabytes (10^9 bytes)."""
    device: str = "auto"
    """cpu, cuda or auto; for the report only."""
    dry_run: bool = False
    """Print report and plan, write nothing."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Report, plan, write."""
    options = parse(Options, argv, prog="bloomery grow")
    from bloomery.models import load_config
    from bloomery.models.growth_folder import grow_pretrained

    if options.target.exists():
        raise ConfigError("exists already", where=options.target, fix="name a new folder")
    if not options.shard_gb > 0:
        raise ConfigError(f"shard_gb is {options.shard_gb}", fix="it must be above 0")
    config = load_config(options.source)
    count = _copies_wanted(options, config)
    measured = Measured(options, config) if options.report else None
    plan = _plan(options, count, measured, config)
    plan.require_fit(config)
    found = measured.values(plan) if measured else {}
    if not options.json:
        _print(plan, measured.similarity if measured else None, found)
    parameters = None
    if not options.dry_run:
        size = int(options.shard_gb * 1e9)
        parameters = grow_pretrained(options.source, options.target, plan, size, notes=found, quiet=options.quiet)
    if options.json:
        written = None if options.dry_run else str(options.target)
        print_json({"target": written, "parameters": parameters, **plan.to_dict(), **found})
    elif parameters is not None:
        print(f"{options.target}: {parameters:,} parameters, {plan.n_layers} layers")
    if found and found["loss_grown"] > (1 + RISE) * found["loss_base"]:
        print(
            f"bloomery: the loss rises from {found['loss_base']:.3f} to {found['loss_grown']:.3f} nats per token: "
            "train the grown model before using it, or grow with --alpha 0",
            file=sys.stderr,
        )
    return 0


class Measured:
    """The base on the text of the report: similarity of its layers, and the loss of any growth of it."""

    def __init__(self, options: Options, config: DecoderConfig) -> None:
        from bloomery.core.devices import pick_device
        from bloomery.models import load_pretrained
        from bloomery.models.growth import layer_similarity

        self.batches = list(_sequences(options, config))
        self.model = load_pretrained(options.source, device=pick_device(options.device))
        self.similarity = layer_similarity(self.model, ({"tokens": batch} for batch in self.batches))

    def loss(self, model: Decoder) -> float:
        """Nats per token."""
        import torch

        from bloomery.train import next_token

        nats, targets = 0.0, 0
        device = model.embed.weight.device
        model.eval()
        with torch.no_grad():
            for batch in self.batches:
                loss, metrics = next_token(model, {"tokens": batch.to(device)})
                nats, targets = nats + float(loss), targets + int(metrics["weight"])
        return nats / targets

    def values(self, plan: GrowthPlan) -> dict[str, Any]:
        """What the record and the JSON say."""
        from bloomery.models.growth import preview

        return {
            "cosine": list(self.similarity.cosine),
            "cosine_without_first": list(self.similarity.without_first),
            "loss_base": self.loss(self.model),
            "loss_grown": self.loss(preview(self.model, plan)),
        }


def _copies_wanted(options: Options, config: DecoderConfig) -> int:
    """How many layers to add."""
    if options.window is not None:
        count = options.window[1] - options.window[0]
        if options.layers not in (0, config.n_layers + count):
            raise ConfigError(
                f"--window adds {count} layers to {config.n_layers}, --layers asks for {options.layers}",
                fix="give one of the two",
            )
        return count
    depth = options.layers or config.n_layers * 3 // 2
    if depth <= config.n_layers:
        raise ConfigError(f"layers is {depth}, the base has {config.n_layers} already", fix="ask for more than it has")
    return depth - config.n_layers


def _plan(options: Options, count: int, measured: Measured | None, config: DecoderConfig) -> GrowthPlan:
    """The plan that the options ask for."""
    from bloomery.models.growth import GrowthPlan, best_layers, best_window, window_losses

    depth, alpha = config.n_layers, options.alpha
    if options.layout == "solar":
        if options.window is not None or options.choose != "window":
            raise ConfigError("solar leaves nothing to choose", fix="drop --window and --choose")
        return GrowthPlan.solar(depth, depth + count, alpha)
    if options.window is not None:
        chosen = options.window
    elif measured is None:
        raise ConfigError("nothing to choose the layers by", fix="give --report TEXTFILE or --window START STOP")
    elif options.choose == "topk":
        if options.layout == "block":
            raise ConfigError("topk takes layers from anywhere, a block is a window", fix="use --layout interleave")
        return GrowthPlan.interleave(depth, best_layers(measured.similarity.without_first, count), alpha)
    elif options.choose == "loss":
        losses = window_losses(measured.model, count, measured.loss, options.layout, alpha)
        return min(losses, key=lambda plan: losses[plan])
    else:
        chosen = best_window(measured.similarity.without_first, count)
    block = GrowthPlan.block(depth, *chosen, alpha)  # says what is wrong with a window, for either layout
    return block if options.layout == "block" else GrowthPlan.interleave(depth, range(*chosen), alpha)


def _sequences(options: Options, config: DecoderConfig) -> Iterator[Tensor]:
    """The text of the report as batches of token sequences (1, seq) int64, the last one shorter."""
    import torch

    from bloomery.corpus import tokenizer

    assert options.report is not None
    if not options.report.is_file():
        raise DataError("no such text file", where=options.report)
    for name in ("tokens", "seq_len"):
        if getattr(options, name) < 2:
            raise ConfigError(f"{name} is {getattr(options, name)}", fix="2 or more")
    text = options.report.read_text("utf-8", errors="replace")
    (ids,) = tokenizer.encode_batch(tokenizer.load(options.source), [text])
    length = min(options.seq_len, config.max_positions)
    pieces = torch.from_numpy(ids[: options.tokens]).split(length)
    sequences = [piece[None] for piece in pieces if len(piece) > 1]
    if not sequences:
        raise DataError(f"holds {len(ids)} tokens", where=options.report, fix="a report needs a text of thousands")
    yield from sequences


def _print(plan: GrowthPlan, similarity: LayerSimilarity | None, found: dict[str, Any]) -> None:
    """The report and the index map, for people."""
    if similarity is not None:
        times = [plan.sources.count(layer) for layer in range(plan.base_layers)]
        rows = [
            (layer, f"{cosine:.4f}", f"{without:.4f}", "twice" if runs > 1 else "once")
            for layer, (cosine, without, runs) in enumerate(
                zip(similarity.cosine, similarity.without_first, times, strict=True)
            )
        ]
        columns = ("layer", "cosine", "without first token", "runs")
        print_table(columns, rows, "layer report")
        print()
    kind = f"copy x {plan.alpha:g}" if plan.alpha != 1 else "copy"
    stretches = [(_span(new), _span(old), kind if copied else "") for new, old, copied in plan.runs()]
    print_table(
        ("grown layers", "base layers", ""), stretches, f"{plan.base_layers} -> {plan.n_layers} layers, {plan.layout}"
    )
    if found:
        rise = found["loss_grown"] / found["loss_base"] - 1
        print(f"\nnats per token: base {found['loss_base']:.4f}, grown {found['loss_grown']:.4f} ({rise:+.1%})")


def _span(layers: range) -> str:
    return f"{layers.start}" if len(layers) == 1 else f"{layers.start}-{layers.stop - 1}"
